"""Ranks of the relevant items of a query, found by counting instead of sorting.

The rank of an item is the number of items before it: those that are nearer, and those at the same distance that come
earlier in the gallery. This is the order of a stable sort. There are two ways to count, with equal results: compare the
whole row with each relevant item, which is faster for a few of them, or search for every distance among the sorted
relevant ones.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from utils.labels import BoolArray, Cameras, IntArray

T = TypeVar("T")
R = TypeVar("R")

FEW = 192  # up to this many relevant items, comparing is faster than searching
PAIRS_AT_ONCE = 1 << 18
SEARCH_BYTES = 32 << 20
ENTRIES_FOR_A_THREAD = 1 << 24  # fewer are compared before a thread has started


@dataclass(frozen=True)
class Pairs:
    """Gallery items of the query's own identity, ordered by query and then by gallery position.

    Example:
        >>> pairs = Pairs(row=np.array([0, 0]), column=np.array([1, 4]), removed=np.array([True, False]))
        >>> pairs.column[~pairs.removed].tolist()
        [4]
    """

    row: IntArray  # [K] row of the query in its block
    column: IntArray  # [K] gallery item
    removed: BoolArray  # [K] whether the item comes from the query's camera and does not count


class SameIdentity:
    """Finds the gallery items of a query's identity, after grouping the gallery once.

    Args:
        q_pids, q_camids: [M] int64.
        g_pids: [N] int64.
        cameras: the cameras of the N gallery items.

    Example:
        >>> cameras = Cameras("g_camids", [0, 1, 1], 3)
        >>> same = SameIdentity(np.array([7]), np.array([7, 7, 8]), np.array([0]), cameras)
        >>> same.pairs(0, 1).column.tolist(), same.pairs(0, 1).removed.tolist()
        ([0, 1], [True, False])
    """

    def __init__(self, q_pids: IntArray, g_pids: IntArray, q_camids: IntArray, cameras: Cameras) -> None:
        self._order = np.argsort(g_pids, kind="stable")
        grouped = g_pids[self._order]
        self._first = np.searchsorted(grouped, q_pids, side="left")
        self._count = np.searchsorted(grouped, q_pids, side="right") - self._first
        self._q_camids, self._cameras = q_camids, cameras

    def pairs(self, start: int, stop: int) -> Pairs:
        """The pairs of queries start to stop, exclusive."""
        count = self._count[start:stop]
        row = np.repeat(np.arange(stop - start), count)
        column = self._order[ragged(self._first[start:stop], count)]
        return Pairs(row, column, self._cameras.contain(column, self._q_camids[start:stop][row]))

    def spans(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Cut queries start to stop (exclusive) into spans with a limited number of pairs, or of a single query."""
        return [(start + part.start, start + part.stop) for part in cut(self._count[start:stop], PAIRS_AT_ONCE)]


@dataclass(frozen=True)
class Ranks:
    """Relevant items, ordered by query and then by rank.

    Example:
        >>> Ranks(row=np.array([0, 0]), rank=np.array([0, 3]), column=np.array([4, 1])).rank.tolist()
        [0, 3]
    """

    row: IntArray  # [K]
    rank: IntArray  # [K] counted from 0 among the items that are not removed
    column: IntArray  # [K] gallery item


def rank_pairs(block: Tensor, pairs: Pairs) -> Ranks:
    """Rank each query's relevant items among all gallery items that are not removed.

    Args:
        block: [B, N] float32 distances, finite.
        pairs: every gallery item that is relevant to a query of the block, or removed for it.

    Returns:
        The ranks; empty without relevant items.

    Example:
        >>> pairs = Pairs(np.array([0, 0]), np.array([0, 2]), np.array([True, False]))
        >>> rank_pairs(torch.tensor([[0.1, 0.2, 0.3]]), pairs).rank.tolist()  # item 0 is removed, item 1 is nearer
        [1]
    """
    distance = gather(block, pairs.row, pairs.column)
    order = np.lexsort((pairs.column, distance, pairs.row))
    row, column, distance, removed = pairs.row[order], pairs.column[order], distance[order], pairs.removed[order]
    removed_so_far = np.cumsum(removed)
    first = np.searchsorted(row, row, side="left")  # first pair of the same query
    removed_before: IntArray = removed_so_far - (removed_so_far[first] - removed[first])
    kept = ~removed
    row, column = row[kept], column[kept]
    rank = count_before(block, row, column, distance[kept]) - removed_before[kept]
    return Ranks(row, rank, column)


def gather(block: Tensor, row: IntArray, column: IntArray) -> NDArray[np.float32]:
    """The entries block[row[i], column[i]] as an array on the CPU.

    Example:
        >>> gather(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), np.array([0, 1]), np.array([1, 0])).tolist()
        [2.0, 3.0]
    """
    if block.device.type == "cpu":
        return block.numpy()[row, column]
    return block[torch.from_numpy(row).to(block.device), torch.from_numpy(column).to(block.device)].cpu().numpy()


def count_before(block: Tensor, row: IntArray, column: IntArray, distance: NDArray[np.float32]) -> IntArray:
    """Count the entries of the same row that come before each given one: nearer, or as near and further left.

    Args:
        block: [B, N] float32 distances.
        row, column, distance: [K] positions and values of the given entries, sorted by (row, distance, column).

    Returns:
        [K] counts.

    Example:
        >>> distance = np.array([0.2], np.float32)
        >>> count_before(torch.tensor([[0.2, 0.1, 0.2]]), np.array([0]), np.array([2]), distance).tolist()
        [2]
    """
    counts = np.bincount(row, minlength=len(block))
    searched = counts > (FEW if block.device.type == "cpu" else 0)
    by_search = searched[row]
    before = np.empty(len(row), dtype=np.int64)
    compared = ~by_search
    if compared.any():
        before[compared] = _count_by_comparing(block.numpy(), row[compared], column[compared], distance[compared])
    if by_search.any():
        before[by_search] = _count_by_search(block, row[by_search], column[by_search], distance[by_search])
    return before


def _count_by_comparing(
    block: NDArray[np.float32], row: IntArray, column: IntArray, distance: NDArray[np.float32]
) -> IntArray:
    workers = min(torch.get_num_threads(), 1 + len(row) * block.shape[1] // ENTRIES_FOR_A_THREAD)
    ends = np.linspace(0, len(row), workers + 1).astype(np.int64)
    parts = [slice(start, stop) for start, stop in itertools.pairwise(ends)]
    return np.concatenate(in_threads(lambda part: _compare(block, row[part], column[part], distance[part]), parts))


def _compare(block: NDArray[np.float32], row: IntArray, column: IntArray, distance: NDArray[np.float32]) -> IntArray:
    mask = np.empty(block.shape[1], dtype=np.bool_)
    before = []
    for r, j, d in zip(row.tolist(), column.tolist(), distance, strict=True):
        values = block[r]
        np.less_equal(values[:j], d, out=mask[:j])
        np.less(values[j:], d, out=mask[j:])
        before.append(np.count_nonzero(mask))
    return np.asarray(before, dtype=np.int64)


def _count_by_search(block: Tensor, row: IntArray, column: IntArray, distance: NDArray[np.float32]) -> IntArray:
    before = []
    rows, starts = np.unique(row, return_index=True)
    stops = np.append(starts[1:], len(row))
    at_once = max(1, SEARCH_BYTES // (32 * block.shape[1]))
    for i in range(0, len(rows), at_once):
        span = slice(starts[i], stops[min(i + at_once, len(rows)) - 1])
        local = np.searchsorted(rows[i : i + at_once], row[span])
        chosen = block[torch.from_numpy(rows[i : i + at_once]).to(block.device)]
        before.append(_search(chosen, local, column[span], distance[span]))
    return np.concatenate(before)


def _search(block: Tensor, row: IntArray, column: IntArray, distance: NDArray[np.float32]) -> IntArray:
    device = block.device
    counts = np.bincount(row, minlength=len(block))
    place = ragged(np.zeros_like(counts), counts)
    most = int(counts.max())
    at = (torch.from_numpy(row).to(device), torch.from_numpy(place).to(device))
    sought = torch.full((len(block), most), torch.iinfo(torch.int64).max, device=device)  # [B, P]
    sought[at] = order_keys(torch.from_numpy(distance).to(device), torch.from_numpy(column).to(device))
    keys = order_keys(block, torch.arange(block.shape[1], device=device))  # [B, N]
    passed = torch.searchsorted(sought, keys, right=True)  # how many relevant items are at or before each entry
    passed += torch.arange(len(block), device=device).unsqueeze(1) * (most + 1)
    histogram = torch.bincount(passed.flatten(), minlength=len(block) * (most + 1)).view(len(block), most + 1)
    return histogram.cumsum(1)[at].cpu().numpy()


def in_threads(function: Callable[[T], R], parts: Sequence[T]) -> list[R]:
    """The results of a function that computes with numpy, for each part, by as many threads as torch uses.

    Example:
        >>> in_threads(abs, [-1, 2])
        [1, 2]
    """
    workers = min(torch.get_num_threads(), len(parts))
    if workers < 2:
        return [function(part) for part in parts]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(function, parts))


def nearest(block: Tensor, count: int) -> tuple[IntArray, NDArray[np.float32]]:
    """Find the first ``count`` columns of each row in the order of a stable sort, and their distances.

    Args:
        block: [B, N] float32 distances; infinite ones come after all finite ones.
        count: 1 to N.

    Returns:
        columns [B, count] int64 and distances [B, count] float32.

    Example:
        >>> columns, distances = nearest(torch.tensor([[0.5, 0.25, 0.25]]), 2)
        >>> columns.tolist(), distances.tolist()
        ([[1, 2]], [[0.25, 0.25]])
    """
    columns = np.empty((len(block), count), dtype=np.int64)
    distances = np.empty((len(block), count), dtype=np.float32)
    at_once = max(1, SEARCH_BYTES // (16 * block.shape[1]))  # if all distances are equal, every entry is listed
    for start in range(0, len(block), at_once):
        part = block[start : start + at_once]
        farthest = part.topk(count, dim=1, largest=False).values[:, -1:]
        row, column = (part <= farthest).nonzero().cpu().numpy().T
        distance = gather(part, row, column)
        order = np.lexsort((column, distance, row))
        first = np.searchsorted(row, np.arange(len(part)))
        chosen = order[first[:, None] + np.arange(count)]
        columns[start : start + at_once], distances[start : start + at_once] = column[chosen], distance[chosen]
    return columns, distances


def order_keys(distance: Tensor, column: Tensor) -> Tensor:
    """Whole numbers, unique within a row, that sort like (distance, column).

    Args:
        distance: [...] float32, finite.
        column: [...] int64, 0 to 2^32 - 1.

    Returns:
        [...] int64.

    Example:
        >>> order_keys(torch.tensor([0.5, -0.5, 0.5]), torch.tensor([0, 1, 2])).argsort().tolist()
        [1, 0, 2]
    """
    bits = (distance + 0.0).view(torch.int32)  # adding 0.0 turns -0.0 into 0.0
    bits = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return (bits.to(torch.int64) << 32) + column


def cut(sizes: IntArray, most: int) -> Iterator[slice]:
    """Cut a list of sizes into slices that sum to at most ``most`` or have a single entry.

    Example:
        >>> [(part.start, part.stop) for part in cut(np.array([2, 2, 9, 1]), 4)]
        [(0, 2), (2, 3), (3, 4)]
    """
    ends = np.cumsum(sizes)
    start = 0
    while start < len(sizes):
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + most, side="right")))
        yield slice(start, stop)
        start = stop


def ragged(starts: IntArray, counts: IntArray) -> IntArray:
    """starts[0], starts[0] + 1, ... (counts[0] of them), starts[1], ...

    Example:
        >>> ragged(np.array([5, 0]), np.array([2, 3])).tolist()
        [5, 6, 0, 1, 2]
    """
    return np.arange(counts.sum()) + np.repeat(starts - np.cumsum(counts) + counts, counts)
