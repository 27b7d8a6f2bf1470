"""Overrides as written for Lightning 1.1: ``setup(self)`` without a stage, ``train_dataloader(self, cfg, trainer)``."""

import functools
import inspect
import os
from collections.abc import Callable
from typing import Any, TypeVar

from torch.utils.data import DataLoader

from datasets.loading import LateStartLoader
from datasets.samplers import RandomIdentitySampler
from utils.errors import UserError

_Method = TypeVar("_Method", bound=Callable[..., Any])


class OldTrainer:
    """A Lightning 2 Trainer, or none, with the attributes by which Lightning 1.1 told the place of a process.

    Args:
        trainer: everything else is passed on to it; None without a Trainer.
        world_size: number of processes.
        rank: global number of this one.
    """

    def __init__(self, trainer: Any, world_size: int, rank: int) -> None:
        self._trainer = trainer
        self.world_size, self.global_rank = world_size, rank
        # Programs ask for it to choose between root_gpu (ddp_spawn) and local_rank; the latter is right for both.
        self.distributed_backend = "ddp" if world_size > 1 else None
        self.root_gpu = None
        self.local_rank = int(os.environ.get("LOCAL_RANK", rank))
        self.num_processes = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
        self.num_nodes = max(1, world_size // self.num_processes)
        if trainer is not None:
            device = trainer.strategy.root_device
            self.root_gpu = device.index or 0 if device.type == "cuda" else None
            self.local_rank, self.num_processes, self.num_nodes = (
                trainer.local_rank,
                trainer.num_devices,
                trainer.num_nodes,
            )

    def __getattr__(self, name: str) -> Any:
        trainer = self.__dict__.get("_trainer")
        if trainer is None:
            raise AttributeError(f"no Trainer is attached to the data module, so there is no trainer.{name}")
        return getattr(trainer, name)


def old_place(trainer: Any) -> tuple[int, int]:
    """Number of processes and global rank by the attributes that Lightning 1.1 had."""
    processes = trainer.num_processes or 1
    spawned = trainer.distributed_backend == "ddp_spawn" and trainer.root_gpu is not None
    local_rank = trainer.root_gpu if spawned else trainer.local_rank or 0
    node = int(os.environ.get("NODE_RANK") or os.environ.get("GROUP_RANK") or 0)
    return (trainer.num_nodes or 1) * processes, node * processes + local_rank


def as_lightning_calls(method: _Method) -> _Method:
    """Mark a method of ours that Lightning 2 can call, so that subclasses that inherit it leave it as it is."""
    method._as_lightning_calls = True  # type: ignore[attr-defined]
    return method


def accepts(method: Callable[..., Any], **arguments: Any) -> bool:
    """Whether a method, as a function of its class, can be called with these arguments alone."""
    try:
        inspect.signature(method).bind(None, **arguments)
    except TypeError:
        return False
    return True


def run_once(setup: Callable[..., Any]) -> Callable[..., Any]:
    """``setup`` as Lightning calls it: with a stage, several times. Its own code runs once, then the set is completed.

    Code that takes a stage gets its own default, else "fit": both stand for a whole run.
    """
    arguments = () if accepts(setup) else ("fit",)

    @functools.wraps(setup)
    def once(self: Any, stage: str | None = None) -> None:
        # super().setup() reaches the code of a base class while that of the subclass runs.
        if self._is_set_up or setup in self._running:
            return
        is_outermost = not self._running
        self._running.append(setup)
        try:
            setup(self, *arguments)
        finally:
            self._running.remove(setup)
        if is_outermost:
            self._complete(stage)

    return as_lightning_calls(once)


def is_old_train_dataloader(function: Callable[..., Any]) -> bool:
    """Whether a method ``train_dataloader`` expects cfg and trainer, which Lightning 2 does not pass."""
    names = list(inspect.signature(function).parameters)
    return not accepts(function) or names[1:2] == ["cfg"]


def call_with_trainer(function: Callable[..., Any]) -> Callable[..., Any]:
    """``train_dataloader(self, cfg, trainer, ...)`` as Lightning 2 calls it: without arguments.

    The loader that it returns is kept, so that its workers are, and follows the epochs.
    """
    parameters = inspect.signature(function).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())

    @functools.wraps(function)
    def train_dataloader(self: Any, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs:
            return function(self, *args, **kwargs)

        def build(world_size: int, rank: int) -> Any:
            trainer = OldTrainer(self.trainer, world_size, rank)
            options = self.cfg.DATALOADER
            known = {"sampler_name": options.SAMPLER, "drop_last": options.DROP_LAST}
            given = {name: value for name, value in known.items() if takes_all or name in parameters}
            return adopt_loader(function(self, self.cfg, trainer, **given), world_size, rank)

        return self._keep_train_loader(build)

    # Programs that read the signature through __wrapped__ would find arguments that need not be passed.
    del train_dataloader.__wrapped__  # type: ignore[attr-defined]
    return as_lightning_calls(train_dataloader)


def adopt_loader(loader: Any, world_size: int, rank: int) -> Any:
    """Make a loader that a subclass built fit for a Trainer that sets the epoch after ``iter()``.

    Raises:
        UserError: its sampler draws the part of another process.
    """
    sampler = getattr(loader, "sampler", None)
    if isinstance(sampler, RandomIdentitySampler) and (sampler.world_size, sampler.rank) != (world_size, rank):
        raise UserError(
            f"train_dataloader built a sampler for process {sampler.rank} of {sampler.world_size}, but this is process "
            f"{rank} of {world_size}: pass world_size=trainer.world_size and rank=trainer.global_rank."
        )
    if type(loader) is DataLoader:
        loader.__class__ = LateStartLoader  # it differs in when it starts the sampler, and holds nothing more
    return loader


def follow_epoch(loader: Any, epoch: int) -> None:
    """Tell the sampler and the data set of a loader the epoch, where they ask for it."""
    for part in (getattr(loader, "sampler", None), getattr(loader, "dataset", None)):
        if hasattr(part, "set_epoch"):
            part.set_epoch(epoch)


def adapt_overrides(kind: type, hand_filled: bool) -> None:
    """Replace ``setup`` and ``train_dataloader`` of a new class, own or from a mixin, if Lightning 2 cannot call them.

    Args:
        kind: the class, whose bases are adapted already.
        hand_filled: whether it fills its lists in ``setup``, which then runs once even if it takes a stage.
    """
    setup, train_dataloader = kind.setup, kind.train_dataloader  # type: ignore[attr-defined]
    if not hasattr(setup, "_as_lightning_calls") and (hand_filled or not accepts(setup, stage="fit")):
        kind.setup = run_once(setup)  # type: ignore[attr-defined]
    if not hasattr(train_dataloader, "_as_lightning_calls") and is_old_train_dataloader(train_dataloader):
        kind.train_dataloader = call_with_trainer(train_dataloader)  # type: ignore[attr-defined]
