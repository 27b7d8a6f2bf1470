"""Which rows of a batch belong to each identity, worked out before the batch moves to its device."""

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor


class BatchLayout(NamedTuple):
    """The rows of a batch grouped by identity, on the device of the batch.

    Attributes:
        rows: [U, K] int64 row numbers of U identities in order of first appearance; an identity with fewer than K rows
            is filled up with 0.
        present: [U, K] bool, False where ``rows`` is filled up; None if it never is.
        real: [R] int64, the rows that are not padding; None if all are real.
        regular: each identity has K consecutive rows, so that [N, ...] can be viewed as [U, K, ...].

    Example:
        >>> layout = BatchLayout(torch.tensor([[0, 1], [2, 3]]), None, None, regular=True)
        >>> layout.by_identity(torch.tensor([7, 7, 8, 8])).tolist()
        [[7, 7], [8, 8]]
    """

    rows: Tensor
    present: Tensor | None
    real: Tensor | None
    regular: bool

    def by_identity(self, values: Tensor) -> Tensor:
        """Group rows by identity: [N, ...] -> [U, K, ...]."""
        if not self.regular:
            return values[self.rows]
        return rearrange(values, "(u k) ... -> u k ...", u=len(self.rows))

    def only_real(self, values: Tensor) -> Tensor:
        """Drop the padding: [N, ...] -> [R, ...]."""
        return values if self.real is None else values[self.real]


def batch_layout(labels: Tensor, is_real: Tensor | None = None, device: torch.device | None = None) -> BatchLayout:
    """Group the rows of a batch by identity.

    The layout depends on the values of the labels, and reading them from an accelerator makes the CPU wait. Pass the
    labels on the CPU, as the loader yields them.

    Args:
        labels: [N] integer identities in any order, N >= 1.
        is_real: [N] bool, False for rows that only pad the batch; None means that all are real.
        device: the device of the batch; None takes that of the labels.

    Returns:
        The layout, on ``device``.

    Example:
        >>> batch_layout(torch.tensor([7, 7, 8, 8])).rows.tolist()
        [[0, 1], [2, 3]]
    """
    device = labels.device if device is None else device
    real = None if is_real is None or bool(is_real.all()) else is_real.nonzero().flatten().to(device, non_blocking=True)
    per_identity = regular_size(labels)
    if per_identity:
        rows = torch.arange(len(labels), device=device).view(-1, per_identity)
        return BatchLayout(rows, None, real, True)
    rows, present = identity_table(labels)
    return BatchLayout(rows.to(device, non_blocking=True), present.to(device, non_blocking=True), real, False)


def regular_size(labels: Tensor) -> int:
    """K if each identity has K consecutive rows in a batch [N], else 0; 0 for an empty batch.

    Example:
        >>> regular_size(torch.tensor([7, 7, 8, 8])), regular_size(torch.tensor([7, 8, 7, 8]))
        (2, 0)
    """
    count = int((labels == labels[0]).sum()) if len(labels) else 0
    if not count or len(labels) % count:
        return 0
    table = labels.view(-1, count)
    one_each = bool((table == table[:, :1]).all()) and len(table[:, 0].unique()) == len(table)
    return count if one_each else 0


def identity_table(labels: Tensor) -> tuple[Tensor, Tensor]:
    """List the rows of each identity in a batch of any order.

    Args:
        labels: [N] integer identities in any order, N >= 1: U distinct ones, the most frequent of which has K rows.

    Returns:
        rows [U, K] int64, the row numbers of the identities in order of first appearance, and present [U, K] bool,
        False where an identity has fewer than K rows (rows is 0 there).

    Example:
        >>> rows, present = identity_table(torch.tensor([7, 8, 7]))
        >>> rows.tolist(), present.tolist()
        ([[0, 2], [1, 0]], [[True, True], [True, False]])
    """
    n = len(labels)
    same = labels[:, None] == labels[None, :]  # [N, N]
    instance = same.tril(-1).sum(1)  # [N] how many earlier rows share the row's identity
    first = same.int().argmax(1)  # [N] the first row of the same identity
    identity = (instance == 0).cumsum(0)[first] - 1  # [N] in 0..U-1
    rows = labels.new_full((int(identity.max()) + 1, int(instance.max()) + 1), -1)
    rows[identity, instance] = torch.arange(n, device=labels.device, dtype=labels.dtype)
    return rows.clamp(min=0).long(), rows >= 0
