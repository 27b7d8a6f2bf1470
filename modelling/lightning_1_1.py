"""Lets subclasses that were written for Lightning 1.1 run: arguments, hooks and parts of the Trainer that are gone.

:class:`~modelling.bases.ModelBase` adapts a subclass once, when its class is created.
"""

from collections.abc import Callable, Iterator, MutableMapping
from inspect import Parameter, getattr_static, signature
from types import FunctionType, MethodType
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer

from utils.errors import UserError

PAGE = 'docs/MIGRATION.md, "Your own data sets, models and loops"'

# Arguments that Lightning 2 no longer passes, and what stands in for them.
GONE_ARGUMENTS = {"optimizer_idx": None, "opt_idx": None, "dataloader_idx": 0}
HOOKS = ("training_step", "on_train_batch_start", "on_train_batch_end")

# Hooks that Lightning 2 never calls under these names, and what to write instead.
GONE_HOOKS = {
    "validation_epoch_end": "on_validation_epoch_end(self), which replaces the evaluation of the base class unless it "
    "calls super(); what the steps return is collected for it",
    "test_epoch_end": "on_test_epoch_end(self), likewise",
    "optimizer_step": "what it does in training_step, which calls the optimisers itself",
}


def adapt_subclass(cls: type[LightningModule]) -> None:
    """Make the steps and hooks of a class callable by Lightning 2; called when the class is created.

    - ``training_step`` and the hooks around a batch may have arguments that are gone.
    - ``training_epoch_end(outputs)`` is hidden from Lightning, which refuses the name, and called by the base class.
    - ``on_train_epoch_end(outputs)`` gets what the steps of the epoch returned.
    """
    for name in HOOKS:
        function = getattr_static(cls, name, None)
        if not isinstance(function, FunctionType) or hasattr(function, "is_adapted"):
            continue
        is_own_step = name == "training_step" and function is not LightningModule.training_step
        # Every step takes the old arguments, because a subclass may pass them on to super().
        if is_own_step or set(signature(function).parameters) & set(GONE_ARGUMENTS):
            setattr(cls, name, _without_gone_arguments(function))
    function = getattr_static(cls, "training_epoch_end", None)
    if isinstance(function, FunctionType):
        cls.training_epoch_end = HiddenHook(function)  # type: ignore[attr-defined]
    function = getattr_static(cls, "on_train_epoch_end", None)
    if isinstance(function, FunctionType) and "outputs" in signature(function).parameters:
        cls.on_train_epoch_end = _with_outputs(function)  # type: ignore[method-assign]


def _without_gone_arguments(function: FunctionType) -> Callable[..., Any]:
    """A method that takes the arguments of both versions; those that are gone reach the function only if it needs them.

    Lightning reads ``__wrapped__`` and the signature: this has neither the former nor the names of the old arguments.
    """
    parameters = signature(function).parameters.values()
    needed = {p.name: GONE_ARGUMENTS[p.name] for p in parameters if p.name in GONE_ARGUMENTS and p.default is p.empty}
    known = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    most = len(known) - sum(p.name in GONE_ARGUMENTS for p in known) - 1  # without self
    if any(p.kind is Parameter.VAR_POSITIONAL for p in parameters):
        most = 10**6

    def method(self: Any, batch: Any, batch_idx: int = 0, *args: Any, **kwargs: Any) -> Any:
        kept = {name: value for name, value in kwargs.items() if name not in GONE_ARGUMENTS}
        return function(self, *(batch, batch_idx, *args)[:most], **kept, **needed)

    method.__name__, method.__qualname__, method.__doc__ = function.__name__, function.__qualname__, function.__doc__
    method.is_adapted = True  # type: ignore[attr-defined]
    return method


def _with_outputs(function: FunctionType) -> Callable[..., Any]:
    def on_train_epoch_end(self: Any) -> Any:
        return function(self, self.train_outputs)

    on_train_epoch_end.takes_outputs = True  # type: ignore[attr-defined]
    return on_train_epoch_end


def wants_outputs(cls: type) -> bool:
    """Whether a class asks for what the steps returned, besides the base class's own logging."""
    logging = getattr_static(cls, "training_epoch_end", None)
    is_own = isinstance(logging, HiddenHook) and logging.function.__module__ != "modelling.bases"
    return is_own or hasattr(cls.on_train_epoch_end, "takes_outputs")  # type: ignore[attr-defined]


class HiddenHook:
    """A method that a Trainer does not see: found while the base class calls it, and on a model without a Trainer.

    Lightning 2 refuses to train a model that has ``training_epoch_end``. ``super().training_epoch_end(outputs)`` works.
    """

    def __init__(self, function: FunctionType) -> None:
        self.function = function
        self.__doc__ = function.__doc__

    def __get__(self, model: Any, owner: type | None = None) -> Any:
        if model is None:
            return self.function
        if model._trainer is not None and not model.__dict__.get("_calls_hidden_hook"):
            raise AttributeError(f"{self.function.__name__} is called by the base class only, at the end of an epoch")
        return MethodType(self.function, model)

    @staticmethod
    def call(model: Any, name: str, *args: Any) -> None:
        """Call a hidden hook of a model."""
        model.__dict__["_calls_hidden_hook"] = True
        try:
            getattr(model, name)(*args)
        finally:
            del model.__dict__["_calls_hidden_hook"]


def refuse_gone_hooks(model: LightningModule) -> None:
    """Raise a UserError if a model overrides a hook that would never be called: its work would silently be missing."""
    for name, instead in GONE_HOOKS.items():
        function = getattr_static(type(model), name, None)
        if function is not None and function is not getattr_static(LightningModule, name, None):
            raise UserError(
                f"{type(model).__name__}.{name} is not called by Lightning 2: write {instead} instead. See {PAGE}."
            )


class OldTrainerParts:
    """What old models read from their Trainer besides what it still has."""

    @staticmethod
    def attach(trainer: Trainer) -> None:
        """Give a Trainer ``accelerator_backend.barrier()`` and ``logger_connector.callback_metrics.update(...)``."""
        trainer.accelerator_backend = trainer.strategy  # type: ignore[attr-defined]
        trainer.logger_connector = OldTrainerParts(trainer)  # type: ignore[attr-defined]

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    @property
    def callback_metrics(self) -> "CallbackMetrics":
        """The metrics that callbacks see, to be read and updated."""
        return CallbackMetrics(self._trainer)


class CallbackMetrics(MutableMapping[str, Any]):
    """``trainer.callback_metrics``; numbers that are put in become tensors, as callbacks compare those."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    def __getitem__(self, name: str) -> Any:
        return self._trainer.callback_metrics[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self._trainer.callback_metrics[name] = torch.as_tensor(value)

    def __delitem__(self, name: str) -> None:
        del self._trainer.callback_metrics[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._trainer.callback_metrics)

    def __len__(self) -> int:
        return len(self._trainer.callback_metrics)
