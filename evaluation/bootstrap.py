"""How far a metric moves with the choice of queries, and whether two evaluations differ by more than that.

Queries of one identity resemble each other, so they are not drawn one by one: identities are, and all queries of a
drawn identity come with it (the cluster bootstrap: Davison and Hinkley, "Bootstrap Methods and their Application",
1997, section 3.8; Field and Welsh, "Bootstrapping clustered data", 2007). Nothing is ranked again: a resample weighs
the sums that each identity has.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.retrieval import TOPK_RANKS, EvalResult, FloatArray

LEVEL = 0.95
RESAMPLES = 1000
PERMUTATIONS = 10_000
_AT_ONCE = 1 << 22  # numbers in a block of weights


@dataclass(frozen=True)
class Clusters:
    """The identities of V queries, and what is summed over the queries of each.

    Example:
        >>> Clusters.of(np.array([7, 9, 7]), np.array([[1.0], [0.5], [0.0]])).sums.tolist()
        [[1.0], [0.5]]
    """

    sums: FloatArray  # [G, F] of the values of an identity's queries
    sizes: FloatArray  # [G] number of its queries

    @classmethod
    def of(cls, pids: Any, values: FloatArray) -> "Clusters":
        """Sum over identities.

        Args:
            pids: [V] identities, numbers or text.
            values: [V, F] floating, the numbers whose means are of interest.
        """
        _, group, sizes = np.unique(pids, return_inverse=True, return_counts=True)
        group = group.reshape(-1)
        sums = np.stack([np.bincount(group, column, len(sizes)).astype(np.float64) for column in values.T], axis=1)
        return cls(sums, sizes.astype(np.float64))

    @property
    def means(self) -> FloatArray:
        """The means over all queries, [F]."""
        return self.sums.sum(axis=0) / self.sizes.sum()


def per_query(protocol: str, ap: FloatArray, first: Any, inp: FloatArray) -> dict[str, FloatArray]:
    """The numbers of V queries whose means are the metrics of a protocol.

    Args:
        protocol: mINP is a metric of "instance" alone.
        ap: [V] average precision.
        first: [V] whole or floating, rank of the first relevant item, counted from 1.
        inp: [V] number of relevant items / rank of the last one.

    Returns:
        mAP, Top-1/5/10/20/50 and mINP -> [V] in 0..1.

    Example:
        >>> {name: x.tolist() for name, x in per_query("centroid", np.ones(1), np.array([7]), np.ones(1)).items()}
        {'mAP': [1.0], 'Top-1': [0.0], 'Top-5': [0.0], 'Top-10': [1.0], 'Top-20': [1.0], 'Top-50': [1.0]}
    """
    columns = {"mAP": ap} | {f"Top-{k}": (first <= k).astype(np.float64) for k in TOPK_RANKS}
    return columns | ({"mINP": inp} if protocol == "instance" else {})


def confidence_intervals(
    result: EvalResult, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, list[float]]:
    """Percentile bootstrap intervals (Efron, "Bootstrap Methods: Another Look at the Jackknife", 1979) of each metric.

    They tell how far the metrics would move with other queries of the same kind. They say nothing of other trainings.

    Args:
        result: an evaluation.
        level: share of the resamples within the interval, above 0 and below 1.
        resamples: number of draws of identities, 1 or more.
        seed: of a generator of their own; the global ones are left alone.

    Returns:
        Metric, as :func:`per_query` names it -> low, high. Empty if all queries are of one identity, or none is valid.

    Example:
        >>> from evaluation.metrics import evaluate_distances
        >>> result = evaluate_distances([[0.5, 0.1], [0.1, 0.2]], [7, 8], [7, 8], [0, 0], [1, 1])
        >>> confidence_intervals(result)["mAP"]
        [0.5, 0.5]
    """
    values = per_query(result.protocol, result.average_precision, result.first_match, result.inp)
    clusters = Clusters.of(result.pids, np.stack(list(values.values()), axis=1))
    return dict(zip(values, bootstrap(clusters, level, resamples, seed), strict=False))


def bootstrap(clusters: Clusters, level: float, resamples: int, seed: int) -> list[list[float]]:
    """Low and high end of the interval of each of F means. Args as for :func:`confidence_intervals`; [] for G < 2.

    Example:
        >>> bootstrap(Clusters.of(np.array([7, 9]), np.array([[1.0], [0.0]])), 0.95, 1000, 0)
        [[0.0, 1.0]]
    """
    count = len(clusters.sizes)
    if count < 2:
        return []
    rng = np.random.default_rng(seed)
    means = []
    for height in _heights(resamples, count):
        drawn = rng.integers(0, count, (height, count)) + count * np.arange(height)[:, None]
        times = np.bincount(drawn.reshape(-1), minlength=height * count).reshape(height, count).astype(np.float64)
        means.append((times @ clusters.sums) / (times @ clusters.sizes)[:, None])
    ends = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2], axis=0)
    return ends.T.tolist()


def sign_flip_p_values(clusters: Clusters, permutations: int = PERMUTATIONS, seed: int = 0) -> FloatArray:
    """Two-sided p-values of means of paired differences, from exchanging the two sides of whole identities at random.

    Were there no difference, each identity's sum would be as likely with the opposite sign. The p-value is (b + 1) /
    (n + 1), with b the draws, of n, whose mean is as far from 0 or farther (Phipson and Smyth, "Permutation P-values
    should never be zero", 2010).

    Args:
        clusters: of differences [V, F].
        permutations: n, 1 or more.
        seed: of a generator of their own.

    Returns:
        [F] above 0, at most 1.

    Example:
        >>> sign_flip_p_values(Clusters.of(np.array([7, 9]), np.array([[0.0], [0.0]]))).tolist()
        [1.0]
    """
    rng = np.random.default_rng(seed)
    # Sums that differ by rounding alone are as far.
    limit = np.abs(clusters.sums.sum(axis=0)) - 1e-12 * np.abs(clusters.sums).sum(axis=0)
    as_far: NDArray[np.int64] = np.zeros(clusters.sums.shape[1], dtype=np.int64)
    for height in _heights(permutations, len(clusters.sizes)):
        signs = 2 * rng.integers(0, 2, (height, len(clusters.sizes))).astype(np.float64) - 1
        as_far += (np.abs(signs @ clusters.sums) >= limit).sum(axis=0)
    return (as_far + 1) / (permutations + 1)


def _heights(rows: int, width: int) -> Iterator[int]:
    """Divide rows into blocks of bounded memory."""
    at_once = max(1, _AT_ONCE // width)
    for start in range(0, rows, at_once):
        yield min(at_once, rows - start)
