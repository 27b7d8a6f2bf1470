"""Which optimiser gets which parameters, and with which settings."""

import json

import pytest
import torch
from torch import nn

from solver.optimizers import has_fused, make_optimizers
from tests.support import GOLDEN


def two_optimizers():
    params = {
        "backbone.weight": nn.Parameter(torch.zeros(2)),
        "center_loss.centers": nn.Parameter(torch.zeros(3)),
        "bn.bias": nn.Parameter(torch.zeros(2), requires_grad=False),
    }
    return params, make_optimizers(params.items(), base_lr=1e-4, weight_decay=5e-4, center_lr=0.5)


def test_groups_and_settings_equal_the_recorded():
    params, optimizers = two_optimizers()
    recorded = json.loads((GOLDEN / "optimizer_groups.json").read_text())
    for optimizer, name in zip(optimizers, ("adam", "sgd"), strict=True):
        (group,) = optimizer.param_groups
        for key in recorded[name].keys() - {"names"}:
            expected = recorded[name][key]
            assert group[key] == (tuple(expected) if isinstance(expected, list) else expected), key
    assert [type(optimizer) for optimizer in optimizers] == [torch.optim.Adam, torch.optim.SGD]
    assert optimizers[0].param_groups[0]["params"] == [params["backbone.weight"]]
    assert optimizers[1].param_groups[0]["params"] == [params["center_loss.centers"]]


def test_an_unknown_name_lists_the_valid_ones():
    with pytest.raises(KeyError, match="OPTIMIZER_NAME is 'Lamb'.*Adam"):
        make_optimizers([], name="Lamb", base_lr=1, weight_decay=0, center_lr=1)


def test_adam_runs_in_one_kernel_where_the_device_has_it_and_only_there():
    parameter = nn.Parameter(torch.zeros(1))
    parameter.grad = torch.zeros(1)
    try:
        torch.optim.Adam([parameter], fused=True).step()
        expected = True
    except RuntimeError:  # older versions of torch have none for the CPU
        expected = False
    assert has_fused(torch.optim.Adam, torch.device("cpu")) is expected
    assert not has_fused(torch.optim.Adam, torch.device("meta"))
