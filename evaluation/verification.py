"""Verification: how many pairs of the same identity are accepted when few pairs of different identities are.

They are the rates of single comparisons: ISO/IEC 19795-1 (2021) calls FAR here the false match rate, and 1 - TAR the
false non-match rate.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from evaluation.distance_blocks import DistanceBlocks, block_height
from evaluation.notes import no_valid_query
from evaluation.protocols import Candidates, find_candidates
from evaluation.ranking import Pairs
from evaluation.rerank import RerankedDistances
from evaluation.retrieval import FloatArray, RankingOptions, RetrievalSet
from utils.errors import NoValidQueryError, UserError
from utils.labels import IntArray

FAR_LEVELS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
_BINS = 1 << 16
CURVE_POINTS = 500
_HALVINGS = 40  # of two bins, until no float32 number lies between the halves
ENTRIES_AT_ONCE = 1 << 20  # distances counted into the histograms at once


@dataclass(frozen=True)
class RocTable:
    """Thresholds on the distance, and their rates: a pair is accepted if its distance is at most the threshold.

    Example:
        >>> images = RetrievalSet([[1.0]], [[1.0], [0.0]], [7], [7, 8], [0], [1, 1])
        >>> roc_table(images, far_levels=[0.1]).far.tolist()
        [0.0]
    """

    far_levels: FloatArray  # [L] levels requested
    far: FloatArray  # [L] false accept rate reached, the largest that does not exceed the level
    tar: FloatArray  # [L] true accept rate at the threshold
    threshold: FloatArray  # [L] NaN if every threshold exceeds the level
    edges: FloatArray  # [bins + 1] distances between which the bins lie
    genuine: IntArray  # [bins] number of pairs of the same identity
    impostor: IntArray  # [bins] number of pairs of different identities

    def rates(self) -> tuple[FloatArray, FloatArray]:
        """FAR and TAR [bins + 1] where the first 0, 1, 2 ... bins are accepted, as :meth:`thresholds` does."""
        return _cumulative(self.impostor), _cumulative(self.genuine)

    def thresholds(self, number: IntArray) -> FloatArray:
        """The largest distances, float32 numbers, that lie in the first ``number`` bins, of the same shape.

        They are just below the edges, since pairs on an edge are counted in the bin above it; that of all bins is the
        last edge, and that of none lies below the first.
        """
        bins, (low, high) = len(self.genuine), self.edges[[0, -1]].tolist()
        step = self.edges[1] - self.edges[0]
        below, above = ((self.edges[number] + shift).astype(np.float32) for shift in (-step, step))
        for _ in range(_HALVINGS):
            middle = ((below.astype(np.float64) + above) / 2).astype(np.float32)
            is_below = _bin_numbers(torch.from_numpy(middle), low, high, bins).numpy() < number
            below, above = np.where(is_below, middle, below), np.where(is_below, above, middle)
        none = np.nextafter(np.float32(low), np.float32(-np.inf))
        return np.where(number == 0, none, np.where(number == bins, high, below.astype(np.float64)))

    def equal_error_rate(self) -> tuple[float, float]:
        """The equal error rate, where FAR = 1 - TAR, and its threshold (ISO/IEC 19795-1).

        Between the last threshold with FAR < 1 - TAR and the first without, both are interpolated linearly.
        """
        far, tar = self.rates()
        excess = far - (1 - tar)  # from -1 to 1
        after = int((excess >= 0).argmax())
        share = excess[after - 1] / (excess[after - 1] - excess[after])
        around = np.array([after - 1, after])
        rate, threshold = (x[0] + share * (x[1] - x[0]) for x in (far[around], self.thresholds(around)))
        return float(rate), float(threshold)

    def curve(self, points: int = CURVE_POINTS) -> "RocCurve":
        """Points of the ROC curve: half of them at FAR spaced evenly by its logarithm, half at TAR spaced evenly.

        Args:
            points: the most that are returned, 4 or more; fewer where some coincide.
        """
        far, tar = self.rates()
        levels = np.append(0.0, np.geomspace(1 / self.impostor.sum(), 1, points // 2 - 2))
        by_far = far.searchsorted(levels, side="right") - 1  # the largest threshold within each level
        by_tar = tar.searchsorted(np.linspace(0, 1, points // 2 - 1))  # the smallest that accepts each share
        kept = np.unique(np.concatenate(([0, len(far) - 1], by_far, by_tar)))
        return RocCurve(far[kept], tar[kept], self.thresholds(kept))


@dataclass(frozen=True)
class RocCurve:
    """Points of a ROC curve, by rising threshold.

    Example:
        >>> images = RetrievalSet([[1.0]], [[1.0], [0.0]], [7], [7, 8], [0], [1, 1])
        >>> curve = roc_table(images).curve()
        >>> curve.far.tolist(), curve.tar.tolist()
        ([0.0, 0.0, 0.0, 1.0], [0.0, 1.0, 1.0, 1.0])
    """

    far: FloatArray  # [P]
    tar: FloatArray  # [P]
    threshold: FloatArray  # [P]


def describe_roc(table: RocTable) -> list[str]:
    """Lines for the console.

    Example:
        >>> images = RetrievalSet([[1.0]], [[1.0], [0.0]], [7], [7, 8], [0], [1, 1])
        >>> describe_roc(roc_table(images, far_levels=[0.1], bins=4))[1:]
        ['    TAR 100.00% at FAR 0.1 (distance up to 1)', '    EER 0.00% (distance up to 1)']
    """
    lines = ["verification over all pairs of single images:"]
    for level, tar, threshold in zip(table.far_levels, table.tar, table.threshold, strict=True):
        lines.append(f"    TAR {tar:.2%} at FAR {level:g} (distance up to {threshold:.6g})")
    rate, threshold = table.equal_error_rate()
    return [*lines, f"    EER {rate:.2%} (distance up to {threshold:.6g})"]


def _cumulative(counts: IntArray) -> FloatArray:
    return np.concatenate(([0.0], counts.cumsum() / counts.sum()))


def roc_table(
    retrieval: RetrievalSet,
    options: RankingOptions | None = None,
    *,
    far_levels: Sequence[float] = FAR_LEVELS,
    bins: int = _BINS,
    block_bytes: int | None = None,
) -> RocTable:
    """Compute TAR at given levels of FAR over all pairs of a query and a gallery image, from histograms.

    Pairs of one identity and one camera do not count, nor do a query and its own image. Thresholds are the ends of
    bins from 0 to a bound of the distances.

    Args:
        retrieval: queries and gallery images.
        options: how distances are computed; the protocol is always "instance".
        far_levels: false accept rates in [0, 1].
        bins: number of bins in the histograms.
        block_bytes: memory for distances; None is 64 MiB.

    Returns:
        Rates and thresholds for each level.

    Raises:
        NoValidQueryError: no pair has the same identity and different cameras.
        UserError: as for :func:`evaluation.metrics.evaluate`; no pair of different identities; a level not in [0, 1].

    Example:
        >>> images = RetrievalSet([[1.0]], [[1.0], [0.0]], [7], [7, 8], [0], [1, 1])
        >>> roc_table(images, far_levels=[0.1]).tar.tolist()
        [1.0]
    """
    levels = np.asarray(far_levels, dtype=np.float64)
    if not ((levels >= 0) & (levels <= 1)).all():
        raise UserError(f"far_levels must lie in [0, 1], got {list(far_levels)}.")
    found = pair_histograms(retrieval, options, bins=bins, block_bytes=block_bytes)
    genuine, impostor, edges = found.genuine[0], found.impostor[0], found.edges
    if not genuine.sum():
        raise NoValidQueryError(no_valid_query(retrieval))
    if not impostor.sum():
        raise UserError(
            "g_pids holds no identity but the queries' own, so there are no pairs of different identities; add gallery "
            "images of other identities."
        )
    far = impostor.cumsum() / impostor.sum()
    tar = genuine.cumsum() / genuine.sum()
    place = np.searchsorted(far, levels, side="right") - 1  # the last bin within the level
    kept = place >= 0
    table = RocTable(
        far_levels=levels,
        far=np.where(kept, far[place], 0.0),
        tar=np.where(kept, tar[place], 0.0),
        threshold=np.full(len(levels), np.nan),
        edges=edges,
        genuine=genuine,
        impostor=impostor,
    )
    return replace(table, threshold=np.where(kept, table.thresholds(place + 1), np.nan))


@dataclass(frozen=True)
class PairHistograms:
    """Numbers of pairs by their distance, for each group of pairs.

    Example:
        >>> PairHistograms(np.array([0.0, 2]), np.array([[3]]), np.array([[4]])).impostor.tolist()
        [[4]]
    """

    edges: FloatArray  # [bins + 1] distances between which the bins lie
    genuine: IntArray  # [groups, bins] number of pairs of the same identity
    impostor: IntArray  # [groups, bins] number of pairs of different identities


def pair_histograms(
    retrieval: RetrievalSet,
    options: RankingOptions | None = None,
    *,
    halves: tuple[IntArray, IntArray] | None = None,
    bins: int = _BINS,
    block_bytes: int | None = None,
) -> PairHistograms:
    """Count the pairs of a query and a gallery image by their distance.

    Pairs of one identity and one camera do not count, nor do a query and its own image.

    Args:
        retrieval: queries and gallery images.
        options: how distances are computed; the protocol is always "instance".
        halves: [M] and [N], 0 or 1 for each query and gallery image, the same for all images of an identity: pairs
            within half 0, within half 1, and of both are three groups. None makes one group.
        bins: number of bins from 0 to a bound of the distances.
        block_bytes: memory for distances; None is 64 MiB.

    Raises:
        UserError: as for :func:`evaluation.metrics.evaluate`.

    Example:
        >>> images = RetrievalSet([[1.0]], [[1.0], [0.0]], [7], [7, 8], [0], [1, 1])
        >>> pair_histograms(images, bins=2).impostor.tolist()
        [[1, 0]]
    """
    options = replace(options or RankingOptions(), protocol="instance")
    candidates = find_candidates(retrieval, options, block_bytes)
    low, high = _bounds(candidates)
    if halves is None:
        halves, groups = (np.zeros(retrieval.num_query, np.int64), np.zeros(retrieval.num_gallery, np.int64)), 1
    else:
        groups = 3
    genuine, impostor = _histograms(candidates, low, high, (groups, bins), halves, block_bytes)
    return PairHistograms(np.linspace(low, high, bins + 1), genuine, impostor)


def _bounds(candidates: Candidates) -> tuple[float, float]:
    assert isinstance(candidates.distances, DistanceBlocks | RerankedDistances)  # nothing else is built of embeddings
    low, high = candidates.distances.bounds()
    return low, high if high > low else low + 1.0


def _histograms(
    candidates: Candidates,
    low: float,
    high: float,
    shape: tuple[int, int],
    halves: tuple[IntArray, IntArray],
    block_bytes: int | None,
) -> tuple[IntArray, IntArray]:
    assert candidates.same is not None  # the instance protocol has it
    groups, bins = shape
    everything, genuine, removed = (np.zeros(groups * bins, dtype=np.int64) for _ in range(3))
    num_query = len(candidates.q_pids)
    height = block_height(num_query, candidates.width, block_bytes)
    rows = max(1, ENTRIES_AT_ONCE // candidates.width)
    for start in range(0, num_query, height):
        block = candidates.distances(start, min(start + height, num_query))
        q_half, g_half = (torch.from_numpy(half).to(block.device) for half in halves)
        for begin in range(start, start + len(block), rows):
            part = block[begin - start : begin - start + rows]
            number = _bin_numbers(part, low, high, bins)
            if groups > 1:
                half = q_half[begin : begin + len(part), None]
                number += bins * torch.where(half == g_half, half, 2)
            everything += torch.bincount(number.flatten(), minlength=len(everything)).cpu().numpy()
            pairs = candidates.same.pairs(begin, begin + len(part))
            own = _at(number, pairs)
            genuine += np.bincount(own[~pairs.removed], minlength=len(genuine))
            removed += np.bincount(own[pairs.removed], minlength=len(removed))
    return genuine.reshape(shape), (everything - genuine - removed).reshape(shape)


def _bin_numbers(distances: Tensor, low: float, high: float, bins: int) -> Tensor:
    return ((distances - low) * (bins / (high - low))).long().clamp_(0, bins - 1)


def _at(number: Tensor, pairs: Pairs) -> IntArray:
    row, column = (torch.from_numpy(index).to(number.device) for index in (pairs.row, pairs.column))
    return number[row, column].cpu().numpy()
