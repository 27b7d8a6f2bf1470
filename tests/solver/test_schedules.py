"""Learning rates, epoch by epoch."""

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from solver.schedules import lr_factor, set_epoch

FACTOR: dict[str, Any] = {"milestones": (3, 5), "gamma": 0.1, "max_epochs": 10, "min_factor": 0.05, "warmup_epochs": 2}


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


def test_a_schedule_can_be_put_at_any_epoch():
    adam = torch.optim.Adam([nn.Parameter(torch.zeros(2))], lr=1e-4)
    factor = lr_factor("multistep_lr", **FACTOR)
    scheduler = LambdaLR(adam, factor)
    for epoch in range(7):
        assert adam.param_groups[0]["lr"] == 1e-4 * factor(epoch) == scheduler.get_last_lr()[0]
        adam.step()
        scheduler.step()
    set_epoch(scheduler, 2)
    assert adam.param_groups[0]["lr"] == 1e-4 * factor(2) == scheduler.get_last_lr()[0]
    scheduler.step()
    assert adam.param_groups[0]["lr"] == 1e-4 * factor(3) != 1e-4 * factor(8)  # where it would be without


def test_an_unknown_name_lists_the_valid_ones():
    with pytest.raises(KeyError, match="LR_SCHEDULER_NAME is 'poly'.*multistep_lr, cosine_annealing"):
        lr_factor("poly", **FACTOR)
