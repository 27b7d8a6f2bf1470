"""The centroid triplet loss of several processes, against a plain loop over the joint batch in one process."""

import pytest
import torch

from losses.centroid_triplet_loss import CentroidTripletLoss
from losses.layout import batch_layout
from tests import workers
from tests.launch import run_processes
from tests.losses.test_centroid_triplet_loss import plain_loop
from tests.support import assert_close


def joint_loss(identities, num_images, margin, dist_func):
    """The gradient and the values of all rows in one process; rows of one identity on two of them are two groups."""
    weight, batches = workers.centroid_rows(identities, num_images)
    rows, labels, real = (torch.cat(parts) for parts in zip(*batches, strict=True))
    groups = torch.cat([100 * rank + batch[1] for rank, batch in enumerate(batches)])
    values = plain_loop(rows @ weight, labels, real, margin, dist_func, groups)
    values[0].backward()
    return weight.grad, torch.stack([value.detach() for value in values])


@pytest.mark.parametrize(
    ("identities", "num_images", "margin", "dist_func"),
    [
        pytest.param([[0, 1], [2, 3]], [4, 4], 0.5, "euclidean", id="two processes, disjoint"),
        pytest.param([[3, 1, 2], [4, 0], [5]], [2, 4, 3], 0.3, "cosine", id="three processes of different sizes"),
        pytest.param([[0, 1, 2], [1, 3], [0, 1, 4]], [4, 4, 4], None, "euclidean", id="shared identities"),
        pytest.param([[0], [0], [0, 0]], [4, 4, 2], 0.5, "euclidean", id="a single identity"),
        pytest.param([[0], [0, 1]], [2, 4], 0.5, "euclidean", id="rounds with one identity only"),
    ],
)
def test_the_mean_over_the_processes_is_the_loss_of_the_joint_batch(
    tmp_path, identities, num_images, margin, dist_func
):
    case = identities, num_images, margin, dist_func
    if len({pid for own in identities for pid in own}) == 1:
        expected = torch.zeros(4, 3), torch.zeros(4)  # no round has a negative
    else:
        expected = joint_loss(*case)
    found = run_processes(workers.centroids_everywhere, len(identities), tmp_path / "run", *case)
    for gradient, _ in found:
        assert_close(gradient, expected[0])
    assert_close(torch.stack([values for _, values in found]).mean(0), expected[1])
    if len(identities) == 3 and expected[1].any():
        assert all(values[0] > 0 for _, values in found)  # each has anchors of its own


def test_without_shared_identities_it_is_the_loss_of_the_joint_batch_as_it_is():
    _, batches = workers.centroid_rows([[3, 1, 2], [4, 0]], [4, 2])
    rows, labels, real = (torch.cat(parts) for parts in zip(*batches, strict=True))
    together = CentroidTripletLoss(0.3)(rows, labels, real)
    groups = torch.cat([100 * rank + batch[1] for rank, batch in enumerate(batches)])
    layout = batch_layout(groups, real)
    parts = [CentroidTripletLoss(0.3)(rows, labels, real, layout, own) for own in (slice(0, 3), slice(3, 5))]
    for whole, *shares in zip(together, *parts, strict=True):
        assert_close(sum(shares), whole)
