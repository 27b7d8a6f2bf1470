"""Gradients between the backward pass and the step: their mean over batches, their norm, their exchange."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
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


def without_reduction(trainer: Any) -> AbstractContextManager[None]:
    """A context in which a backward pass of a Lightning Trainer adds to the gradients of this process alone."""
    context: AbstractContextManager[None] = getattr(trainer.strategy, "block_backward_sync", nullcontext)()
    return context


def _parameters(optimizer: optim.Optimizer) -> Iterator[Tensor]:
    return (parameter for group in optimizer.param_groups for parameter in group["params"])
