"""TEST.ONLY_TEST: on the data set of training, on another one, and with a checkpoint of the original."""

import csv
import json
import lzma
import re
import tarfile
from pathlib import Path

import cv2
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from config.load import load_config
from config.recorded import NETWORK, SCALING
from engine.run import run_main
from inference.embedding.embedder import Embedder
from modelling.backbones import NetworkOptions, get_backbone
from tests.small import SMALL
from tests.support import GOLDEN, assert_close, fill_by_recipe, golden
from tests.thin import RESNET18
from train_ctl_model import CTLModel
from utils.errors import UserError

TOPK = [f"Top-{k}" for k in (1, 5, 10, 20, 50)]


@pytest.fixture(scope="session")
def recorded_images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recorded")
    with tarfile.open(GOLDEN / "e2e_s0_images.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="session")
def legacy_checkpoint(tmp_path_factory):
    """The original's checkpoint with its weights filled by the recipe; yacs nodes and callback class still pickled."""
    path = tmp_path_factory.mktemp("legacy") / "legacy.ckpt"
    path.write_bytes(lzma.decompress((GOLDEN / "legacy_zero.ckpt.xz").read_bytes()))
    content = torch.load(path, weights_only=False)  # the file is ours: this keeps its classes as they are
    content["state_dict"].update(fill_by_recipe(content["state_dict"]))
    torch.save(content, path)
    assert b"yacs.config" in path.read_bytes()
    return path


def only_test(checkpoint, **more):
    return {"TEST.ONLY_TEST": True, "MODEL.PRETRAIN_PATH": str(checkpoint), **more}


def test_legacy_checkpoint_reproduces_the_recorded_metrics(
    run_script, tiny, recorded_images, legacy_checkpoint, tmp_path
):
    recorded = json.loads((GOLDEN / "e2e_s0.json").read_text())
    options = only_test(
        legacy_checkpoint,
        **RESNET18,
        **{"DATASETS.ROOT_DIR": str(recorded_images), "INPUT.SIZE_TEST": "[64, 32]", "TEST.IMS_PER_BATCH": 64},
    )
    done = run_script("train_ctl_model.py", *tiny(**options))
    assert done.returncode == 0, done.stderr
    for kind in ("instances", "centroids_keep_camids_True"):
        expected = recorded[kind]
        assert re.search(
            rf"mAP {expected['mAP']:.2%} \[[\d.]+, [\d.]+\]  Top-1 {expected['topk'][0]:.2%} \[", done.stderr
        )
    # The network once, before its numbers; the strict protocol before the published one.
    assert done.stderr.count(f"test of {legacy_checkpoint} (resnet18, 4 epoch(s), weights ") == 1
    parts = [f"test of {legacy_checkpoint}", "test, single images", "test, centroids, strict", "test, centroids, publ"]
    assert sorted(parts, key=done.stderr.index) == parts
    (line,) = [line for line in done.stderr.splitlines() if f" mAP {expected['mAP']:.2%} [" in line]
    assert "(inflated by the published code's camera look-up error; use strict_mAP and strict_Top-k of" in line


@pytest.mark.parametrize("keep_camids", [pytest.param(True, marks=pytest.mark.by_hand), False])
def test_legacy_metrics_in_full(tiny_cfg, recorded_images, legacy_checkpoint, keep_camids):
    recorded = json.loads((GOLDEN / "e2e_s0.json").read_text())
    options = only_test(
        legacy_checkpoint,
        **RESNET18,
        **{"DATASETS.ROOT_DIR": str(recorded_images), "INPUT.SIZE_TEST": [64, 32]},
        **{"MODEL.KEEP_CAMID_CENTROIDS": keep_camids},
    )
    (metrics,) = run_main(tiny_cfg(**options), CTLModel, "test")
    for kind, name in (("instances", "instances"), ("centroids", f"centroids_keep_camids_{keep_camids}")):
        expected = recorded[name]
        assert_close(metrics[kind]["mAP"], expected["mAP"], "pictures")
        assert_close([metrics[kind][k] for k in TOPK], expected["topk"], "pictures")


def test_size_scaling_and_network_that_nobody_set_are_those_of_the_checkpoint(
    tiny_folders, recorded_images, legacy_checkpoint, caplog
):
    recorded = json.loads((GOLDEN / "e2e_s0.json").read_text())["instances"]
    options = tiny_folders | only_test(legacy_checkpoint, **{"DATASETS.ROOT_DIR": str(recorded_images)})
    left = {key: value for key, value in SMALL.items() if key not in (*SCALING, *NETWORK)} | options

    def differences(**more):
        (metrics,) = run_main(
            load_config("", [part for pair in (left | more).items() for part in pair]), CTLModel, "test"
        )
        lines = [record.getMessage() for record in caplog.records if "in the checkpoint" in record.getMessage()]
        return metrics["instances"], lines

    metrics, lines = differences()
    assert_close(metrics["mAP"], recorded["mAP"], "pictures")
    assert_close([metrics[k] for k in TOPK], recorded["topk"], "pictures")
    assert lines == []
    assert differences(**{"INPUT.SIZE_TEST": [32, 16], "MODEL.LAST_STRIDE": 2})[1] == [
        "MODEL.LAST_STRIDE: 1 in the checkpoint, 2 here, which is used.",
        "INPUT.SIZE_TEST: [64, 32] in the checkpoint, [32, 16] here, which is used.",
    ]


def test_legacy_embeddings(recorded_images, legacy_checkpoint):
    from datasets import init_dataset

    model = CTLModel.load_from_checkpoint(legacy_checkpoint).eval()
    assert model.hparams.num_classes == 10
    cfg = model.hparams
    cfg.merge_from_list(["DATASETS.ROOT_DIR", str(recorded_images)])
    data = init_dataset("market1501", cfg=cfg, num_workers=0)
    data.setup()
    expected = golden("e2e_s0")
    with torch.inference_mode():
        batches = [(model(images), pids, camids) for images, pids, camids, _ in data.val_dataloader()]
    embeddings, pids, camids = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert pids.tolist() == expected["val_labels"].tolist()
    assert camids.tolist() == expected["val_camids"].tolist()
    # Pictures are decoded and resized by another Pillow than then: a grey level here and there.
    similarity = torch.nn.functional.cosine_similarity(embeddings[:, ::4], torch.from_numpy(expected["val_embeddings"]))
    assert similarity.min() > 0.9999


def test_checkpoint_on_its_own_and_on_other_data_sets(tiny_cfg, tmp_path, other_toy, coco_toy):
    (trained,) = run_main(tiny_cfg(**{"SOLVER.MAX_EPOCHS": 1}), CTLModel, "train")
    (checkpoint,) = (tmp_path / "out/train/version_0/auto_checkpoints").iterdir()
    (own,) = run_main(tiny_cfg(**only_test(checkpoint)), CTLModel, "test")
    shared = own["instances"].keys() & trained["instances"].keys()
    assert {"mAP", "Top-1", "mINP"} <= shared
    for kind in ("instances", "centroids"):
        assert own[kind]["mAP"] == pytest.approx(trained[kind]["mAP"])

    (other,) = run_main(tiny_cfg(**only_test(checkpoint, **{"DATASETS.ROOT_DIR": str(other_toy)})), CTLModel, "test")
    assert 0 < other["instances"]["mAP"] < 1
    coco = {"DATASETS.NAMES": "street2shop", "DATASETS.ROOT_DIR": str(coco_toy)}
    coco |= {"DATASETS.JSON_TRAIN_PATH": str(coco_toy / "train_coco_reid.json"), "MODEL.KEEP_CAMID_CENTROIDS": False}
    (fashion,) = run_main(tiny_cfg(**only_test(checkpoint, **coco)), CTLModel, "test")
    assert 0 < fashion["centroids"]["strict_mAP"] <= 1


def check_origin(tested, trained, checkpoint):
    """What metrics.json of a test and of the training before it say of the network."""
    embedder = Embedder.from_checkpoint(checkpoint, "cpu").identity
    shared = ("weights", "dimension", "size", "mean", "std", "exif_orientation", "draft_decoding", "resize", "flip")
    for document in (tested, trained):
        assert {name: document["network"][name] for name in shared} == {name: embedder[name] for name in shared}
        assert (document["network"]["name"], document["network"]["epochs"]) == ("resnet18", 1)
        assert document["versions"]["torch"] == torch.__version__
        assert document["command"]
    assert (tested["network"]["checkpoint"], tested["network"]["run"]) == (str(checkpoint), None)
    run = checkpoint.parent.parent
    assert (trained["network"]["checkpoint"], trained["network"]["run"]) == (None, str(run))


def test_what_a_test_writes(tiny_cfg, tmp_path):
    one_epoch = {**RESNET18, "SOLVER.MAX_EPOCHS": 1, "OUTPUT_DIR": str(tmp_path / "train")}
    run_main(tiny_cfg(**one_epoch), CTLModel, "train")
    (checkpoint,) = (tmp_path / "train/train/version_0/auto_checkpoints").iterdir()
    pictures = {**RESNET18, "TEST.VISUALIZE": "yes", "TEST.VISUALIZE_TOPK": 3, "TEST.VISUALIZE_MAX_NUMBER": 4}
    pictures |= {"TEST.HEATMAPS": 2}
    (metrics,) = run_main(tiny_cfg(**only_test(checkpoint, **pictures)), CTLModel, "test")
    out = tmp_path / "out"
    written = json.loads((out / "evaluation" / "metrics.json").read_text())
    check_origin(written, json.loads((tmp_path / "train/evaluation/metrics.json").read_text()), checkpoint)
    assert list(written["protocols"]) == ["centroid_strict", "centroid", "instance"]
    assert written["mAP"] == pytest.approx(metrics["instances"]["mAP"])  # what the configuration asks for
    assert written["protocols"]["centroid"]["mAP"] == pytest.approx(metrics["centroids"]["mAP"])
    assert written["strict_mAP"] == pytest.approx(metrics["centroids"]["strict_mAP"])
    with (out / "evaluation" / "per_query.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["protocol"] for row in rows} == {"instance", "centroid", "centroid_strict"}
    scores = sorted((float(row["AP"]), row["path"]) for row in rows if row["protocol"] == "instance")
    assert sum(score for score, _ in scores) / len(scores) == pytest.approx(written["mAP"], abs=1e-5)
    for folder in (out / "visrank", out / "visrank" / "centroid", out / "visrank" / "centroid_strict"):
        assert len(list(folder.glob("*.png"))) == 4
        assert (folder / "index.html").is_file()
        assert len(list((folder / "heatmaps").glob("*.png"))) == 2
    worst_score = scores[3][0]
    worst = {Path(path).stem for score, path in scores if score <= worst_score}
    assert {path.stem for path in (out / "visrank").glob("*.png")} <= worst
    picture = cv2.imread(str(next((out / "visrank").glob("*.png"))))
    assert picture.shape[0] == 32  # SIZE_TEST


def test_reranking_and_query_expansion_are_options_of_a_test(tiny_cfg, tmp_path):
    run_main(tiny_cfg(**{"SOLVER.MAX_EPOCHS": 1}), CTLModel, "train")
    (checkpoint,) = (tmp_path / "out/train/version_0/auto_checkpoints").iterdir()
    settings = ({}, {"TEST.RERANK": True, "TEST.RERANK_K1": 4, "TEST.RERANK_K2": 2}, {"TEST.QUERY_EXPANSION": 2})
    scores = set()
    for options in settings:
        (metrics,) = run_main(tiny_cfg(**only_test(checkpoint, **options)), CTLModel, "test")
        scores.add(round(metrics["instances"]["mAP"], 6))
    assert len(scores) == 3


def test_legacy_checkpoint_resumes(tiny_cfg, tmp_path, recorded_images, legacy_checkpoint):
    options = {"MODEL.RESUME_TRAINING": True, "MODEL.PRETRAIN_PATH": str(legacy_checkpoint), "SOLVER.MAX_EPOCHS": 6}
    options |= {**RESNET18, "SOLVER.LR_STEPS": (3, 5), "SOLVER.BASE_LR": 1e-4}
    options |= {"DATASETS.ROOT_DIR": str(recorded_images), "INPUT.SIZE_TRAIN": [64, 32], "INPUT.SIZE_TEST": [64, 32]}
    run_main(tiny_cfg(**options, **{"SOLVER.EVAL_PERIOD": 6}), CTLModel, "resumed")
    (newest,) = (tmp_path / "out/resumed/version_0/auto_checkpoints").iterdir()
    content = torch.load(newest, weights_only=True)
    assert newest.name == "checkpoint_5.pth"  # epochs 4 and 5 were left
    steps = {int(state["step"]) for state in content["optimizer_states"][0]["state"].values()}
    batches = (10 // 3 + 1) * 2  # at most
    assert 16 < min(steps) == max(steps) <= 16 + 2 * batches
    events = EventAccumulator(str(newest.parent.parent))
    events.Reload()
    rates = [(event.step, event.value) for event in events.Scalars("lr")]
    assert rates == [(4, pytest.approx(1e-5)), (5, pytest.approx(1e-6))]


@pytest.mark.slow
def test_weights_of_a_backbone_are_tested_as_they_are(run_script, tiny, tiny_cfg, tmp_path):
    """ImageNet weights, as for a comparison: a real program, with the metrics of the same weights before training."""
    weights = tmp_path / "resnet18.pth"
    torch.save(fill_by_recipe(get_backbone("resnet18").build(NetworkOptions(1)).state_dict()), weights)
    done = run_script("train_ctl_model.py", *tiny(**RESNET18, **only_test(weights)))
    assert done.returncode == 0, done.stderr
    warning = (
        f"{weights} holds torchvision resnet18 weights, not a trained CTL model: embeddings are the pooled features"
    )
    assert done.stderr.count(warning) == 1
    tested = json.loads((tmp_path / "out" / "evaluation" / "metrics.json").read_text())["mAP"]
    start = {**RESNET18, "MODEL.PRETRAINED": True, "MODEL.PRETRAIN_PATH": str(weights), "TEST.BEFORE_TRAINING": True}
    (metrics,) = run_main(tiny_cfg(**start, **{"SOLVER.MAX_EPOCHS": 1}), CTLModel, "train")
    assert metrics["before training"]["mAP"] == pytest.approx(tested)
    assert 0 < tested < 1
    other = only_test(weights, **{"MODEL.NAME": "resnet34"})
    with pytest.raises(UserError, match=r"100 of 180 tensors fit, .*lower MODEL\.PRETRAIN_MIN_SHARE"):
        run_main(tiny_cfg(**other), CTLModel, "test")
    torch.save({"a": torch.ones(1)}, weights)
    with pytest.raises(UserError, match="weights of an unknown network .the first is a.; expected a checkpoint"):
        run_main(tiny_cfg(**RESNET18, **only_test(weights)), CTLModel, "test")
