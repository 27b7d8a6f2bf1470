"""What happens to gradients between the backward pass and the step."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from solver.gradients import clip_gradients, scale_gradients
from tests.modelling.test_computation import NoWaiting


def network_with_gradients():
    torch.manual_seed(0)
    network = nn.Linear(4, 3)
    network.unused = nn.Parameter(torch.ones(2))
    network(torch.randn(5, 4)).pow(2).sum().backward()
    return network


def gradients_of(network):
    return [network.weight.grad, network.bias.grad]


@pytest.mark.parametrize("max_norm", [0.25, 1e3])
def test_clipped_as_torch_clips_and_without_waiting(max_norm):
    ours, theirs = network_with_gradients(), network_with_gradients()
    optimizer = torch.optim.SGD([{"params": [ours.weight]}, {"params": [ours.bias, ours.unused]}], lr=0.1)
    with NoWaiting():
        clip_gradients(optimizer, max_norm)
    clip_grad_norm_(theirs.parameters(), max_norm)
    assert all(map(torch.equal, gradients_of(ours), gradients_of(theirs)))
    assert ours.unused.grad is None


class Scaler:
    """A GradScaler, as far as clipping asks for it: gradients hold a factor of 128 until it is taken out."""

    def unscale_(self, optimizer):
        scale_gradients(optimizer, 1 / 128)


@pytest.mark.parametrize("takes_it_out_itself", [True, False])
def test_a_loss_scale_is_taken_out_before_unless_it_has_been(takes_it_out_itself):
    """Lightning takes it out before the step, except for optimisers that do so in theirs, as fused ones."""
    ours, theirs = network_with_gradients(), network_with_gradients()
    optimizer = torch.optim.SGD([ours.weight, ours.bias], lr=0.1)
    optimizer._step_supports_amp_scaling = takes_it_out_itself
    if takes_it_out_itself:
        scale_gradients(optimizer, 128)
    clip_gradients(optimizer, 0.25, Scaler())
    clip_grad_norm_(theirs.parameters(), 0.25)
    assert all(map(torch.equal, gradients_of(ours), gradients_of(theirs)))


def test_gradients_of_every_group_are_scaled():
    network = network_with_gradients()
    before = copy.deepcopy(gradients_of(network))
    scale_gradients(
        torch.optim.SGD([{"params": [network.weight]}, {"params": [network.bias, network.unused]}], lr=0.1), 0.25
    )
    assert all(torch.equal(now, 0.25 * then) for now, then in zip(gradients_of(network), before, strict=True))
    scale_gradients(torch.optim.SGD([network.unused], lr=0.1), 0.25)  # nothing to scale
