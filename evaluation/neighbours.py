"""The nearest neighbours of every node among all nodes, with each product of two groups of nodes computed once.

The distance from i to j is the one from j to i, so the product of two groups serves the rows of the one and the columns
of the other. Every product has the same height and width, and that of two groups is always taken the same way round: so
the result does not depend on how the products are divided among processes.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluation.distance_blocks import MAX_TILE, exact_float32, row_squares, tile_height
from evaluation.ranking import nearest, order_keys
from utils.distances import normalize
from utils.distributed import Processes
from utils.labels import IntArray

FloatArray = NDArray[np.float32]

_EMPTY = np.iinfo(np.int64).max  # a place in a list that no node has taken yet
PAIR_BYTES = 8 << 20


class Nodes:
    """M queries and N gallery items as T = M + N nodes, queries first.

    Args:
        query: [M, D] floating, M >= 1.
        gallery: [N, D] floating, N >= 1.
        metric: "euclidean" (squared) or "cosine".
        feat_norm: scale embeddings to unit length first.

    Raises:
        UserError: a value is not finite.

    Example:
        >>> nodes = Nodes(torch.tensor([[0.0]]), torch.tensor([[3.0], [5.0]]))
        >>> nodes.pair_distances(np.array([0, 1]), np.array([1, 2])).tolist()
        [9.0, 4.0]
    """

    def __init__(self, query: Tensor, gallery: Tensor, metric: str = "euclidean", feat_norm: bool = False) -> None:
        self._sets, self.metric, self._normalized = (query, gallery), metric, feat_norm or metric == "cosine"
        self.device = gallery.device
        self.size = len(query) + len(gallery)
        self.height = tile_height(self.size, MAX_TILE)
        self.groups = -(-self.size // self.height)
        squares = torch.zeros(self.groups * self.height, device=self.device)
        with exact_float32():
            squares[: len(query)] = row_squares("query", query)
            squares[len(query) : self.size] = row_squares("gallery", gallery)
        self._lengths = squares.sqrt() + 1e-12  # as in utils.distances.normalize
        self._squares = squares / self._lengths.square() if self._normalized else squares

    def span(self, number: int) -> slice:
        """The nodes of a group."""
        return slice(number * self.height, min((number + 1) * self.height, self.size))

    def group(self, number: int) -> Tensor:
        """The embeddings [height, D] float32 of a group, as their distances are taken; the last ends with zeros."""
        nodes, m = self.span(number), len(self._sets[0])
        query, gallery = self._sets[0][nodes], self._sets[1][max(nodes.start - m, 0) : max(nodes.stop - m, 0)]
        for part in (query, gallery):
            if len(part) == self.height and part.dtype == torch.float32 and part.device == self.device:
                return part / self._lengths[nodes, None] if self._normalized else part
        whole = torch.zeros(self.height, query.shape[1], device=self.device)
        whole[: len(query)] = query
        whole[len(query) : len(query) + len(gallery)] = gallery
        return whole / self._lengths[nodes.start : nodes.start + self.height, None] if self._normalized else whole

    def tile(self, i: int, j: int, x: Tensor, y: Tensor, out: Tensor) -> Tensor:
        """The distances between groups i and j, whose embeddings are x and y: a part of ``out`` [height, height]."""
        rows, columns = (slice(number * self.height, (number + 1) * self.height) for number in (i, j))
        if self.metric == "cosine":
            out.fill_(1).addmm_(x, y.t(), alpha=-1)
        else:
            torch.add(self._squares[rows, None], self._squares[columns], out=out).addmm_(x, y.t(), alpha=-2)
        return out[: min(self.height, self.size - rows.start), : min(self.height, self.size - columns.start)]

    def take(self, nodes: IntArray) -> Tensor:
        """Embeddings [K, D] float32 of nodes, scaled to unit length if the distances are taken so."""
        query, gallery = self._sets
        taken = torch.empty(len(nodes), query.shape[1], device=self.device)
        of_query = nodes < len(query)
        for which, source, offset in ((of_query, query, 0), (~of_query, gallery, len(query))):
            rows = torch.from_numpy(nodes[which] - offset).to(source.device)
            taken[torch.from_numpy(np.flatnonzero(which)).to(taken.device)] = source[rows].to(taken)
        return normalize(taken) if self._normalized else taken

    def pair_distances(self, a: IntArray, b: IntArray) -> FloatArray:
        """The distances [K] between nodes a[i] and b[i]."""
        result = np.empty(len(a), dtype=np.float32)
        at_once = max(1, PAIR_BYTES // (4 * self._sets[0].shape[1]))
        for start in range(0, len(a), at_once):
            x, y = self.take(a[start : start + at_once]), self.take(b[start : start + at_once])
            pairs = 1 - (x * y).sum(1) if self.metric == "cosine" else (x - y).square().sum(1)
            result[start : start + at_once] = pairs.cpu().numpy()
        return result


@dataclass(frozen=True)
class Neighbours:
    """The k nearest neighbours of each of T nodes, itself included, in the order of a stable sort.

    Example:
        >>> find_neighbours(Nodes(torch.tensor([[0.0]]), torch.tensor([[3.0], [5.0]])), 2).nodes.tolist()
        [[0, 1], [1, 2], [2, 1]]
    """

    nodes: IntArray  # [T, k]
    distances: FloatArray  # [T, k]
    largest: FloatArray  # [T] largest distance from each node to any other


def find_neighbours(nodes: Nodes, k: int, processes: Processes | None = None) -> Neighbours:
    """Search the k nearest neighbours of all nodes, one product of two groups at a time.

    Memory holds one product, a copy of two groups, and the lists, O(T k).

    Args:
        nodes: T nodes.
        k: 1 to T.
        processes: processes that share the products; each must call with the same nodes, and gets the whole result.

    Example:
        >>> find_neighbours(Nodes(torch.tensor([[0.0]]), torch.tensor([[3.0], [5.0]])), 1).largest.tolist()
        [25.0, 9.0, 25.0]
    """
    found = _Lists(nodes.size, k)
    number, x = -1, torch.empty(0)
    out = torch.empty(nodes.height, nodes.height, device=nodes.device)
    with exact_float32():
        for i, j in _pairs_of_groups(nodes.groups, processes):
            if i != number:
                number, x = i, nodes.group(i)
            tile = nodes.tile(i, j, x, x if i == j else nodes.group(j), out)
            found.add(tile, nodes.span(i), nodes.span(j))
            if i != j:
                found.add(tile.t(), nodes.span(j), nodes.span(i))
    if processes is not None:
        found.gather(processes)
    distances, columns = found.unpacked()
    return Neighbours(columns, distances, found.largest)


def _pairs_of_groups(groups: int, processes: Processes | None) -> Iterator[tuple[int, int]]:
    """This process's share of the pairs i <= j, row by row."""
    total = groups * (groups + 1) // 2
    first, last = (0, total) if processes is None else processes.share(total)
    number = 0
    for i in range(groups):
        for j in range(i, groups):
            if first <= number < last:
                yield i, j
            number += 1


class _Lists:
    """The nearest nodes found so far, as whole numbers that sort like (distance, node), and the largest distances.

    A node's tiles must come in the order of the other nodes. So one that is as far as the last of a full list comes
    after it.
    """

    def __init__(self, size: int, k: int) -> None:
        self.keys = np.full((size, k), _EMPTY)
        self.limit = np.full(size, np.inf, dtype=np.float32)  # the last distance of each full list
        self.largest = np.full(size, -np.inf, dtype=np.float32)

    def add(self, tile: Tensor, rows: slice, columns: slice) -> None:
        """Take in the distances [R, C] from nodes ``rows`` to nodes ``columns``."""
        self.largest[rows] = np.maximum(self.largest[rows], tile.amax(1).cpu().numpy())
        limit = self.limit[rows]
        if np.isinf(limit).any():  # lists that are not full would take every entry
            k = min(self.keys.shape[1], tile.shape[1])
            column, distance = nearest(tile.contiguous(), k)
            row, column, distance = np.repeat(np.arange(len(column)), k), column.ravel(), distance.ravel()
        else:
            row, column, distance = _below(tile, torch.from_numpy(limit).to(tile.device))
        if len(row):
            self._merge(rows.start + row, _keys(distance, columns.start + column))

    def _merge(self, node: IntArray, key: IntArray) -> None:
        """Take in nodes, sorted by the node whose list they are for."""
        changed, start, count = np.unique(node, return_index=True, return_counts=True)
        k = self.keys.shape[1]
        merged = np.full((len(changed), k + int(count.max())), _EMPTY)
        merged[:, :k] = self.keys[changed]
        merged[np.repeat(np.arange(len(changed)), count), k + np.arange(len(node)) - np.repeat(start, count)] = key
        self._keep(changed, merged)

    def _keep(self, nodes: IntArray | slice, candidates: IntArray) -> None:
        candidates.sort(axis=1)
        self.keys[nodes] = candidates = candidates[:, : self.keys.shape[1]]
        last = candidates[:, -1]
        self.limit[nodes] = np.where(last == _EMPTY, np.float32(np.inf), _distances(last))

    def gather(self, processes: Processes) -> None:
        """Merge the lists of all processes."""
        size, k = self.keys.shape
        keys = processes.gather(torch.from_numpy(self.keys)).numpy().reshape(-1, size, k)
        self._keep(slice(None), np.concatenate(keys, axis=1))
        largest = processes.gather(torch.from_numpy(self.largest)).numpy()
        self.largest = largest.reshape(-1, size).max(0)

    def unpacked(self) -> tuple[FloatArray, IntArray]:
        """Distances and nodes of the lists."""
        return _distances(self.keys), self.keys & 0xFFFFFFFF


def _below(tile: Tensor, limit: Tensor) -> tuple[IntArray, IntArray, FloatArray]:
    """Row, column and value of the entries below their row's limit, ordered by row and column."""
    if tile.device.type != "cpu":
        return _below_on_accelerator(tile, limit)
    if tile.is_contiguous():
        row, column = np.divmod(np.flatnonzero((tile < limit[:, None]).numpy()), tile.shape[1])
    else:  # along the memory, which is faster, then into the order of the rows
        column, row = np.divmod(np.flatnonzero((tile.t() < limit).numpy()), len(tile))
        order = np.argsort(row, kind="stable")
        row, column = row[order], column[order]
    return row, column, tile.numpy()[row, column]


def _below_on_accelerator(tile: Tensor, limit: Tensor) -> tuple[IntArray, IntArray, FloatArray]:
    places = (tile < limit[:, None]).nonzero(as_tuple=True)
    row, column, value = (x.cpu().numpy() for x in (*places, tile[places]))
    return row, column, value


def _keys(distance: FloatArray, node: IntArray) -> IntArray:
    return order_keys(torch.from_numpy(distance), torch.from_numpy(node)).numpy()


def _distances(keys: IntArray) -> FloatArray:
    """The distances of keys; the high half holds their bits, with those of negative ones turned round."""
    bits = (keys >> 32).astype(np.int32)
    return np.where(bits < 0, bits ^ 0x7FFFFFFF, bits).astype(np.int32).view(np.float32)
