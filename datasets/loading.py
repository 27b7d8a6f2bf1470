"""From samples to batches: the two torch data sets, the collate function, and the loader that starts late."""

import logging
import re
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from datasets.draws import PidDraw, derive_seed, draw_images, order_substitutes, resample_images, seeded_globals
from datasets.transforms.pixels import DecodedImage
from utils.errors import UserError
from utils.image import pil_loader

# path of the image, pid, camid (from 0), number of the sample within its list
Sample = tuple[str, int, int, int]
# how a file is decoded: pil_loader, or a cache in front of it
Load = Callable[[str], DecodedImage]
Transform = Callable[[Any], Tensor]
# image [3, H, W], pid, camid, number of the sample (-1: a blank image), whether there is a real image
TrainRow = tuple[Tensor, int, int, int, bool]

BLANK = -1
# The pid of a validation image that cannot be read; the evaluation leaves it out.
UNREADABLE = torch.iinfo(torch.int64).min

logger = logging.getLogger(__name__)


class Opener:
    """Opens images; with ``skip``, a file that cannot be read gives None and one warning instead of an error.

    The worker processes of a loader share the record of files that have been warned of.

    Args:
        load: from a path to an RGB image.
        num_samples: samples of the data set.
        skip: DATASETS.ON_ERROR is "skip".
    """

    def __init__(self, load: Load, num_samples: int, skip: bool) -> None:
        self.load = load
        self.skip = skip
        self._warned = torch.zeros(num_samples if skip else 0, dtype=torch.bool).share_memory_()

    def __call__(self, sample: Sample) -> DecodedImage | None:
        """The image of a sample. Raises UserError, naming the file, if it cannot be read and ``skip`` is False."""
        path, _, _, number = sample
        try:
            return self.load(path)
        except UserError as error:
            if not self.skip:
                raise
            if not self._warned[number]:
                self._warned[number] = True
                logger.warning("skipped: %s", error)
        return None


class BaseDatasetLabelled(Dataset[tuple[Tensor, int, int, int]]):
    """One image per item: (image [3, H, W], pid, camid, number of the sample), in the order of the samples.

    Args:
        data: the samples, each numbered by its position.
        transform: from what ``load`` returns to a tensor.
        load: from a path to an RGB image.
        skip_unreadable: replace an image that cannot be read with a black one whose pid is UNREADABLE.
    """

    def __init__(
        self,
        data: Sequence[Sample],
        transform: Transform,
        load: Load = pil_loader,
        skip_unreadable: bool = False,
    ) -> None:
        self.data = data
        self.transform = transform
        self.load = load
        self._open = Opener(load, len(data), skip_unreadable)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int, int]:
        _, pid, camid, number = self.data[index]
        image = self._open(self.data[index])
        if image is None:
            image, pid = Image.new("RGB", (1, 1)), UNREADABLE
        return self.transform(image), pid, camid, number


class BaseDatasetLabelledPerPid(Dataset[list[TrainRow]]):
    """K images of one identity per item; an item depends on (seed, epoch, identity, occurrence) and nothing else.

    Within an epoch the images of an identity are drawn without replacement, K per occurrence. If fewer are left for the
    last occurrence, it is filled with images drawn again with replacement (``resample``), or with blank images: zeros
    that have the pid and camid of the item's first image, number -1 and is_real False. Nothing is kept between items,
    and the global random states are restored.

    With ``skip_unreadable``, another image of the identity, drawn in the same way, takes the place of one that cannot
    be read; if there is none, the whole item is blank.

    Index it with what RandomIdentitySampler yields. A plain pid means its first occurrence in the epoch last set by
    :meth:`set_epoch`.

    Args:
        data: the samples of each identity.
        transform: from what ``load`` returns to a tensor; may draw from Python's and torch's global generators.
        num_instances: images of an item (K), >= 1.
        resample: fill a short last occurrence with images drawn again, rather than with blank ones.
        seed: seed of the run.
        load: from a path to an RGB image.
        skip_unreadable: continue if an image cannot be read; the samples must then be numbered from 0.
    """

    def __init__(
        self,
        data: Mapping[int, Sequence[Sample]],
        transform: Transform,
        num_instances: int,
        resample: bool,
        seed: int = 0,
        load: Load = pil_loader,
        skip_unreadable: bool = False,
    ) -> None:
        self.data = data
        self.transform = transform
        self.num_instances = num_instances
        self.resample = resample
        self.seed = seed
        self.epoch = 0
        self.load = load
        self._open = Opener(load, sum(map(len, data.values())), skip_unreadable)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of items that are indexed with a plain pid."""
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
            rows = [row for position in chosen if (row := self._load(samples, position, draw))]
            first = rows[0] if rows else self._blank(samples[0])
        image, _, camid, _, _ = first
        blank = (torch.zeros_like(image), pid, camid, BLANK, False)
        return rows + [blank] * (self.num_instances - len(rows))

    def _load(self, samples: Sequence[Sample], position: int, draw: tuple[int, int, int, int]) -> TrainRow | None:
        """The row of a sample, or of its substitute; None if no image of the identity can be read."""
        image, sample = self._open(samples[position]), samples[position]
        if image is None:
            for substitute in order_substitutes(len(samples), position, *draw):
                image, sample = self._open(samples[substitute]), samples[substitute]
                if image is not None:
                    break
            else:
                return None
        _, pid, camid, number = sample
        return self.transform(image), pid, camid, number, True

    def _blank(self, sample: Sample) -> TrainRow:
        _, pid, camid, _ = sample
        return self.transform(Image.new("RGB", (1, 1))), pid, camid, BLANK, False


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


_WORKER_DEATH = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)(?: is killed by signal: ([^.]*))?")


def explain_worker_death(error: BaseException) -> str | None:
    """Explain torch's error about a loader process that died; None for any other error.

    torch raises it wherever the process happens to be at that moment, not only in the loader.
    """
    match = _WORKER_DEATH.search(str(error))
    if match is None:
        return None
    # The loader's own error says "exited unexpectedly"; its cause, if any, may name the signal.
    match = _WORKER_DEATH.search(str(error.__cause__)) or match
    how = f"was killed ({match[2].strip()})" if match[2] else "ended unexpectedly"
    return (
        f"A process that loads images, DataLoader worker {match[1]}, {how}. Usually memory or shared memory (/dev/shm) "
        "ran out: provide more of it, or lower DATALOADER.NUM_WORKERS or the batch size."
    )


class LateStartLoader(DataLoader[Any]):
    """A DataLoader that starts its sampler at the first batch, not when ``iter()`` is called.

    The Trainer calls ``iter()`` before it tells the sampler the epoch; by then, worker processes would already have the
    old epoch's first draws. A UserError raised in a worker arrives with its own message.
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
    """The loader of one process's share of a validation set, which may be empty.

    Its length is that of the share, but at least 1: the Trainer skips a loop of length 0 with all its hooks, and the
    other processes would wait for this one forever.
    """

    def __len__(self) -> int:
        return max(super().__len__(), 1)


def _own_message(error: UserError) -> str:
    # torch replaces the message of a worker's error with the text of its traceback, which ends with that message.
    return str(error).rpartition(f"{type(error).__name__}: ")[2].strip()
