"""Data sets whose protocol draws the gallery several times, from their data module to the numbers of a test."""

import csv
import json
import random
import weakref
from collections import defaultdict

import numpy as np
import pytest
import torch
from pytorch_lightning import Trainer

from datasets import init_dataset, register_dataset
from datasets.bases import ReidDataModule, Splits
from datasets.draws import GalleryDraw, derive_seed
from datasets.registry import DATASETS
from evaluation.metrics import evaluate, metrics_dict
from evaluation.retrieval import RankingOptions, RetrievalSet
from evaluation.self_matches import SelfMatches
from modelling import bases
from tests.datasets.conftest import write_image
from tests.modelling.test_trajectories import MetricRecorder
from tests.small import small_config
from train_ctl_model import CTLModel
from utils.errors import UserError

PIDS = [3, 3, 3, 5, 5, 8, 8, 8, 8, 9]


def write_vehicles(root, pids=PIDS):
    """Images of a test list, each of another content, and four of two identities to train on."""
    lists = root / "VehicleID_V1.0" / "train_test_split"
    lists.mkdir(parents=True)
    for name, rows in {"train_list": [1, 1, 2, 2], "test_list_800": pids}.items():
        lines = [f"{name[0]}{i:03} {pid}" for i, pid in enumerate(rows)]
        (lists / f"{name}.txt").write_text("\n".join(lines) + "\n")
        for seed, line in enumerate(lines):
            write_image(lists.parent / "image" / f"{line.split()[0]}.jpg", seed)
    return root


@pytest.fixture
def run(tmp_path, caplog):
    """A function that validates or tests a random network; it returns the module, what is logged and all embeddings."""
    caplog.set_level("INFO")

    def run(name, stage="test", root=tmp_path, **options):
        kinds = {"DATASETS.NAMES": name, "DATASETS.ROOT_DIR": str(root), "OUTPUT_DIR": str(tmp_path / "out")}
        cfg = small_config(**kinds | options)
        data = init_dataset(name, cfg=cfg, num_workers=0)
        data.setup("test")
        facts = {"num_query": data.num_query, "num_classes": data.num_classes, "has_cameras": data.has_cameras}
        torch.manual_seed(0)
        model, metrics = CTLModel(cfg, **facts), MetricRecorder()
        trainer = Trainer(logger=metrics, accelerator="cpu", devices=1, enable_checkpointing=False,
                          enable_progress_bar=False)  # fmt: skip
        getattr(trainer, stage)(model, datamodule=data, verbose=False)
        batches = [model.validation_step(batch) for batch in data.val_dataloader()]
        embeddings = torch.cat([batch["emb"] for batch in batches])
        ((_, logged),) = metrics.records
        return data, {name.rpartition("/")[2]: value for name, value in logged.items()}, embeddings

    return run


def published_draws(names, pids, count):
    """Ten times one image of each identity, by the definition and nothing else."""
    for number in range(count):
        gallery = []
        for pid in sorted(set(pids)):
            own = sorted(name for name, other in zip(names, pids, strict=True) if other == pid)
            seed = derive_seed("VehicleID", pid, number) if number else derive_seed("VehicleID", pid)
            gallery.append(names.index(random.Random(seed).choice(own)))
        yield [i for i in range(len(names)) if i not in gallery], gallery


def test_vehicleid_is_the_mean_of_ten_draws(run, tmp_path, caplog):
    write_vehicles(tmp_path)
    data, logged, embeddings = run("vehicleid_800")
    samples = data.query_list + data.gallery_list
    names, pids = [sample[0].rpartition("/")[2][:-4] for sample in samples], np.array([sample[1] for sample in samples])
    tables = []
    for query, gallery in published_draws(names, pids.tolist(), 10):
        arrays = embeddings[query], embeddings[gallery], pids[query], pids[gallery]
        cameras = np.zeros(len(query)), np.ones(len(gallery))
        tables.append(metrics_dict(evaluate(RetrievalSet(*arrays, *cameras), RankingOptions(feat_norm=True))))
    assert len({table["mAP"] for table in tables}) > 2
    assert logged == pytest.approx({name: np.mean([table[name] for table in tables]) for name in tables[0]})
    document = json.loads((tmp_path / "out" / "evaluation" / "metrics.json").read_text())
    assert {name: document[name] for name in logged} == pytest.approx(logged)
    assert document["protocols"]["instance"]["draws"]["mAP"]["values"] == [table["mAP"] for table in tables]
    assert "over 10 draws of queries and gallery):\n    mAP " in caplog.text
    rows = list(csv.DictReader((tmp_path / "out" / "evaluation" / "per_query.csv").read_text().splitlines()))
    assert [row["path"] for row in rows] == [sample[0] for sample in data.query_list]  # of the first draw


def test_one_draw_is_the_division_of_the_lists(run, tmp_path, caplog):
    write_vehicles(tmp_path)
    data, logged, embeddings = run("vehicleid_800", **{"TEST.DRAWS": 1})
    pids = np.array([sample[1] for sample in data.query_list + data.gallery_list])
    m = data.num_query
    arrays = embeddings[:m], embeddings[m:], pids[:m], pids[m:], np.zeros(m), np.ones(len(pids) - m)
    assert logged == metrics_dict(evaluate(RetrievalSet(*arrays), RankingOptions(feat_norm=True)))
    document = json.loads((tmp_path / "out" / "evaluation" / "metrics.json").read_text())
    assert "draws" not in document["protocols"]["instance"]
    assert "draws" not in caplog.text


def test_centroids_of_several_draws(run, tmp_path):
    write_vehicles(tmp_path)
    options = {"MODEL.USE_CENTROIDS": True, "MODEL.KEEP_CAMID_CENTROIDS": False, "TEST.DRAWS": 3}
    _, logged, _ = run("vehicleid_800", "validate", **options)
    _, images, _ = run("vehicleid_800", "validate", **{"TEST.DRAWS": 3})
    assert logged["strict_mAP"] == pytest.approx(images["mAP"])  # of one image each, a centroid is the image
    document = json.loads((tmp_path / "out" / "evaluation" / "metrics.json").read_text())
    assert len(document["protocols"]["instance"]["draws"]["mAP"]["values"]) == 3


def test_images_that_cannot_be_read_are_left_out_of_each_draw(run, tmp_path, caplog):
    write_vehicles(tmp_path)
    (tmp_path / "VehicleID_V1.0" / "image" / "t001.jpg").write_bytes(b"no image")
    data, logged, embeddings = run("vehicleid_800", **{"DATASETS.ON_ERROR": "skip", "TEST.DRAWS": 5})
    samples = data.query_list + data.gallery_list
    kept = np.array(["t001" not in sample[0] for sample in samples])
    pids, values = np.array([sample[1] for sample in samples]), []
    for draw in data.val.gallery_draws:
        query, gallery = (part[kept[part]] for part in draw)
        arrays = embeddings[query], embeddings[gallery], pids[query], pids[gallery]
        cameras = np.zeros(len(query)), np.ones(len(gallery))
        values.append(evaluate(RetrievalSet(*arrays, *cameras), RankingOptions(feat_norm=True)).mAP)
    assert logged["mAP"] == pytest.approx(np.mean(values))
    assert caplog.text.count("1 of 10 images could not be read and were left out") == 1


def test_copies_are_left_out_of_each_others_rankings_in_each_draw(run, tmp_path, caplog):
    write_vehicles(tmp_path)
    folder = tmp_path / "VehicleID_V1.0" / "image"
    (folder / "t001.jpg").write_bytes((folder / "t000.jpg").read_bytes())
    data, logged, embeddings = run("vehicleid_800", **{"TEST.DRAWS": 6})
    samples = data.query_list + data.gallery_list
    pids = np.array([sample[1] for sample in samples])
    group = np.array([0 if sample[0][-8:] in ("t000.jpg", "t001.jpg") else -1 for sample in samples])
    values, left_out = [], []
    for query, gallery in data.val.gallery_draws:
        own = SelfMatches(group[query], group[gallery])
        arrays = embeddings[query], embeddings[gallery], pids[query], pids[gallery], np.zeros(len(query)), gallery
        retrieval = RetrievalSet(*arrays, has_cameras=False, self_matches=own)
        values.append(evaluate(retrieval, RankingOptions(feat_norm=True)).mAP)
        left_out.append((group[gallery] >= 0).any())
    assert logged["mAP"] == pytest.approx(np.mean(values))
    assert set(left_out) == {True, False}
    said = "test: 2 of the 10 images that are drawn from are copies of others among them (the first is "
    assert caplog.text.count(said) == 1 and caplog.text.count("copies of others") == 1
    _, kept, _ = run("vehicleid_800", **{"TEST.DRAWS": 6, "TEST.SELF_MATCH": "keep"})
    assert kept["mAP"] != logged["mAP"]
    assert caplog.text.count("copies of others") == 1


def test_the_first_draw_and_the_one_at_hand_are_held(run, tmp_path, monkeypatch):
    held, plain = [], bases.evaluate_protocols

    def counting(retrieval, *arguments):
        held.append(weakref.ref(retrieval))
        assert sum(ref() is not None for ref in held) <= 2
        return plain(retrieval, *arguments)

    monkeypatch.setattr(bases, "evaluate_protocols", counting)
    run("vehicleid_800", root=write_vehicles(tmp_path), **{"TEST.DRAWS": 4})
    assert len(held) == 4


# ------------------------------------------------------------------------------------------- a data set of one's own


class InfraredSet(ReidDataModule):
    """As SYSU-MM01: infrared queries, and one image of each identity and camera of visible light as the gallery."""

    def read_splits(self):
        images = [(f"{self.cfg.DATASETS.ROOT_DIR}/{i}.png", pid, camid) for i, (pid, camid) in enumerate(self.seen())]
        return Splits(train=images, query=images[12:], gallery=images[:12])

    @staticmethod
    def seen():
        """12 images of two cameras of visible light, then 4 of an infrared one: pid, camid."""
        return [(pid, camid) for pid in (1, 2, 4) for camid in (0, 1) for _ in range(2)] + [
            (1, 2),
            (2, 2),
            (4, 2),
            (4, 2),
        ]

    def draw_gallery(self, images, number):
        places = defaultdict(list)
        for i, (_, pid, camid, _) in enumerate(images):
            places[pid, camid].append(i)
        rng = np.random.default_rng(derive_seed("infrared", number))
        gallery = [rng.choice(found) for (_, camid), found in sorted(places.items()) if camid < 2]
        return [i for i, sample in enumerate(images) if sample[2] == 2], gallery


@pytest.fixture
def infrared(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.registry.DATASETS", DATASETS)
    for i in range(16):
        write_image(tmp_path / f"{i}.png", i)
    register_dataset("infrared", InfraredSet)
    yield "infrared"
    DATASETS.pop("infrared", None)


def test_any_protocol_of_repeated_draws_can_be_written(run, infrared, tmp_path):
    data, logged, embeddings = run(infrared, **{"TEST.DRAWS": 4})
    samples = data.query_list + data.gallery_list
    pids, camids = (np.array([sample[i] for sample in samples]) for i in (1, 2))
    values = []
    for number in range(4):
        rng = np.random.default_rng(derive_seed("infrared", number))
        query, gallery = list(range(4)), []
        for pid in (1, 2, 4):
            for camid in (0, 1):
                gallery.append(rng.choice(np.flatnonzero((pids == pid) & (camids == camid))))
        arrays = embeddings[query], embeddings[gallery], pids[query], pids[gallery], camids[query], camids[gallery]
        values.append(evaluate(RetrievalSet(*arrays), RankingOptions(feat_norm=True)).mAP)
    assert logged["mAP"] == pytest.approx(np.mean(values))
    document = json.loads((tmp_path / "out" / "evaluation" / "metrics.json").read_text())
    assert document["protocols"]["instance"]["draws"]["mAP"]["values"] == values
    assert document["protocols"]["instance"]["gallery_items"] == 6


@pytest.mark.parametrize(
    ("draw", "shown"),
    [
        (([0], []), r"\(\[0\], \[\]\)"),
        (([0], [16]), r"\(\[0\], \[16\]\)"),
        (([-1], [1]), r"\(\[-1\], \[1\]\)"),
        (([0.5], [1]), r"\(\[0.5\], \[1\]\)"),
        (([0], [1], [2]), r"\(\[0\], \[1\], \[2\]\)"),
        (7, "7"),
    ],
)
def test_a_draw_that_cannot_be_evaluated_is_refused(infrared, tmp_path, monkeypatch, draw, shown):
    monkeypatch.setattr(InfraredSet, "draw_gallery", lambda self, images, number: draw if number else ([0], [1]))
    data = init_dataset(infrared, cfg=small_config(**{"DATASETS.ROOT_DIR": str(tmp_path)}), num_workers=0)
    message = rf"InfraredSet.draw_gallery, draw 1, gives {shown}; expected the positions .* numbers from 0 to 15\."
    with pytest.raises(UserError, match=message):
        data.setup("test")


@pytest.mark.parametrize(
    ("draw", "said"),
    [
        (None, "draw 1, gives None; expected"),
        (([0, 0], [1]), "draw 1, names position 0 twice; expected each image once at most."),
        (([0], [1, 0]), "draw 1, names position 0 twice"),
    ],
)
def test_a_draw_is_refused_that_is_missing_or_names_an_image_twice(infrared, tmp_path, monkeypatch, draw, said):
    monkeypatch.setattr(InfraredSet, "draw_gallery", lambda self, images, number: draw if number else ([0], [1]))
    data = init_dataset(infrared, cfg=small_config(**{"DATASETS.ROOT_DIR": str(tmp_path)}), num_workers=0)
    with pytest.raises(UserError, match=said):
        data.setup("test")


def test_a_set_of_ones_own_without_cameras_needs_no_stand_ins(run, infrared, monkeypatch):
    split = InfraredSet.read_splits
    monkeypatch.setattr(InfraredSet, "read_splits", lambda self: split(self)._replace(has_cameras=False))
    seen = [(pid, 0) for pid in (1, 2, 4) for _ in range(5)] + [(1, 0)]
    monkeypatch.setattr(InfraredSet, "seen", staticmethod(lambda: seen))
    monkeypatch.setattr(InfraredSet, "draw_gallery", ReidDataModule.draw_gallery)
    data, logged, embeddings = run(infrared)
    assert [sample[2] for sample in data.query_list + data.gallery_list] == [0] * 4 + [1] * 12
    pids = np.array([sample[1] for sample in data.query_list + data.gallery_list])
    arrays = embeddings[:4], embeddings[4:], pids[:4], pids[4:], np.zeros(4, int), np.ones(12, int)
    assert logged["mAP"] == pytest.approx(evaluate(RetrievalSet(*arrays), RankingOptions(feat_norm=True)).mAP)


def test_joined_sets_are_drawn_as_the_first(infrared, tmp_path):
    write_vehicles(tmp_path)
    cfg = small_config(**{"DATASETS.ROOT_DIR": str(tmp_path), "TEST.DRAWS": 2, "DATASETS.NAMES": "vehicleid_800"})
    alone = init_dataset("vehicleid_800", cfg=cfg, num_workers=0)
    joined = init_dataset("vehicleid_800+infrared", cfg=cfg, num_workers=0)
    for data in (alone, joined):
        data.setup("test")
    assert [[part.tolist() for part in draw] for draw in joined.val.gallery_draws] == [
        [part.tolist() for part in draw] for draw in alone.val.gallery_draws
    ]
    assert len(alone.val.gallery_draws) == 2


def test_a_data_set_with_one_division_has_no_draws(infrared, tmp_path, monkeypatch):
    monkeypatch.setattr(InfraredSet, "draw_gallery", ReidDataModule.draw_gallery)
    data = init_dataset(infrared, cfg=small_config(**{"DATASETS.ROOT_DIR": str(tmp_path)}), num_workers=0)
    data.setup("test")
    assert data.val.gallery_draws == ()


def test_lists_filled_by_hand_are_drawn_too(infrared, tmp_path):
    class ByHand(InfraredSet):
        def setup(self):
            super().setup()
            self.query_list, self.gallery_list = self.query_list[:2], self.query_list[2:] + self.gallery_list
            self.num_query = 2

        def draw_gallery(self, images, number):
            assert images == self.query_list + self.gallery_list
            return GalleryDraw(query=[number], gallery=[15])

    data = ByHand(small_config(**{"DATASETS.ROOT_DIR": str(tmp_path), "TEST.DRAWS": 2}), num_workers=0)
    data.setup()
    assert [(draw.query.tolist(), draw.gallery.tolist()) for draw in data.val.gallery_draws] == [
        ([0], [15]),
        ([1], [15]),
    ]
