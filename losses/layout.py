"""Where the images of each identity stand in a batch, found out before the batch moves to its device."""

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor


class BatchLayout(NamedTuple):
    """The rows of a batch by identity, on the device of the batch.

    Attributes:
        rows: [U, K] int64 row numbers of U identities in order of first appearance; 0 where there are fewer than K.
        present: [U, K] bool, where there is such a row; None for everywhere.
        real: [R] int64, the rows that do not only fill up the batch; None for all of them.
        regular: rows follow one another, K for each identity, so that [N, ...] can be viewed as [U, K, ...].
    """

    rows: Tensor
    present: Tensor | None
    real: Tensor | None
    regular: bool

    def by_identity(self, values: Tensor) -> Tensor:
        """[N, ...] -> [U, K, ...]."""
        if not self.regular:
            return values[self.rows]
        return rearrange(values, "(u k) ... -> u k ...", u=len(self.rows))

    def only_real(self, values: Tensor) -> Tensor:
        """[N, ...] -> [R, ...], the rows that do not only fill up the batch."""
        return values if self.real is None else values[self.real]


def batch_layout(labels: Tensor, is_real: Tensor | None = None, device: torch.device | None = None) -> BatchLayout:
    """The layout of a batch.

    The values of the labels are looked at, so that an accelerator would have to be waited for: give the labels as the
    loader has them, on the CPU.

    Args:
        labels: [N] integer identities in any order.
        is_real: [N] bool, False for rows that only fill up the batch; all real when None.
        device: of the batch; that of the labels when None.

    Returns:
        The layout, on ``device``.
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
    """K if a batch [N] has K rows of each identity, one identity after the other; else 0."""
    count = int((labels == labels[0]).sum()) if len(labels) else 0
    if not count or len(labels) % count:
        return 0
    table = labels.view(-1, count)
    one_each = bool((table == table[:, :1]).all()) and len(table[:, 0].unique()) == len(table)
    return count if one_each else 0


def identity_table(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Where the images of each identity stand in a batch of any order.

    Args:
        labels: [N] integer identities in any order; U distinct ones, the largest of which has K rows.

    Returns:
        rows [U, K] int64, row numbers of the identities in order of first appearance, and present [U, K] bool, False
        where an identity has fewer than K rows (rows is 0 there).
    """
    n = len(labels)
    same = labels[:, None] == labels[None, :]  # [N, N]
    instance = same.tril(-1).sum(1)  # [N] the how-manieth image of its identity each row is
    first = same.int().argmax(1)  # [N] the row where its identity appears first
    identity = (instance == 0).cumsum(0)[first] - 1  # [N] in 0..U-1
    rows = labels.new_full((int(identity.max()) + 1, int(instance.max()) + 1), -1)
    rows[identity, instance] = torch.arange(n, device=labels.device, dtype=labels.dtype)
    return rows.clamp(min=0).long(), rows >= 0
