"""The learning rate of each epoch, and of the steps of a warm-up."""

import math
import sys
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from utils.errors import UnknownNameError

SCHEDULERS = ("multistep_lr", "cosine_annealing")


def lr_factor(
    name: str, *, milestones: Sequence[int], gamma: float, max_epochs: int, min_factor: float, warmup_epochs: int
) -> Callable[[int], float]:
    """The learning rate of each epoch as a multiple of the base rate.

    During the warm-up, ``epoch < warmup_epochs``, the factor is ``(epoch + 1) / warmup_epochs``. After it, multistep_lr
    gives ``gamma ** n``, where n is the number of milestones reached, and cosine_annealing gives
    ``min_factor + (1 - min_factor) * (1 + cos(pi * epoch / max_epochs)) / 2``.

    Args:
        name: one of SCHEDULERS.
        milestones: epochs at which the rate is multiplied by gamma.
        gamma: factor applied at each milestone.
        max_epochs: number of epochs in the whole run, half the period of the cosine.
        min_factor: lowest rate of the cosine as a multiple of the base rate.
        warmup_epochs: length of the linear warm-up; 0 for none.

    Returns:
        A function of the epoch, counted from 0.

    Raises:
        UnknownNameError: the schedule is not one of SCHEDULERS.
    """
    if name not in SCHEDULERS:
        raise UnknownNameError(f"SOLVER.LR_SCHEDULER_NAME is {name!r}; valid names: {', '.join(SCHEDULERS)}.")
    steps = sorted(milestones)

    def factor(epoch: int) -> float:
        if epoch < warmup_epochs:
            return (epoch + 1) / warmup_epochs
        if name == "multistep_lr":
            return gamma ** bisect_right(steps, epoch)
        return min_factor + (1 - min_factor) * (1 + math.cos(math.pi * epoch / max_epochs)) / 2

    return factor


class EpochSchedule(LambdaLR):
    """A schedule whose rate depends on the epoch alone, so that it can be set to any epoch."""


class StepWarmup(EpochSchedule):
    """A schedule by epochs whose rates rise linearly over the first steps of its optimiser.

    The rate of step s, counted from 0, is that of its epoch times ``min(1, (s + 1) / steps)``. The count is part of the
    state of the schedule. A training whose state has none did without this warm-up, and does not begin it later.

    Args:
        optimizer: the optimiser, whose steps are counted.
        factor: the rate of each epoch as a multiple of the base rate.
        steps: length of the warm-up, 1 or more.
    """

    def __init__(self, optimizer: Optimizer, factor: Callable[[int], float], steps: int) -> None:
        self.steps_done = 0
        super().__init__(optimizer, lambda epoch: factor(epoch) * min(1.0, (self.steps_done + 1) / steps))

        step = optimizer.step

        # Not a hook of the optimiser: torch 2.1 calls none once anything has been compiled.
        @wraps(step)
        def counted(*args: Any, **kw: Any) -> Any:
            found = step(*args, **kw)
            self.steps_done += 1
            if self.steps_done < steps:
                set_epoch(self, self.last_epoch)
            return found

        optimizer.step = counted  # type: ignore[method-assign]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over epoch and count."""
        self.steps_done = sys.maxsize
        super().load_state_dict(state_dict)


def set_epoch(scheduler: LambdaLR, epoch: int) -> None:
    """Move a schedule and the rates of its optimiser to ``epoch``, whatever epoch they were at."""
    scheduler.last_epoch = epoch
    rates = [base * factor(epoch) for base, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)]
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    scheduler._last_lr = rates
