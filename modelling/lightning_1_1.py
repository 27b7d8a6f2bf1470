"""Lets subclasses that were written for Lightning 1.1 run: arguments, hooks and parts of the Trainer that are gone.

:class:`~modelling.bases.ModelBase` adapts a subclass once, when its class is created.
"""

from collections.abc import Callable, Iterator, MutableMapping
from inspect import getattr_static, signature
from numbers import Real
from types import FunctionType, MethodType
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_warn

from utils.errors import UserError

_Method = TypeVar("_Method", bound=Callable[..., Any])

PAGE = 'docs/MIGRATION.md, "Your own data sets, models and loops"'

# Arguments that Lightning 2 does not pass, or only to several loaders, and what stands in for them.
GONE_ARGUMENTS = {"optimizer_idx": None, "opt_idx": None, "dataloader_idx": 0, "optimizer": None}
# Hooks that Lightning 2 calls with fewer or more arguments than Lightning 1.1.
HOOKS = (
    *("training_step", "backward", "transfer_batch_to_device", "on_train_batch_start", "on_train_batch_end"),
    *("on_validation_batch_start", "on_validation_batch_end", "on_test_batch_start", "on_test_batch_end"),
)

# Hooks that Lightning 2 never calls under these names, and what to write instead.
GONE_HOOKS = {
    "validation_epoch_end": "on_validation_epoch_end(self): unless it calls super(), it replaces the evaluation of the "
    "base class, and finds what the steps returned in self.evaluation_outputs",
    "test_epoch_end": "on_test_epoch_end(self): unless it calls super(), it replaces the evaluation of the base class",
    "optimizer_step": "training_step, which calls the optimisers itself",
    "on_epoch_start": "on_train_epoch_start(self)",
    "on_epoch_end": "on_train_epoch_end(self)",
    "on_batch_start": "on_train_batch_start(self, batch, batch_idx)",
    "on_batch_end": "on_train_batch_end(self, outputs, batch, batch_idx)",
    "training_step_end": "training_step",
    "validation_step_end": "validation_step",
    "test_step_end": "test_step",
    "on_pretrain_routine_start": "on_fit_start(self)",
    "on_pretrain_routine_end": "on_fit_start(self)",
}
# Methods of the base class that its own step or evaluation does not call, and what to override instead.
UNCALLED = {
    "create_masks_train": "training_step, or set self.centroid_loss",
    "_calculate_centroids": "training_step, or set self.centroid_loss",
    "get_val_metrics": "on_validation_epoch_end and on_test_epoch_end",
    "validation_create_centroids": "on_validation_epoch_end and on_test_epoch_end",
}


def is_adapted(method: _Method) -> _Method:
    """Mark a method that Lightning 2 can call, so that subclasses that inherit it leave it as it is."""
    method.is_adapted = True  # type: ignore[attr-defined]
    return method


def adapt_subclass(cls: type[LightningModule]) -> None:
    """Make the steps and hooks of a class callable by Lightning 2; called when the class is created.

    - Steps and hooks may have arguments that are gone.
    - ``training_epoch_end(outputs)`` is hidden from Lightning, which refuses the name, and called by the base class.
    - ``on_train_epoch_end(outputs)`` gets what the steps of the epoch returned; schedules are stepped after it.
    - ``configure_callbacks`` also attaches the callback that the base class needs.
    - ``configure_optimizers`` may name what a schedule monitors, which Lightning 2 ignores, see :func:`monitor_of`.
    """
    for name in (*HOOKS, *_ADAPTERS):
        function = getattr_static(cls, name, None)
        if not isinstance(function, FunctionType) or hasattr(function, "is_adapted"):
            continue
        if function is getattr_static(LightningModule, name, None):
            continue
        setattr(cls, name, _ADAPTERS.get(name, _without_gone_arguments)(function))


def _adapted(method: Callable[..., Any], function: FunctionType) -> Callable[..., Any]:
    # Lightning reads the signature and ``__wrapped__``: a method has neither the latter nor names of old arguments.
    method.__name__, method.__qualname__, method.__doc__ = function.__name__, function.__qualname__, function.__doc__
    method.__module__ = function.__module__
    return is_adapted(method)


def _without_gone_arguments(function: FunctionType) -> Callable[..., Any]:
    """A method that takes the arguments of both versions; a function gets those that are gone only if it needs them."""
    parameters = list(signature(function).parameters.values())[1:]
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    gone = [p for p in positional if p.name in GONE_ARGUMENTS]
    takes_any = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    most = None if takes_any else len(positional) - len(gone)
    needed = {p.name: GONE_ARGUMENTS[p.name] for p in parameters if p.name in GONE_ARGUMENTS and p.default is p.empty}

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        kept = {name: value for name, value in kwargs.items() if name not in GONE_ARGUMENTS}
        return _as_tensors(function(self, *args[:most], **kept, **needed))

    return _adapted(method, function)


def _as_tensors(returned: Any) -> Any:
    """What a step returned, with its loss as a tensor, which Lightning 2 detaches."""
    if isinstance(returned, dict) and isinstance(returned.get("loss"), Real | np.ndarray):
        return {**returned, "loss": torch.as_tensor(returned["loss"])}
    return returned


def _at_epoch_end(function: FunctionType) -> Callable[..., Any]:
    parameters = list(signature(function).parameters.values())[1:]
    takes_outputs = any(p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters)

    def on_train_epoch_end(self: Any) -> None:
        function(self, *[self.train_outputs] * takes_outputs)
        self.step_schedules()

    on_train_epoch_end.takes_outputs = takes_outputs  # type: ignore[attr-defined]
    return _adapted(on_train_epoch_end, function)


def _with_keeper(function: FunctionType) -> Callable[..., Any]:
    def configure_callbacks(self: Any) -> Any:
        self.attach_keeper()
        return function(self)

    return _adapted(configure_callbacks, function)


# Names of metrics by schedule: what Lightning 2 makes of the configuration has no place for them.
_MONITORS: "WeakKeyDictionary[Any, str]" = WeakKeyDictionary()


def monitor_of(schedule: Any) -> str | None:
    """The metric that a schedule was configured to monitor."""
    return _MONITORS.get(schedule)


def _with_monitors(function: FunctionType) -> Callable[..., Any]:
    def configure_optimizers(self: Any) -> Any:
        return _take_monitors(function(self))

    return _adapted(configure_optimizers, function)


def _take_monitors(configured: Any) -> Any:
    """What configure_optimizers returned, without the keys that Lightning 2 would warn of."""
    if type(configured) in (list, tuple):
        return type(configured)(_take_monitors(part) for part in configured)
    if not isinstance(configured, dict):
        return configured
    if "lr_scheduler" in configured:
        inner = configured["lr_scheduler"]
        inner = inner if isinstance(inner, dict) else {"scheduler": inner}
        return {**configured, "lr_scheduler": _take_monitors({"monitor": configured.get("monitor"), **inner})}
    if configured.get("monitor"):
        _MONITORS[configured["scheduler"]] = configured["monitor"]
    return {key: value for key, value in configured.items() if key not in ("monitor", "reduce_on_plateau", "strict")}


def wants_outputs(cls: type, base: type) -> bool:
    """Whether a class asks for what the steps returned, besides the own logging of the base class."""
    is_own = getattr_static(cls, "training_epoch_end") is not getattr_static(base, "training_epoch_end")
    return is_own or getattr(getattr_static(cls, "on_train_epoch_end"), "takes_outputs", False)


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


def warn_of_uncalled(model: LightningModule, base: type) -> None:
    """Warn if a model overrides what neither its inherited step nor the evaluation calls."""
    owner: type = next((cls for cls in type(model).__mro__ if "training_step" in vars(cls)), object)
    has_own_step = not vars(owner).get("is_of_this_project")
    for name, instead in UNCALLED.items():
        is_overridden = getattr_static(type(model), name) is not getattr_static(base, name)
        if is_overridden and not (has_own_step and "training_step" in instead):
            rank_zero_warn(
                f"{type(model).__name__}.{name} is not called by the base class: override {instead}. See {PAGE}."
            )


def refuse_gone_hooks(model: LightningModule) -> None:
    """Raise a UserError if a model overrides a hook that would never be called: its work would silently be missing."""
    for name, instead in GONE_HOOKS.items():
        function = getattr_static(type(model), name, None)
        if function is not None and function is not getattr_static(LightningModule, name, None):
            hook = f"{type(model).__name__}.{name}"
            raise UserError(f"{hook} is never called by Lightning 2. Instead, override {instead}. See {PAGE}.")


_ADAPTERS: dict[str, Callable[[FunctionType], Any]] = {
    "on_train_epoch_end": _at_epoch_end,
    "configure_callbacks": _with_keeper,
    "configure_optimizers": _with_monitors,
    "training_epoch_end": HiddenHook,
}


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
