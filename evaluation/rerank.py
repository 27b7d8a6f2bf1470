"""Better rankings from the same embeddings: k-reciprocal re-ranking and alpha query expansion.

Both use embeddings alone, never identities or cameras.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluation.distance_blocks import DistanceBlocks, block_height
from evaluation.neighbours import Neighbours, Nodes, find_neighbours
from evaluation.ranking import cut, in_threads, nearest, ragged
from utils.distances import normalize
from utils.distributed import Processes
from utils.errors import UserError
from utils.labels import IntArray

FloatArray = NDArray[np.float32]

_MAX_ALPHA = 1_000_000  # a similarity that rounding puts above 1 is still finite to this power
# How much is held at once; the results do not depend on it.
ENTRIES_AT_ONCE = 1 << 19


@dataclass(frozen=True)
class Rerank:
    """Settings of k-reciprocal re-ranking; the defaults are those of the paper.

    Raises:
        UserError: a value is out of range.

    Example:
        >>> Rerank(k1=10)
        Rerank(k1=10, k2=6, lambda_value=0.3)
    """

    k1: int = 20  # nearest neighbours searched for reciprocal ones
    k2: int = 6  # nearest neighbours whose encodings are averaged
    lambda_value: float = 0.3  # weight of the original distance in the final one

    def __post_init__(self) -> None:
        if self.k1 < 1 or self.k2 < 1:
            raise UserError(f"Re-ranking needs k1 and k2 of 1 or more, got k1 {self.k1} and k2 {self.k2}.")
        if not 0 <= self.lambda_value <= 1:
            raise UserError(f"Re-ranking needs a lambda in [0, 1], got {self.lambda_value}.")


@dataclass(frozen=True)
class QueryExpansion:
    """Settings of alpha query expansion.

    Raises:
        UserError: a value is out of range.

    Example:
        >>> QueryExpansion(k=3)
        QueryExpansion(k=3, alpha=3.0)
    """

    k: int = 5  # gallery items averaged with the query
    alpha: float = 3.0  # exponent of the similarity that is an item's weight

    def __post_init__(self) -> None:
        if self.k < 1:
            raise UserError(f"Query expansion needs k of 1 or more, got {self.k}.")
        if not 0 <= self.alpha <= _MAX_ALPHA:
            raise UserError(f"Query expansion needs an alpha from 0 to {_MAX_ALPHA}, got {self.alpha}.")


def expand_queries(
    query: Tensor, gallery: Tensor, settings: QueryExpansion, feat_norm: bool = True, block_bytes: int | None = None
) -> Tensor:
    """Average each query with its k nearest gallery items: ``(q + sum s_i^alpha g_i) / (1 + sum s_i^alpha)``.

    Radenovic, Tolias, Chum: Fine-tuning CNN image retrieval with no human annotation, TPAMI 2019. s_i is the cosine
    similarity, or 0 if that is negative; the nearest items are found by cosine distance too. The result is not scaled
    to unit length again: rankings that need unit length scale it themselves.

    Args:
        query: [M, D] floating, M >= 1.
        gallery: [N, D] floating, N >= 1.
        settings: k (at most N are used) and alpha.
        feat_norm: scale embeddings to unit length before averaging.
        block_bytes: memory for distances; None is 64 MiB.

    Returns:
        [M, D] float32.

    Raises:
        UserError: a value is not finite, or queries and gallery differ in width.

    Example:
        >>> query, gallery = torch.tensor([[2.0, 0]]), torch.tensor([[4.0, 0], [0, 4]])
        >>> expand_queries(query, gallery, QueryExpansion(k=1), feat_norm=False).tolist()
        [[3.0, 0.0]]
    """
    distances = DistanceBlocks(query, gallery, "cosine")
    expanded = torch.empty(len(query), query.shape[1], device=gallery.device)
    height = block_height(len(query), len(gallery), block_bytes)
    for start in range(0, len(query), height):
        stop = min(start + height, len(query))
        columns, distance = nearest(distances(start, stop), min(settings.k, len(gallery)))
        similarity = (1 - distance).clip(min=0)  # [B, k]
        weights = torch.from_numpy(similarity ** np.float32(settings.alpha)).to(gallery.device)
        total = query[start:stop].to(expanded)
        if feat_norm:
            total = normalize(total)
        total = total.clone()
        for i in range(columns.shape[1]):
            item = gallery[torch.from_numpy(columns[:, i]).to(gallery.device)].to(torch.float32)  # [B, D]
            total += weights[:, i : i + 1] * (normalize(item) if feat_norm else item)
        expanded[start:stop] = total / (1 + weights.sum(1, keepdim=True))
    return expanded


class RerankedDistances:
    """Distances after re-ranking with k-reciprocal encoding, for blocks of queries.

    Zhong, Zheng, Cao, Li: Re-ranking person re-identification with k-reciprocal encoding, CVPR 2017. All M + N items
    are nodes of one graph, queries first. Distances are those of the metric ("euclidean" is squared); those from a node
    are divided by the largest of them. No matrix of (M + N)^2 entries is kept: memory is O((M + N) k) plus one block.

    Args:
        query: [M, D] floating, M >= 1.
        gallery: [N, D] floating, N >= 1.
        settings: k1, k2 and lambda; k1 beyond 2 (M + N) acts as that, k2 beyond M + N as M + N.
        metric, feat_norm: as for :class:`evaluation.distance_blocks.DistanceBlocks`.
        processes: processes that share the search for neighbours; each must call with the same inputs.

    Raises:
        UserError: a value is not finite, or queries and gallery differ in width.
        UnknownNameError: the metric is neither "euclidean" nor "cosine".

    Example:
        >>> query, gallery = torch.tensor([[0.0]]), torch.tensor([[1.0], [5.0]])
        >>> distances = RerankedDistances(query, gallery, Rerank(k1=1, k2=1))
        >>> nearest(distances(0, 1), 2)[0].tolist()
        [[0, 1]]
    """

    def __init__(
        self,
        query: Tensor,
        gallery: Tensor,
        settings: Rerank,
        metric: str = "euclidean",
        feat_norm: bool = False,
        processes: Processes | None = None,
    ) -> None:
        self._lambda = settings.lambda_value
        self.distances = DistanceBlocks(query, gallery, metric, feat_norm)
        self.gallery = gallery
        nodes = Nodes(query, gallery, metric, feat_norm)
        k1 = min(settings.k1, 2 * nodes.size)  # half of it is a number of neighbours too
        found = find_neighbours(nodes, min(max(k1 + 1, settings.k2), nodes.size), processes)
        largest = np.where(found.largest > 0, found.largest, 1)  # 0 if all nodes coincide
        rows, columns, weights = _encode(nodes, found, largest, k1)
        if settings.k2 > 1:
            rows, columns, weights = _average(found.nodes[:, : settings.k2], rows, columns, weights)
        m, n = len(query), len(gallery)
        self._largest = torch.from_numpy(largest[:m]).to(gallery.device)
        self._query_start = np.searchsorted(rows, np.arange(m + 1))
        last = self._query_start[m]
        self._query_column, self._query_weight = columns[:last], weights[:last]
        # The gallery's encodings, grouped by column: the items that have an entry there, and its weight.
        order = np.argsort(columns[last:], kind="stable")
        self._item, self._item_weight = rows[last:][order] - m, weights[last:][order]
        self._item_start = np.searchsorted(columns[last:][order], np.arange(m + n + 1))

    def __call__(self, start: int, stop: int) -> Tensor:
        """``(1 - lambda) * Jaccard distance + lambda * distance``, [stop - start, N], valid until the next call."""
        original = self.distances(start, stop)
        original.div_(self._largest[start:stop, None]).mul_(self._lambda)
        for query in range(start, stop):
            jaccard = torch.from_numpy(self._jaccard(query)).to(original.device)
            original[query - start] += jaccard.mul_(1 - self._lambda)
        return original

    def bounds(self) -> tuple[float, float]:
        """Lower and upper bound of all distances, up to rounding."""
        return 0.0, 1.0

    def _jaccard(self, query: int) -> FloatArray:
        """``1 - sum min(v_q, v_g) / sum max(v_q, v_g)``, [N]; weights sum to 1, so the two sums add up to 2."""
        shared = np.zeros(len(self.gallery))
        span = slice(self._query_start[query], self._query_start[query + 1])
        for column, weight in zip(self._query_column[span].tolist(), self._query_weight[span], strict=True):
            items = slice(self._item_start[column], self._item_start[column + 1])  # each of them once
            shared[self._item[items]] += np.minimum(self._item_weight[items], weight)
        overlap = shared.astype(np.float32)
        return 1 - overlap / (2 - overlap)


def _reciprocal(lists: IntArray) -> NDArray[np.bool_]:
    """[T, k] bool, whether each of a node's k nearest neighbours has the node among its own k nearest."""
    result = np.empty(lists.shape, dtype=np.bool_)
    at_once = max(1, ENTRIES_AT_ONCE // lists.shape[1] ** 2)
    for start in range(0, len(lists), at_once):
        part = lists[start : start + at_once]
        nodes = np.arange(start, start + len(part))
        result[start : start + at_once] = (lists[part] == nodes[:, None, None]).any(2)
    return result


def _encode(nodes: Nodes, found: Neighbours, largest: FloatArray, k1: int) -> tuple[IntArray, IntArray, FloatArray]:
    """Find each node's k-reciprocal neighbours, add those of its neighbours, and weight them by exp(-distance).

    Returns:
        rows, columns and weights of a sparse matrix, sorted by row and column; each row sums to 1.
    """
    size = nodes.size
    k, half = min(k1 + 1, size), min(round(k1 / 2) + 1, size)
    lists, half_lists = found.nodes[:, :k], found.nodes[:, :half]
    mutual, half_mutual = _reciprocal(lists), _reciprocal(half_lists)
    at_once = max(1, ENTRIES_AT_ONCE // (k * half * k))

    def expand(start: int) -> IntArray:
        part, own = lists[start : start + at_once], mutual[start : start + at_once]  # [B, k]
        theirs, valid = half_lists[part], half_mutual[part]  # [B, k, half] neighbours of each neighbour
        shared = ((theirs[..., None] == part[:, None, None]) & own[:, None, None]).any(3) & valid
        close = own & (3 * shared.sum(2) > 2 * valid.sum(2))
        row = np.arange(start, start + len(part)) * size
        of_neighbours = (row[:, None, None] + theirs)[valid & close[..., None]]
        return np.unique(np.concatenate(((row[:, None] + part)[own], of_neighbours)))

    key: IntArray = np.concatenate(in_threads(expand, range(0, size, at_once)))
    rows, columns = np.divmod(key, size)
    weights = np.exp(-_known_or_computed(nodes, found, key) / largest[rows])
    return rows, columns, _rows_to_unit_sum(rows, weights, size)


def _known_or_computed(nodes: Nodes, found: Neighbours, key: IntArray) -> FloatArray:
    """Distances of pairs of nodes; a pair is row * size + column, and pairs are in ascending order."""
    order = np.argsort(found.nodes, axis=1)
    known = (np.take_along_axis(found.nodes, order, 1) + np.arange(nodes.size)[:, None] * nodes.size).ravel()
    place = np.searchsorted(known, key).clip(max=len(known) - 1)
    distances = np.take_along_axis(found.distances, order, 1).ravel()[place]
    missing = known[place] != key
    distances[missing] = nodes.pair_distances(*np.divmod(key[missing], nodes.size))
    return distances


def _rows_to_unit_sum(rows: IntArray, weights: FloatArray, size: int) -> FloatArray:
    return (weights / np.bincount(rows, weights, minlength=size)[rows]).astype(np.float32)


def _average(
    lists: IntArray, rows: IntArray, columns: IntArray, weights: FloatArray
) -> tuple[IntArray, IntArray, FloatArray]:
    """Replace each node's row of the sparse matrix by the mean of the rows of its nearest neighbours, [T, k2]."""
    starts = np.searchsorted(rows, np.arange(len(lists) + 1))
    count = np.diff(starts)
    keys, values = [], []
    for part in cut(count[lists].sum(1), ENTRIES_AT_ONCE):
        nodes = lists[part].ravel()
        at = ragged(starts[nodes], count[nodes])
        own = np.repeat(np.arange(part.start, part.start + len(lists[part])), lists.shape[1])
        key, place = np.unique(np.repeat(own, count[nodes]) * len(lists) + columns[at], return_inverse=True)
        keys.append(key)
        values.append((np.bincount(place.reshape(-1), weights[at]) / lists.shape[1]).astype(np.float32))
    rows, columns = np.divmod(np.concatenate(keys), len(lists))
    return rows, columns, np.concatenate(values)
