"""Batch-hard triplet loss whose candidates come from the batches of all processes."""

from torch import Tensor

from losses.triplet_loss import ranking_loss
from utils.distances import DistanceFunc
from utils.distributed import gather_rows, gather_with_gradient
from utils.mining import mine_hardest


def gathered_triplet_loss(
    features: Tensor, labels: Tensor, mask: Tensor | None, margin: float | None, dist_func: DistanceFunc
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of this process' anchors, mined among the rows of all processes.

    On process r, with its rows F_r and the rows F of all W processes::

        L_r = mean over anchors a in F_r of ranking_loss(max d(a, p), min d(a, n)),  p and n in F, y_p = y_a, y_n != y_a

    Each L_r sends gradients to the rows of every process, and DDP averages parameter gradients over the processes, so
    what is minimised is ``sum_r L_r / W``: where all processes have equally many anchors, the triplet loss of the joint
    batch at its usual scale.

    Args:
        features: [N, D] floating; N may differ from process to process.
        labels: [N] integer identities; an identity may have rows on several processes.
        mask: the rows that count as anchors, [N] bool or their numbers; all when None. Dropped rows are still mined.
        margin: None for the soft margin.
        dist_func: of two embedding matrices [N, D] and [M, D]; returns [N, M].

    Returns:
        As :class:`losses.triplet_loss.TripletLoss`: loss (scalar), dist_ap and dist_an [own anchors].
    """
    candidates, _ = gather_with_gradient(features.float())  # [M, D]
    candidate_labels = gather_rows(labels.cpu()).to(labels.device)  # [M]
    dist_ap, dist_an, _, _ = mine_hardest(dist_func(features.float(), candidates), labels, candidate_labels)  # [N]
    if mask is not None:
        dist_ap, dist_an = dist_ap[mask], dist_an[mask]
    return ranking_loss(dist_ap, dist_an, margin).mean(), dist_ap, dist_an
