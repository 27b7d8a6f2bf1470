"""Centroid triplet loss (Wieczorek et al., "On the Unreasonable Effectiveness of Centroids in Image Retrieval", 2021).

In each of K rounds one image of every identity is held out as a query; the positives and negatives are the centroids
of the identities' remaining images (and, as in the original implementation, the other queries).
"""

from typing import NamedTuple

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from losses.layout import BatchLayout, batch_layout, identity_table
from losses.triplet_loss import hard_example_mining, ranking_loss
from utils.centroids import leave_one_out_centroids
from utils.distances import DistanceFunc, get_loss_dist_func


class CentroidTripletResult(NamedTuple):
    """The loss and what is logged beside it: scalars, on the device of the features."""

    loss: Tensor
    dist_ap: Tensor  # mean distance to the hardest positive
    dist_an: Tensor  # mean distance to the hardest negative
    l2_mean_centroid: Tensor  # mean Euclidean norm of the centroids


def create_masks_train(class_labels: Tensor) -> tuple[Tensor, list[list[int]]]:
    """The masks of the K rounds over a batch, and where each identity's images stand.

    Args:
        class_labels: [N] integer identities; K = the largest number of rows of one identity.

    Returns:
        masks [K, N] bool on the labels' device: mask i is False at the i-th image of each identity, the held-out
        query, and over all rows of an identity that has no i-th image, but for the identity that comes first in the
        batch, whose rows stay True (as in the original); the row numbers of each identity, in order of first
        appearance.
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
    """The K rounds of the centroid triplet loss in one batched computation.

    Args:
        margin: margin in units of the distance; None for the soft margin.
        dist_func: "euclidean", "cosine", or a function of [B, M, D] and [B, N, D] that returns [B, M, N] distances.
    """

    def __init__(self, margin: float | None = None, dist_func: str | DistanceFunc = "euclidean") -> None:
        super().__init__()
        self.margin = margin
        self.dist_func = get_loss_dist_func(dist_func) if isinstance(dist_func, str) else dist_func

    def forward(
        self, features: Tensor, labels: Tensor, is_real: Tensor | None = None, layout: BatchLayout | None = None
    ) -> CentroidTripletResult:
        """Mean over the rounds of the batch-hard triplet loss on [queries; centroids].

        An identity takes part in round i if its i-th image is real and a centroid of its other real images is left;
        a round that fewer than two identities take part in is skipped.

        Args:
            features: [N, D] floating.
            labels: [N] integer identities.
            is_real: [N] bool, False for rows that only fill up the batch; all real when None.
            layout: of these labels; found out here when None, for which an accelerator has to be waited for.

        Returns:
            CentroidTripletResult of float32 scalars; all zero, with a gradient of zero, if every round is skipped.

        Raises:
            ValueError: lengths differ.
        """
        if is_real is None:
            is_real = torch.ones_like(labels, dtype=torch.bool)
        if not len(features) == len(labels) == len(is_real):
            raise ValueError(
                f"features, labels and is_real must be of one length, but have {len(features)}, {len(labels)} and "
                f"{len(is_real)} rows."
            )
        layout = batch_layout(labels, is_real) if layout is None else layout
        images, pids = layout.by_identity(features).float(), layout.by_identity(labels)[:, 0]  # [U, K, D], [U]

        centroids, valid = leave_one_out_centroids(images, _real_entries(layout, is_real))  # [U, K, D], [U, K]
        # One round for each K: its queries, then the centroids of the other images.
        embeddings = rearrange([images, centroids], "two u k d -> k (two u) d")  # [K, 2U, D]
        taking_part = valid.sum(0) > 1  # [K]
        anchors = repeat(valid & taking_part, "u k -> k (two u)", two=2)  # [K, 2U]
        dist = self.dist_func(embeddings, embeddings)  # [K, 2U, 2U]
        dist_ap, dist_an = hard_example_mining(dist, pids.repeat(2), valid=anchors)  # [K, 2U]
        dist_ap, dist_an = dist_ap.where(anchors, 0), dist_an.where(anchors, 0)

        rounds = taking_part.sum().clamp(min=1)
        per_round = anchors.sum(1).clamp(min=1)  # [K]

        def mean_over_rounds(values: Tensor) -> Tensor:
            return ((values.where(anchors, 0).sum(1) / per_round).sum()) / rounds

        norms = repeat(torch.linalg.vector_norm(centroids.detach(), dim=-1), "u k -> k (two u)", two=2)  # [K, 2U]
        return CentroidTripletResult(
            loss=mean_over_rounds(ranking_loss(dist_ap, dist_an, self.margin)),
            dist_ap=mean_over_rounds(dist_ap.detach()),
            dist_an=mean_over_rounds(dist_an.detach()),
            l2_mean_centroid=mean_over_rounds(norms),
        )


def _real_entries(layout: BatchLayout, is_real: Tensor) -> Tensor | None:
    """[U, K] bool, where an identity has a real image; None for everywhere."""
    if layout.present is None and layout.real is None:
        return None
    real = layout.by_identity(is_real)
    return real if layout.present is None else real & layout.present
