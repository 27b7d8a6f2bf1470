"""Batch-hard triplet loss (Hermans et al. 2017, arXiv:1703.07737) and label-smoothed cross-entropy."""

import sys
from typing import Literal, overload

import torch.nn.functional as F
from torch import Tensor, nn

from utils.distances import (
    DistanceFunc,
    cosine_dist,
    cosine_similarity,
    euclidean_dist,
    get_loss_dist_func,
    normalize,
)
from utils.errors import UserError
from utils.mining import mine_hardest

__all__ = [
    "CrossEntropyLabelSmooth",
    "TripletLoss",
    "cosine_dist",
    "cosine_similarity",
    "euclidean_dist",
    "hard_example_mining",
    "normalize",
    "ranking_loss",
]


@overload
def hard_example_mining(
    dist_mat: Tensor, labels: Tensor, return_inds: Literal[False] = False, valid: Tensor | None = None
) -> tuple[Tensor, Tensor]: ...
@overload
def hard_example_mining(
    dist_mat: Tensor, labels: Tensor, return_inds: Literal[True], valid: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]: ...
def hard_example_mining(
    dist_mat: Tensor, labels: Tensor, return_inds: bool = False, valid: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Find the farthest positive (which may be the anchor itself) and the nearest negative of each anchor.

    Args:
        dist_mat: [..., N, N] floating distances, anchors in rows, N >= 1.
        labels: [N] integer identities.
        return_inds: also return the columns of the positives and negatives.
        valid: [..., N] bool, the columns that may be chosen; None allows all.

    Returns:
        dist_ap and dist_an [..., N]; with return_inds also p_inds and n_inds [..., N] int64, the column numbers. The
        first column wins a tie. An anchor without a candidate gets a dist_ap of -inf or a dist_an of inf.

    Raises:
        ValueError: dist_mat is not square.

    Example:
        >>> import torch
        >>> distances = torch.tensor([[0.0, 1, 3], [1, 0, 2], [3, 2, 0]])
        >>> dist_ap, dist_an = hard_example_mining(distances, torch.tensor([7, 7, 8]))
        >>> dist_ap.tolist(), dist_an.tolist()
        ([1.0, 1.0, 0.0], [3.0, 2.0, 2.0])
    """
    if dist_mat.dim() < 2 or dist_mat.shape[-1] != dist_mat.shape[-2]:
        raise ValueError(f"dist_mat must be square, [..., N, N], but its shape is {tuple(dist_mat.shape)}.")
    mined = mine_hardest(dist_mat, labels, labels, valid)
    return mined if return_inds else mined[:2]


def ranking_loss(dist_ap: Tensor, dist_an: Tensor, margin: float | None) -> Tensor:
    """Per-anchor loss ``max(0, dist_ap - dist_an + margin)``, or ``log(1 + exp(dist_ap - dist_an))`` without a margin.

    Args:
        dist_ap: distances to the positives, floating, any shape.
        dist_an: distances to the negatives, same shape.
        margin: margin in units of the distance; None for the soft margin.

    Returns:
        Losses >= 0 of the same shape; an empty input gives an empty result.

    Example:
        >>> import torch
        >>> ranking_loss(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 2.5]), margin=0.5).tolist()
        [0.0, 1.0]
    """
    gap = dist_ap - dist_an
    return F.softplus(gap) if margin is None else F.relu(gap + margin)


class TripletLoss(nn.Module):
    """Batch-hard triplet loss, averaged over the anchors.

    Args:
        margin: margin in units of the distance; None for the soft margin.
        dist_func: "euclidean", "cosine", or a function of two embedding matrices that returns their distances.

    Example:
        >>> import torch
        >>> features, labels = torch.tensor([[0.0], [1], [3], [4]]), torch.tensor([7, 7, 8, 8])
        >>> loss, dist_ap, dist_an = TripletLoss(margin=2.0)(features, labels)
        >>> loss.item(), dist_ap.tolist(), dist_an.tolist()
        (0.5, [1.0, 1.0, 1.0, 1.0], [3.0, 2.0, 2.0, 3.0])
    """

    def __init__(self, margin: float | None = None, dist_func: str | DistanceFunc = "euclidean") -> None:
        super().__init__()
        self.margin = margin
        self.dist_func = get_loss_dist_func(dist_func) if isinstance(dist_func, str) else dist_func

    def forward(
        self,
        global_feat: Tensor,
        labels: Tensor,
        warmup_margin: float | None = None,
        print_data: bool = False,
        normalize_feature: bool = False,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mine over the whole batch, then average over the anchors that the mask keeps.

        Args:
            global_feat: [N, D] floating.
            labels: [N] integer identities.
            warmup_margin: replaces the margin in this call; None leaves it.
            print_data: print the mean distances and the loss on one line, for which the CPU waits for an accelerator.
            normalize_feature: scale the rows to unit length first.
            mask: the rows that count as anchors, as [N] bool or as row numbers (int64); None keeps all. A dropped row
                is still mined as a positive or negative of the others.

        Returns:
            loss (scalar float32), dist_ap and dist_an [anchors] float32. If the mask keeps no anchor, loss is NaN.

        Raises:
            UserError: warmup_margin has entries for several rows, as a mask does.
        """
        if isinstance(warmup_margin, Tensor) and warmup_margin.dim():
            raise UserError(
                f"warmup_margin is a tensor of the shape {list(warmup_margin.shape)}; expected a number. A mask is "
                "passed as mask=..., or by position as the sixth argument."
            )
        if normalize_feature:
            global_feat = normalize(global_feat)
        dist_ap, dist_an = hard_example_mining(self.dist_func(global_feat, global_feat), labels)
        if mask is not None:
            dist_ap, dist_an = dist_ap[mask], dist_an[mask]
        margin = self.margin if warmup_margin is None else warmup_margin
        loss = ranking_loss(dist_ap, dist_an, margin).mean()
        if print_data:
            means = f"mean dist_ap {float(dist_ap.mean()):.4f}, mean dist_an {float(dist_an.mean()):.4f}"
            sys.stdout.write(f"{means}, triplet loss {float(loss):.4f}\n")
        return loss, dist_ap, dist_an


class CrossEntropyLabelSmooth(nn.Module):
    """Cross-entropy with smoothed targets ``(1 - epsilon) * onehot + epsilon / num_classes`` (arXiv:1512.00567).

    Args:
        num_classes: number of identities, the width of the logits.
        epsilon: share of the target spread over all classes, in [0, 1].
        use_gpu: accepted for old callers and ignored; the loss is computed on the device of its inputs.

    Example:
        >>> import torch
        >>> cross_entropy = CrossEntropyLabelSmooth(num_classes=2, epsilon=0.1)
        >>> round(cross_entropy(torch.tensor([[0.0, 2.0]]), torch.tensor([1])).item(), 4)
        0.2269
    """

    def __init__(self, num_classes: int, epsilon: float = 0.1, use_gpu: bool = True) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.epsilon = epsilon

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Average the loss over the batch.

        Args:
            inputs: [N, num_classes] floating logits.
            targets: [N] int64 in [0, num_classes).

        Returns:
            Scalar float32; NaN for an empty batch.
        """
        return F.cross_entropy(inputs.float(), targets, label_smoothing=self.epsilon)
