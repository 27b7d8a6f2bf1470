"""What the section SOLVER of a configuration asks for: the optimisers and the learning-rate schedule.

The work is in :mod:`solver.optimizers`, :mod:`solver.groups` and :mod:`solver.schedules`.
"""

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn, optim
from torch.optim.lr_scheduler import LambdaLR

from solver.groups import Factors, Parts
from solver.optimizers import has_fused, make_optimizers
from solver.schedules import EpochSchedule, StepWarmup, lr_factor, set_epoch

__all__ = ["Parts", "build_optimizer", "build_scheduler", "has_fused", "lr_factor", "set_epoch"]


def build_optimizer(
    named_parameters: Iterable[tuple[str, nn.Parameter]], hparams: Any = None, **settings: Any
) -> list[optim.Optimizer]:
    """Build the optimisers of a model.

    Args:
        named_parameters: names and parameters. Parameters with "center" in their names are taken for class centres,
            unless ``parts`` says which are; see :func:`solver.optimizers.make_optimizers`.
        hparams: a configuration with the section SOLVER; None takes everything from ``settings``.
        settings: name, base_lr, weight_decay, center_lr, momentum, factors and parts as there, in place of those in
            hparams.

    Returns:
        [SOLVER.OPTIMIZER_NAME for the network, SGD for the centres].

    Raises:
        UnknownNameError: SOLVER.OPTIMIZER_NAME is not one of solver.optimizers.OPTIMIZERS.
        UserError: SOLVER.LAYER_DECAY or HEAD_LR_FACTOR, and nothing tells the layers or the head.
    """
    if hparams is not None:
        solver = hparams.SOLVER
        settings = {
            "name": solver.OPTIMIZER_NAME,
            "base_lr": solver.BASE_LR,
            "weight_decay": solver.WEIGHT_DECAY,
            "center_lr": solver.CENTER_LR,
            "momentum": solver.MOMENTUM,
            "factors": Factors(
                bias_lr=solver.BIAS_LR_FACTOR,
                bias_decay=solver.BIAS_DECAY_FACTOR,
                head_lr=solver.HEAD_LR_FACTOR,
                layer_decay=solver.LAYER_DECAY,
                no_decay=solver.NO_DECAY,
            ),
            **settings,
        }
    return make_optimizers(named_parameters, **settings)


def build_scheduler(
    optimizer: optim.Optimizer, hparams: Any = None, factor: Callable[[int], float] | None = None
) -> LambdaLR:
    """Build the schedule of an optimiser; step it once at the end of each epoch.

    A warm-up by steps (SOLVER.WARMUP_STEPS) counts those of the optimiser itself.

    Args:
        optimizer: the network's, from :func:`build_optimizer`.
        hparams: a configuration with the section SOLVER; or the factor, in its place.
        factor: the rate of each epoch, counted from 0, as a multiple of the base rate; None takes what hparams ask for.

    Raises:
        UnknownNameError: SOLVER.LR_SCHEDULER_NAME is not one of solver.schedules.SCHEDULERS.
    """
    if factor is None:
        if callable(hparams):
            factor = hparams
        else:
            factor, steps = _factor_and_warmup(hparams)
            if steps:
                return StepWarmup(optimizer, factor, steps)
    return EpochSchedule(optimizer, factor)


def _factor_and_warmup(hparams: Any) -> tuple[Callable[[int], float], int]:
    """The rate of each epoch, and the length of the warm-up by steps, which takes the place of that by epochs."""
    solver = hparams.SOLVER
    steps = solver.WARMUP_STEPS if solver.USE_WARMUP_LR else 0
    factor = lr_factor(
        solver.LR_SCHEDULER_NAME,
        milestones=solver.LR_STEPS,
        gamma=solver.GAMMA,
        max_epochs=solver.MAX_EPOCHS,
        min_factor=solver.MIN_LR / solver.BASE_LR if solver.BASE_LR else 0.0,
        warmup_epochs=solver.WARMUP_EPOCHS if solver.USE_WARMUP_LR and not steps else 0,
    )
    return factor, steps
