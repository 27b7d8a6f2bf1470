"""Gradients between the backward pass and the step: their mean over batches, their norm, their exchange."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, optim
from torch.nn.utils import clip_grad_norm_


def scale_gradients(optimizer: optim.Optimizer, factor: float) -> None:
    """Multiply the gradients of an optimiser's parameters in place."""
    gradients = [parameter.grad for parameter in _parameters(optimizer) if parameter.grad is not None]
    if gradients:
        torch._foreach_mul_(gradients, factor)


def clip_gradients(optimizer: optim.Optimizer, max_norm: float, scaler: Any = None) -> None:
    """Scale the gradients of an optimiser's parameters down to an L2 norm over all of them; waits for no device.

    Args:
        optimizer: about to step.
        max_norm: the largest norm, above 0.
        scaler: the GradScaler of the loss, whose factor is still in the gradients of an optimiser that takes it out in
            its own step, as fused ones do; None for gradients that are unscaled.
    """
    if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
        scaler.unscale_(optimizer)  # the step finds that it has been done
    clip_grad_norm_(list(_parameters(optimizer)), max_norm)


@contextmanager
def stepping_together(scaler: Any, optimizers: Sequence[optim.Optimizer]) -> Iterator[None]:
    """Within the block, all of the optimisers step or none does, by one decision of a GradScaler at one loss scale.

    Lightning updates the loss scale after the step of each optimiser: the second one then takes out another factor than
    its gradients hold, and steps although the first was skipped because of gradients that are not finite.

    Args:
        scaler: the GradScaler of the loss; None for no scaling. Its scale is updated once, at the end of the block.
        optimizers: those that step in the block, each once. Their gradients are unscaled when it begins.
    """
    if scaler is None:
        yield
        return
    for optimizer in optimizers:
        scaler.unscale_(optimizer)
    found = [scaler._per_optimizer_states[id(optimizer)]["found_inf_per_device"] for optimizer in optimizers]
    for device in {device for by_device in found for device in by_device}:
        any_of_them = torch.stack([by_device[device] for by_device in found if device in by_device]).amax(0)
        for by_device in found:
            by_device[device] = any_of_them  # 0 or 1: fused kernels know no other values
    scaler.unscale_ = scaler.update = lambda *args: None  # what Lightning calls; it has been done, or is done below
    try:
        yield
    finally:
        del scaler.unscale_, scaler.update
    scaler.update()


def without_reduction(trainer: Any) -> AbstractContextManager[None]:
    """A context in which a backward pass of a Lightning Trainer adds to the gradients of this process alone."""
    context: AbstractContextManager[None] = getattr(trainer.strategy, "block_backward_sync", nullcontext)()
    return context


def _parameters(optimizer: optim.Optimizer) -> Iterator[Tensor]:
    return (parameter for group in optimizer.param_groups for parameter in group["params"])
