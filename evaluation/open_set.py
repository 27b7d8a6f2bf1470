"""Open-set identification: queries whose identity the gallery may lack, and results accepted up to a threshold.

As Phillips, Grother and Micheals define it ("Evaluation methods in face recognition", Handbook of Face Recognition, 2nd
edition, 2011). A query is known if the gallery holds its identity, and unknown otherwise. At a threshold

- the false alarm rate FAR is the share of unknown queries whose nearest gallery image is within the threshold,
- the detection and identification rate DIR at rank r is the share of known queries whose nearest right image is among
  the first r results and within the threshold.

Scheirer et al. ("Toward open set recognition", TPAMI 2013) tell why numbers with known queries alone say little about
such a search. A known query all of whose images are removed, as those of its own camera are, is neither, and left out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from evaluation.metrics import query_blocks
from evaluation.notes import no_valid_query
from evaluation.protocols import find_candidates
from evaluation.ranking import gather, rank_pairs
from evaluation.retrieval import FloatArray, RankingOptions, RetrievalSet
from utils.distributed import Processes
from utils.errors import NoValidQueryError, UserError
from utils.labels import IntArray

OPEN_SET_LEVELS = (1e-3, 1e-2, 1e-1)

Float32Array = NDArray[np.float32]


@dataclass(frozen=True)
class OpenSetRates:
    """DIR at levels of FAR; a result is accepted if its distance is at most the threshold.

    Example:
        >>> images = RetrievalSet([[1.0], [5]], [[1.0], [0]], [7, 9], [7, 8], [0, 0], [1, 1])
        >>> evaluate_open_set(images).rates([0.1]).dir.tolist()
        [1.0]
    """

    rank: int
    far_levels: FloatArray  # [L] levels requested
    far: FloatArray  # [L] false alarm rate reached, the largest that does not exceed the level
    dir: FloatArray  # [L] detection and identification rate
    threshold: FloatArray  # [L] the largest distance (a float32 number) that keeps the level; infinity if all do


@dataclass(frozen=True)
class OpenSetResult:
    """What happens to K known and U unknown queries.

    Example:
        >>> images = RetrievalSet([[1.0], [5]], [[1.0], [0]], [7, 9], [7, 8], [0, 0], [1, 1])
        >>> evaluate_open_set(images).alarm.tolist()
        [16.0]
    """

    rank: IntArray  # [K] rank of the nearest right image, counted from 1
    distance: Float32Array  # [K] its distance
    alarm: Float32Array  # [U] distance of the nearest image
    num_skipped: int  # known queries of which no right image counts
    left_out: int  # identities whose gallery images were left out

    def rates(self, far_levels: Sequence[float] = OPEN_SET_LEVELS, rank: int = 1) -> OpenSetRates:
        """DIR at the largest threshold that keeps each level of FAR.

        Args:
            far_levels: false alarm rates in [0, 1].
            rank: 1 or more.

        Raises:
            UserError: a level is not in [0, 1], or rank is below 1.
        """
        levels = np.asarray(far_levels, dtype=np.float64)
        if not ((levels >= 0) & (levels <= 1)).all():
            raise UserError(f"far_levels must lie in [0, 1], got {list(far_levels)}.")
        if rank < 1:
            raise UserError(f"rank is {rank}; expected 1 or more.")
        count = len(self.alarm)
        allowed = np.searchsorted(np.arange(1, count + 1) / count, levels, side="right")  # false alarms
        # All alarms that are allowed, and none of the next one's distance, of which there may be several.
        first_too_many = np.append(np.sort(self.alarm), np.float32(np.inf))[allowed]
        threshold = np.where(allowed < count, np.nextafter(first_too_many, np.float32(-np.inf)), first_too_many)
        far, found = np.empty(len(levels)), np.empty(len(levels))
        for i, limit in enumerate(threshold):
            far[i] = (self.alarm <= limit).mean()
            found[i] = ((self.distance <= limit) & (self.rank <= rank)).mean()
        return OpenSetRates(rank, levels, far, found, threshold.astype(np.float64))


def evaluate_open_set(
    retrieval: RetrievalSet,
    options: RankingOptions | None = None,
    *,
    left_out: Sequence[int] | IntArray = (),
    block_bytes: int | None = None,
    processes: Processes | None = None,
) -> OpenSetResult:
    """Find each known query's nearest right image and its rank, and each unknown query's nearest image.

    Args:
        retrieval: queries and gallery images.
        options: how distances are computed; the protocol is always "instance".
        left_out: identities whose gallery images are taken as absent, which makes their queries unknown.
        block_bytes, processes: as for :func:`evaluation.metrics.evaluate`.

    Raises:
        NoValidQueryError: there is no known query with an image that counts.
        UserError: there are no unknown queries; identities are left out together with re-ranking or query expansion,
            which look at the whole gallery; and as for :func:`evaluation.metrics.evaluate`.

    Example:
        >>> images = RetrievalSet([[1.0], [5]], [[1.0], [4]], [7, 8], [7, 8], [0, 0], [1, 1])
        >>> evaluate_open_set(images, left_out=[8]).alarm.tolist()
        [16.0]
    """
    options = replace(options or RankingOptions(), protocol="instance")
    hidden = np.isin(retrieval.g_pids, np.asarray(left_out, dtype=np.int64))
    if hidden.any():
        if options.rerank is not None or options.query_expansion is not None:
            raise UserError(
                "identities cannot be left out of the gallery with re-ranking or query expansion, which use all of it."
            )
        nobody = min(retrieval.q_pids.min(), retrieval.g_pids.min()) - 1
        retrieval = replace(retrieval, g_pids=np.where(hidden, nobody, retrieval.g_pids))
    known = np.isin(retrieval.q_pids, retrieval.g_pids)
    if known.all():
        raise UserError(
            "There are no unknown queries: the gallery holds the identity of every query. Add queries of other "
            "identities, or leave the gallery images of some out (--unknown 0.5, for half of the identities)."
        )
    numbers = _measure(retrieval, options, known, np.flatnonzero(hidden), (block_bytes, processes))
    found, distance = numbers[:, 0] > 0, numbers[:, 1].astype(np.float32)
    if not found.any():
        raise NoValidQueryError(no_valid_query(retrieval))
    rank = numbers[found, 0].astype(np.int64)
    skipped = int((known & ~found).sum())
    return OpenSetResult(rank, distance[found], distance[~known], skipped, len(np.unique(left_out)))


def _measure(
    retrieval: RetrievalSet,
    options: RankingOptions,
    known: NDArray[np.bool_],
    hidden: IntArray,
    shared: tuple[int | None, Processes | None],
) -> FloatArray:
    """Rank of each query's nearest right image (0: there is none) and its distance, or that of the nearest, [M, 2]."""
    block_bytes, processes = shared
    candidates = find_candidates(retrieval, options, block_bytes)
    assert candidates.same is not None  # the instance protocol has it
    parts = [np.empty((0, 2))]
    for start, block in query_blocks(candidates.distances, len(known), candidates.width, block_bytes, processes):
        if len(hidden):
            block.index_fill_(1, torch.from_numpy(hidden).to(block.device), torch.inf)
        part = np.stack((np.zeros(len(block)), block.amin(1).cpu().numpy()), 1)
        for begin, end in candidates.same.spans(start, start + len(block)):
            rows = block[begin - start : end - start]
            ranks = rank_pairs(rows, candidates.same.pairs(begin, end))
            first = np.flatnonzero(np.diff(ranks.row, prepend=-1))
            row = ranks.row[first]
            part[begin - start + row, 0] = ranks.rank[first] + 1
            part[begin - start + row, 1] = gather(rows, row, ranks.column[first])
        parts.append(part)
    numbers = np.concatenate(parts)
    return numbers if processes is None else processes.gather(torch.from_numpy(numbers)).numpy()


def draw_unknown(retrieval: RetrievalSet, share: float, seed: int = 0) -> IntArray:
    """Draw identities to leave out of the gallery, of those that both queries and gallery have.

    Args:
        retrieval: queries and gallery images.
        share: of these identities, between 0 and 1.
        seed: of the draw.

    Raises:
        UserError: the share is not between 0 and 1, or leaves none of the identities in or none out.

    Example:
        >>> images = RetrievalSet([[1.0], [5]], [[1.0], [4]], [7, 8], [7, 8], [0, 0], [1, 1])
        >>> len(draw_unknown(images, 0.5))
        1
    """
    if not 0 < share < 1:
        raise UserError(f"the share of unknown identities is {share}; expected a number between 0 and 1.")
    shared = np.intersect1d(retrieval.q_pids, retrieval.g_pids)
    count = round(share * len(shared))
    if not 0 < count < len(shared):
        raise UserError(
            f"a share of {share:g} of the {len(shared)} identities of queries and gallery is {count} of them; expected "
            "at least one to leave out, and one to keep."
        )
    return np.sort(np.random.default_rng(seed).permutation(shared)[:count])


def describe_open_set(result: OpenSetResult, ranks: Sequence[int] = (1,)) -> list[str]:
    """Lines for the console.

    Example:
        >>> images = RetrievalSet([[1.0], [5]], [[1.0], [0]], [7, 9], [7, 8], [0, 0], [1, 1])
        >>> describe_open_set(evaluate_open_set(images))[1]
        '    DIR 100.00% at FAR 0.001 and rank 1 (distance up to 16, false alarms 0 of 1)'
    """
    skipped = f", {result.num_skipped} known ones without a match left out" if result.num_skipped else ""
    drawn = f"; the gallery images of {result.left_out} identities are left out here" if result.left_out else ""
    unknown = len(result.alarm)
    lines = [f"open set, single images ({len(result.rank)} known and {unknown} unknown queries{skipped}{drawn}):"]
    for table in (result.rates(rank=rank) for rank in ranks):
        for level, far, found, limit in zip(table.far_levels, table.far, table.dir, table.threshold, strict=True):
            lines.append(
                f"    DIR {found:.2%} at FAR {level:g} and rank {table.rank} (distance up to {limit:.6g}, false alarms "
                f"{round(far * unknown)} of {unknown})"
            )
    return lines


def open_set_details(result: OpenSetResult, ranks: Sequence[int] = (1,)) -> Mapping[str, Any]:
    """What metrics.json says of it.

    Example:
        >>> images = RetrievalSet([[1.0], [5]], [[1.0], [0]], [7, 9], [7, 8], [0, 0], [1, 1])
        >>> open_set_details(evaluate_open_set(images))["unknown_queries"]
        1
    """
    rows = [
        {"rank": table.rank, "far_level": level, "far": far, "dir": found, "threshold": limit}
        for table in (result.rates(rank=rank) for rank in ranks)
        for level, far, found, limit in zip(
            *(column.tolist() for column in (table.far_levels, table.far, table.dir, table.threshold)), strict=True
        )
    ]
    return {
        "known_queries": len(result.rank),
        "unknown_queries": len(result.alarm),
        "known_queries_without_match": result.num_skipped,
        "identities_left_out": result.left_out,
        "rates": rows,
    }
