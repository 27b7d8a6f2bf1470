"""All ranking metrics of the project: CMC, Top-k, mAP and mINP of queries against a gallery.

There are three protocols, and each result names the one it used:

- ``instance``: the gallery holds single images. Images of the query's identity from the query's camera are removed.
- ``centroid``: the gallery holds centroids as the published code builds them, including its error in looking up
  cameras, so that published numbers can be reproduced (:func:`evaluation.centroid_protocols.published_centroids`).
- ``centroid_strict``: one centroid for each gallery identity; that of the query's own identity leaves out the images
  from the query's camera. One item is relevant, so AP = 1 / rank and mAP is the mean reciprocal rank.

Items at the same distance keep their gallery order, as in a stable sort.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluation.centroid_protocols import StrictGallery
from evaluation.distance_blocks import BlockFunc, block_height, tile_height
from evaluation.notes import NO_VALID_QUERY, SAME_CAMERA, applied, caveat_of, no_valid_query, note_of
from evaluation.protocols import Candidates, find_candidates, given_candidates
from evaluation.ranking import Ranks, count_before, gather, rank_pairs
from evaluation.retrieval import TOPK_RANKS, EvalResult, FloatArray, RankingOptions, RetrievalSet
from utils.distributed import Processes
from utils.errors import NoValidQueryError, UserError
from utils.labels import Cameras, IntArray, int_array

_NO_INTS, _NO_FLOATS = np.empty(0, np.int64), np.empty(0, np.float64)


@dataclass
class _PerQuery:
    """Numbers of each valid query, collected block by block."""

    index: list[IntArray] = field(default_factory=list)
    ap: list[FloatArray] = field(default_factory=list)
    inp: list[FloatArray] = field(default_factory=list)
    first: list[IntArray] = field(default_factory=list)
    relevant: list[IntArray] = field(default_factory=list)

    def add(self, row: IntArray, rank: IntArray) -> None:
        """Add relevant items, sorted by (row, rank), with row the query's index and rank counted from 0."""
        if not len(row):
            return
        starts = np.flatnonzero(np.diff(row, prepend=-1))
        counts = np.diff(starts, append=len(row))
        found = np.arange(1, len(row) + 1) - np.repeat(starts, counts)  # 1, 2, ... within each query
        self.index.append(row[starts])
        self.ap.append(np.add.reduceat(found / (rank + 1.0), starts) / counts)
        self.inp.append(counts / (rank[starts + counts - 1] + 1.0))
        self.first.append(rank[starts] + 1)
        self.relevant.append(counts)

    def of_all(self, processes: Processes | None) -> "_PerQuery":
        """Merge these numbers with those of the other processes, in the order of the queries."""
        if processes is None:
            return self
        whole = np.stack([np.concatenate([_NO_INTS, *part]) for part in (self.index, self.first, self.relevant)], 1)
        real = np.stack([np.concatenate([_NO_FLOATS, *part]) for part in (self.ap, self.inp)], 1)
        index, first, relevant = processes.gather(torch.from_numpy(whole)).numpy().T
        ap, inp = processes.gather(torch.from_numpy(real)).numpy().T
        return _PerQuery([index], [ap], [inp], [first], [relevant]) if len(index) else _PerQuery()

    def result(self, protocol: str, q_pids: IntArray, num_gallery: int, max_rank: int) -> EvalResult:
        """Average over the valid queries.

        Raises:
            NoValidQueryError: there is no valid query.
        """
        if not self.index:
            raise NoValidQueryError(NO_VALID_QUERY)
        index, ap, first = np.concatenate(self.index), np.concatenate(self.ap), np.concatenate(self.first)
        inp = np.concatenate(self.inp)
        reached = np.bincount(np.minimum(first, max_rank + 1), minlength=max_rank + 2)[1 : max_rank + 1].cumsum()
        return EvalResult(
            protocol=protocol,
            cmc=reached.astype(np.float32) / np.float32(len(first)),
            mAP=float(ap.mean()),
            mINP=float(inp.mean()),
            topk={k: float((first <= k).mean()) for k in TOPK_RANKS},
            single_performance=np.stack((index, q_pids[index], ap), axis=1).astype(np.float64),
            pids=q_pids[index],
            first_match=first,
            inp=inp,
            num_relevant=np.concatenate(self.relevant),
            num_queries=len(q_pids),
            num_gallery=num_gallery,
        )


def evaluate(
    retrieval: RetrievalSet,
    options: RankingOptions | None = None,
    *,
    max_rank: int = 50,
    block_bytes: int | None = None,
    processes: Processes | None = None,
) -> EvalResult:
    """Rank the gallery for every query and measure the rankings, without ever sorting the gallery.

    Distances are float32, computed in blocks of queries on the device of the gallery. Besides the inputs, memory holds
    one block, and the centroids in the centroid protocols. The result depends neither on ``block_bytes`` nor on the
    number of processes.

    Args:
        retrieval: queries and gallery images, whatever the protocol: centroids are built here.
        options: protocol and distances; None ranks single images by squared Euclidean distance.
        max_rank: length of the CMC; ranks beyond the gallery repeat the last value.
        block_bytes: memory for distances, at least one tile (16 to 1024 queries). None is 64 MiB.
        processes: processes that share the queries and the search for re-ranking; each must call with the same
            inputs, and gets the whole result. A share is a whole number of tiles (16 to 1024 queries), so a small set
            keeps only a few processes busy. Centroids and query expansion are computed by each process.

    Raises:
        NoValidQueryError: no query has a relevant item.
        UserError: a value is not finite (the message names the array and index), or max_rank or block_bytes is not
            positive.
        UnknownNameError: the metric is neither "euclidean" nor "cosine".

    Example:
        >>> images = RetrievalSet([[1.0, 0]], [[0.9, 0], [0, 1]], [7], [7, 8], [0], [1, 1])
        >>> evaluate(images).mAP
        1.0
    """
    _check_max_rank(max_rank)
    options = options or RankingOptions()
    found = find_candidates(retrieval, options, block_bytes, processes)
    try:
        result = _measure(found, max_rank, block_bytes, processes)
    except NoValidQueryError:
        raise NoValidQueryError(no_valid_query(retrieval)) from None
    note, caveat = note_of(retrieval, options), caveat_of(retrieval, options)
    return replace(result, note=note, caveat=caveat, applied=applied(options))


def _measure(
    found: Candidates, max_rank: int, block_bytes: int | None, processes: Processes | None = None
) -> EvalResult:
    per_query = _PerQuery()
    for ranks in relevant_ranks(found, block_bytes, processes):
        per_query.add(ranks.row, ranks.rank)
    return per_query.of_all(processes).result(found.protocol, found.q_pids, len(found.pids), max_rank)


def relevant_ranks(
    found: Candidates, block_bytes: int | None = None, processes: Processes | None = None
) -> Iterator[Ranks]:
    """The ranks of the relevant items of all queries, in parts that are made of whole queries.

    Args:
        found: what is ranked.
        block_bytes, processes: as for :func:`evaluate`; several processes each get the ranks of their own queries.

    Yields:
        Parts in the order of the queries, whose ``row`` is the index of the query.

    Example:
        >>> found = given_candidates([[0.5, 0.1]], [7], [7, 8], [0], [1, 1])
        >>> [ranks.rank.tolist() for ranks in relevant_ranks(found)]
        [[1]]
    """
    for start, block in query_blocks(found.distances, len(found.q_pids), found.width, block_bytes, processes):
        if found.strict is not None:
            yield _strict_ranks(start, block, found.strict)
            continue
        assert found.same is not None  # one of strict and same is set
        for begin, end in found.same.spans(start, start + len(block)):
            ranks = rank_pairs(block[begin - start : end - start], found.same.pairs(begin, end))
            yield replace(ranks, row=ranks.row + begin)


def evaluate_embeddings(
    query: Any,
    gallery: Any,
    q_pids: Any,
    g_pids: Any,
    q_camids: Any,
    g_camids: Any,
    *,
    max_rank: int = 50,
    block_bytes: int | None = None,
    processes: Processes | None = None,
    **ranking: Any,
) -> EvalResult:
    """Call :func:`evaluate` with plain arrays.

    Args:
        query, gallery, q_pids, g_pids, q_camids, g_camids: as for :class:`~evaluation.retrieval.RetrievalSet`.
        max_rank, block_bytes, processes: as for :func:`evaluate`.
        ranking: the fields of :class:`~evaluation.retrieval.RankingOptions`: metric, protocol, keep_camids, feat_norm,
            rerank, query_expansion.

    Raises:
        NoValidQueryError, UserError, UnknownNameError: as for :func:`evaluate`; UserError also if lengths do not agree.

    Example:
        >>> evaluate_embeddings([[1.0, 0]], [[0.9, 0], [0, 1]], [7], [7, 8], [0], [1, 1], metric="cosine").topk[1]
        1.0
    """
    options = RankingOptions(**ranking)
    retrieval = RetrievalSet(query, gallery, q_pids, g_pids, q_camids, g_camids)
    return evaluate(retrieval, options, max_rank=max_rank, block_bytes=block_bytes, processes=processes)


def _check_max_rank(max_rank: int) -> None:
    if max_rank < 1:
        raise UserError(f"max_rank is {max_rank}; expected 1 or more.")


def evaluate_distances(
    distances: BlockFunc | Tensor | NDArray[Any],
    q_pids: Any,
    g_pids: Any,
    q_camids: Any,
    g_camids: Any,
    *,
    max_rank: int = 50,
    block_bytes: int | None = None,
) -> EvalResult:
    """Apply the instance protocol to given distances: a matrix [M, N], or a function that computes rows of it.

    Args:
        distances: [M, N] floating, or a function (start, stop) -> [stop - start, N]; ranked in float32.
        q_pids, g_pids, q_camids, g_camids, max_rank, block_bytes: as for :func:`evaluate_embeddings`.

    Raises:
        NoValidQueryError: no query has a relevant item.
        UserError: there are no queries or no gallery items, the lengths do not agree, or the distances are not finite
            or have another shape.

    Example:
        >>> evaluate_distances([[0.5, 0.1]], [7], [7, 8], [0], [1, 1]).mAP
        0.5
    """
    _check_max_rank(max_rank)
    found = given_candidates(distances, q_pids, g_pids, q_camids, g_camids)
    return replace(_measure(found, max_rank, block_bytes), note=SAME_CAMERA)


def query_blocks(
    distances: BlockFunc, num_query: int, num_gallery: int, block_bytes: int | None, processes: Processes | None
) -> Iterator[tuple[int, Tensor]]:
    """The number of each block's first query and its distances, for the queries that are this process's share.

    Example:
        >>> blocks = query_blocks(lambda start, stop: torch.zeros(stop - start, 3), 2, 3, None, None)
        >>> [(start, list(block.shape)) for start, block in blocks]
        [(0, [2, 3])]
    """
    height = block_height(num_query, num_gallery, block_bytes)
    first, last = 0, num_query
    if processes is not None:  # whole tiles, so that products do not depend on the number of processes
        tile = tile_height(num_query, num_gallery)
        first, last = (min(part * tile, num_query) for part in processes.share(-(-num_query // tile)))
    for start in range(first, last, height):
        yield start, distances(start, min(start + height, last))


def _strict_ranks(start: int, block: Tensor, gallery: StrictGallery) -> Ranks:
    row = np.flatnonzero(gallery.relevant[start : start + len(block)] >= 0)
    column = gallery.own[start + row]
    distance = gather(block, row, gallery.relevant[start + row])
    # The relevant centroid replaces the one over all images of the identity, which does not count.
    rank = count_before(block[:, : len(gallery.pids)], row, column, distance)
    rank -= gather(block, row, column) < distance
    return Ranks(row + start, rank, column)


def eval_func(
    indices: Any,
    q_pids: Any,
    g_pids: Any,
    q_camids: Any,
    g_camids: Any,
    max_rank: int = 50,
    respect_camids: bool = False,
) -> tuple[NDArray[np.float32], float, FloatArray, FloatArray]:
    """Measure given rankings.

    Args:
        indices: [M, N] whole numbers; row i holds the gallery indices, ordered by their distance from query i.
        q_pids, g_pids, q_camids: [M], [N] and [M] whole numbers.
        g_camids: [N], or with respect_camids N sets, lists or arrays of cameras.
        max_rank: length of the CMC, at most N.
        respect_camids: a gallery item has a set of cameras. It is removed for queries of its identity whose camera is
            in the set.

    Returns:
        cmc [min(max_rank, N)] float32, mAP, the shares for TOPK_RANKS [5], and rows (query index, pid, AP) [V, 3].

    Raises:
        NoValidQueryError: no query has a relevant item.
        UserError: the lengths do not agree, or an index is outside the gallery.

    Example:
        >>> cmc, mean_ap, _, _ = eval_func([[1, 0]], [7], [7, 8], [0], [1, 1])
        >>> cmc.tolist(), mean_ap
        ([0.0, 1.0], 0.5)
    """
    _check_max_rank(max_rank)
    indices = np.asarray(indices.cpu() if isinstance(indices, torch.Tensor) else indices)
    if indices.ndim != 2:
        raise UserError(f"indices has the shape {list(indices.shape)}; expected [queries, gallery items].")
    q_pids = int_array("q_pids", q_pids, len(indices), "indices")
    g_pids = int_array("g_pids", g_pids)
    q_camids = int_array("q_camids", q_camids, len(indices), "indices")
    cameras = Cameras("g_camids", g_camids[: len(g_pids)], len(g_pids), as_sets=respect_camids)
    if indices.size and not 0 <= indices.min() <= indices.max() < len(g_pids):
        raise UserError(f"indices must lie in 0..{len(g_pids) - 1}, the positions in g_pids.")
    found = _PerQuery()
    at_once = max(1, (4 << 20) // max(indices.shape[1], 1))
    for start in range(0, len(indices), at_once):
        span = slice(start, start + at_once)
        ranks = _ranks_of_indices(indices[span], q_pids[span], g_pids, q_camids[span], cameras)
        found.add(ranks.row + start, ranks.rank)
    result = found.result("instance", q_pids, len(g_pids), min(max_rank, indices.shape[1]))
    return result.cmc, result.mAP, np.array([result.topk[k] for k in TOPK_RANKS]), result.single_performance


def _ranks_of_indices(
    indices: IntArray, q_pids: IntArray, g_pids: IntArray, q_camids: IntArray, cameras: Cameras
) -> Ranks:
    same = g_pids[indices] == q_pids[:, None]  # [B, N]
    row, place = np.nonzero(same)
    removed = np.zeros_like(same)
    removed[row, place] = cameras.contain(indices[row, place].astype(np.int64), q_camids[row])
    row, place = np.nonzero(same & ~removed)
    rank = place - removed.cumsum(axis=1)[row, place]
    return Ranks(row, rank, indices[row, place])


def metrics_dict(*results: EvalResult) -> dict[str, float]:
    """The metrics of results under the names they are logged with.

    These are mAP and Top-1/5/10/20/50, and mINP in the instance protocol. Names of the strict protocol start with
    ``strict_``, so that it can be logged beside another protocol. No results give an empty dictionary.

    Example:
        >>> result = evaluate_distances([[0.5, 0.1]], [7], [7, 8], [0], [1, 1])
        >>> metrics_dict(result)
        {'mAP': 0.5, 'Top-1': 0.0, 'Top-5': 1.0, 'Top-10': 1.0, 'Top-20': 1.0, 'Top-50': 1.0, 'mINP': 0.5}
    """
    metrics: dict[str, float] = {}
    for result in results:
        prefix = "strict_" if result.protocol == "centroid_strict" else ""
        metrics[f"{prefix}mAP"] = result.mAP
        metrics |= {f"{prefix}Top-{k}": value for k, value in result.topk.items()}
        if result.protocol == "instance":
            metrics["mINP"] = result.mINP
    return metrics
