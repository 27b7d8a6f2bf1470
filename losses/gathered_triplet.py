"""The triplet losses with positives and negatives from the batches of all processes."""

import torch
import torch.distributed as dist
from torch import Tensor

from losses.centroid_triplet_loss import CentroidTripletLoss, CentroidTripletResult
from losses.layout import batch_layout
from losses.triplet_loss import ranking_loss
from utils.distances import DistanceFunc
from utils.distributed import gather_rows, gather_with_gradient
from utils.mining import mine_hardest


def gathered_triplet_loss(
    features: Tensor, labels: Tensor, mask: Tensor | None, margin: float | None, dist_func: DistanceFunc
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of this process's anchors, with positives and negatives mined from the rows of all processes.

    On process r, with its own rows F_r and the rows F of all W processes::

        L_r = mean over anchors a in F_r of ranking_loss(max d(a, p), min d(a, n)),  p and n in F, y_p = y_a, y_n != y_a

    Each L_r sends gradients to the rows of every process, and DDP averages the parameter gradients over the processes,
    so training minimises ``sum_r L_r / W``. If all processes have the same number of anchors, this is the triplet loss
    of the joint batch at its usual scale.

    Args:
        features: [N, D] floating; N may differ from process to process.
        labels: [N] integer identities; an identity may have rows on several processes.
        mask: the rows that count as anchors, as [N] bool or as row numbers; None keeps all. A dropped row is still
            mined as a positive or negative.
        margin: margin in units of the distance; None for the soft margin.
        dist_func: takes two embedding matrices [N, D] and [M, D] and returns distances [N, M].

    Returns:
        As for :class:`losses.triplet_loss.TripletLoss`: loss (scalar), dist_ap and dist_an [own anchors].

    Example:
        >>> import torch
        >>> from utils.distances import euclidean_dist
        >>> torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
        >>> features, labels = torch.tensor([[0.0], [1], [3]]), torch.tensor([7, 7, 8])
        >>> loss, dist_ap, dist_an = gathered_triplet_loss(features, labels, None, 2.0, euclidean_dist)
        >>> dist_ap[:2].tolist(), dist_an.tolist()
        ([1.0, 1.0], [3.0, 2.0, 2.0])
        >>> torch.distributed.destroy_process_group()
    """
    candidates, _ = gather_with_gradient(features.float())  # [M, D]
    candidate_labels = gather_rows(labels.cpu()).to(labels.device)  # [M]
    dist_ap, dist_an, _, _ = mine_hardest(dist_func(features.float(), candidates), labels, candidate_labels)  # [N]
    if mask is not None:
        dist_ap, dist_an = dist_ap[mask], dist_an[mask]
    return ranking_loss(dist_ap, dist_an, margin).mean(), dist_ap, dist_an


def gathered_centroid_loss(
    loss: CentroidTripletLoss, features: Tensor, labels: Tensor, is_real: Tensor
) -> CentroidTripletResult:
    """The centroid triplet loss of this process's anchors, mined from queries and centroids of all W processes.

    The identities that a process drew keep rounds and centroids of their own, and their images and centroids are its
    anchors. With L the loss of the joint batch, and the sum over the anchors of process r only::

        L_r = W * sum over its anchors of (their share in L),  so that  sum_r L_r / W = L

    Each L_r sends gradients to the rows of every process, and DDP averages the parameter gradients over the processes,
    so training minimises L, whatever the numbers of rows and anchors. If no identity is on two processes, L is
    ``loss`` of all rows in one process. The sampler draws distinct identities for each process, but two processes may
    draw the same one for a step: it then counts as two groups in L, whose images and centroids are positives of each
    other. One process would have averaged all images of that identity, and given it twice as many rounds.

    Args:
        loss: margin and distance.
        features: [N, D] floating; N may differ from process to process.
        labels: [N] integer identities.
        is_real: [N] bool, False for rows that only pad the batch.

    Returns:
        The share of this process times W, as CentroidTripletResult; the mean over the processes is that of L.

    Example:
        >>> import torch
        >>> torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
        >>> features, labels = torch.tensor([[1.0], [2], [5], [6]]), torch.tensor([7, 7, 8, 8])
        >>> gathered_centroid_loss(CentroidTripletLoss(3.5), features, labels, labels > 0).loss.item()
        1.0
        >>> torch.distributed.destroy_process_group()
    """
    world, rank = dist.get_world_size(), dist.get_rank()
    candidates, _ = gather_with_gradient(features.float())  # [M, D]
    own = torch.stack((torch.full_like(labels, rank), labels, is_real.to(labels)), 1)  # [N, 3]
    table = gather_rows(own.cpu())  # [M, 3], on the CPU
    groups = table[:, :2].unique(dim=0, return_inverse=True)[1]  # [M] one for each process and identity, by process
    first, end = (len(groups[table[:, 0] < process].unique()) for process in (rank, rank + 1))
    layout = batch_layout(groups, table[:, 2].bool(), features.device)
    joint_labels, all_real = table[:, 1].to(labels.device), table[:, 2].bool().to(labels.device)
    result = loss(candidates, joint_labels, all_real, layout, slice(first, end))
    return CentroidTripletResult(*(world * value for value in result))
