"""The one place where hardest positives and negatives are found."""

import torch
from torch import Tensor


def mine_hardest(
    dist: Tensor, anchor_labels: Tensor, candidate_labels: Tensor, valid: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For each anchor its farthest positive and its nearest negative among the candidates (Hermans et al. 2017).

    Args:
        dist: [..., M, N] floating distances, anchors in rows.
        anchor_labels: [M] integer identities.
        candidate_labels: [N] integer identities. Where the candidates are the anchors themselves, each counts as a
            positive of itself.
        valid: [..., N] bool, the candidates that may be chosen; all when None.

    Returns:
        dist_ap and dist_an [..., M], the distances, then where they were found: columns [..., M] int64; among equal
        distances the first column. Without a candidate dist_ap is -inf and dist_an is inf.
    """
    is_positive = anchor_labels[:, None] == candidate_labels[None, :]  # [M, N]
    is_negative = ~is_positive
    if valid is not None:
        is_positive, is_negative = is_positive & valid.unsqueeze(-2), is_negative & valid.unsqueeze(-2)  # [..., M, N]
    # max/min with an axis send the whole gradient to one element; amax would split it among equal ones.
    dist_ap, positives = dist.masked_fill(~is_positive, -torch.inf).max(-1)
    dist_an, negatives = dist.masked_fill(~is_negative, torch.inf).min(-1)
    return dist_ap, dist_an, positives, negatives
