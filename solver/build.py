"""Optimisers and the learning-rate schedule."""

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
    """Adam for the network, in one kernel for all parameters where the device has it, and plain SGD for the centres.

    Args:
        named_parameters: names and parameters; frozen ones are left out, and a name that contains "center" goes to
            the centres' group.
        name: optimiser of the network, one of OPTIMIZERS.
        base_lr: learning rate of the network.
        weight_decay: L2 penalty on the network's parameters.
        center_lr: learning rate of the centres.

    Returns:
        [network optimiser, centre optimiser].

    Raises:
        UnknownNameError: another optimiser name.
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
    """Whether this version of torch has Adam as one kernel for this device."""
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

    In epochs below ``warmup_epochs`` it is ``(epoch + 1) / warmup_epochs``. Later it is ``gamma ** n`` with n the
    number of milestones reached (multistep_lr), or
    ``min_factor + (1 - min_factor) * (1 + cos(pi * epoch / max_epochs)) / 2`` (cosine_annealing).

    Args:
        name: one of SCHEDULERS.
        milestones: epochs at which the rate is multiplied by gamma.
        gamma: factor of each milestone.
        max_epochs: epochs of the whole run, the half period of the cosine.
        min_factor: lowest rate of the cosine as a multiple of the base rate.
        warmup_epochs: length of the linear warm-up; 0 for none.

    Returns:
        A function of the epoch, counted from 0.

    Raises:
        UnknownNameError: another schedule name.
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
    """A schedule that sets ``base_lr * factor(epoch)``; step it once at the end of each epoch."""
    return LambdaLR(optimizer, factor)


def set_epoch(scheduler: LambdaLR, epoch: int) -> None:
    """Put a schedule and its optimiser's rates at ``epoch``, wherever they stood."""
    scheduler.last_epoch = epoch
    rates = [base * factor(epoch) for base, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)]
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    scheduler._last_lr = rates
