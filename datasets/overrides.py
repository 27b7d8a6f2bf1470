"""Overrides as written for Lightning 1.1: ``setup(self)`` without a stage, ``train_dataloader(self, cfg, trainer)``."""

import functools
import inspect
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pytorch_lightning.utilities import rank_zero_warn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, Sampler, SequentialSampler

from datasets.counts import count, statistics_table
from datasets.draws import PidDraw
from datasets.loading import BaseDatasetLabelled, BaseDatasetLabelledPerPid, LateStartLoader
from datasets.readers.files import read_json
from datasets.samplers import RandomIdentitySampler
from utils.errors import MissingFolderError, UserError

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


def overrides(dataset: Any, *names: str) -> bool:
    """Whether a data set of one of our classes has methods of its own in place of ours."""
    ours = BaseDatasetLabelledPerPid if isinstance(dataset, BaseDatasetLabelledPerPid) else BaseDatasetLabelled
    return any(getattr(type(dataset), name) is not getattr(ours, name) for name in names)


class OldHelpers:
    """Methods that subclasses of the original's data sets call."""

    @property
    def title(self) -> str:
        """What the log calls the data set."""
        return type(self).__name__

    def _get_imagedata_info(self, data: Sequence[Sequence[Any]]) -> tuple[int, int, int]:
        """Numbers of identities, images and cameras of samples (path, pid, camid, ...)."""
        ids, images, cameras = count(data)
        return ids, images, cameras or 0

    def _print_dataset_statistics(
        self, train: Sequence[Sequence[Any]], query: Sequence[Sequence[Any]], gallery: Sequence[Sequence[Any]]
    ) -> None:
        """Print the numbers of identities, images and cameras of the subsets."""
        subsets = {"train": train, "query": query, "gallery": gallery}
        table = statistics_table({name: [tuple(row) for row in rows] for name, rows in subsets.items()})
        sys.stdout.write(table + "\n")

    def _check_before_run(self) -> None:
        """Raise MissingFolderError, a RuntimeError, for the first of the four folders that does not exist."""
        for name in ("dataset_dir", "train_dir", "query_dir", "gallery_dir"):
            folder = getattr(self, name, None)
            if folder is None:
                raise MissingFolderError(f"{self.title}.{name} is not set; expected a folder.")
            if not os.path.exists(folder):  # noqa: PTH110 (text or Path)
                raise MissingFolderError(
                    f"{self.title}.{name}: {folder} does not exist. DATASETS.ROOT_DIR must be the folder that holds "
                    "the data set's own folder."
                )

    def _load_json(self, path: str | os.PathLike[str]) -> Any:
        """What a JSON file holds. Raises UserError if it is missing or malformed."""
        return read_json(Path(path))


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


class CountedDraws(Sampler[PidDraw]):
    """The pids of another program's sampler, each with its epoch and how often the epoch has drawn it before.

    With these an epoch repeats no image of an identity before it has drawn all of them.

    Args:
        sampler: yields pids.
        dataset: tells the images.
    """

    def __init__(self, sampler: Any, dataset: BaseDatasetLabelledPerPid) -> None:
        self.sampler = sampler
        self.dataset = dataset
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the draws."""
        self.epoch = epoch
        set_epoch = getattr(self.sampler, "set_epoch", None)
        if set_epoch is not None:
            set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[PidDraw]:
        seen: Counter[int] = Counter()
        for pid in self.sampler:
            if isinstance(pid, PidDraw):
                yield pid
                continue
            occurrences = -(-len(self.dataset.data[pid]) // self.dataset.num_instances)
            yield PidDraw(pid, self.epoch, seen[pid] % occurrences)
            seen[pid] += 1


def as_trainer_calls(function: Callable[..., Any]) -> Callable[..., Any]:
    """An override of ``train_dataloader`` as Lightning 2 calls it: without arguments, for every epoch.

    One that takes cfg and trainer gets them, and the loader that it returns is kept, so that its workers are. The
    loader follows the epochs; see :func:`adopt_loader`.
    """
    parameters = inspect.signature(function).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    takes_trainer = not accepts(function) or list(parameters)[1:2] == ["cfg"]

    @functools.wraps(function)
    def train_dataloader(self: Any, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs:
            return function(self, *args, **kwargs)

        def build(world_size: int, rank: int) -> Any:
            options = self.cfg.DATALOADER
            known = {"sampler_name": options.SAMPLER, "drop_last": options.DROP_LAST}
            given = {name: value for name, value in known.items() if takes_all or name in parameters}
            call = (self.cfg, OldTrainer(self.trainer, world_size, rank)) if takes_trainer else ()
            return adopt_loader(function(self, *call, **given if takes_trainer else {}), world_size, rank, self.seed)

        return self._prepare_train_loader(build, keep=takes_trainer)

    # Programs that read the signature through __wrapped__ would find arguments that need not be passed.
    del train_dataloader.__wrapped__
    return as_lightning_calls(train_dataloader)


def adopt_loader(loader: Any, world_size: int, rank: int, seed: int) -> Any:
    """Make a loader that a subclass built fit for a Trainer, which sets the epoch after ``iter()``.

    A sampler of ours without a seed gets that of the run; one of another program, whose pids do not tell which images
    to draw, is counted.

    Raises:
        UserError: its sampler draws the part of another process.
    """
    if not isinstance(loader, DataLoader):
        return loader
    sampler, dataset = loader.sampler, loader.dataset
    if isinstance(sampler, RandomIdentitySampler):
        if (sampler.world_size, sampler.rank) != (world_size, rank):
            raise UserError(
                f"train_dataloader built a sampler for process {sampler.rank} of {sampler.world_size}, but this is "
                f"process {rank} of {world_size}: pass world_size=trainer.world_size and rank=trainer.global_rank."
            )
        sampler.seed = sampler.seed or seed
    elif world_size > 1 and type(sampler) in (RandomSampler, SequentialSampler):
        rank_zero_warn(
            f"train_dataloader built a loader that gives each of the {world_size} processes the whole set: pass a "
            "sampler that divides it, such as that of datasets.samplers.get_sampler or torch's DistributedSampler."
        )
    yields_draws = getattr(type(sampler), "__iter__", None) is RandomIdentitySampler.__iter__
    batches = loader.batch_sampler
    if isinstance(dataset, BaseDatasetLabelledPerPid) and isinstance(batches, BatchSampler) and not yields_draws:
        # A subclass may return the same loader for every epoch.
        counted = isinstance(batches.sampler, CountedDraws)
        batches.sampler = batches.sampler if counted else CountedDraws(sampler, dataset)
    if type(loader) is DataLoader:
        loader.__class__ = LateStartLoader  # it differs in when it starts the sampler, and holds nothing more
    return loader


def follow_epoch(loader: Any, epoch: int) -> None:
    """Tell the samplers of a loader the epoch, where they ask for it; and a data set that is none of ours."""
    batches = getattr(loader, "batch_sampler", None)
    followers = [getattr(loader, "sampler", None), batches, getattr(batches, "sampler", None)]
    if not isinstance(getattr(loader, "dataset", None), BaseDatasetLabelledPerPid):
        followers.append(getattr(loader, "dataset", None))
    for follower in {id(each): each for each in followers}.values():
        set_epoch = getattr(follower, "set_epoch", None)
        if set_epoch is not None:
            set_epoch(epoch)


def adapt_overrides(kind: type) -> None:
    """Make ``setup`` and ``train_dataloader`` of a new class, own or from a mixin, fit for Lightning 2's calls.

    Args:
        kind: the class, whose bases are adapted already.
    """
    setup, train_dataloader = kind.setup, kind.train_dataloader  # type: ignore[attr-defined]
    if not hasattr(setup, "_as_lightning_calls"):
        kind.setup = run_once(setup)  # type: ignore[attr-defined]
    if not hasattr(train_dataloader, "_as_lightning_calls"):
        kind.train_dataloader = as_trainer_calls(train_dataloader)  # type: ignore[attr-defined]
