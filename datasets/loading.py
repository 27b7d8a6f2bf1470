"""From samples to batches: the two torch data sets, the collate function, and the loader that starts late."""

import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from datasets.draws import PidDraw, derive_seed, draw_images, resample_images, seeded_globals
from datasets.transforms.pixels import Picture
from utils.errors import UserError
from utils.image import pil_loader

# path of the image, pid, camid (from 0), number of the sample within its list
Sample = tuple[str, int, int, int]
# how a file becomes a picture: pil_loader, or a cache in front of it
Load = Callable[[str], Picture]
Transform = Callable[[Any], Tensor]
# image [3, H, W], pid, camid, number of the sample (-1: a blank image), whether there is a real image
TrainRow = tuple[Tensor, int, int, int, bool]

BLANK = -1


class BaseDatasetLabelled(Dataset[tuple[Tensor, int, int, int]]):
    """One image an item: (image [3, H, W], pid, camid, number of the sample), in the order of the samples.

    Args:
        data: the samples.
        transform: from what ``load`` returns to a tensor.
        load: from a path to an RGB picture.
    """

    def __init__(self, data: Sequence[Sample], transform: Transform, load: Load = pil_loader) -> None:
        self.data = data
        self.transform = transform
        self.load = load

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int, int]:
        path, pid, camid, number = self.data[index]
        return self.transform(self.load(path)), pid, camid, number


class BaseDatasetLabelledPerPid(Dataset[list[TrainRow]]):
    """One item is K images of one identity; it depends on (seed, epoch, identity, occurrence) and on nothing else.

    Within an epoch the images of an identity are used without replacement, K for each occurrence. A last occurrence
    with fewer is filled: by images drawn again with replacement (``resample``), or by blank images, zeros that have the
    pid and camid of the item's first image, number -1 and is_real False. Nothing is kept between items, and the global
    random states are left as they were.

    Index it by what RandomIdentitySampler yields. A plain pid stands for its first occurrence in the epoch last set by
    :meth:`set_epoch`.

    Args:
        data: the samples of each identity.
        transform: from what ``load`` returns to a tensor; may draw from Python's and torch's global generators.
        num_instances: images of an item (K), >= 1.
        resample: how a short last occurrence is filled.
        seed: seed of the run.
        load: from a path to an RGB picture.
    """

    def __init__(
        self,
        data: Mapping[int, Sequence[Sample]],
        transform: Transform,
        num_instances: int,
        resample: bool,
        seed: int = 0,
        load: Load = pil_loader,
    ) -> None:
        self.data = data
        self.transform = transform
        self.num_instances = num_instances
        self.resample = resample
        self.seed = seed
        self.load = load
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of items that are indexed by a plain pid."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> list[TrainRow]:
        pid = int(index)
        epoch, occurrence = (index.epoch, index.occurrence) if isinstance(index, PidDraw) else (self.epoch, 0)
        draw = (self.seed, epoch, pid, occurrence)
        samples = self.data[pid]
        chosen = draw_images(len(samples), self.num_instances, *draw)
        missing = self.num_instances - len(chosen)
        if self.resample:
            chosen += resample_images(len(samples), missing, *draw)
        with seeded_globals(derive_seed("augment", *draw)):
            rows = [self._load(samples[position]) for position in chosen]
        image, _, camid, _, _ = rows[0]
        blank = (torch.zeros_like(image), pid, camid, BLANK, False)
        return rows + [blank] * (self.num_instances - len(rows))

    def _load(self, sample: Sample) -> TrainRow:
        path, pid, camid, number = sample
        return self.transform(self.load(path)), pid, camid, number, True


def collate_fn_alternative(batch: Sequence[Sequence[TrainRow]]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Join P items of K rows into one batch.

    Args:
        batch: items of :class:`BaseDatasetLabelledPerPid`.

    Returns:
        images [P*K, 3, H, W] float32, pids [P*K] int64, camids [P*K] int64, is_real [P*K] bool; the rows of an identity
        follow one another.
    """
    images, pids, camids, _, is_real = zip(*(row for item in batch for row in item), strict=True)
    # default_collate stacks into shared memory when it runs in a worker, which saves a copy.
    return default_collate(list(images)), torch.tensor(pids), torch.tensor(camids), torch.tensor(is_real)


class LateStartLoader(DataLoader[Any]):
    """A DataLoader that asks its sampler for the epoch at the first batch, not already when ``iter()`` is called.

    The Trainer calls ``iter()`` before it tells the sampler the epoch; worker processes would have been sent the old
    epoch's first draws by then. Errors of bad input that workers meet arrive with their own message.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        try:
            yield from super().__iter__()
        except UserError as error:
            if self.num_workers == 0:
                raise
            # torch's frames hold this error and the workers' handle in a cycle; workers that only the garbage
            # collector releases take seconds each to end.
            traceback.clear_frames(error.__traceback__)
            raise type(error)(_own_message(error)) from None


class EvaluationLoader(LateStartLoader):
    """The loader of one process' share of a validation set, which may be empty.

    Its length is that of the share, but at least 1: the Trainer leaves out a loop of length 0 with all its hooks, and
    the other processes would wait for this one for ever.
    """

    def __len__(self) -> int:
        return max(super().__len__(), 1)


def _own_message(error: UserError) -> str:
    # torch wraps the message of a worker's error into the text of its traceback, which ends with it.
    return str(error).rpartition(f"{type(error).__name__}: ")[2].strip()
