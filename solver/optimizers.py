"""Adam for the network and SGD for the class centres."""

from collections.abc import Iterable
from functools import cache
from weakref import WeakSet

import torch
from torch import nn, optim

from utils.errors import UnknownNameError

OPTIMIZERS = ("Adam",)
# Those of the centres that were built here; their type, which is that of any SGD, does not tell them apart.
_OF_CENTERS: "WeakSet[optim.Optimizer]" = WeakSet()


def adam_and_sgd(
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
            the centres, except for parameters of extra losses.
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
    centers = [parameter for key, parameter in trained if _is_center(key)]
    network = [parameter for key, parameter in trained if not _is_center(key)]
    fused = all(has_fused_adam(device) for device in {parameter.device for parameter in network})
    sgd = optim.SGD(centers, lr=center_lr)
    _OF_CENTERS.add(sgd)
    return [optim.Adam(network, lr=base_lr, weight_decay=weight_decay, fused=fused or None), sgd]


def is_center_optimizer(optimizer: optim.Optimizer) -> bool:
    """Whether :func:`adam_and_sgd` made this optimiser for the class centres."""
    return optimizer in _OF_CENTERS


def _is_center(key: str) -> bool:
    return "center" in key and not key.startswith("extra_losses.")


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
