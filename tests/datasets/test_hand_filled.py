"""Data modules that fill their lists by hand: what is filled in, refused, and which settings of the run reach them."""

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from pytorch_lightning import Trainer
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision import transforms as tv

from datasets import init_dataset, register_dataset
from datasets.bases import (
    BaseDatasetLabelled,
    BaseDatasetLabelledPerPid,
    COCODatasetBase,
    ReidBaseDataModule,
    ReidDataModule,
    collate_fn_alternative,
    pil_loader,
)
from datasets.caching.cache import ImageCache
from datasets.draws import PidDraw
from datasets.loading import UNREADABLE, LateStartLoader
from datasets.market1501 import Market1501
from datasets.overrides import CountedDraws
from datasets.registry import REGISTRY
from datasets.samplers import RandomIdentitySampler, get_sampler
from datasets.transforms import ReidTransforms
from datasets.validate import main as validate
from tests.datasets.conftest import MARKET, write_folders
from utils.errors import MissingFolderError, MissingPathError, UserError

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fewer than 2 images"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
]


def fill(module: Any, **changes: Any) -> None:
    """What a setup does: all attributes from Market1501's lists, the fourth entry a word; ``changes`` come last."""
    splits = Market1501(module.cfg).read_splits()
    train, query, gallery = ([(*row, "word") for row in rows] for rows in splits[:3])
    own = sorted({row[1] for row in train})
    rows = {n: [(path, n, *rest) for path, pid, *rest in train if pid == own[n]] for n in range(len(own))}
    module.train_list, module.query_list, module.gallery_list, module.train_dict = train, query, gallery, rows
    build = ReidTransforms(module.cfg).build_transforms
    module.train = BaseDatasetLabelledPerPid(rows, build(is_train=True), module.num_instances, resample=True)
    module.val = BaseDatasetLabelled(query + gallery, build(is_train=False))
    for name, value in changes.items():
        setattr(module, name, value)


class Mine(ReidBaseDataModule):
    changes: Mapping[str, Any] = MappingProxyType({})
    calls = 0

    def setup(self):
        self.calls += 1
        fill(self, **self.changes)


def make(cfg, kind=Mine, **changes):
    return type("Changed", (kind,), {"changes": changes})(cfg)


@pytest.fixture
def cfg(market, make_cfg):
    return make_cfg(market)


# ------------------------------------------------------------------------------------------------------- setup


def test_the_own_code_runs_once_however_it_is_called(cfg):
    data = Mine(cfg)
    for call in (data.setup, lambda: data.setup("fit"), lambda: data.setup(stage="test"), data.read_splits):
        call()
    assert data.calls == 1
    assert (data.num_query, data.num_classes, data.has_cameras, data.one_numbering) == (3, 6, True, False)
    assert data.train_pids == sorted(MARKET["train"])


@pytest.mark.parametrize("has_own", [True, False])
def test_train_pids_are_labels_where_the_list_does_not_tell_the_own_ones(cfg, has_own):
    data = make(cfg)
    data.setup()
    shorter = {pid: rows for pid, rows in data.train_dict.items() if len(rows) > 1}
    relabelled = {n: [(r[0], n, *r[2:]) for r in rows] for n, rows in enumerate(shorter.values())}
    kept = [row for row in data.train_list if row[1] != 30] if has_own else data.train_list
    other = make(cfg, train_dict=relabelled, train_list=kept)
    other.setup()
    assert other.train_pids == ([2, 7, 11, 31, 44] if has_own else [0, 1, 2, 3, 4])
    assert {pid for _, pid, _ in other.read_splits().train} == set(other.train_pids)
    assert len(other.read_splits().train) == 23


def test_inherited_setups_run_once_each_and_super_of_all_does_nothing(cfg):
    calls = []

    class Parent(ReidBaseDataModule):
        def setup(self, stage=None):
            calls.append(("parent", stage))
            super().setup(stage)
            fill(self)

    class Child(Parent):
        def setup(self, stage):
            calls.append(("child", stage))
            super().setup()
            self.val_dataloader()  # as it asks for setup, too
            self.num_classes = 9

    data = Child(cfg)
    data.setup("test")
    data.setup()
    assert calls == [("child", "fit"), ("parent", None)]
    assert data.num_classes == 9


def test_what_a_parent_leaves_out_the_child_may_set(cfg):
    class Half(ReidBaseDataModule):
        def setup(self):
            fill(self, val=None, num_query=None)

    class Whole(Half):
        def setup(self):
            super().setup()
            self.val = BaseDatasetLabelled(self.query_list + self.gallery_list)

    data = Whole(cfg)
    data.setup()
    assert (data.num_query, len(data.val)) == (3, 8)


def test_a_mixin_and_a_data_set_of_ours_may_have_the_old_form(cfg, caplog):
    class Filled:
        def setup(self):
            fill(self)

    class Mixed(Filled, ReidBaseDataModule):
        pass

    class Fewer(Market1501):
        def setup(self):
            super().setup()
            self.query_list = self.query_list[:2]
            self.num_query = 2
            self.val = BaseDatasetLabelled(self.query_list + self.gallery_list, self.val.transform)

    for kind, queries in ((Mixed, 3), (Fewer, 2)):
        data = kind(cfg, seed=8)
        caplog.clear()
        with caplog.at_level(logging.INFO):
            data.setup("fit")
        assert caplog.text.count("subset   |") == 1  # the table, when all is there
        assert (data.num_query, data.train.seed) == (queries, 8)


def test_an_override_on_a_data_set_of_ours_runs_once_too(cfg):
    stages = []

    class Told(Market1501):
        def setup(self, stage=None):
            stages.append(stage)
            super().setup(stage)
            self.gallery_list = self.gallery_list + self.gallery_list[:1]
            self.val = BaseDatasetLabelled(self.query_list + self.gallery_list, self.val.transform)

    data, plain = Told(cfg), Market1501(cfg)
    plain.setup()
    for call in (lambda: data.setup("fit"), lambda: data.setup("test"), data.val_dataloader, data.val_dataloader):
        call()
    assert stages == [None]
    assert len(data.val) == len(plain.val) + 1


def test_a_setup_that_fails_may_be_tried_again(cfg):
    class Shaky(Mine):
        def setup(self):
            super().setup()
            if self.calls == 1:
                raise OSError("not yet")

    data = Shaky(cfg)
    with pytest.raises(OSError, match="not yet"):
        data.setup()
    data.setup()
    assert data.num_query == 3


def test_without_a_setup(cfg, coco, make_cfg):
    with pytest.raises(UserError, match="Bare has no setup"):
        type("Bare", (ReidBaseDataModule,), {})(cfg).setup()
    reads = type("Reads", (ReidBaseDataModule,), {"read_splits": lambda self: Market1501(self.cfg).read_splits()})(cfg)
    reads.setup()
    assert reads.num_query == 3
    data = type("Df", (COCODatasetBase,), {})(make_cfg(coco, "DATASETS.JSON_TRAIN_PATH", str(coco / "train_reid.json")))
    data.setup("fit")
    assert (data.num_classes, data.num_query) == (3, 2)
    assert len(data.read_splits().gallery) == 4


def test_a_coco_set_may_fill_its_lists_by_hand(cfg):
    class Own(COCODatasetBase):
        def setup(self):
            super().setup()
            fill(self)

    assert len(Own(cfg).read_splits().query) == 3


def test_keywords(cfg):
    data = Mine(cfg, num_workers=3, num_instances=5, whatever=1)
    assert (data.num_workers, data.num_instances, data.cfg) == (3, 5, cfg)
    assert Mine(cfg).num_instances == cfg.DATALOADER.NUM_INSTANCE
    ours = Market1501(cfg, num_instances=3)
    assert len(next(iter(ours.train_dataloader()))[1]) == 6


# ----------------------------------------------------------------------------------------------------- refusals


def refuse(cfg, match, **changes):
    with pytest.raises(UserError, match=match):
        make(cfg, **changes).setup()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"query_list": None, "val": None}, "has not set query_list, val; it must set train_dict, train_list"),
        ({"query_list": []}, "query_list is empty"),
        ({"train_dict": {}}, "train_dict is empty"),
        ({"train_dict": [1]}, "train_dict is a list"),
        ({"train_dict": {0: []}}, r"train_dict\[0\] is empty"),
        ({"train_dict": {"a": [("x", 0, 0, 0)]}}, "has the key 'a'"),
        ({"train_dict": {0: [("x", 0, 0, 0), ("y", 1, 0, 0)]}}, "samples of several pids"),
        ({"train_dict": {0: [("x", 0, 0, 0)], 1: [("y", 0, 0, 0)]}}, "same pid"),
        ({"train_dict": {7: [("x", 7, 0, 0)]}}, "pid 7, but num_classes is 1: .* expected 0 to 0"),
        ({"train_dict": {-1: [("x", -1, 0, 0)]}}, "pid -1"),
        ({"num_classes": 5}, "pid 5, but num_classes is 5"),
        ({"gallery_list": [("x", 1)]}, r"gallery_list holds \('x', 1\)"),
        ({"gallery_list": [("x", 1, "left", 0)]}, "gallery_list holds"),
        ({"query_list": ["x.jpg"]}, "query_list holds 'x.jpg'"),
        ({"num_query": 2}, "num_query is 2, but query_list has 3 samples"),
        ({"val": [0, 1, 2]}, "val has 3 items; expected the 8"),
    ],
)
def test_what_a_run_cannot_use_is_refused(cfg, changes, match):
    refuse(cfg, match, **changes)


def test_more_or_fewer_gallery_images_in_val_are_only_warned_of(cfg):
    first = make(cfg)
    first.setup()
    val = BaseDatasetLabelled(first.val.data[:-2], first.val.transform)
    with pytest.warns(UserWarning, match="val has 6 items; expected the 8"):
        make(cfg, val=val).setup()


def test_folders_that_are_missing(cfg, tmp_path):
    data = Mine(cfg)
    with pytest.raises(RuntimeError, match="dataset_dir is not set"):
        data._check_before_run()
    data.dataset_dir, data.train_dir, data.query_dir, data.gallery_dir = tmp_path, str(tmp_path), "/no/q", "/no/g"
    with pytest.raises(MissingFolderError, match="query_dir: /no/q does not exist"):
        data._check_before_run()
    assert issubclass(MissingFolderError, UserError)
    with pytest.raises(MissingPathError, match=r"none\.json does not exist"):
        data._load_json(tmp_path / "none.json")
    (tmp_path / "list.json").write_text("[1, 2]")
    assert data._load_json(str(tmp_path / "list.json")) == [1, 2]


def test_counts_and_table(cfg, capsys):
    data = Mine(cfg)
    rows = [("a", 1, 0), ("b", 1, 4, 1), ("c", 2, 0, "x", 5)]
    assert data._get_imagedata_info(rows) == (2, 3, 2)
    data._print_dataset_statistics(rows, rows[:1], [list(row) for row in rows[:2]])
    lines = [[cell.strip() for cell in line.split("|")] for line in capsys.readouterr().out.splitlines()]
    assert lines[2:] == [["train", "2", "3", "2"], ["query", "1", "1", "1"], ["gallery", "1", "2", "2"]]


@pytest.mark.parametrize("name", ["market1501", "dukemtmcreid", "df1", "street2shop"])
def test_ours_tell_their_folders_before_anything_is_read(make_cfg, tmp_path, name):
    data: Any = init_dataset(name, cfg=make_cfg(tmp_path / "nowhere"))
    root = tmp_path / "nowhere" / {"market1501": "market1501", "dukemtmcreid": "DukeMTMC-reID"}.get(name, "")
    assert data.dataset_dir == root
    person, fashion = ("bounding_box_train", "query", "bounding_box_test"), ("train", "query", "gallery")
    names = fashion if root.name == "nowhere" else person
    assert (data.train_dir, data.query_dir, data.gallery_dir) == tuple(root / part for part in names)


# ----------------------------------------------------------------------------------------------------- settings


def test_the_seed_of_the_run_reaches_the_draws(cfg):
    draws = []
    for seed in (0, 0, 4):
        data = Mine(cfg, seed=seed)
        draws.append([images.sum().item() for images, *_ in data.train_dataloader()])
    assert draws[0] == draws[1] != draws[2]


def test_batches_are_those_of_the_same_set_by_name(cfg):
    ours, own = Market1501(cfg, seed=3), Mine(cfg, seed=3)
    cfg.DATALOADER.USE_RESAMPLING = True
    for batch, twin in zip(ours.train_dataloader(), own.train_dataloader(), strict=True):
        assert all(torch.equal(part, other) for part, other in zip(batch, twin, strict=True))


def test_unreadable_files_are_skipped_and_the_cache_is_used(market, make_cfg, tmp_path):
    options = ("DATASETS.ON_ERROR", "skip", "DATALOADER.CACHE", "disk", "DATALOADER.CACHE_DIR", str(tmp_path / "cache"))
    cfg = make_cfg(market, *options)
    next((market / "market1501" / "query").glob("0006*")).write_bytes(b"broken")
    data = Mine(cfg)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data.setup("test")
    assert isinstance(data.val.load, ImageCache)
    assert (data.val.load.resize.size, data.val.skip_unreadable) == ((16, 8), True)
    assert len(data.val.load.paths) == 8
    assert not data.train.load.paths  # a test reads no training images
    assert sum(int((pids < 0).sum()) for _, pids, *_ in data.val_dataloader()) == 1
    again = Mine(cfg)
    again.setup("fit")
    assert len(again.train.load.paths) == 24


class Foreign(Dataset[Any]):
    """A data set of the user's own class, whose fourth entries restart at the gallery."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        _, pid, camid, word = self.rows[index]
        return torch.full((3, 2, 2), float(index)), pid, camid, word


@pytest.mark.parametrize("foreign", [True, False])
def test_settings_that_cannot_reach_a_data_set_are_named_once(market, make_cfg, tmp_path, foreign):
    cfg = make_cfg(market, "DATALOADER.CACHE", "disk", "DATALOADER.CACHE_DIR", str(tmp_path / "cache"))
    cfg.DATASETS.ON_ERROR, cfg.TEST.VISUALIZE = "skip", "yes"
    own = tv.Compose([tv.Resize((8, 8)), tv.ToTensor()])
    rows = Mine(cfg).read_splits()
    listed = [(*row, "word") for row in rows.query + rows.gallery]
    val = Foreign(listed) if foreign else BaseDatasetLabelled(listed, own)
    with pytest.warns(UserWarning, match="has no effect") as caught:
        make(cfg, val=val, has_cameras=False).setup()
    (text,) = [str(warning.message) for warning in caught if "has no effect" in str(warning.message)]
    assert "DATALOADER.CACHE disk (val)" in text
    assert "(train)" not in text
    assert ("DATASETS.ON_ERROR skip (val)" in text) == foreign
    assert ("TEST.VISUALIZE yes, TEST.SELF_MATCH drop, " in text) == foreign  # nobody tells the files
    if not foreign:
        assert val.skip_unreadable
        assert val[0][0].shape == (3, 8, 8)


def test_nothing_is_said_where_all_is_default(cfg):
    rows = Mine(cfg).read_splits()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(cfg, val=Foreign([(*row, 0) for row in rows.query + rows.gallery])).setup()


# ---------------------------------------------------------------------------------------------- the two data sets


def test_items_of_validation(cfg):
    rows = [(*row, 0) for row in Market1501(cfg).read_splits().query]
    assert [BaseDatasetLabelled(rows)[i][3] for i in range(3)] == [0, 1, 2]
    assert BaseDatasetLabelled(rows, return_paths=True)[1][3] == rows[1][0]
    image, pid, camid, _ = BaseDatasetLabelled(rows)[2]
    assert isinstance(image, Image.Image)
    assert (image.size, pid, camid) == ((12, 24), 6, 2)
    skipping = BaseDatasetLabelled([("none.jpg", 1, 0)])
    skipping.apply_settings(skip_unreadable=True)
    assert skipping[0][0].getextrema() == ((0, 0),) * 3


def test_items_of_training_without_a_transform_and_with_keys_that_are_not_the_labels(cfg):
    rows = Market1501(cfg).read_splits().train[:3]
    dataset = BaseDatasetLabelledPerPid({40: [(path, 4, camid) for path, _, camid in rows]})
    items = dataset[PidDraw(40)]
    assert [(row[1], row[3], row[4]) for row in items] == [(4, -1, True)] * 3 + [(4, -1, False)]
    assert items[3][0].size == (12, 24)
    assert items[3][0].getextrema() == ((0, 0),) * 3
    assert items[0][0].tobytes() in {pil_loader(path).tobytes() for path, _, _ in rows}


def test_an_override_of_prepare_img_is_used(cfg):
    class Marked(BaseDatasetLabelledPerPid):
        def prepare_img(self, path):
            return torch.full((1, 1, 1), len(path))

    rows = [("a", 0, 0, 0), ("bbb", 0, 0, 0)]
    assert sorted(float(row[0]) for row in Marked({0: rows}, num_instances=3)[0]) == [0, 1, 3]


# ------------------------------------------------------------------------------------------------------ loaders


def old_trainer(**changes):
    values = {"distributed_backend": "ddp", "root_gpu": None, "local_rank": 1, "num_nodes": 1, "num_processes": 2}
    return SimpleNamespace(**values | changes)


@pytest.mark.parametrize(
    ("changes", "environment", "place"),
    [
        ({}, {}, (2, 1)),
        ({"num_nodes": 2, "num_processes": 1, "local_rank": 0}, {"NODE_RANK": "1"}, (2, 1)),
        ({"num_nodes": 2}, {"GROUP_RANK": "1"}, (4, 3)),
        ({"distributed_backend": "ddp_spawn", "root_gpu": 0}, {}, (2, 0)),
        ({"distributed_backend": None, "local_rank": None, "num_processes": None}, {}, (1, 0)),
    ],
)
def test_an_old_trainer_tells_the_place(cfg, monkeypatch, changes, environment, place):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    cfg.SOLVER.IMS_PER_BATCH = 1
    for data in (Mine(cfg), Market1501(cfg)):
        loader = data.train_dataloader(cfg, old_trainer(**changes), sampler_name="random_identity", drop_last=True)
        assert (loader.sampler.world_size, loader.sampler.rank) == place
        assert loader.drop_last


def test_a_trainer_of_today_tells_the_place_too(cfg):
    cfg.SOLVER.IMS_PER_BATCH = 1
    trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    for given, place in ((trainer, (1, 0)), (lightning(2, 1), (2, 1))):
        loader = Mine(cfg).train_dataloader(cfg, given, sampler_name="random_identity")
        assert (loader.sampler.world_size, loader.sampler.rank) == place


def test_loader_keywords_replace_ours(cfg):
    data = Mine(cfg)
    loader = data.train_dataloader(num_workers=1, batch_size=3, collate_fn=list, prefetch_factor=3)
    assert (loader.num_workers, loader.batch_size, loader.collate_fn, loader.prefetch_factor) == (1, 3, list, 3)
    assert loader.sampler.batch_size == 3
    assert loader.persistent_workers
    other = cfg.clone()
    other.SOLVER.IMS_PER_BATCH = 1
    assert data.train_dataloader(other).batch_size == 1
    assert data.train_dataloader() is data.train_dataloader()
    with pytest.raises(UserError, match="'softmax'; valid names: random_identity"):
        data.train_dataloader(cfg, None, "softmax")


class Own(Mine):
    """Its loader is a plain DataLoader, as programs for Lightning 1.1 built it."""

    def train_dataloader(self, cfg, trainer, sampler_name="random_identity", **kwargs):
        self.seen = cfg, trainer, sampler_name, kwargs
        world_size = trainer.num_nodes * trainer.num_processes
        sampler = get_sampler(sampler_name, self.train_dict, 2, 2, world_size, trainer.local_rank)
        return DataLoader(
            self.train, 2, sampler=sampler, collate_fn=collate_fn_alternative, num_workers=self.num_workers, **kwargs
        )


def test_an_old_override_is_called_with_cfg_and_trainer(cfg):
    data = Own(cfg)
    loader = data.train_dataloader()
    seen, trainer, name, rest = data.seen
    assert (seen, name, rest) == (cfg, "random_identity", {"drop_last": cfg.DATALOADER.DROP_LAST})
    assert (trainer.distributed_backend, trainer.root_gpu, trainer.local_rank) == (None, None, 0)
    assert (trainer.num_nodes, trainer.num_processes) == (1, 1)
    with pytest.raises(AttributeError, match=r"no trainer\.max_epochs"):
        _ = trainer.max_epochs
    assert data.train_dataloader() is loader
    assert data.train_dataloader(cfg, trainer) is not loader


def test_a_plain_loader_starts_late(cfg):
    data = Own(cfg, num_workers=1)
    loader = data.train_dataloader()
    assert type(loader) is LateStartLoader
    iterator = iter(loader)
    loader.sampler.set_epoch(3)  # as the Trainer does after iter()
    twin = Own(cfg).train_dataloader()
    twin.sampler.set_epoch(3)
    for (images, *_), (others, *_) in zip(iterator, twin, strict=True):
        assert torch.equal(images, others)


class Repeated(Sampler[int]):
    """A sampler of another program: plain pids, some of them several times."""

    def __iter__(self):
        return iter([1, 4, 1, 0, 1, 1, 1, 1])

    def __len__(self):
        return 8


@pytest.mark.parametrize("workers", [0, 1])
def test_the_draws_of_another_sampler_are_counted(cfg, workers):
    class Counted(Mine):
        def train_dataloader(self):
            return DataLoader(self.train, 2, sampler=Repeated(), collate_fn=collate_fn_alternative, num_workers=workers)

    data = Counted(cfg)
    data.trainer = lightning(1, 0)
    epochs = []
    for epoch in (5, 6):
        data.trainer.fit_loop.epoch_progress.current.processed = epoch
        batches = list(data.train_dataloader())
        images, pids, *_ = (torch.cat(parts) for parts in zip(*batches, strict=True))
        assert pids.tolist() == [1, 1, 4, 4, 1, 1, 0, 0] + [1] * 8
        draws = [(1, 0), (4, 0), (1, 1), (0, 0), (1, 2), (1, 3), (1, 4), (1, 0)]  # nine images in pairs
        rows = [row for pid, time in draws for row in data.train[PidDraw(pid, epoch, time)]]
        assert torch.equal(images, torch.stack([row[0] for row in rows]))
        epochs.append(images)
    assert not torch.equal(*epochs)


def test_draws_that_know_their_place_pass_as_they_are(cfg):
    data = Mine(cfg)
    data.setup()
    draw = PidDraw(1, 7, 2)
    (passed,) = CountedDraws([draw], data.train)
    assert (passed is draw, len(CountedDraws([draw], data.train))) == (True, 1)


def test_a_loader_without_arguments_of_its_own_follows_the_epochs(cfg):
    class Plain(Market1501):
        def train_dataloader(self):
            sampler = get_sampler("random_identity", self.train_dict, 2, 2)
            return DataLoader(self.train, 2, sampler=sampler, collate_fn=collate_fn_alternative)

    data = Plain(cfg, seed=6)
    data.trainer = lightning(1, 0)
    loader: Any = data.train_dataloader()
    assert (type(loader), loader.sampler.epoch, loader.sampler.seed) == (LateStartLoader, 5, 6)
    assert data.train_dataloader() is not loader
    given = type("Given", (Market1501,), {"train_dataloader": lambda self: [1, 2]})(cfg)
    assert given.train_dataloader() == [1, 2]


def lightning(world_size, rank, **more):
    values = {
        "world_size": world_size,
        "global_rank": rank,
        "local_rank": rank,
        "num_devices": world_size,
        "num_nodes": 1,
        "fit_loop": SimpleNamespace(epoch_progress=SimpleNamespace(current=SimpleNamespace(processed=5))),
        "strategy": SimpleNamespace(broadcast=lambda seed: 11, root_device=torch.device("cpu")),
    }
    return SimpleNamespace(**values | more)


def test_several_processes(cfg):
    cfg.SOLVER.IMS_PER_BATCH = 2
    data = Own(cfg)
    data.trainer = lightning(2, 1, max_epochs=7)
    loader = data.train_dataloader()
    trainer = data.seen[1]
    assert (trainer.distributed_backend, trainer.num_processes, trainer.local_rank) == ("ddp", 2, 1)
    assert trainer.max_epochs == 7
    assert (loader.sampler.epoch, data.train.seed, loader.sampler.seed) == (5, 11, 11)
    wrong = Own(cfg)
    wrong.trainer = lightning(2, 1, local_rank=0)  # another machine
    with pytest.raises(UserError, match=r"process 0 of 2, but this is process 1 of 2: pass world_size="):
        wrong.train_dataloader()


@pytest.mark.parametrize("kind", ["batches", "subclass"])
def test_samplers_of_other_forms_draw_other_images(cfg, kind):
    """One that yields batches, and one of ours whose subclass yields plain pids: never the same images again."""

    class Plain(RandomIdentitySampler):
        def __iter__(self):
            return (int(pid) for pid in super().__iter__())

    class OwnSampler(Mine):
        def train_dataloader(self, cfg, trainer):
            if kind == "batches":
                return DataLoader(self.train, batch_sampler=[[1, 4], [1, 4]], collate_fn=collate_fn_alternative)
            sampler = Plain(self.train_dict, 2, self.num_instances)
            return DataLoader(self.train, 2, sampler=sampler, collate_fn=collate_fn_alternative, drop_last=True)

    data = OwnSampler(cfg)
    data.trainer = lightning(1, 0)
    items = []
    for epoch in (0, 1):
        data.trainer.fit_loop.epoch_progress.current.processed = epoch
        items += [item.numpy().tobytes() for images, *_ in data.train_dataloader() for item in images.chunk(2)]
    assert len(set(items)) == len(items) > 4


def test_a_whole_set_on_each_process_is_told(cfg):
    class Shuffled(Mine):
        def train_dataloader(self):
            return DataLoader(self.train, 2, shuffle=True, collate_fn=collate_fn_alternative)

    data = Shuffled(cfg)
    data.trainer = lightning(2, 0)
    with pytest.warns(UserWarning, match="gives each of the 2 processes the whole set"):
        data.train_dataloader()


def test_loaders_of_a_loop_of_ones_own_go_on_from_epoch_to_epoch(cfg):
    data = Mine(cfg)
    data.setup()
    place = SimpleNamespace(num_nodes=1, num_processes=1, local_rank=0, root_gpu=None, distributed_backend=None)
    first, second = (next(iter(data.train_dataloader(cfg, place)))[0] for _ in range(2))
    assert not torch.equal(first, second)
    loader: Any = data.train_dataloader()
    list(loader)
    with pytest.warns(UserWarning, match=r"iterated again in epoch 0: .* call loader.sampler.set_epoch"):
        list(loader)
    loader.sampler.set_epoch(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(loader)


def test_loaders_follow_what_is_changed(cfg):
    data = Mine(cfg)
    data.setup()
    assert len(data.val_dataloader().dataset) == 8
    data.val = BaseDatasetLabelled(data.query_list, data.val.transform)
    assert len(data.val_dataloader().dataset) == 3
    before = next(iter(data.train_dataloader()))[0]
    cfg.SOLVER.IMS_PER_BATCH -= 1
    assert len(next(iter(data.train_dataloader()))[0]) == len(before) - data.num_instances
    cfg.SOLVER.IMS_PER_BATCH += 1
    data.train = BaseDatasetLabelledPerPid(data.train_dict, data.train.transform, data.num_instances - 1)
    assert len(next(iter(data.train_dataloader()))[0]) < len(before)


# ------------------------------------------------------------------------------------------- subclasses of our sets


def test_the_folder_of_a_subclass_is_read(market, cfg):
    (market / "market1501").rename(market / "mymarket")

    class Moved(Market1501):
        dataset_dir = "mymarket"

    data = Moved(cfg)
    data.setup()
    data._check_before_run()
    assert data._get_imagedata_info(data.query_list) == (2, 3, 3)
    assert str(data.train_dir) == str(market / "mymarket" / "bounding_box_train")


def test_a_way_of_reading_that_would_not_be_called_is_refused(cfg):
    class Reads(Market1501):
        def _process_dir(self, folder, relabel=False):
            raise AssertionError

    with pytest.raises(UserError, match=r"Reads._process_dir is never called .* write a setup\(self\) .*MIGRATION"):
        Reads(cfg).setup()


def test_settings_do_not_reach_overrides_in_silence(cfg, caplog):
    class Opens(BaseDatasetLabelled):
        def prepare_img(self, path):
            return self.transform(Image.open(path).convert("RGB"))

    class Gets(BaseDatasetLabelled):
        def __getitem__(self, index):
            return super().__getitem__(index)

    cfg.DATASETS.ON_ERROR, cfg.DATALOADER.CACHE = "skip", "ram"
    listed = Mine(cfg).read_splits()
    listed = [*listed.query, *listed.gallery]
    transform = ReidTransforms(cfg).build_transforms(False)
    with pytest.warns(UserWarning, match=r"CACHE ram \(val\) has no effect"):
        opens = make(cfg, val=Opens(listed, transform))
        opens.setup()
    with pytest.warns(UserWarning, match=r"ON_ERROR skip \(val\), DATALOADER.CACHE ram \(val\) has no effect"):
        make(cfg, val=Gets(listed, transform)).setup()
    Path(listed[0][0]).write_bytes(b"no image")
    assert opens.val[0][1] == UNREADABLE  # what Pillow raises is skipped too
    assert "skipped: " in caplog.text


def test_queries_that_do_not_come_first_are_refused(cfg):
    listed = Mine(cfg).read_splits()
    val = BaseDatasetLabelled([*listed.gallery, *listed.query], ReidTransforms(cfg).build_transforms(False))
    with pytest.raises(UserError, match=r"Changed.val begins with .* where query_list has "):
        make(cfg, val=val).setup()


# ----------------------------------------------------------------------------------------------- joint, validated


def test_sets_of_both_kinds_may_be_joined(market, cfg, monkeypatch, caplog):
    monkeypatch.setattr(REGISTRY, "registered", {})
    register_dataset("mine", Mine)
    write_folders(market / "DukeMTMC-reID", {"train": {3: [1, 2]}, "query": {1: [1]}, "gallery": {1: [2]}})
    with caplog.at_level(logging.INFO):
        data = init_dataset("mine+dukemtmcreid", cfg=cfg)
        data.setup()
    assert (data.num_classes, data.num_query, len(data.train_list)) == (7, 3, 26)
    assert "Mine: joined with others, it gives its lists" in caplog.text
    assert "DukeMTMCreID: joined" not in caplog.text


def test_one_may_be_validated(market, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(REGISTRY, "registered", {})
    register_dataset("mine", Mine)
    arguments = ["--out", str(tmp_path), "DATASETS.NAMES", "mine", "DATASETS.ROOT_DIR", str(market)]
    assert validate([*arguments, "SOLVER.IMS_PER_BATCH", "2"]) == 0
    assert "Identities of training and test are not compared" in capsys.readouterr().out
    register_dataset("mine", type("Unfinished", (Mine,), {"changes": {"val": None}}))
    assert validate(arguments) == 1
    assert "Unfinished.setup has not set val" in capsys.readouterr().out


def test_lists_that_are_left_out_come_from_the_data_sets(cfg):
    lists = ("train_dict", "train_list", "query_list", "gallery_list")
    whole, left_out = Mine(cfg), make(cfg, num_query=3, **dict.fromkeys(lists))
    whole.setup()
    left_out.setup()
    assert left_out.query_list == whole.query_list
    assert left_out.gallery_list == whole.gallery_list
    assert left_out.train_dict == whole.train_dict
    assert left_out.train_list == [row for rows in whole.train_dict.values() for row in rows]


def test_the_names_are_found_in_bases_only_when_asked_for():
    import datasets.bases

    assert issubclass(ReidBaseDataModule, ReidDataModule)
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        _ = datasets.bases.Nothing
