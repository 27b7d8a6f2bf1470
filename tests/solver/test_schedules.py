"""Learning rates, epoch by epoch."""

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from solver.schedules import EpochSchedule, StepWarmup, lr_factor, set_epoch

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


def test_a_warm_up_by_steps_rises_on_top_of_the_epochs():
    """Five steps over epochs of three, in two groups: a plain loop gives the same rates, also when continued."""
    torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1))  # after which torch 2.1 calls no hooks of optimisers
    factors = [1.0, 0.5, 0.25, 0.25]

    def build():
        groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in (1.0, 0.1)]
        optimizer = torch.optim.SGD(groups, lr=1.0)
        return optimizer, StepWarmup(optimizer, factors.__getitem__, 5)

    def epoch(optimizer, schedule):
        for _ in range(3):
            seen.append([group["lr"] for group in optimizer.param_groups])
            assert schedule.get_last_lr() == seen[-1]
            optimizer.step()
        schedule.step()

    seen: list[list[float]] = []
    optimizer, schedule = build()
    for _ in range(3):
        epoch(optimizer, schedule)
    expected = [[base * factors[step // 3] * min(1, (step + 1) / 5) for base in (1.0, 0.1)] for step in range(9)]
    torch.testing.assert_close(torch.tensor(seen), torch.tensor(expected))

    whole, seen = seen, []
    optimizer, schedule = build()
    epoch(optimizer, schedule)
    states = optimizer.state_dict(), schedule.state_dict()
    assert states[1]["steps_done"] == 3
    assert states[1]["lr_lambdas"] == [None, None]
    optimizer, schedule = build()
    for part, state in zip((optimizer, schedule), states, strict=True):
        part.load_state_dict(state)
    set_epoch(schedule, 1)
    for _ in range(2):
        epoch(optimizer, schedule)
    assert seen == whole  # bit for bit


def test_a_training_that_did_without_it_has_no_warm_up_by_steps_later():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    before = EpochSchedule(optimizer, lambda epoch: 0.5).state_dict()
    assert "steps_done" not in before
    schedule = StepWarmup(optimizer, lambda epoch: 0.5, 100)
    assert optimizer.param_groups[0]["lr"] == 0.5 / 100
    schedule.load_state_dict(before)
    set_epoch(schedule, 1)
    assert optimizer.param_groups[0]["lr"] == 0.5
