"""The data module that all data sets share, and the names that programs import from here."""

import logging
import os
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from pytorch_lightning.utilities import rank_zero_info, rank_zero_only, rank_zero_warn
from yacs.config import CfgNode

from config import cfg as shared_cfg
from datasets.caching.cache import image_loaders
from datasets.combined import combine_all
from datasets.counts import (
    Published,
    batch_advice,
    count_subsets,
    describe_subset,
    find_count_problem,
    statistics_table,
)
from datasets.draws import GalleryDraw
from datasets.filled_lists import check_draw, derive
from datasets.loading import (
    BaseDatasetLabelled,
    BaseDatasetLabelledPerPid,
    EvaluationLoader,
    LateStartLoader,
    Sample,
    collate_fn_alternative,
)
from datasets.notes import say
from datasets.overrides import OldHelpers, adapt_overrides, as_lightning_calls, follow_epoch, old_place, overrides
from datasets.samplers import EvaluationShard, get_sampler
from datasets.transforms import ReidTransforms
from datasets.transforms.build import first_resize
from datasets.transforms.pixels import ResizedPlanes
from utils.devices import count_workers
from utils.errors import UserError
from utils.image import pil_loader
from utils.labels import Names

__all__ = [
    "Annotation",
    "BaseDatasetLabelled",
    "BaseDatasetLabelledPerPid",
    "ReidDataModule",
    "Sample",
    "Splits",
    "collate_fn_alternative",
    "pil_loader",
]

log = logging.getLogger(__name__)

# path of the image, pid as the data set has it, camid (from 0)
Annotation = tuple[str, int, int]

NO_CAMERAS = (
    "No cameras: the same-camera filter is off; every gallery image of a query's identity counts as a match, except "
    "the query itself (TEST.SELF_MATCH)."
)

# Names of the original's file that live in a door, which is not imported until somebody asks for one of them.
_HAND_FILLED = ("ReidBaseDataModule", "COCODatasetBase")


def __getattr__(name: str) -> Any:
    if name in _HAND_FILLED:
        return getattr(import_module("datasets.hand_filled"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class Splits(NamedTuple):
    """The three subsets of a data set as read from disk, none of them empty.

    Without cameras (``has_cameras`` False) the camids are not looked at; the data module gives stand-ins for them.
    ``names`` holds what the data set calls its pids and camids, where that is not the number. ``notes`` are sentences
    about what was passed over or taken in a way that the user may not expect; each is said once.
    """

    train: list[Annotation]
    query: list[Annotation]
    gallery: list[Annotation]
    has_cameras: bool = True
    names: Names = Names()
    notes: tuple[str, ...] = ()


class ReidDataModule(OldHelpers, LightningDataModule):
    """Reads a data set and builds its loaders; a subclass says where the images are in :meth:`read_splits`.

    After :meth:`setup`: ``train`` and ``val`` (torch data sets), ``train_dict`` {pid: samples} in ascending order,
    ``train_list``, ``query_list``, ``gallery_list``, ``num_query``, ``num_classes``, ``train_pids`` (the data set's own
    pids of the training set, ascending). A sample is (path, pid, camid, number): pids of the training set count from 0
    in ascending order of the data set's own; the number is the position in ``train_list``, or in
    ``query_list + gallery_list``. ``has_cameras`` is False for data sets without cameras. ``names`` holds what the data
    set calls its own pids, and its camids, where that is not the number.

    A subclass may set ``published``, the published counts, and ``family``, a name shared by data sets that show the
    same identities. Its ``setup`` may leave out the stage, and its ``train_dataloader`` may take cfg and trainer, see
    :mod:`datasets.overrides`.

    Args:
        cfg: the whole configuration; None uses the shared one.
        num_workers: overrides DATALOADER.NUM_WORKERS; -1 divides the CPU cores among the processes of this machine.
        seed: seed of the run; the draws of images and augmentations depend on it.
        num_instances: images of an identity in a batch (K); overrides DATALOADER.NUM_INSTANCE.
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
    names: Names = Names()
    published: Published | None = None
    family: str = ""
    # Whether a pid means the same identity in the training set as in query and gallery.
    one_numbering: bool = True
    # Pids of gallery images that are no identity: distractors of many people under one number.
    distractor_pids: tuple[int, ...] = ()
    # The one subset that is read, as by create_embeddings.py --split; None for all.
    only_subset: str | None = None
    # Whether subclasses fill the attributes in setup, rather than say where the images are in read_splits.
    fills_by_hand: bool = False
    # Whether query and gallery have joined the training images (DATASETS.COMBINEALL).
    is_combined: bool = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        adapt_overrides(cls)

    def __init__(
        self,
        cfg: CfgNode | None = None,
        num_workers: int | None = None,
        seed: int = 0,
        num_instances: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self.cfg = shared_cfg if cfg is None else cfg
        self.num_workers = self.cfg.DATALOADER.NUM_WORKERS if num_workers is None else num_workers
        if self.num_workers < -1:
            raise UserError(f"DATALOADER.NUM_WORKERS is {self.num_workers}; expected -1 (automatic), 0 or more.")
        self.num_instances = self.cfg.DATALOADER.NUM_INSTANCE if num_instances is None else num_instances
        self.seed = seed
        self._is_set_up = False
        self._running: list[Callable[..., Any]] = []  # overrides of setup that are being run
        self._loaders: dict[tuple[Any, ...], Any] = {}
        self._loops = 0  # training loaders built for loops without a Trainer

    def describe_source(self) -> str:
        """Where the data set is read from, for ``python -m datasets.validate``."""
        return f"DATASETS.ROOT_DIR {self.cfg.DATASETS.ROOT_DIR}"

    def read_splits(self) -> Splits:
        """Read the subsets from disk. Raises UserError if they are missing or malformed."""
        raise NotImplementedError

    @property
    def needed_subsets(self) -> tuple[str, ...]:
        """The subsets that data of the user's own must have: a run that only tests needs no training images."""
        if self.only_subset is not None:
            return (self.only_subset,)
        return ("query", "gallery") if self.cfg.TEST.ONLY_TEST else ("train", "query", "gallery")

    def draw_gallery(self, images: Sequence[Sample], number: int) -> GalleryDraw | None:
        """Queries and gallery of one of TEST.DRAWS evaluations, whose mean counts; None: there is one, by the lists.

        A subclass whose protocol draws the gallery several times overrides it. The first draw is the one whose queries
        the tables and pages of an evaluation show.

        Args:
            images: ``query_list + gallery_list``.
            number: of the draw, from 0. A draw must depend on nothing else, so that all processes and runs agree;
                :func:`datasets.draws.derive_seed` makes a seed of it.

        Returns:
            Positions in ``images``, which need not name all.
        """
        return None

    def read_for(self, stage: str | None = None) -> Splits:
        """The subsets as a run uses them: :meth:`read_splits`, checked, with DATASETS.COMBINEALL unless it only tests.

        Raises:
            UserError: as :meth:`read_splits`.
        """
        self.is_combined = self.cfg.DATASETS.COMBINEALL and stage != "test"
        splits = self.read_splits()
        if not splits.has_cameras:  # stand-ins, which no filter takes for one camera
            train, query, gallery = (
                [(path, pid, camid) for path, pid, _ in part] for part, camid in zip(splits[:3], (0, 0, 1), strict=True)
            )
            splits = splits._replace(train=train, query=query, gallery=gallery)
        self.check_published(splits)
        if not self.is_combined:
            return splits
        images, numbering = (splits.train, splits.query + splits.gallery), self.one_numbering
        train, note = combine_all(*images, self.title, numbering, self.distractor_pids, splits.has_cameras)
        return splits._replace(train=train, notes=(*splits.notes, note))

    @as_lightning_calls
    def setup(self, stage: str | None = None) -> None:
        """Read the data set and log a table of its counts; further calls do nothing.

        Raises:
            UserError: a folder or file is missing, malformed or empty.
        """
        if self._is_set_up:
            return
        if hasattr(self, "_process_dir") and not self._running:
            raise UserError(
                f"{self.title}._process_dir is never called by this project: write a setup(self) that calls it and "
                "fills the lists, or return Splits from read_splits(self); see docs/MIGRATION.md."
            )
        splits = self.read_for(stage)
        rank_zero_only(say)(splits.notes, log)
        self.has_cameras, self.names = splits.has_cameras, splits.names
        self.train_list = _relabel(splits.train)
        evaluated = [(*image, number) for number, image in enumerate(splits.query + splits.gallery)]
        self.num_query = len(splits.query)
        self.query_list, self.gallery_list = evaluated[: self.num_query], evaluated[self.num_query :]
        self.train_dict = _group_by_pid(self.train_list)
        self.num_classes = len(self.train_dict)
        self.train_pids = sorted({pid for _, pid, _ in splits.train})
        transforms = ReidTransforms(self.cfg)
        self.train = BaseDatasetLabelledPerPid(
            self.train_dict,
            transforms.build_transforms(is_train=True),
            num_instances=self.num_instances,
            resample=self.cfg.DATALOADER.USE_RESAMPLING,
        )
        self.val = BaseDatasetLabelled(evaluated, transforms.build_transforms(is_train=False))
        self.val.names = splits.names
        if self._running:  # super().setup() in a subclass, which may change what is here
            return
        self._apply_settings(stage)
        self._is_set_up = True
        self._report()

    def _complete(self, stage: str | None) -> None:
        """After the ``setup`` of a subclass has filled the attributes: add what is left, and check everything."""
        if self.cfg.DATASETS.COMBINEALL and stage != "test" and not self.is_combined:
            raise UserError(
                f"DATASETS.COMBINEALL is True, but {self.title} fills its lists by hand in setup: let it return Splits "
                "from read_splits(self), or add query and gallery to its training lists there and set this False."
            )
        derive(self)
        self._apply_settings(stage)
        self._is_set_up = True
        self._report()

    def _apply_settings(self, stage: str | None) -> None:
        """Pass seed, cache and what to do about unreadable files on to the two data sets, as far as they take them."""
        options = self.cfg.DATALOADER
        skip, upright = self.cfg.DATASETS.ON_ERROR == "skip", self.cfg.INPUT.EXIF_ORIENTATION
        ours: list[BaseDatasetLabelled | BaseDatasetLabelledPerPid] = []
        wanted: list[tuple[list[str], ResizedPlanes]] = []
        unreached = []
        for name, part in (("train", self.train), ("val", self.val)):
            is_ours = isinstance(part, BaseDatasetLabelled | BaseDatasetLabelledPerPid)
            reads = is_ours and not overrides(part, "prepare_img", "__getitem__")
            resize = first_resize(part.transform) if reads else None
            if skip and (not is_ours or overrides(part, "__getitem__")):
                unreached.append(f"DATASETS.ON_ERROR skip ({name})")
            if not upright and (not is_ours or overrides(part, "prepare_img", "__getitem__")):
                unreached.append(f"INPUT.EXIF_ORIENTATION False ({name})")
            if self.cfg.INPUT.DRAFT_DECODING and (resize is None or not resize.draft):
                unreached.append(f"INPUT.DRAFT_DECODING True ({name})")
            if name == "val" and not is_ours:  # which alone knows its files
                unreached += ["TEST.VISUALIZE yes"] * (self.cfg.TEST.VISUALIZE == "yes")
                unreached += ["TEST.SELF_MATCH drop"] * (not self.has_cameras and self.cfg.TEST.SELF_MATCH == "drop")
            if options.CACHE != "none" and resize is None:
                unreached.append(f"DATALOADER.CACHE {options.CACHE} ({name})")
            if is_ours:
                is_read = resize is not None and not (name == "train" and stage == "test")
                ours.append(part)
                paths = part.image_paths() if is_read and options.CACHE != "none" else []
                wanted.append((paths, resize or ResizedPlanes((1, 1))))
        loads = image_loaders(options.CACHE, options.CACHE_GB, options.CACHE_DIR, wanted, upright)
        for part, load in zip(ours, loads, strict=True):
            part.apply_settings(self.seed, load, skip)
        self._draw_galleries()
        if unreached:
            rank_zero_warn(
                f"{self.title}: {', '.join(unreached)} has no effect: it needs BaseDatasetLabelledPerPid or "
                "BaseDatasetLabelled, and cache and drafts transforms that begin as those of ReidTransforms."
            )

    def _draw_galleries(self) -> None:
        images = [*self.query_list, *self.gallery_list]
        draws = []
        for number in range(self.cfg.TEST.DRAWS):
            draw = self.draw_gallery(images, number)
            if draw is None and not number:
                return
            check_draw(f"{self.title}.draw_gallery, draw {number},", draw, len(images))
            draws.append(GalleryDraw(*(np.asarray(part, dtype=np.int64) for part in draw or ())))
        self.val.gallery_draws = draws

    @rank_zero_only
    def check_published(self, splits: Splits) -> None:
        """Warn if the counts differ from the published ones.

        A set with less than half of the published images is taken for a subset, which is logged without a warning.
        """
        if self.published is None:
            return
        found = count_subsets(splits[:3], splits.has_cameras)
        problem = find_count_problem(found, self.published)
        subset = describe_subset(found, self.published)
        if subset:
            log.info("%s: %s", self.title, subset)
        elif problem:
            log.warning(
                "%s differs from the published data set: %s. Files may be missing, or come from another release.",
                self.title,
                problem,
            )

    @as_lightning_calls
    def train_dataloader(
        self, cfg: CfgNode | None = None, trainer: Any = None, sampler_name: str | None = None, **options: Any
    ) -> LateStartLoader:
        """The training loader of this process; without arguments the same object unless the processes change.

        Its length is that of the next epoch, and follows ``loader.sampler.set_epoch``. For a Trainer to see the length
        of each epoch, it needs ``reload_dataloaders_every_n_epochs=1``; the workers are kept all the same.

        Args:
            cfg: another configuration; None uses the data module's.
            trainer: tells the place of this process: Lightning's Trainer, or an object with num_nodes, num_processes,
                local_rank, root_gpu and distributed_backend. None uses the Trainer that is attached, if any.
            sampler_name: None uses DATALOADER.SAMPLER.
            options: arguments of torch's DataLoader, in place of ours.

        Raises:
            UserError: too few identities for one batch on every process.
        """
        if cfg is None and trainer is None and sampler_name is None and not options:
            return self._prepare_train_loader(lambda *_: self._build_train_loader(self.cfg, self.trainer))
        self.setup()
        cfg = self.cfg if cfg is None else cfg
        loader = self._build_train_loader(cfg, trainer or self.trainer, sampler_name, **options)
        if self.trainer is None:  # a loop of the caller's own that asks for a loader in each epoch
            follow_epoch(loader, self._loops)
            self._loops += 1
        self._set_epoch(loader)
        return loader

    def _prepare_train_loader(self, build: Callable[[int, int], Any], keep: bool = True) -> Any:
        """The loader that ``build(world_size, rank)`` returns, set to the epoch; kept until the processes change."""
        self.setup()
        world_size, rank = self._find_place(self.trainer)
        options = self.cfg.DATALOADER
        settings = (self.cfg.SOLVER.IMS_PER_BATCH, options.SAMPLER, options.NUM_INSTANCE, options.DROP_LAST)
        key = ("train", world_size, rank, *self._find_resources(self.trainer), id(self.train), *settings)
        if key not in self._loaders or not keep:
            self._share_seed(world_size)
        loader = self._loaders[key] if keep and key in self._loaders else build(world_size, rank)
        if keep:
            self._loaders[key] = loader
        self._set_epoch(loader)
        return loader

    def _set_epoch(self, loader: Any) -> None:
        if self.trainer is not None:
            # The Trainer measures the loader before it sets the epoch; after a resume that is not epoch 0.
            progress: Any = self.trainer.fit_loop.epoch_progress.current
            follow_epoch(loader, progress.processed)

    def _share_seed(self, world_size: int) -> None:
        if self.trainer is None or world_size == 1:
            return
        # In an unseeded run each process has its own seed, but all must draw from one list: otherwise their epochs
        # differ in length, and the processes wait for each other forever.
        self.seed = self.trainer.strategy.broadcast(self.seed)
        if isinstance(self.train, BaseDatasetLabelledPerPid):
            self.train.seed = self.seed

    def val_dataloader(self) -> LateStartLoader:
        """Query then gallery, in order: images [B, 3, H, W], pids [B], camids [B], numbers of the samples [B].

        Under a Trainer with several processes, this process's share of them in whole batches; see
        :class:`~datasets.samplers.EvaluationShard`, whose positions tell how the shares are joined.
        """
        self.setup()
        world_size, rank = (1, 0) if self.trainer is None else self._find_place(self.trainer)
        batch_size = self.cfg.TEST.IMS_PER_BATCH
        key = ("val", world_size, rank, *self._find_resources(self.trainer), id(self.val), batch_size)
        if key not in self._loaders:
            if world_size == 1:
                loader = LateStartLoader(self.val, batch_size=batch_size, **self._loader_options(self.trainer))
            else:
                shard = EvaluationShard(self.val, batch_size, world_size, rank)
                loader = EvaluationLoader(self.val, batch_size, sampler=shard, **self._loader_options(self.trainer))
            self._loaders[key] = loader
        return self._loaders[key]

    def test_dataloader(self) -> LateStartLoader:
        """The same as :meth:`val_dataloader`."""
        return self.val_dataloader()

    def _build_train_loader(
        self, cfg: CfgNode, trainer: Any, sampler_name: str | None = None, **options: Any
    ) -> LateStartLoader:
        world_size, rank = self._find_place(trainer)
        batch_size = options.pop("batch_size", cfg.SOLVER.IMS_PER_BATCH)
        sampler = get_sampler(
            cfg.DATALOADER.SAMPLER if sampler_name is None else sampler_name,
            data_source=self.train_dict,
            batch_size=batch_size,
            num_instances=getattr(self.train, "num_instances", self.num_instances),  # by which it divides the images
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
        ours = {"drop_last": cfg.DATALOADER.DROP_LAST, "sampler": sampler, "collate_fn": collate_fn_alternative}
        workers = options.pop("num_workers", None)
        return LateStartLoader(
            self.train, batch_size=batch_size, **ours | self._loader_options(trainer, workers) | options
        )

    def _loader_options(self, trainer: Any, num_workers: int | None = None) -> dict[str, Any]:
        workers, pin_memory = self._find_resources(trainer, num_workers)
        # The loader's own generator: without one, every pass draws a number from torch's global generator.
        return {
            "num_workers": workers,
            "pin_memory": pin_memory,
            "persistent_workers": workers > 0,
            "generator": torch.Generator().manual_seed(self.seed),
        }

    def _find_place(self, trainer: Any) -> tuple[int, int]:
        """Number of processes in the whole run, and the global rank of this one."""
        if hasattr(trainer, "world_size"):
            return trainer.world_size, trainer.global_rank
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_world_size(), torch.distributed.get_rank()
        if trainer is not None:
            return old_place(trainer)
        return int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))

    def _find_resources(self, trainer: Any, num_workers: int | None = None) -> tuple[int, bool]:
        """Worker processes for one loader of this process, and whether batches go to CUDA through pinned memory."""
        if hasattr(trainer, "strategy"):
            processes, pin_memory = trainer.num_devices, trainer.strategy.root_device.type == "cuda"
        else:
            processes = None if trainer is None else trainer.num_processes or 1
            pin_memory = torch.cuda.is_available()
        return count_workers(self.num_workers if num_workers is None else num_workers, processes), pin_memory

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
