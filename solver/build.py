"""What the section SOLVER of a configuration asks for: the optimisers and the learning-rate schedule.

The work is in :mod:`solver.optimizers` and :mod:`solver.schedules`.
"""

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn, optim
from torch.optim.lr_scheduler import LambdaLR

from solver.optimizers import adam_and_sgd, has_fused_adam
from solver.schedules import EpochSchedule, lr_factor, set_epoch

__all__ = ["build_optimizer", "build_scheduler", "has_fused_adam", "lr_factor", "set_epoch"]


def build_optimizer(
    named_parameters: Iterable[tuple[str, nn.Parameter]], hparams: Any = None, **settings: Any
) -> list[optim.Optimizer]:
    """Build the optimisers of a model.

    Args:
        named_parameters: names and parameters, see :func:`solver.optimizers.adam_and_sgd`.
        hparams: a configuration with the section SOLVER; None takes everything from ``settings``.
        settings: name, base_lr, weight_decay and center_lr as there, in place of those in hparams.

    Returns:
        [Adam for the network, SGD for the centres].

    Raises:
        UnknownNameError: SOLVER.OPTIMIZER_NAME is not one of solver.optimizers.OPTIMIZERS.
    """
    if hparams is not None:
        solver = hparams.SOLVER
        settings = {
            "name": solver.OPTIMIZER_NAME,
            "base_lr": solver.BASE_LR,
            "weight_decay": solver.WEIGHT_DECAY,
            "center_lr": solver.CENTER_LR,
            **settings,
        }
    return adam_and_sgd(named_parameters, **settings)


def build_scheduler(
    optimizer: optim.Optimizer, hparams: Any = None, factor: Callable[[int], float] | None = None
) -> LambdaLR:
    """Build the schedule of an optimiser; step it once at the end of each epoch.

    Args:
        optimizer: the network's, from :func:`build_optimizer`.
        hparams: a configuration with the section SOLVER; or the factor, in its place.
        factor: the rate of each epoch, counted from 0, as a multiple of the base rate; None takes what hparams ask for.

    Raises:
        UnknownNameError: SOLVER.LR_SCHEDULER_NAME is not one of solver.schedules.SCHEDULERS.
    """
    if factor is None:
        factor = hparams if callable(hparams) else _factor(hparams)
    return EpochSchedule(optimizer, factor)


def _factor(hparams: Any) -> Callable[[int], float]:
    solver = hparams.SOLVER
    return lr_factor(
        solver.LR_SCHEDULER_NAME,
        milestones=solver.LR_STEPS,
        gamma=solver.GAMMA,
        max_epochs=solver.MAX_EPOCHS,
        min_factor=solver.MIN_LR / solver.BASE_LR if solver.BASE_LR else 0.0,
        warmup_epochs=solver.WARMUP_EPOCHS if solver.USE_WARMUP_LR else 0,
    )
