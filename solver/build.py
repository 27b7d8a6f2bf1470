"""The optimisers and the learning-rate schedule."""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from functools import cache

import torch
from torch import nn, optim
from torch.optim.lr_scheduler import LambdaLR

from utils.errors import UnknownNameError

OPTIMIZERS = ("Adam",)
SCHEDULERS = ("multistep_lr", "cosine_annealing")


def build_optimizer(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    name: str = "Adam",
    base_lr: float,
    weight_decay: float,
    center_lr: float,
) -> list[optim.Optimizer]:
    """Build Adam for the network, fused into one kernel where the device supports that, and plain SGD for the centres.

    Args:
        named_parameters: names and parameters. Frozen parameters are left out; those whose name contains "center" are
            the centres.
        name: optimiser of the network, one of OPTIMIZERS.
        base_lr: learning rate of the network.
        weight_decay: L2 penalty on the network's parameters.
        center_lr: learning rate of the centres.

    Returns:
        [network optimiser, centre optimiser].

    Raises:
        UnknownNameError: the optimiser is not one of OPTIMIZERS.
    """
    if name not in OPTIMIZERS:
        raise UnknownNameError(f"SOLVER.OPTIMIZER_NAME is {name!r}; valid names: {', '.join(OPTIMIZERS)}.")
    trained = [(key, parameter) for key, parameter in named_parameters if parameter.requires_grad]
    network = [parameter for key, parameter in trained if "center" not in key]
    centers = [parameter for key, parameter in trained if "center" in key]
    fused = all(has_fused_adam(device) for device in {parameter.device for parameter in network})
    return [
        optim.Adam(network, lr=base_lr, weight_decay=weight_decay, fused=fused or None),
        optim.SGD(centers, lr=center_lr),
    ]


@cache
def has_fused_adam(device: torch.device) -> bool:
    """Whether this version of torch has a fused Adam kernel for the device."""
    try:
        parameter = nn.Parameter(torch.zeros(1, device=device))
        parameter.grad = torch.zeros(1, device=device)
        optim.Adam([parameter], fused=True).step()
    except RuntimeError:
        return False
    return True


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


def build_scheduler(optimizer: optim.Optimizer, factor: Callable[[int], float]) -> LambdaLR:
    """Build a schedule that sets ``base_lr * factor(epoch)``; step it once at the end of each epoch."""
    return LambdaLR(optimizer, factor)


def set_epoch(scheduler: LambdaLR, epoch: int) -> None:
    """Move a schedule and the rates of its optimiser to ``epoch``, whatever epoch they were at."""
    scheduler.last_epoch = epoch
    rates = [base * factor(epoch) for base, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)]
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    scheduler._last_lr = rates
