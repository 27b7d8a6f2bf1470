"""Losses of the user's own, named in the configuration and added to those of the model."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from utils.errors import UserError
from utils.registry import Registry

Loss = Callable[[Tensor, Tensor], Tensor]
Build = Callable[[int, int], Loss]

REGISTRY: Registry[Build] = Registry("LOSSES.EXTRA", "loss", {})


def register_loss(name: str, build: Build) -> None:
    """Let ``LOSSES.EXTRA`` find a loss of your own under ``name``, in this process.

    A configuration can also name the class or function itself: ``LOSSES.EXTRA ['my_package.losses:Spread']``.

    Args:
        name: what LOSSES.EXTRA will hold, and the name in the log; registering a name again replaces the loss.
        build: ``build(num_classes, embedding_size)`` gives the loss, a function or module from features [R, D] floating
            (before the BN neck) and labels [R] int64 in [0, num_classes) to a scalar. The parameters of a module are
            trained by the optimiser of the network.

    Raises:
        UserError: the name is empty, or holds "+" or ":".

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
        names: registered names, or package.module:name; a loss of the latter kind is logged as ``name``.
        weights: one for each, or none for 1 each.
        num_classes: training identities.
        embedding_size: D.

    Raises:
        UnknownNameError: there is no such loss; the message lists the registered ones.
        UserError: the module cannot be imported, or two losses would be logged under one name.

    Example:
        >>> import torch
        >>> register_loss("first", lambda num_classes, embedding_size: lambda features, labels: features[0].sum())
        >>> losses = ExtraLosses(["first"], [0.5], num_classes=2, embedding_size=2)
        >>> losses(torch.tensor([[3.0, 4.0]]), torch.tensor([0]))
        {'first': tensor(3.5000)}
    """

    def __init__(self, names: Sequence[str], weights: Sequence[float], num_classes: int, embedding_size: int) -> None:
        super().__init__()
        self.weights: dict[str, float] = {}
        self._losses: dict[str, Loss] = {}
        self.was_used = False
        for name, weight in zip(names, weights or [1.0] * len(names), strict=True):
            label = name.rpartition(":")[2]
            if label in self.weights:
                raise UserError(f"LOSSES.EXTRA {list(names)}: two losses would be logged as {label!r}; rename one.")
            if not label.isidentifier() or hasattr(self, label):
                raise UserError(f"LOSSES.EXTRA: a loss cannot be called {label!r}; expected a name such as spread.")
            build = REGISTRY.find(name)
            try:
                loss = build(num_classes, embedding_size)
            except Exception as error:  # anything that the user's code may raise
                raise UserError(
                    f"LOSSES.EXTRA {name}: {label}(num_classes, embedding_size) should build a loss, but failed with "
                    f"{type(error).__name__}: {error}."
                ) from error
            if not callable(loss):
                raise UserError(f"LOSSES.EXTRA {name} built a {type(loss).__name__}; expected a function or module.")
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
