"""The centre loss and its gradients against the recordings."""

import pytest
import torch

from losses.center_loss import CenterLoss
from tests.support import assert_close, golden


@pytest.mark.parametrize("recording", ["losses_s0", "losses_s1"])
def test_value_and_gradients_equal_the_recorded(recording):
    data = golden(recording)
    x = torch.from_numpy(data["x"]).requires_grad_()
    loss_func = CenterLoss(*data["centers"].shape)
    loss_func.centers.data.copy_(torch.from_numpy(data["centers"]))
    loss = loss_func(x, torch.from_numpy(data["labels"]))
    loss.backward()
    assert_close(loss, data["center_loss"])
    assert_close(x.grad, data["center_grad_x"])
    assert_close(loss_func.centers.grad, data["center_grad_centers"])


def test_centres_of_absent_classes_get_no_gradient():
    loss_func = CenterLoss(5, 3, use_gpu=True)
    loss_func(torch.randn(4, 3), torch.tensor([0, 0, 2, 2])).backward()
    assert loss_func.centers.grad.abs().sum(1).ne(0).tolist() == [True, False, True, False, False]


@pytest.mark.parametrize("shape", [(4, 3), (3, 2)])
def test_shapes_that_do_not_fit_are_named(shape):
    with pytest.raises(ValueError, match=rf"\[3, 3\].*\[{shape[0]}, {shape[1]}\]"):
        CenterLoss(5, 3)(torch.randn(shape), torch.tensor([0, 1, 2]))
