"""The data module that all data sets share, and the names that programs import from here."""

import logging
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from pytorch_lightning import LightningDataModule
from pytorch_lightning.utilities import rank_zero_info, rank_zero_only
from yacs.config import CfgNode

from config import cfg as shared_cfg
from datasets.caching.cache import image_loaders
from datasets.counts import Published, batch_advice, count, find_count_problem, is_subset, statistics_table
from datasets.loading import (
    BaseDatasetLabelled,
    BaseDatasetLabelledPerPid,
    EvaluationLoader,
    LateStartLoader,
    Load,
    Sample,
    collate_fn_alternative,
)
from datasets.samplers import EvaluationShard, get_sampler
from datasets.transforms import ReidTransforms
from utils.devices import count_workers
from utils.errors import UserError

__all__ = [
    "Annotation",
    "BaseDatasetLabelled",
    "BaseDatasetLabelledPerPid",
    "ReidDataModule",
    "Sample",
    "Splits",
    "collate_fn_alternative",
]

log = logging.getLogger(__name__)

# path of the image, pid as the data set has it, camid (from 0)
Annotation = tuple[str, int, int]

NO_CAMERAS = "No cameras: the same-camera filter is off; every gallery image of a query's identity counts as a match."


class Splits(NamedTuple):
    """The three subsets of a data set as read from disk, none of them empty.

    Without cameras, gallery images have camid 1 and all others 0, so that the same-camera filter removes none.
    """

    train: list[Annotation]
    query: list[Annotation]
    gallery: list[Annotation]
    has_cameras: bool = True


class ReidDataModule(LightningDataModule):
    """Reads a data set and builds its loaders; a subclass says where the images are in :meth:`read_splits`.

    After :meth:`setup`: ``train`` and ``val`` (torch data sets), ``train_dict`` {pid: samples} in ascending order,
    ``train_list``, ``query_list``, ``gallery_list``, ``num_query``, ``num_classes``, ``train_pids`` (the data set's own
    pids of the training set, ascending). A sample is (path, pid, camid, number): pids of the training set count from 0
    in ascending order of the data set's own; the number is the position in ``train_list``, or in
    ``query_list + gallery_list``. ``has_cameras`` is False for data sets without cameras.

    A subclass may set ``published``, the published counts, and ``family``, a name shared by data sets that show the
    same identities.

    Args:
        cfg: the whole configuration; None uses the shared one.
        num_workers: overrides DATALOADER.NUM_WORKERS; -1 divides the CPU cores among the processes of this machine.
        seed: seed of the run; the draws of images and augmentations depend on it.
        kwargs: ignored, so that callers may pass options of other data modules.
    """

    train: BaseDatasetLabelledPerPid
    val: BaseDatasetLabelled
    train_dict: dict[int, list[Sample]]
    train_list: list[Sample]
    query_list: list[Sample]
    gallery_list: list[Sample]
    train_pids: list[int]
    num_query: int
    num_classes: int
    has_cameras: bool
    published: Published | None = None
    family: str = ""
    # Whether a pid means the same identity in the training set as in query and gallery.
    one_numbering: bool = True

    def __init__(
        self, cfg: CfgNode | None = None, num_workers: int | None = None, seed: int = 0, **kwargs: Any
    ) -> None:
        super().__init__()
        self.cfg = shared_cfg if cfg is None else cfg
        self.num_workers = self.cfg.DATALOADER.NUM_WORKERS if num_workers is None else num_workers
        if self.num_workers < -1:
            raise UserError(f"DATALOADER.NUM_WORKERS is {self.num_workers}; expected -1 (automatic), 0 or more.")
        self.seed = seed
        self._is_set_up = False
        self._loaders: dict[tuple[Any, ...], LateStartLoader] = {}

    def read_splits(self) -> Splits:
        """Read the subsets from disk. Raises UserError if they are missing or malformed."""
        raise NotImplementedError

    def setup(self, stage: str | None = None) -> None:
        """Read the data set and log a table of its counts; further calls do nothing.

        Raises:
            UserError: a folder or file is missing, malformed or empty.
        """
        if self._is_set_up:
            return
        splits = self.read_splits()
        self.check_published(splits)
        self.has_cameras = splits.has_cameras
        self.train_list = _relabel(splits.train)
        evaluated = [(*image, number) for number, image in enumerate(splits.query + splits.gallery)]
        self.num_query = len(splits.query)
        self.query_list, self.gallery_list = evaluated[: self.num_query], evaluated[self.num_query :]
        self.train_dict = _group_by_pid(self.train_list)
        self.num_classes = len(self.train_dict)
        self.train_pids = sorted({pid for _, pid, _ in splits.train})
        transforms = ReidTransforms(self.cfg)
        skip = self.cfg.DATASETS.ON_ERROR == "skip"
        load_train, load_val = self._open_cache([] if stage == "test" else self.train_list, evaluated)
        self.train = BaseDatasetLabelledPerPid(
            self.train_dict,
            transforms.build_transforms(is_train=True),
            num_instances=self.cfg.DATALOADER.NUM_INSTANCE,
            resample=self.cfg.DATALOADER.USE_RESAMPLING,
            seed=self.seed,
            load=load_train,
            skip_unreadable=skip,
        )
        test_transform = transforms.build_transforms(is_train=False)
        self.val = BaseDatasetLabelled(evaluated, test_transform, load_val, skip_unreadable=skip)
        self._is_set_up = True
        self._report()

    @property
    def title(self) -> str:
        """What the log calls the data set."""
        return type(self).__name__

    @rank_zero_only
    def check_published(self, splits: Splits) -> None:
        """Warn if the counts differ from the published ones.

        A set with less than half of the published images is taken for a subset, which is logged without a warning.
        """
        if self.published is None:
            return
        found = Published(*(count(images, splits.has_cameras) for images in splits[:3]))
        images, expected = (sum(counts.images for counts in side) for side in (found, self.published))
        problem = find_count_problem(found, self.published)
        if is_subset(found, self.published):
            log.info(
                "%s: %d of %d published images; taken for a subset, counts not checked.", self.title, images, expected
            )
        elif problem:
            log.warning(
                "%s differs from the published data set: %s. Files may be missing, or come from another release.",
                self.title,
                problem,
            )

    def train_dataloader(self) -> LateStartLoader:
        """The training loader of this process; the same object as long as the processes do not change.

        Its length is that of the next epoch, and follows ``loader.sampler.set_epoch``. For a Trainer to see the length
        of each epoch, it needs ``reload_dataloaders_every_n_epochs=1``; the workers are kept all the same.

        Raises:
            UserError: too few identities for one batch on every process.
        """
        self.setup()
        world_size, rank = self._find_place()
        key = ("train", world_size, rank, *self._find_resources())
        if key not in self._loaders:
            self._loaders[key] = self._build_train_loader(world_size, rank)
        loader = self._loaders[key]
        if self.trainer is not None:
            # The Trainer measures the loader before it sets the epoch; after a resume that is not epoch 0.
            loader.sampler.set_epoch(self.trainer.fit_loop.epoch_progress.current.processed)  # type: ignore[attr-defined]
        return loader

    def val_dataloader(self) -> LateStartLoader:
        """Query then gallery, in order: images [B, 3, H, W], pids [B], camids [B], numbers of the samples [B].

        Under a Trainer with several processes, this process's share of them in whole batches; see
        :class:`~datasets.samplers.EvaluationShard`.
        """
        self.setup()
        world_size, rank = (1, 0) if self.trainer is None else self._find_place()
        key = ("val", world_size, rank, *self._find_resources())
        if key not in self._loaders:
            batch_size = self.cfg.TEST.IMS_PER_BATCH
            if world_size == 1:
                loader = LateStartLoader(self.val, batch_size=batch_size, **self._loader_options())
            else:
                shard = EvaluationShard(self.val, batch_size, world_size, rank)
                loader = EvaluationLoader(self.val, batch_size, sampler=shard, **self._loader_options())
            self._loaders[key] = loader
        return self._loaders[key]

    def test_dataloader(self) -> LateStartLoader:
        """The same as :meth:`val_dataloader`."""
        return self.val_dataloader()

    def _build_train_loader(self, world_size: int, rank: int) -> LateStartLoader:
        if self.trainer is not None and world_size > 1:
            # In an unseeded run each process has its own seed, but all must draw from one list: otherwise their epochs
            # differ in length, and the processes wait for each other forever.
            self.seed = self.train.seed = self.trainer.strategy.broadcast(self.seed)
        options = self.cfg.DATALOADER
        batch_size = self.cfg.SOLVER.IMS_PER_BATCH
        sampler = get_sampler(
            options.SAMPLER,
            data_source=self.train_dict,
            batch_size=batch_size,
            num_instances=options.NUM_INSTANCE,
            world_size=world_size,
            rank=rank,
            seed=self.seed,
        )
        if sampler.num_identities < batch_size * world_size:
            raise UserError(
                f"Too few identities for one batch: SOLVER.IMS_PER_BATCH is {batch_size} identities for each of "
                f"{world_size} process(es), but the training set has {sampler.num_identities} with two or more images. "
                + batch_advice(sampler.num_identities, world_size)
            )
        return LateStartLoader(
            self.train,
            batch_size=batch_size,
            sampler=sampler,
            drop_last=options.DROP_LAST,
            collate_fn=collate_fn_alternative,
            **self._loader_options(),
        )

    def _open_cache(self, train: Sequence[Sample], evaluated: Sequence[Sample]) -> list[Load]:
        options, sizes = self.cfg.DATALOADER, (self.cfg.INPUT.SIZE_TRAIN, self.cfg.INPUT.SIZE_TEST)
        paths = ([sample[0] for sample in samples] for samples in (train, evaluated))
        return image_loaders(options.CACHE, options.CACHE_GB, options.CACHE_DIR, list(zip(paths, sizes, strict=True)))

    def _loader_options(self) -> dict[str, Any]:
        workers, pin_memory = self._find_resources()
        # The loader's own generator: without one, every pass draws a number from torch's global generator.
        return {
            "num_workers": workers,
            "pin_memory": pin_memory,
            "persistent_workers": workers > 0,
            "generator": torch.Generator().manual_seed(self.seed),
        }

    def _find_place(self) -> tuple[int, int]:
        """Number of processes in the whole run, and the global rank of this one."""
        if self.trainer is not None:
            return self.trainer.world_size, self.trainer.global_rank
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_world_size(), torch.distributed.get_rank()
        return int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))

    def _find_resources(self) -> tuple[int, bool]:
        """Worker processes for one loader of this process, and whether batches go to CUDA through pinned memory."""
        processes = None if self.trainer is None else self.trainer.num_devices
        if self.trainer is None:
            pin_memory = torch.cuda.is_available()
        else:
            pin_memory = self.trainer.strategy.root_device.type == "cuda"
        return count_workers(self.num_workers, processes), pin_memory

    def _report(self) -> None:
        subsets = {"train": self.train_list, "query": self.query_list, "gallery": self.gallery_list}
        table = statistics_table(subsets, self.has_cameras)
        note = "" if self.has_cameras else f"\n{NO_CAMERAS}"
        rank_zero_info(f"{self.title}:\n{table}{note}")


def _relabel(images: Sequence[Annotation]) -> list[Sample]:
    """Renumber pids to 0..n-1 in ascending order."""
    labels = {pid: label for label, pid in enumerate(sorted({pid for _, pid, _ in images}))}
    return [(path, labels[pid], camid, number) for number, (path, pid, camid) in enumerate(images)]


def _group_by_pid(samples: Sequence[Sample]) -> dict[int, list[Sample]]:
    groups: dict[int, list[Sample]] = {pid: [] for pid in sorted({pid for _, pid, _, _ in samples})}
    for sample in samples:
        groups[sample[1]].append(sample)
    return groups
