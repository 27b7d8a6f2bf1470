"""The one place that finds the hardest positives and negatives."""

import torch
from torch import Tensor


def mine_hardest(
    dist: Tensor, anchor_labels: Tensor, candidate_labels: Tensor, valid: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Find the farthest positive and the nearest negative of each anchor (Hermans et al. 2017, arXiv:1703.07737).

    Args:
        dist: [..., M, N] floating distances, anchors in rows, N >= 1.
        anchor_labels: [M] integer identities.
        candidate_labels: [N] integer identities. If the candidates are the anchors themselves, each anchor counts as a
            positive of itself.
        valid: [..., N] bool, the candidates that may be chosen; None allows all.

    Returns:
        The distances dist_ap and dist_an [..., M], then the columns where they were found [..., M] int64. The first
        column wins a tie. An anchor without a candidate gets a dist_ap of -inf or a dist_an of inf.
    """
    is_positive = anchor_labels[:, None] == candidate_labels[None, :]  # [M, N]
    is_negative = ~is_positive
    if valid is not None:
        is_positive, is_negative = is_positive & valid.unsqueeze(-2), is_negative & valid.unsqueeze(-2)  # [..., M, N]
    # max and min along an axis send the whole gradient to one element; amax would split it among equal ones.
    dist_ap, positives = dist.masked_fill(~is_positive, -torch.inf).max(-1)
    dist_an, negatives = dist.masked_fill(~is_negative, torch.inf).min(-1)
    return dist_ap, dist_an, positives, negatives
