"""Optimisers and learning rates, epoch by epoch."""

import json
import math
from typing import Any

import pytest
import torch
from torch import nn

from solver.build import build_optimizer, build_scheduler, has_fused_adam, lr_factor, set_epoch
from tests.support import GOLDEN

FACTOR: dict[str, Any] = {"milestones": (3, 5), "gamma": 0.1, "max_epochs": 10, "min_factor": 0.05, "warmup_epochs": 2}


def two_optimizers():
    params = {
        "backbone.weight": nn.Parameter(torch.zeros(2)),
        "center_loss.centers": nn.Parameter(torch.zeros(3)),
        "bn.bias": nn.Parameter(torch.zeros(2), requires_grad=False),
    }
    return params, build_optimizer(params.items(), base_lr=1e-4, weight_decay=5e-4, center_lr=0.5)


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


def test_multistep_with_warm_up_epoch_by_epoch():
    factor = lr_factor("multistep_lr", **FACTOR)
    expected = [0.5, 1, 1, 0.1, 0.1, 0.01, 0.01]
    assert [factor(epoch) for epoch in range(7)] == pytest.approx(expected)


def test_cosine_ends_at_the_lowest_rate():
    factor = lr_factor("cosine_annealing", **FACTOR)
    assert factor(0) == 0.5
    assert factor(5) == pytest.approx(0.05 + 0.95 / 2)
    assert factor(10) == pytest.approx(0.05)
    assert lr_factor("cosine_annealing", **FACTOR | {"warmup_epochs": 0})(0) == 1
    halfway = 0.05 + 0.95 * (1 + math.cos(math.pi * 0.7)) / 2
    assert factor(7) == pytest.approx(halfway)


def test_the_scheduler_follows_the_factor_and_can_be_put_at_any_epoch():
    _, (adam, _) = two_optimizers()
    factor = lr_factor("multistep_lr", **FACTOR)
    scheduler = build_scheduler(adam, factor)
    for epoch in range(7):
        assert adam.param_groups[0]["lr"] == 1e-4 * factor(epoch) == scheduler.get_last_lr()[0]
        adam.step()
        scheduler.step()
    set_epoch(scheduler, 4)
    assert adam.param_groups[0]["lr"] == 1e-4 * factor(4) == scheduler.get_last_lr()[0]
    scheduler.step()
    assert adam.param_groups[0]["lr"] == 1e-4 * factor(5)


@pytest.mark.parametrize(
    ("call", "key", "valid"),
    [
        (
            lambda: build_optimizer([], name="Lamb", base_lr=1, weight_decay=0, center_lr=1),
            "OPTIMIZER_NAME is 'Lamb'",
            "Adam",
        ),
        (lambda: lr_factor("poly", **FACTOR), "LR_SCHEDULER_NAME is 'poly'", "multistep_lr, cosine_annealing"),
    ],
)
def test_an_unknown_name_lists_the_valid_ones(call, key, valid):
    with pytest.raises(KeyError, match=f"{key}.*{valid}"):
        call()


def test_adam_runs_in_one_kernel_where_the_device_has_it_and_only_there():
    parameter = nn.Parameter(torch.zeros(1))
    parameter.grad = torch.zeros(1)
    try:
        torch.optim.Adam([parameter], fused=True).step()
        expected = True
    except RuntimeError:  # older versions of torch have none for the CPU
        expected = False
    assert has_fused_adam(torch.device("cpu")) is expected
    assert not has_fused_adam(torch.device("meta"))
