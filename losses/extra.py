"""Losses that the configuration names, the user's own or a package's, added to those of the model."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from losses.metric_learning import NAMED, PREFIX, build_metric_loss
from utils.errors import UserError
from utils.registry import Registry

Loss = Callable[[Tensor, Tensor], Tensor]
Build = Callable[..., Loss]

REGISTRY: Registry[Build] = Registry("LOSSES.EXTRA", "loss", {name: partial(build_metric_loss, name) for name in NAMED})


def register_loss(name: str, build: Build) -> None:
    """Let ``LOSSES.EXTRA`` find a loss of your own under ``name``, in this process.

    A configuration can also name the class or function itself: ``LOSSES.EXTRA ['my_package.losses:Spread']``.

    Args:
        name: what LOSSES.EXTRA will hold, and the name in the log; registering a name again replaces the loss.
        build: ``build(num_classes, embedding_size, **arguments)`` gives the loss, a function or module from features
            [R, D] floating (before the BN neck) and labels [R] int64 in [0, num_classes) to a scalar; the arguments are
            those in LOSSES.EXTRA_ARGS. The parameters of a module are trained by the optimiser of the network.

    Raises:
        UserError: the name is empty, holds "+" or ":", or is one of losses.metric_learning.NAMED.

    Example:
        >>> import torch
        >>> def build(num_classes, embedding_size):
        ...     return lambda features, labels: features.norm(dim=1).mean()
        >>> register_loss("length", build)
        >>> ExtraLosses(["length"], [], num_classes=2, embedding_size=2)(torch.tensor([[3.0, 4.0]]), torch.tensor([0]))
        {'length': tensor(5.)}
    """
    REGISTRY.register(name, build)


class ExtraLosses(nn.Module):
    """The losses that LOSSES.EXTRA names, each multiplied by its weight.

    Args:
        names: of losses.metric_learning.NAMED, registered names, pml:name or package.module:name; a loss of the last
            two kinds is logged as ``name``.
        weights: one for each, or none for 1 each.
        num_classes: training identities.
        embedding_size: D.
        arguments: name -> value for each, or nothing for none.

    Raises:
        UnknownNameError: there is no such loss; the message lists the valid names.
        UserError: the module or package cannot be imported, a loss does not take its arguments, or two losses would be
            logged under one name.

    Example:
        >>> import torch
        >>> register_loss("first", lambda num_classes, embedding_size: lambda features, labels: features[0].sum())
        >>> losses = ExtraLosses(["first"], [0.5], num_classes=2, embedding_size=2)
        >>> losses(torch.tensor([[3.0, 4.0]]), torch.tensor([0]))
        {'first': tensor(3.5000)}
    """

    def __init__(
        self,
        names: Sequence[str],
        weights: Sequence[float],
        num_classes: int,
        embedding_size: int,
        arguments: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        super().__init__()
        self.weights: dict[str, float] = {}
        self._losses: dict[str, Loss] = {}
        self.was_used = False
        none: list[Mapping[str, Any]] = [{}] * len(names)
        for name, weight, given in zip(names, weights or [1.0] * len(names), arguments or none, strict=True):
            label = name.rpartition(":")[2]
            if label in self.weights:
                raise UserError(f"LOSSES.EXTRA {list(names)}: two losses would be logged as {label!r}; rename one.")
            if not label.isidentifier() or hasattr(self, label):
                raise UserError(f"LOSSES.EXTRA: a loss cannot be called {label!r}; expected a name such as spread.")
            loss = _build(name, label, num_classes, embedding_size, given)
            self.weights[label], self._losses[label] = weight, loss
            if isinstance(loss, nn.Module):
                self.add_module(label, loss)  # its parameters are trained and saved

    def forward(self, features: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Name -> weighted scalar.

        Args:
            features: [R, D] floating, only rows of real images.
            labels: [R] int64.

        Raises:
            UserError: a loss is not a scalar.
        """
        self.was_used = True
        return {name: self.weights[name] * self._compute(name, features, labels) for name in self._losses}

    def _compute(self, name: str, features: Tensor, labels: Tensor) -> Tensor:
        loss = self._losses[name](features, labels)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            found = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
            raise UserError(f"The loss {name} of LOSSES.EXTRA is {found}; expected a scalar tensor.")
        return loss.reshape(())


def _build(name: str, label: str, num_classes: int, embedding_size: int, arguments: Mapping[str, Any]) -> Loss:
    build = partial(build_metric_loss, name) if name.startswith(PREFIX) else REGISTRY.find(name)
    try:
        loss = build(num_classes, embedding_size, **arguments)
    except UserError:
        raise
    except Exception as error:  # anything that the user's code may raise
        signature = ", ".join(["num_classes", "embedding_size", *(f"{key}={arguments[key]!r}" for key in arguments)])
        raise UserError(
            f"LOSSES.EXTRA {name}: {label}({signature}) should build a loss, but failed with "
            f"{type(error).__name__}: {error}."
        ) from error
    if not callable(loss):
        raise UserError(f"LOSSES.EXTRA {name} built a {type(loss).__name__}; expected a function or module.")
    return loss
