"""Verification: how many pairs of the same identity are accepted when few pairs of different identities are."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluation.distance_blocks import DistanceBlocks, block_height
from evaluation.notes import no_valid_query
from evaluation.protocols import Candidates, find_candidates
from evaluation.ranking import Pairs
from evaluation.rerank import RerankedDistances
from evaluation.retrieval import RankingOptions, RetrievalSet
from utils.errors import NoValidQueryError, UserError
from utils.labels import IntArray

FAR_LEVELS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
_BINS = 1 << 16
ENTRIES_AT_ONCE = 1 << 20  # distances counted into the histograms at once


@dataclass(frozen=True)
class RocTable:
    """Thresholds on the distance, and their rates: a pair is accepted if its distance is at most the threshold.

    Example:
        >>> images = RetrievalSet([[1.0]], [[1.0], [0.0]], [7], [7, 8], [0], [1, 1])
        >>> roc_table(images, far_levels=[0.1]).far.tolist()
        [0.0]
    """

    far_levels: NDArray[np.float64]  # [L] levels requested
    far: NDArray[np.float64]  # [L] false accept rate reached, the largest that does not exceed the level
    tar: NDArray[np.float64]  # [L] true accept rate at the threshold
    threshold: NDArray[np.float64]  # [L] NaN if every threshold exceeds the level
    edges: NDArray[np.float64]  # [bins + 1] distances between which the bins lie
    genuine: IntArray  # [bins] number of pairs of the same identity
    impostor: IntArray  # [bins] number of pairs of different identities


def roc_table(
    retrieval: RetrievalSet,
    options: RankingOptions | None = None,
    *,
    far_levels: Sequence[float] = FAR_LEVELS,
    bins: int = _BINS,
    block_bytes: int | None = None,
) -> RocTable:
    """Compute TAR at given levels of FAR over all pairs of a query and a gallery image, from histograms.

    Pairs of one identity and one camera do not count, nor do a query and its own image. Thresholds are bin edges from
    0 to a bound of the distances.

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
    options = replace(options or RankingOptions(), protocol="instance")
    candidates = find_candidates(retrieval, options, block_bytes)
    low, high = _bounds(candidates)
    genuine, impostor = _histograms(candidates, low, high, bins, block_bytes)
    if not genuine.sum():
        raise NoValidQueryError(no_valid_query(retrieval))
    if not impostor.sum():
        raise UserError(
            "g_pids holds no identity but the queries' own, so there are no pairs of different identities; add gallery "
            "images of other identities."
        )
    far = impostor.cumsum() / impostor.sum()
    tar = genuine.cumsum() / genuine.sum()
    edges = np.linspace(low, high, bins + 1)
    place = np.searchsorted(far, levels, side="right") - 1  # the last bin within the level
    kept = place >= 0
    return RocTable(
        far_levels=levels,
        far=np.where(kept, far[place], 0.0),
        tar=np.where(kept, tar[place], 0.0),
        threshold=np.where(kept, edges[place + 1], np.nan),
        edges=edges,
        genuine=genuine,
        impostor=impostor,
    )


def _bounds(candidates: Candidates) -> tuple[float, float]:
    assert isinstance(candidates.distances, DistanceBlocks | RerankedDistances)  # nothing else is built of embeddings
    low, high = candidates.distances.bounds()
    return low, high if high > low else low + 1.0


def _histograms(
    candidates: Candidates, low: float, high: float, bins: int, block_bytes: int | None
) -> tuple[IntArray, IntArray]:
    assert candidates.same is not None  # the instance protocol has it
    everything, genuine, removed = (np.zeros(bins, dtype=np.int64) for _ in range(3))
    num_query = len(candidates.q_pids)
    height = block_height(num_query, candidates.width, block_bytes)
    rows = max(1, ENTRIES_AT_ONCE // candidates.width)
    for start in range(0, num_query, height):
        block = candidates.distances(start, min(start + height, num_query))
        for begin in range(start, start + len(block), rows):
            part = block[begin - start : begin - start + rows]
            number = _bin_numbers(part, low, high, bins)
            everything += torch.bincount(number.flatten(), minlength=bins).cpu().numpy()
            pairs = candidates.same.pairs(begin, begin + len(part))
            own = _at(number, pairs)
            genuine += np.bincount(own[~pairs.removed], minlength=bins)
            removed += np.bincount(own[pairs.removed], minlength=bins)
    return genuine, everything - genuine - removed


def _bin_numbers(distances: Tensor, low: float, high: float, bins: int) -> Tensor:
    return ((distances - low) * (bins / (high - low))).long().clamp_(0, bins - 1)


def _at(number: Tensor, pairs: Pairs) -> IntArray:
    row, column = (torch.from_numpy(index).to(number.device) for index in (pairs.row, pairs.column))
    return number[row, column].cpu().numpy()
