"""Where the relevant items of a query stand in its ranking, found by counting instead of sorting.

The rank of an item is the number of items before it: those that are nearer, and of those at the same distance the ones
that come earlier in the gallery. That is the order of a stable sort. Two ways of counting give the same numbers: one
comparison of the whole row with each relevant item, which is fastest for a few of them, and one search of every
distance among the sorted relevant ones.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from utils.labels import BoolArray, Cameras, IntArray

_FEW = 192  # up to here, comparing the row with each item is faster than searching
_PAIRS_AT_ONCE = 1 << 18
_SEARCH_BYTES = 32 << 20


@dataclass(frozen=True)
class Pairs:
    """Gallery items of the query's own identity, by query and then by gallery order."""

    row: IntArray  # [K] query, counted within its block
    column: IntArray  # [K] gallery item
    removed: BoolArray  # [K] the item was seen by the query's camera and does not count


class SameIdentity:
    """Finds the gallery items that share a query's identity, after grouping the gallery once.

    Args:
        q_pids, q_camids: [M].
        g_pids: [N].
        cameras: of the N gallery items.
    """

    def __init__(self, q_pids: IntArray, g_pids: IntArray, q_camids: IntArray, cameras: Cameras) -> None:
        self._order = np.argsort(g_pids, kind="stable")
        grouped = g_pids[self._order]
        self._first = np.searchsorted(grouped, q_pids, side="left")
        self._count = np.searchsorted(grouped, q_pids, side="right") - self._first
        self._q_camids, self._cameras = q_camids, cameras

    def pairs(self, start: int, stop: int) -> Pairs:
        """The pairs of queries start..stop."""
        count = self._count[start:stop]
        row = np.repeat(np.arange(stop - start), count)
        within = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
        column = self._order[np.repeat(self._first[start:stop], count) + within]
        return Pairs(row, column, self._cameras.contain(column, self._q_camids[start:stop][row]))

    def spans(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Cut queries start..stop into spans with a bounded number of pairs, or of one query."""
        ends = np.cumsum(self._count[start:stop])
        spans, begin = [], start
        while begin < stop:
            before = ends[begin - start - 1] if begin > start else 0
            end = start + int(np.searchsorted(ends, before + _PAIRS_AT_ONCE, side="right"))
            spans.append((begin, max(end, begin + 1)))
            begin = spans[-1][1]
        return spans


@dataclass(frozen=True)
class Ranks:
    """Relevant items by query and then by rank."""

    row: IntArray  # [K]
    rank: IntArray  # [K] 0 is the top, counted among the items that are not removed
    column: IntArray  # [K] gallery item


def rank_pairs(block: Tensor, pairs: Pairs) -> Ranks:
    """Rank each query's relevant items among all gallery items that are not removed.

    Args:
        block: [B, N] float32 distances, finite.
        pairs: every gallery item that is relevant to, or removed for, a query of the block.
    """
    distance = gather(block, pairs.row, pairs.column)
    order = np.lexsort((pairs.column, distance, pairs.row))
    row, column, distance, removed = pairs.row[order], pairs.column[order], distance[order], pairs.removed[order]
    removed_so_far = np.cumsum(removed)
    first = np.searchsorted(row, row, side="left")  # of the same query
    removed_before: IntArray = removed_so_far - (removed_so_far[first] - removed[first])
    kept = ~removed
    row, column = row[kept], column[kept]
    rank = count_before(block, row, column, distance[kept]) - removed_before[kept]
    return Ranks(row, rank, column)


def gather(block: Tensor, row: IntArray, column: IntArray) -> NDArray[np.float32]:
    """The entries block[row[i], column[i]], on the CPU."""
    if block.device.type == "cpu":
        return block.numpy()[row, column]
    return block[torch.from_numpy(row).to(block.device), torch.from_numpy(column).to(block.device)].cpu().numpy()


def count_before(block: Tensor, row: IntArray, column: IntArray, distance: NDArray[np.float32]) -> IntArray:
    """How many entries of its row come before each given entry: nearer, or as near and further left.

    Args:
        block: [B, N] float32.
        row, column, distance: [K] entries, sorted by (row, distance, column).
    """
    counts = np.bincount(row, minlength=len(block))
    searched = counts > (_FEW if block.device.type == "cpu" else 0)
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
    at_once = max(1, _SEARCH_BYTES // (32 * block.shape[1]))
    for i in range(0, len(rows), at_once):
        span = slice(starts[i], stops[min(i + at_once, len(rows)) - 1])
        local = np.searchsorted(rows[i : i + at_once], row[span])
        chosen = block[torch.from_numpy(rows[i : i + at_once]).to(block.device)]
        before.append(_search(chosen, local, column[span], distance[span]))
    return np.concatenate(before)


def _search(block: Tensor, row: IntArray, column: IntArray, distance: NDArray[np.float32]) -> IntArray:
    device = block.device
    counts = np.bincount(row, minlength=len(block))
    place = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    most = int(counts.max())
    at = (torch.from_numpy(row).to(device), torch.from_numpy(place).to(device))
    sought = torch.full((len(block), most), torch.iinfo(torch.int64).max, device=device)  # [B, P]
    sought[at] = _order_keys(torch.from_numpy(distance).to(device), torch.from_numpy(column).to(device))
    keys = _order_keys(block, torch.arange(block.shape[1], device=device))  # [B, N]
    passed = torch.searchsorted(sought, keys, right=True)  # how many relevant items each entry has passed
    passed += torch.arange(len(block), device=device).unsqueeze(1) * (most + 1)
    histogram = torch.bincount(passed.flatten(), minlength=len(block) * (most + 1)).view(len(block), most + 1)
    return histogram.cumsum(1)[at].cpu().numpy()


def nearest(block: Tensor, count: int) -> tuple[IntArray, NDArray[np.float32]]:
    """The first ``count`` columns of each row in the order of a stable sort, and their distances.

    Args:
        block: [B, N] float32; an infinite distance stands behind every finite one.
        count: 1 to N.

    Returns:
        two arrays [B, count].
    """
    columns = np.empty((len(block), count), dtype=np.int64)
    distances = np.empty((len(block), count), dtype=np.float32)
    at_once = max(1, _SEARCH_BYTES // (16 * block.shape[1]))  # with nothing but ties every entry is listed
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


def _order_keys(distance: Tensor, column: Tensor) -> Tensor:
    """Whole numbers, all different within a row, that sort like (distance, column)."""
    bits = (distance + 0.0).view(torch.int32)  # the sum makes -0.0 equal to 0.0
    bits = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return (bits.to(torch.int64) << 32) + column
