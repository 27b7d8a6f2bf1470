"""The optimiser of the network, and SGD for the class centres."""

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any
from weakref import WeakSet

import torch
from torch import nn, optim

from solver.groups import BY_NAME, ONE_GROUP, Factors, Parts, group_parameters
from utils.errors import UnknownNameError

OPTIMIZERS: dict[str, Callable[..., optim.Optimizer]] = {"Adam": optim.Adam, "AdamW": optim.AdamW, "SGD": optim.SGD}
# Those of the centres that were built here; their type, which is that of any SGD, does not tell them apart.
_OF_CENTERS: "WeakSet[optim.Optimizer]" = WeakSet()


def make_optimizers(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    name: str = "Adam",
    base_lr: float,
    weight_decay: float,
    center_lr: float,
    momentum: float = 0.9,
    factors: Factors = ONE_GROUP,
    parts: Parts = BY_NAME,
) -> list[optim.Optimizer]:
    """Build the network's optimiser, Adam and AdamW as one kernel where the device has it, and SGD for the centres.

    Args:
        named_parameters: names and parameters. Frozen parameters are left out.
        name: optimiser of the network, one of OPTIMIZERS.
        base_lr: learning rate of the network.
        weight_decay: L2 penalty on the network's parameters; decoupled from the gradient in AdamW.
        center_lr: learning rate of the centres.
        momentum: of SGD for the network; the others have none to set.
        factors: how rate and decay differ between the network's parameters; the default makes one group.
        parts: what is known of the model; with the default, names tell the centres, see :class:`Parts`.

    Returns:
        [network optimiser, centre optimiser].

    Raises:
        UnknownNameError: the optimiser is not one of OPTIMIZERS.
        UserError: factors need something that ``parts`` and names do not tell.
    """
    if name not in OPTIMIZERS:
        raise UnknownNameError(f"SOLVER.OPTIMIZER_NAME is {name!r}; valid names: {', '.join(OPTIMIZERS)}.")
    trained = [(key, parameter) for key, parameter in named_parameters if parameter.requires_grad]
    centers = [parameter for key, parameter in trained if parts.is_center(key)]
    network = [(key, parameter) for key, parameter in trained if not parts.is_center(key)]
    options: dict[str, Any] = {"momentum": momentum}
    if name != "SGD":  # whose kernel fails where some parameters, released later than others, have no momentum yet
        options = {"fused": all(has_fused(optim.Adam, p.device) for _, p in network) or None}
    groups = group_parameters(network, factors, parts, base_lr=base_lr, weight_decay=weight_decay)
    # As one kernel, a step under a loss scale does not wait for the device. On the CPU it would round in its own way.
    in_one_kernel = all(p.device.type != "cpu" and has_fused(optim.SGD, p.device) for p in centers)
    sgd = optim.SGD(centers, lr=center_lr, **({"fused": True} if in_one_kernel else {}))
    _OF_CENTERS.add(sgd)
    return [OPTIMIZERS[name](groups, lr=base_lr, weight_decay=weight_decay, **options), sgd]


def is_center_optimizer(optimizer: optim.Optimizer) -> bool:
    """Whether :func:`make_optimizers` made this optimiser for the class centres."""
    return optimizer in _OF_CENTERS


@cache
def has_fused(optimizer: Callable[..., optim.Optimizer], device: torch.device) -> bool:
    """Whether this version of torch has a fused kernel of an optimiser for the device; AdamW's is Adam's."""
    try:
        parameter = nn.Parameter(torch.zeros(1, device=device))
        parameter.grad = torch.zeros(1, device=device)
        optimizer([parameter], lr=0.1, fused=True).step()
    except (RuntimeError, TypeError):  # SGD of torch 2.1 and 2.2 does not know the option
        return False
    return True
