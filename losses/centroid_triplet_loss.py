"""Centroid triplet loss (Wieczorek et al., "On the Unreasonable Effectiveness of Centroids in Image Retrieval", 2021).

In each of K rounds one image of every identity is held out as a query; the positives and negatives are the centroids
of the identities' remaining images (and, as in the original implementation, the other queries).
"""

from typing import NamedTuple

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from losses.layout import BatchLayout, batch_layout, identity_table
from losses.triplet_loss import ranking_loss
from utils.centroids import leave_one_out_centroids
from utils.distances import DistanceFunc, get_loss_dist_func
from utils.mining import mine_hardest


class CentroidTripletResult(NamedTuple):
    """The loss and the values logged with it: scalars on the device of the features.

    Example:
        >>> loss_fn = CentroidTripletLoss(margin=0.5)
        >>> result = loss_fn(torch.tensor([[1.0], [2], [5], [6]]), torch.tensor([7, 7, 8, 8]))
        >>> result.dist_ap.item(), result.dist_an.item(), result.l2_mean_centroid.item()
        (1.0, 3.5, 3.5)
    """

    loss: Tensor
    dist_ap: Tensor  # mean distance to the hardest positive
    dist_an: Tensor  # mean distance to the hardest negative
    l2_mean_centroid: Tensor  # mean Euclidean norm of the centroids


def create_masks_train(class_labels: Tensor) -> tuple[Tensor, list[list[int]]]:
    """Build the masks of the K rounds over a batch, and list the rows of each identity.

    Args:
        class_labels: [N] integer identities, N >= 1; K is the largest number of rows of any identity.

    Returns:
        masks [K, N] bool on the device of the labels, and the row numbers of each identity, in order of first
        appearance. Mask i is False at the i-th image of each identity, the held-out query. It is also False at every
        row of an identity that has no i-th image, except for the first identity in the batch, whose rows stay True
        (as in the original).

    Example:
        >>> masks, rows = create_masks_train(torch.tensor([7, 7, 8, 8]))
        >>> masks.int().tolist(), rows
        ([[0, 1, 0, 1], [1, 0, 1, 0]], [[0, 1], [2, 3]])
    """
    rows, present = identity_table(class_labels)  # [U, K]
    masks = torch.zeros(rows.shape[1], len(class_labels), dtype=torch.bool, device=class_labels.device)
    for i in range(rows.shape[1]):
        kept = present & present[:, i : i + 1]
        kept[0] = present[0]
        kept[:, i] = False
        masks[i, rows[kept]] = True
    return masks, [row[there].tolist() for row, there in zip(rows.cpu(), present.cpu(), strict=True)]


class CentroidTripletLoss(nn.Module):
    """Centroid triplet loss, with its K rounds computed as one batch.

    Args:
        margin: margin in units of the distance; None for the soft margin.
        dist_func: "euclidean", "cosine", or a function of [B, M, D] and [B, N, D] that returns [B, M, N] distances.

    Example:
        >>> loss_fn = CentroidTripletLoss(margin=3.5)
        >>> loss_fn(torch.tensor([[1.0], [2], [5], [6]]), torch.tensor([7, 7, 8, 8])).loss.item()
        1.0
    """

    def __init__(self, margin: float | None = None, dist_func: str | DistanceFunc = "euclidean") -> None:
        super().__init__()
        self.margin = margin
        self.dist_func = get_loss_dist_func(dist_func) if isinstance(dist_func, str) else dist_func

    def forward(
        self,
        features: Tensor,
        labels: Tensor,
        is_real: Tensor | None = None,
        layout: BatchLayout | None = None,
        own: slice | None = None,
    ) -> CentroidTripletResult:
        """Average the batch-hard triplet loss on [queries; centroids] over the rounds.

        An identity takes part in round i if its i-th image is real and its other real images form a valid centroid
        (see :func:`utils.centroids.leave_one_out_centroids`). A round with fewer than two identities is skipped.

        Args:
            features: [N, D] floating, N >= 1.
            labels: [N] integer identities.
            is_real: [N] bool, False for rows that only pad the batch; None means that all are real.
            layout: the layout of these labels; None computes it here, which makes the CPU wait for an accelerator. It
                may split the rows of an identity into several groups: each then has centroids of its own, and all of
                them are positives of each other.
            own: the groups of the layout whose images and centroids are anchors, the others being candidates only; None
                takes all. What disjoint slices give adds up to what all give.

        Returns:
            CentroidTripletResult of float32 scalars; all zero, with zero gradients, if every round is skipped.

        Raises:
            ValueError: features, labels and is_real differ in length.
        """
        if is_real is None:
            is_real = torch.ones_like(labels, dtype=torch.bool)
        if not len(features) == len(labels) == len(is_real):
            raise ValueError(
                f"features, labels and is_real must have the same length, but have {len(features)}, {len(labels)} and "
                f"{len(is_real)} rows."
            )
        layout = batch_layout(labels, is_real) if layout is None else layout
        images, pids = layout.by_identity(features).float(), layout.by_identity(labels)[:, 0]  # [U, K, D], [U]
        return self._average_over_rounds(images, pids, _real_entries(layout, is_real), own)

    def _average_over_rounds(
        self, images: Tensor, pids: Tensor, real: Tensor | None, own: slice | None
    ) -> CentroidTripletResult:
        centroids, valid = leave_one_out_centroids(images, real)  # [U, K, D], [U, K]
        taking_part = _has_two_identities(pids, valid)  # [K] rounds
        chosen = valid & taking_part  # [U, K]
        # Round k holds the k-th image of each identity as queries, then the centroids of the other images.
        candidates = rearrange([images, centroids], "two u k d -> k (two u) d")  # [K, 2U, D]
        is_candidate = repeat(chosen, "u k -> k (two u)", two=2)  # [K, 2U]
        anchors, is_anchor, anchor_pids, anchor_centroids = candidates, is_candidate, pids, centroids
        if own is not None:  # V of the U identities
            anchors = rearrange([images[own], centroids[own]], "two v k d -> k (two v) d")  # [K, 2V, D]
            is_anchor = repeat(chosen[own], "v k -> k (two v)", two=2)  # [K, 2V]
            anchor_pids, anchor_centroids = pids[own], centroids[own]
        dist = self.dist_func(anchors, candidates)  # [K, 2V, 2U]
        dist_ap, dist_an, *_ = mine_hardest(dist, anchor_pids.repeat(2), pids.repeat(2), is_candidate)  # [K, 2V]
        dist_ap, dist_an = dist_ap.where(is_anchor, 0), dist_an.where(is_anchor, 0)

        rounds = taking_part.sum().clamp(min=1)
        per_round = is_candidate.sum(1).clamp(min=1)  # [K]

        def mean_over_rounds(values: Tensor) -> Tensor:
            return ((values.where(is_anchor, 0).sum(1) / per_round).sum()) / rounds

        norms = repeat(torch.linalg.vector_norm(anchor_centroids.detach(), dim=-1), "v k -> k (two v)", two=2)
        return CentroidTripletResult(
            loss=mean_over_rounds(ranking_loss(dist_ap, dist_an, self.margin)),
            dist_ap=mean_over_rounds(dist_ap.detach()),
            dist_an=mean_over_rounds(dist_an.detach()),
            l2_mean_centroid=mean_over_rounds(norms),
        )


def _has_two_identities(pids: Tensor, valid: Tensor) -> Tensor:
    """[K] bool, True for the columns of valid [U, K] with entries of two different pids [U] at least."""
    each = pids.unsqueeze(1)  # [U, 1]
    return each.where(valid, each.min()).amax(0) > each.where(valid, each.max()).amin(0)


def _real_entries(layout: BatchLayout, is_real: Tensor) -> Tensor | None:
    """[U, K] bool, True where an identity has a real image; None if it has one everywhere."""
    if layout.present is None and layout.real is None:
        return None
    real = layout.by_identity(is_real)
    return real if layout.present is None else real & layout.present
