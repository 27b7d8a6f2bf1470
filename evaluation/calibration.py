"""The probability that two images show one identity, for a distance: fitted on half of the identities, and checked on
the other half.

Both fits see histograms of pairs, and weight pairs of one identity and pairs of two so that the first have the share
``prior``. Bayes' rule makes that share part of every probability: among pairs of which one in a hundred is of one
identity, far fewer of those at a given distance are than among pairs of which every other one is. The default is the
share in the evaluation: of the results of a search in such a gallery that have a probability of 0.9, nine in ten are
right.

- "isotonic": a falling step function by pooling adjacent violators (Ayer et al. 1955; Zadrozny and Elkan 2002).
- "platt": 1 / (1 + exp(slope * distance + offset)) with slope > 0 (Platt 1999), fitted by Newton's method with
  backtracking, to Platt's targets for few samples (Lin, Lin and Weng 2007).
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.notes import no_valid_query
from evaluation.retrieval import FloatArray, RankingOptions, RetrievalSet
from evaluation.verification import PairHistograms, pair_histograms
from utils.errors import MissingPathError, NoValidQueryError, UnknownNameError, UserError
from utils.files import write_text
from utils.labels import IntArray

METHODS = ("isotonic", "platt")
CALIBRATION_FILE = "calibration.json"
_RELIABILITY_BINS = 10
_SHOWN = (0.5, 0.9, 0.99)
_NEWTON_STEPS = 100
_CLOSE = 1e-10  # gradient at which Newton's method ends; all pairs together weigh 1

_NO_BETTER = (
    "the probability does not fall with the distance: near pairs are not more often of one identity than far ones, so "
    "these embeddings do not tell identities apart."
)


@dataclass(frozen=True)
class Calibration:
    """A probability for each distance, which never rises with the distance.

    Attributes:
        method: "isotonic" or "platt".
        parameters: of "isotonic" the lists ``distances`` (ends of the steps, rising) and ``probabilities`` (falling);
            the last probability also holds beyond. Of "platt" the numbers ``slope`` and ``offset``.
        metric: of the distances, "euclidean" (squared) or "cosine".
        normalize: whether embeddings were scaled to unit length first.
        prior: the share of pairs of one identity that the probabilities are for.
        network: what is known of the network behind the embeddings, as ``embedder`` in gallery.json; {} for nothing.
        reliability: what the identities that had no part in the fit say of it, see :func:`calibrate`.

    Raises:
        UserError: the parameters are not those of the method, or the probability would rise with the distance.

    Example:
        >>> steps = {"distances": [0.5, 1.0], "probabilities": [0.9, 0.2]}
        >>> calibration = Calibration("isotonic", steps, "cosine", False, 0.5)
        >>> calibration.probability([0.5, 0.6, 3]).tolist()
        [0.9, 0.2, 0.2]
        >>> calibration.distance(0.7)
        0.5
    """

    method: str
    parameters: Mapping[str, Any]
    metric: str
    normalize: bool
    prior: float
    network: Mapping[str, Any] = field(default_factory=dict)
    reliability: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UnknownNameError(f"method is {self.method!r}; valid names: {', '.join(METHODS)}.")
        kinds = {"parameters": Mapping, "metric": str, "normalize": bool, "network": Mapping, "reliability": Mapping}
        wrong = [name for name, kind in kinds.items() if not isinstance(getattr(self, name), kind)]
        wrong += [] if _is_number(self.prior) and 0 < self.prior < 1 else ["prior"]
        if wrong:
            raise UserError(f"the calibration is damaged: {wrong[0]} is {repr(getattr(self, wrong[0]))[:80]}.")
        if self.method == "platt":
            slope, offset = self._line()
            good = slope > 0 and math.isfinite(slope) and math.isfinite(offset)
        else:
            ends, values = self._steps()
            good = len(ends) == len(values) > 0 and bool(np.isfinite(ends).all() and (np.diff(ends) > 0).all())
            good = good and bool(((values >= 0) & (values <= 1)).all() and (np.diff(values) <= 0).all())
        if not good:
            raise UserError(
                "a calibration's probability must fall with the distance, which these parameters do not give."
            )

    def _line(self) -> list[float]:
        return self._numbers("slope", "offset")

    def _steps(self) -> list[FloatArray]:
        return [np.asarray(numbers, np.float64) for numbers in self._numbers("distances", "probabilities")]

    def _numbers(self, *names: str) -> list[Any]:
        """These parameters: lists of numbers for the steps, numbers as floats for the line."""
        values = [self.parameters[name] for name in names]
        for name, value in zip(names, values, strict=True):
            parts = value if self.method == "isotonic" else [value]
            if not (isinstance(parts, list) and all(map(_is_number, parts))):
                raise UserError(f"the calibration is damaged: {name} is {repr(value)[:80]}.")
        return values if self.method == "isotonic" else [float(value) for value in values]

    def probability(self, distance: Any) -> FloatArray:
        """The probability that a pair at a distance shows one identity.

        Args:
            distance: numbers of any shape, in the metric of the calibration.

        Returns:
            Probabilities of the same shape; NaN where the distance is NaN.
        """
        distance = np.asarray(distance, dtype=np.float64)
        if self.method == "platt":
            with np.errstate(over="ignore"):  # far beyond: exp is infinite, and the probability 0
                slope, offset = self._line()
                return 1 / (1 + np.exp(slope * distance + offset))
        ends, values = self._steps()
        return np.where(np.isnan(distance), np.nan, values[ends.searchsorted(distance).clip(max=len(ends) - 1)])

    def distance(self, probability: float) -> float:
        """The largest distance that has at least a probability, as a float32 number; infinity if every distance has.

        Raises:
            UserError: the probability is not between 0 and 1, or no distance has it.
        """
        if not 0 < probability < 1:
            raise UserError(f"the probability is {probability}; expected a number between 0 and 1, without these.")
        highest = float(self.probability(0.0))
        if highest < probability:
            raise UserError(
                f"no distance has a probability of {probability:g}: the calibration's highest is {highest:.3g}. Give a "
                "lower one."
            )
        if self.method == "platt":
            slope, offset = self._line()
            limit = (math.log(1 / probability - 1) - offset) / slope
        else:
            ends, values = self._steps()
            reached = int((values >= probability).sum())
            limit = math.inf if reached == len(ends) else float(ends[reached - 1])
        rounded = np.float32(limit)  # distances are float32, and would be compared with a limit that is rounded up
        return float(rounded if float(rounded) <= limit else np.nextafter(rounded, np.float32(-np.inf)))

    def check_network(self, embedder: Mapping[str, Any], file: str | Path) -> None:
        """Raise a UserError if the calibration is known to be of another network, or of other images of it.

        Args:
            embedder: the network in use, as ``network`` describes it. A difference in precision, which moves distances
                little, is none.
            file: where the calibration comes from, for the message.
        """
        for key, value in embedder.items():
            if key != "dtype" and self.network.get(key, value) != value:
                was, now = (f"{str(v)[:12]}..." if key == "weights" else v for v in (self.network[key], value))
                raise UserError(
                    f"the calibration in {file} is of embeddings with {key} {was}, but here it is {now}: make one of "
                    "this network's embeddings (python -m evaluation --calibrate isotonic --output DIR)."
                )

    def to_dict(self) -> dict[str, Any]:
        """The calibration as JSON can hold it; :meth:`from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> "Calibration":
        """The calibration that :meth:`to_dict` gave.

        Raises:
            UserError: an entry is missing, or of another kind.
        """
        try:
            return cls(**{name: document[name] for name in cls.__dataclass_fields__})
        except UserError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise UserError(f"the calibration is damaged ({type(error).__name__}: {error}).") from error


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def read_calibration(file: str | Path) -> Calibration:
    """Read calibration.json, or the metrics.json of the same evaluation, or the former in the folder of an evaluation.

    Raises:
        UserError: the file does not exist or holds no calibration; the message names it.

    Example:
        >>> try:
        ...     read_calibration("none.json")
        ... except UserError as error:
        ...     print(str(error).partition(";")[0])
        none.json does not exist
    """
    expected = "python -m evaluation --calibrate isotonic --output DIR writes calibration.json."
    file = Path(file) / CALIBRATION_FILE if Path(file).is_dir() else Path(file)
    if not file.is_file():
        raise MissingPathError(f"{file} does not exist; {expected}")
    try:
        document = json.loads(file.read_text(encoding="utf-8-sig"))
        return Calibration.from_dict(document.get("calibration", document))
    except (OSError, ValueError, AttributeError, RecursionError) as error:  # a UserError is a ValueError
        raise UserError(f"{file} holds no calibration ({error}); {expected}") from error


def write_calibration(folder: str | Path, document: Mapping[str, Any]) -> Path:
    """Write calibration.json, what :meth:`Calibration.to_dict` gave, to a folder, and return its path.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> line = Calibration("platt", {"slope": 2.0, "offset": -1.0}, "cosine", False, 0.5)
        >>> with TemporaryDirectory() as folder:
        ...     read_calibration(write_calibration(folder, line.to_dict())) == line
        True
    """
    return write_text(Path(folder) / CALIBRATION_FILE, json.dumps(document, indent=1, allow_nan=False) + "\n")


def remove_calibration(folder: str | Path) -> Path | None:
    """Remove the calibration.json that an earlier evaluation left in a folder, and return its path if there was one.

    Example:
        >>> remove_calibration("missing") is None
        True
    """
    file = Path(folder) / CALIBRATION_FILE
    if not file.is_file():
        return None
    try:
        file.unlink()
    except OSError as error:
        raise UserError(f"{file} of an earlier evaluation cannot be removed ({error.strerror}).") from error
    return file


def calibrate(
    retrieval: RetrievalSet,
    options: RankingOptions | None = None,
    *,
    method: str = "isotonic",
    prior: float | None = None,
    seed: int = 0,
    network: Mapping[str, Any] | None = None,
    block_bytes: int | None = None,
) -> Calibration:
    """Fit a calibration on the pairs within one half of the identities, and check it on those within the other half.

    ``reliability`` of the result says how good it is on the second half, with the weights of the prior:

    - ``bins``: for each tenth of the probabilities with pairs, the mean that was ``predicted``, the share ``observed``
      of pairs of one identity, and the number of ``pairs``
    - ``ece``: the expected calibration error, the mean difference of the two over the pairs (Naeini et al. 2015)
    - ``brier``: the mean squared difference of probability and truth (Brier 1950), and ``brier_of_prior``, that of a
      calibration that gives every pair the prior

    Args:
        retrieval: queries and gallery images; pairs count as for :func:`evaluation.verification.roc_table`.
        options: metric and scaling of the embeddings.
        method: "isotonic" or "platt".
        prior: share of pairs of one identity among those to decide on; None takes the share in ``retrieval``.
        seed: of the draw of the halves.
        network: what the embeddings are of, for :attr:`Calibration.network`.
        block_bytes: memory for distances; None is 64 MiB.

    Raises:
        NoValidQueryError: no pair has the same identity and different cameras.
        UserError: a half has only pairs of one kind, near pairs are not more often of one identity than far ones, the
            prior is not between 0 and 1, or options have re-ranking or query expansion, which a search does not do.
        UnknownNameError: the method is unknown.

    Example:
        >>> pids, rows = [1, 2, 3, 4], [[0.0], [2], [4], [6]]
        >>> images = RetrievalSet(rows, [[row[0] + 0.1] for row in rows], pids, pids, [0] * 4, [1] * 4)
        >>> calibrate(images, prior=0.5).probability([0.01, 5]).tolist()
        [1.0, 0.0]
    """
    options = options or RankingOptions()
    if method not in METHODS:
        raise UnknownNameError(f"method is {method!r}; valid names: {', '.join(METHODS)}.")
    if prior is not None and not 0 < prior < 1:
        raise UserError(f"the prior is {prior}; expected a share between 0 and 1, without these.")
    pairs = _pairs_of_halves(retrieval, options, seed, block_bytes)
    if prior is None:
        prior = float(pairs.genuine.sum() / (pairs.genuine.sum() + pairs.impostor.sum()))
    fit = _fit_isotonic if method == "isotonic" else _fit_platt
    parameters = fit(pairs.genuine[0], pairs.impostor[0], pairs.edges, prior)
    fitted = Calibration(method, parameters, options.metric, options.feat_norm, prior, dict(network or {}))
    return replace(fitted, reliability={"seed": seed, **_reliability(fitted, pairs)})


def _pairs_of_halves(
    retrieval: RetrievalSet, options: RankingOptions, seed: int, block_bytes: int | None
) -> PairHistograms:
    """The pairs within the half of the identities that is fitted, within the other, and of both."""
    if options.rerank is not None or options.query_expansion is not None:
        raise UserError("a calibration is for plain distances, without re-ranking and query expansion.")
    halves, count = _draw_halves(retrieval, seed)
    pairs = pair_histograms(retrieval, options, halves=halves, block_bytes=block_bytes)
    if not pairs.genuine.any():
        raise NoValidQueryError(no_valid_query(retrieval))
    for half in (0, 1):
        if not (pairs.genuine[half].any() and pairs.impostor[half].any()):
            raise UserError(
                f"a calibration needs pairs of one identity and of two in each half of the identities, but a half of "
                f"these {count} has only one kind: add identities with queries and gallery images."
            )
    return pairs


def _draw_halves(retrieval: RetrievalSet, seed: int) -> tuple[tuple[IntArray, IntArray], int]:
    """Half 0 or 1 of each query and gallery image, by identity, and the number of identities.

    Identities that queries and gallery share are halved by themselves, so that each half has pairs of one identity.
    """
    rng = np.random.default_rng(seed)
    shared = np.intersect1d(retrieval.q_pids, retrieval.g_pids)
    others = np.setdiff1d(np.union1d(retrieval.q_pids, retrieval.g_pids), shared)
    second = np.concatenate([rng.permutation(pids)[: len(pids) // 2] for pids in (shared, others)])
    q_half, g_half = (np.isin(pids, second).astype(np.int64) for pids in (retrieval.q_pids, retrieval.g_pids))
    return (q_half, g_half), len(shared) + len(others)


def _weights(genuine: IntArray, impostor: IntArray, prior: float) -> tuple[FloatArray, FloatArray]:
    """Weights of the pairs in each bin that sum to 1, of which those of one identity have the share ``prior``."""
    return genuine * (prior / genuine.sum()), impostor * ((1 - prior) / impostor.sum())


def _fit_isotonic(genuine: IntArray, impostor: IntArray, edges: FloatArray, prior: float) -> dict[str, Any]:
    steps: list[tuple[int, int, int]] = []  # pairs of one identity, of two, and the last bin
    for last in np.flatnonzero(genuine + impostor).tolist():
        same, other = int(genuine[last]), int(impostor[last])
        # Pooled while the step before is no better; in whole numbers, since weights do not change which one is.
        while steps and steps[-1][0] * other <= same * steps[-1][1]:
            before = steps.pop()
            same, other = same + before[0], other + before[1]
        steps.append((same, other, last))
    if len(steps) == 1:
        raise UserError(_NO_BETTER)
    same, other, last = np.array(steps).T
    own, others = _weights(same, other, prior)
    falling = np.minimum.accumulate(own / (own + others))  # also where two are equal up to rounding
    return {"distances": edges[last + 1].tolist(), "probabilities": falling.tolist()}


def _fit_platt(genuine: IntArray, impostor: IntArray, edges: FloatArray, prior: float) -> dict[str, Any]:
    own, others = _weights(genuine, impostor, prior)
    total = own + others
    few = (genuine.sum() + 1) / (genuine.sum() + 2), 1 / (impostor.sum() + 2)  # instead of the targets 1 and 0
    wanted = few[0] * own + few[1] * others
    middle = (edges[:-1] + edges[1:]) / 2
    mean = float(total @ middle)
    scale = float(total @ (middle - mean) ** 2) ** 0.5 or 1.0
    x = np.stack(((middle - mean) / scale, np.ones_like(middle)))

    def loss(line: FloatArray) -> float:
        z = line @ x
        return float(wanted @ z + total @ np.logaddexp(0, -z))

    line = np.array([0.0, math.log((1 - prior) / prior)])
    for _ in range(_NEWTON_STEPS):
        p = 1 / (1 + np.exp((line @ x).clip(max=700)))
        gradient = x @ (wanted - total * p)
        if np.abs(gradient).max() < _CLOSE:
            break
        curvature = (x * (total * p * (1 - p))) @ x.T + 1e-12 * np.eye(2)
        step, share = np.linalg.solve(curvature, gradient), 1.0
        value = loss(line)
        while loss(line - share * step) > value - 1e-4 * share * float(gradient @ step) and share > 1e-10:
            share /= 2
        line = line - share * step
    slope = float(line[0]) / scale
    if slope <= 0:
        raise UserError(_NO_BETTER)
    return {"slope": slope, "offset": float(line[1]) - slope * mean}


def _reliability(calibration: Calibration, pairs: PairHistograms) -> dict[str, Any]:
    """How the calibration does on the pairs within the second half."""
    genuine, impostor, prior = pairs.genuine[1], pairs.impostor[1], calibration.prior
    own, others = _weights(genuine, impostor, prior)
    p = calibration.probability((pairs.edges[:-1] + pairs.edges[1:]) / 2)
    place = np.minimum((p * _RELIABILITY_BINS).astype(np.int64), _RELIABILITY_BINS - 1)

    def summed(values: Any) -> FloatArray:
        return np.bincount(place, values, minlength=_RELIABILITY_BINS).astype(np.float64)

    total, predicted, observed = summed(own + others), summed((own + others) * p), summed(own)
    rows = [
        {
            "from": i / _RELIABILITY_BINS,
            "to": (i + 1) / _RELIABILITY_BINS,
            "predicted": float(predicted[i] / total[i]),
            "observed": float(observed[i] / total[i]),
            "pairs": int(count),
        }
        for i, count in enumerate(summed(genuine + impostor))
        if count
    ]
    return {
        "bins": rows,
        "ece": float(np.abs(predicted - observed).sum()),
        "brier": float(own @ (1 - p) ** 2 + others @ p**2),
        "brier_of_prior": prior * (1 - prior),
    }


def describe_calibration(calibration: Calibration) -> list[str]:
    """Lines for the console: the reliability table, its summary, and the distances of a few probabilities.

    Example:
        >>> pids, rows = [1, 2, 3, 4], [[0.0], [2], [4], [6]]
        >>> images = RetrievalSet(rows, [[row[0] + 0.1] for row in rows], pids, pids, [0] * 4, [1] * 4)
        >>> print(describe_calibration(calibrate(images, prior=0.5))[-2])
            ECE 0  Brier score 0 (0.25 if every pair had the prior)
    """
    found = calibration.reliability
    lines = [
        f"calibration, {calibration.method}, where {calibration.prior:.3%} of pairs are of one identity; fitted on "
        "half of the identities, on the other half:"
    ]
    for row in found["bins"]:
        lines.append(
            f"    probability {row['from']:g} to {row['to']:g}: predicted {row['predicted']:.2%}, observed "
            f"{row['observed']:.2%} ({row['pairs']} pairs)"
        )
    lines.append(
        f"    ECE {found['ece']:.3g}  Brier score {found['brier']:.4g} ({found['brier_of_prior']:.4g} if every pair "
        "had the prior)"
    )
    highest = float(calibration.probability(0.0))
    limits = [f"{p:g} up to {calibration.distance(p):.6g}" for p in _SHOWN if p <= highest]
    lines.append(f"    highest probability {highest:.3g}; distances of probabilities: {', '.join(limits) or 'none'}")
    return lines
