"""One embedding for several images of the same thing, such as the crops of a tracklet."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.errors import UnknownNameError, UserError
from utils.labels import IntArray, check_length

CHUNK_BYTES = 32 << 20  # of float64 copies, or of distances, at a time
ROUNDS = 10  # of leaving out, at most
DEVIATIONS = 3.0  # beyond which a distance is that of an outlier
LEAST_SPREAD = 0.1  # of the median distance: that of a few alike rows says nothing of the next one

_MAD_TO_DEVIATION = 1.4826  # of a normal distribution


def aggregate(rows: Any, how: str = "mean") -> Tensor:
    """One embedding for all rows.

    Args:
        rows: [n, D] floating, n >= 1; tensor or array. They are taken as they are: scale them to unit length before if
            each is to have the same weight.
        how: "mean"; "medoid", the row with the least sum of Euclidean distances to the others, the first of equals; or
            "robust", the mean without outliers: the rows that are farther from the mean than the median distance and
            three times its spread (1.4826 times the median absolute deviation, or a tenth of the median distance if
            that is more) leave, and again with the mean of the rest, until none leaves; at least half of the rows stay.

    Returns:
        [D] float32.

    Raises:
        UnknownNameError: there is no such ``how``.
        UserError: there are no rows.

    Example:
        >>> rows = torch.tensor([[1.0, 0.0], [1.2, 0.0], [0.8, 0.0], [9.0, 8.0]])
        >>> aggregate(rows).tolist()
        [3.0, 2.0]
        >>> aggregate(rows, "medoid").tolist()
        [1.0, 0.0]
        >>> aggregate(rows, "robust").tolist()
        [1.0, 0.0]
    """
    rows = torch.as_tensor(rows)
    if rows.ndim != 2 or not len(rows):
        raise UserError(f"rows have the shape {list(rows.shape)}; expected [n, D] with at least one row.")
    return _function(how)(rows.detach().double().unsqueeze(0))[0].float()


def aggregate_groups(rows: Any, groups: IntArray, count: int, how: str = "mean") -> Tensor:
    """:func:`aggregate` for each group, those of equal size together.

    Args:
        rows: [N, D] floating, tensor or array; of a file that is mapped into memory, a part at a time is read.
        groups: [N] the group of each row, in [0, count); rows of a group need not stand together.
        count: G.
        how: as there.

    Returns:
        [G, D] float32.

    Raises:
        UnknownNameError: there is no such ``how``.
        UserError: a group has no rows, or there are not as many groups as rows.

    Example:
        >>> aggregate_groups(torch.tensor([[1.0], [5.0], [3.0]]), np.array([0, 1, 0]), 2).tolist()
        [[2.0], [5.0]]
    """
    function = _function(how)
    check_length("groups", len(groups), len(rows), "rows")
    sizes = np.bincount(groups, minlength=count)
    if len(sizes) > count or not sizes.all():
        raise UserError(f"group {sizes.argmin()} has no rows, or there are more than {count} groups.")
    found = torch.empty(count, rows.shape[1])
    order = np.argsort(groups, kind="stable")
    starts = np.cumsum(sizes) - sizes
    for size in np.unique(sizes).tolist():
        alike = np.flatnonzero(sizes == size)
        for part in _parts(alike, 8 * size * rows.shape[1]):
            members = order[starts[part, None] + np.arange(size)]  # [g, n]
            found[torch.from_numpy(part)] = function(_take(rows, members)).float()
    return found


def _function(how: str) -> Callable[[Tensor], Tensor]:
    if how not in AGGREGATIONS:
        raise UnknownNameError(f"the aggregation is {how!r}; valid: {', '.join(AGGREGATIONS)}.")
    return AGGREGATIONS[how]


def _parts(numbers: IntArray, bytes_each: int) -> Iterator[IntArray]:
    at_once = max(1, CHUNK_BYTES // max(bytes_each, 1))
    for start in range(0, len(numbers), at_once):
        yield numbers[start : start + at_once]


def _take(rows: Any, members: IntArray) -> Tensor:
    """The rows of each group, [g, n, D] float64."""
    index = torch.from_numpy(members) if isinstance(rows, Tensor) else members
    taken = rows[index.reshape(-1)].reshape(*members.shape, -1)
    return torch.as_tensor(taken).detach().cpu().double()


def _mean(rows: Tensor) -> Tensor:
    return rows.mean(1)


def _medoid(rows: Tensor) -> Tensor:
    """[g, n, D] to [g, D]."""
    at_once = max(1, CHUNK_BYTES // (8 * rows.shape[0] * rows.shape[1]))
    sums = torch.cat([torch.cdist(part, rows).sum(2) for part in rows.split(at_once, 1)], 1)  # [g, n]
    return rows[torch.arange(len(rows)), sums.argmin(1)]


def _robust(rows: Tensor) -> Tensor:
    """[g, n, D] to [g, D]."""
    kept = torch.ones(rows.shape[:2], dtype=torch.bool)  # [g, n]
    half = (rows.shape[1] + 1) // 2
    for _ in range(ROUNDS):
        far = torch.linalg.vector_norm(rows - _mean_of(rows, kept), dim=2)  # [g, n]
        median = _median_of(far, kept)  # [g, 1]
        spread = _MAD_TO_DEVIATION * _median_of((far - median).abs(), kept)
        limit = median + DEVIATIONS * torch.maximum(spread, LEAST_SPREAD * median)
        rank = far.masked_fill(~kept, torch.inf).argsort(dim=1, stable=True).argsort(dim=1)
        stay = kept & ((far <= limit) | (rank < half))
        if torch.equal(stay, kept):
            break
        kept = stay
    return _mean_of(rows, kept)[:, 0]


def _mean_of(rows: Tensor, kept: Tensor) -> Tensor:
    weights = kept.to(rows.dtype) / kept.sum(1, keepdim=True)  # [g, n]
    return weights.unsqueeze(1) @ rows  # [g, 1, D]


def _median_of(values: Tensor, kept: Tensor) -> Tensor:
    return values.masked_fill(~kept, torch.nan).nanquantile(0.5, 1, keepdim=True)


AGGREGATIONS: dict[str, Callable[[Tensor], Tensor]] = {"mean": _mean, "medoid": _medoid, "robust": _robust}
