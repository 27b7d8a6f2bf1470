"""Optimisers and schedule of a configuration, and the forms in which programs ask for them."""

import math

import pytest
import torch
from torch import nn

import solver
from config import cfg
from solver.build import build_optimizer, build_scheduler, lr_factor, set_epoch

CONFIGURED = [
    *("SOLVER.BASE_LR", 0.01, "SOLVER.WEIGHT_DECAY", 0.02, "SOLVER.CENTER_LR", 0.3),
    *("SOLVER.LR_STEPS", (3, 5), "SOLVER.GAMMA", 0.1, "SOLVER.MAX_EPOCHS", 10, "SOLVER.MIN_LR", 0.001),
    *("SOLVER.USE_WARMUP_LR", True, "SOLVER.WARMUP_EPOCHS", 2),
]


def configured(*pairs):
    hparams = cfg.clone()
    hparams.merge_from_list([*CONFIGURED, *pairs])
    return hparams


@pytest.fixture
def parameters():
    return {"backbone.weight": nn.Parameter(torch.zeros(2)), "center_loss.centers": nn.Parameter(torch.zeros(3))}


def rates(optimizer, scheduler, count=7):
    found = []
    for _ in range(count):
        found.append(optimizer.param_groups[0]["lr"])
        assert scheduler.get_last_lr() == [found[-1]]
        optimizer.step()
        scheduler.step()
    return found


def test_optimisers_of_a_configuration(parameters):
    adam, sgd = build_optimizer(parameters.items(), configured())
    assert (type(adam), type(sgd)) == (torch.optim.Adam, torch.optim.SGD)
    assert adam.param_groups[0]["params"] == [parameters["backbone.weight"]]
    assert sgd.param_groups[0]["params"] == [parameters["center_loss.centers"]]
    assert (adam.param_groups[0]["lr"], adam.param_groups[0]["weight_decay"]) == (0.01, 0.02)
    assert (sgd.param_groups[0]["lr"], sgd.param_groups[0]["weight_decay"]) == (0.3, 0)
    (adam, _) = build_optimizer(parameters.items(), hparams=configured(), base_lr=0.5)
    assert (adam.param_groups[0]["lr"], adam.param_groups[0]["weight_decay"]) == (0.5, 0.02)


def test_optimisers_without_a_configuration(parameters):
    adam, sgd = build_optimizer(parameters.items(), base_lr=0.5, weight_decay=0.1, center_lr=0.25)
    assert (adam.param_groups[0]["lr"], adam.param_groups[0]["weight_decay"]) == (0.5, 0.1)
    assert sgd.param_groups[0]["lr"] == 0.25


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ((), [0.5, 1, 1, 0.1, 0.1, 0.01, 0.01]),
        (("SOLVER.USE_WARMUP_LR", False), [1, 1, 1, 0.1, 0.1, 0.01, 0.01]),
        (("SOLVER.WARMUP_STEPS", 4), [0.25, 0.5, 0.75, 0.1, 0.1, 0.01, 0.01]),  # a step an epoch
        (("SOLVER.WARMUP_STEPS", 4, "SOLVER.USE_WARMUP_LR", False), [1, 1, 1, 0.1, 0.1, 0.01, 0.01]),
        (
            ("SOLVER.LR_SCHEDULER_NAME", "cosine_annealing"),
            [0.5, 1, *(0.1 + 0.9 * (1 + math.cos(math.pi * epoch / 10)) / 2 for epoch in range(2, 7))],
        ),
    ],
)
def test_schedule_of_a_configuration(parameters, pairs, expected):
    hparams = configured(*pairs)
    adam, _ = build_optimizer(parameters.items(), hparams)
    scheduler = build_scheduler(adam, hparams)
    # What checkpoints hold: numbers and None, nothing of the function.
    assert scheduler.state_dict()["lr_lambdas"] == [None]
    assert rates(adam, scheduler) == pytest.approx([0.01 * factor for factor in expected])


def test_a_rate_of_zero_has_a_schedule(parameters):
    hparams = configured("SOLVER.BASE_LR", 0.0, "SOLVER.LR_SCHEDULER_NAME", "cosine_annealing")
    adam, _ = build_optimizer(parameters.items(), hparams)
    assert rates(adam, build_scheduler(adam, hparams)) == [0] * 7


def test_schedule_of_a_factor(parameters):
    adam, _ = build_optimizer(parameters.items(), configured())
    assert rates(adam, build_scheduler(adam, lambda epoch: 2.0**epoch), 3) == [0.01, 0.02, 0.04]
    adam, _ = build_optimizer(parameters.items(), configured())
    scheduler = build_scheduler(adam, factor=lambda epoch: 2.0**epoch)
    assert rates(adam, scheduler, 2) == [0.01, 0.02]
    set_epoch(scheduler, 4)
    assert adam.param_groups[0]["lr"] == 0.16


@pytest.mark.parametrize(
    ("pair", "valid"),
    [
        (("SOLVER.OPTIMIZER_NAME", "Lamb"), "'Lamb'.*Adam"),
        (("SOLVER.LR_SCHEDULER_NAME", "poly"), "'poly'.*multistep_lr, cosine_annealing"),
    ],
)
def test_an_unknown_name_lists_the_valid_ones(parameters, pair, valid):
    with pytest.raises(KeyError, match=f"{pair[0]} is {valid}"):
        build_scheduler(build_optimizer(parameters.items(), configured(*pair))[0], configured(*pair))


def test_the_package_gives_both():
    assert solver.build_optimizer is build_optimizer
    assert solver.build_scheduler is build_scheduler
    assert not hasattr(solver, lr_factor.__name__)
