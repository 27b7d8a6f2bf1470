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

from datasets.draws import (
    GalleryDraw,
    PidDraw,
    derive_seed,
    draw_images,
    order_substitutes,
    resample_images,
    seeded_globals,
)
from datasets.transforms.pixels import DecodedImage
from utils.errors import UserError
from utils.image import pil_loader
from utils.labels import Names

# (seed, epoch, identity, occurrence)
Draw = tuple[int, int, int, int]
# path of the image, pid, camid (from 0), number of the sample within its list
Sample = tuple[str, int, int, int]
# how a file is decoded: pil_loader, or a cache in front of it
Load = Callable[[str], DecodedImage]
Transform = Callable[[Any], Tensor]
# image [3, H, W], pid, camid, fourth entry of the sample (-1: a blank image, or none), whether there is a real image
TrainRow = tuple[Any, int, int, Any, bool]

BLANK = -1
# The pid of a validation image that cannot be read; the evaluation leaves it out.
UNREADABLE = torch.iinfo(torch.int64).min

logger = logging.getLogger(__name__)


class _ImageSet(Dataset[Any]):
    """What the two data sets share: how an image file becomes an item, and the settings of the run that reach them."""

    transform: Transform | None = None
    seed: int = 0
    load: Load = staticmethod(pil_loader)
    skip_unreadable: bool = False

    def image_paths(self) -> list[str]:
        """The files of all samples, in their order."""
        raise NotImplementedError

    def apply_settings(self, seed: int = 0, load: Load = pil_loader, skip_unreadable: bool = False) -> None:
        """Take over what a configuration says about reading; before worker processes start.

        Args:
            seed: seed of the run.
            load: from a path to an RGB image.
            skip_unreadable: DATASETS.ON_ERROR is "skip": an image that cannot be read causes one warning, by all worker
                processes together, instead of an error.
        """
        self.seed = seed
        self.load = load
        self.skip_unreadable = skip_unreadable
        distinct = dict.fromkeys(self.image_paths()) if skip_unreadable else ()
        self._number_of = {path: number for number, path in enumerate(distinct)}
        self._warned = torch.zeros(len(self._number_of), dtype=torch.bool).share_memory_()

    def prepare_img(self, path: str) -> Any:
        """The image of a file, decoded and transformed. Raises UserError, naming the file, if it cannot be read."""
        return self._transformed(self.load(path))

    def _transformed(self, image: Any) -> Any:
        return image if self.transform is None else self.transform(image)

    def _try(self, path: str) -> Any:
        """As prepare_img; None for a file that is skipped."""
        try:
            return self.prepare_img(path)
        except (UserError, OSError) as error:  # a prepare_img of the user's own may raise what Pillow raises
            if not self.skip_unreadable:
                raise
            number = self._number_of[path]
            if not self._warned[number]:
                self._warned[number] = True
                logger.warning("skipped: %s", error)
        return None

    def _black(self) -> Any:
        """Stands for a file that cannot be read."""
        return self._transformed(Image.new("RGB", (1, 1)))


class BaseDatasetLabelled(_ImageSet):
    """One image per item: (image [3, H, W], pid, camid, position), in the order of the samples.

    The position counts from 0, whatever the fourth entry of a sample is. An image that cannot be read, and is skipped
    (see :meth:`apply_settings`), is black and has the pid UNREADABLE.

    Args:
        data: the samples, (path, pid, camid, ...); also ``samples``.
        transform: from what a file is decoded to, to a tensor; None gives the PIL image.
        return_paths: the fourth entry of an item is the path instead.
    """

    # What the data set calls its pids and camids, for whoever writes about the samples.
    names: Names = Names()
    # How the samples are divided into queries and gallery, once for each evaluation of which the mean is taken; empty:
    # once, the queries first.
    gallery_draws: Sequence[GalleryDraw] = ()

    def __init__(
        self, data: Sequence[Sequence[Any]], transform: Transform | None = None, return_paths: bool = False
    ) -> None:
        self.data = self.samples = data
        self.transform = transform
        self.return_paths = return_paths

    def image_paths(self) -> list[str]:
        return [sample[0] for sample in self.data]

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Any, int, int, int | str]:
        path, pid, camid = self.data[index][:3]
        image = self._try(path)
        if image is None:
            image, pid = self._black(), UNREADABLE
        return image, pid, camid, path if self.return_paths else index


class BaseDatasetLabelledPerPid(_ImageSet):
    """K images of one identity per item; an item depends on (seed, epoch, identity, occurrence) and nothing else.

    Within an epoch the images of an identity are drawn without replacement, K per occurrence. If fewer are left for the
    last occurrence, it is filled with images drawn again with replacement (``resample``), or with blank images: zeros
    that have the pid and camid of the item's first image, number -1 and is_real False. Nothing is kept between items,
    and the global random states are restored.

    If images that cannot be read are skipped (see :meth:`apply_settings`), another image of the identity, drawn in the
    same way, takes the place of one; if there is none, the whole item is blank.

    Index it with what RandomIdentitySampler yields. A plain pid is another draw each time, by torch's global generator;
    after :meth:`set_epoch` it is the first occurrence in that epoch.

    Args:
        data: the samples of each identity, (path, pid, camid, anything); also ``samples``.
        transform: from what a file is decoded to, to a tensor; may draw from Python's and torch's global generators.
            None gives PIL images.
        num_instances: images of an item (K), >= 1.
        resample: fill a short last occurrence with images drawn again, rather than with blank ones.
        seed: seed of the run.
    """

    def __init__(
        self,
        data: Mapping[int, Sequence[Sequence[Any]]],
        transform: Transform | None = None,
        num_instances: int = 4,
        resample: bool = False,
        seed: int = 0,
    ) -> None:
        self.data = self.samples = data
        self.transform = transform
        self.num_instances = num_instances
        self.resample = resample
        self.seed = seed
        self.epoch: int | None = None

    def image_paths(self) -> list[str]:
        return [sample[0] for samples in self.data.values() for sample in samples]

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of items that are indexed with a plain pid."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> list[TrainRow]:
        pid = int(index)
        if isinstance(index, PidDraw):
            epoch, occurrence = index.epoch, index.occurrence
        else:  # the generator of a worker process differs from epoch to epoch, which a number kept here would not
            epoch, occurrence = int(torch.randint(2**62, ())) if self.epoch is None else self.epoch, 0
        draw = (self.seed, epoch, pid, occurrence)
        samples = self.data[pid]
        chosen = draw_images(len(samples), self.num_instances, *draw)
        missing = self.num_instances - len(chosen)
        if self.resample:
            chosen += resample_images(len(samples), missing, *draw)
        with seeded_globals(derive_seed("augment", *draw)):
            rows = [row for position in chosen if (row := self._load(samples, position, draw))]
            image = rows[0][0] if rows else self._black()
        label, camid = rows[0][1:3] if rows else samples[0][1:3]
        blank = (_blank_like(image), label, camid, BLANK, False)
        return rows + [blank] * (self.num_instances - len(rows))

    def _load(self, samples: Sequence[Sequence[Any]], position: int, draw: Draw) -> TrainRow | None:
        """The row of a sample, or of its substitute; None if no image of the identity can be read."""
        sample = samples[position]
        image = self._try(sample[0])
        if image is None:
            for substitute in order_substitutes(len(samples), position, *draw):
                sample = samples[substitute]
                image = self._try(sample[0])
                if image is not None:
                    break
            else:
                return None
        return image, sample[1], sample[2], sample[3] if len(sample) > 3 else BLANK, True


def _blank_like(image: Any) -> Any:
    """Zeros, or a black PIL image, of the same size."""
    return torch.zeros_like(image) if isinstance(image, Tensor) else Image.new("RGB", image.size)


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
