"""What was set reaches the run, what was not set comes from the checkpoint, and what differs or is void is said."""

import json
import logging

import pytest
import torch

from config import cfg as shared_cfg
from config.load import load_config
from config.recorded import NETWORK, SCALING
from engine.run import run_main
from inference import Embedder
from tests.datasets.conftest import AUGMENTED
from tests.small import SMALL
from train_base_model import BaseModel
from train_ctl_model import CTLModel
from utils.errors import UserError


def said(caplog):
    """The lines about differences from a checkpoint."""
    return [record.getMessage() for record in caplog.records if "in the checkpoint" in record.getMessage()]


def unset(*keys, **values):
    """The small configuration without some of its keys, and with others."""
    options = {key: value for key, value in SMALL.items() if key not in keys} | values
    return load_config("", [part for pair in options.items() for part in pair])


def checkpoint_of(folder, epoch):
    (path,) = folder.glob(f"*/version_*/auto_checkpoints/checkpoint_{epoch}.pth")
    return torch.load(path, weights_only=True), path


def test_a_continued_run_uses_and_records_the_new_settings_and_says_which(tiny_folders, tmp_path, caplog):
    first = unset(**tiny_folders, **{"SOLVER.MAX_EPOCHS": 1, "INPUT.PIXEL_STD": [0.5, 0.5, 0.5]})
    run_main(first, BaseModel, "run")
    old, path = checkpoint_of(tmp_path / "out", 0)
    changes = {"SOLVER.BASE_LR": 1e-2, "SOLVER.WEIGHT_DECAY": 0.125, "SOLVER.CENTER_LR": 0.25, "SOLVER.MAX_EPOCHS": 2}
    resume = {"MODEL.RESUME_TRAINING": True, "MODEL.PRETRAIN_PATH": str(path), "OUTPUT_DIR": str(tmp_path / "rest")}
    caplog.clear()
    run_main(unset(*SCALING, *NETWORK, "DATALOADER.NUM_WORKERS", **tiny_folders | resume | changes), BaseModel, "run")
    assert said(caplog) == [
        "DATALOADER.NUM_WORKERS: 0 in the checkpoint, 6 here by default, which is used.",
        "SOLVER.MAX_EPOCHS: 1 in the checkpoint, 2 here, which is used.",
        "SOLVER.BASE_LR: 0.0001 in the checkpoint, 0.01 here, which is used.",
        "SOLVER.CENTER_LR: 0.5 in the checkpoint, 0.25 here, which is used.",
        "SOLVER.WEIGHT_DECAY: 0.0005 in the checkpoint, 0.125 here, which is used.",
    ]
    new, _ = checkpoint_of(tmp_path / "rest", 1)
    (adam,), (sgd,) = (state["param_groups"] for state in new["optimizer_states"])
    assert (adam["lr"], adam["initial_lr"], adam["weight_decay"]) == (1e-2, 1e-2, 0.125)
    assert sgd["lr"] == 0.25
    assert new["lr_schedulers"][0]["base_lrs"] == [1e-2]
    steps = [{int(s["step"]) for s in content["optimizer_states"][0]["state"].values()} for content in (old, new)]
    assert max(steps[1]) > max(steps[0]) > 0  # they went on
    recorded = new["hyper_parameters"]
    assert {key: recorded["SOLVER"][key.partition(".")[2]] for key in changes} == {
        key: pytest.approx(value) for key, value in changes.items()
    }
    assert (recorded["INPUT"]["SIZE_TEST"], recorded["INPUT"]["PIXEL_STD"]) == ([32, 16], [0.5, 0.5, 0.5])
    assert recorded["MODEL"]["NAME"] == "resnet18"


def test_the_same_command_again_says_nothing(tiny_folders, caplog):
    again = {"MODEL.RESUME_TRAINING": True, "MODEL.PRETRAIN_PATH": "auto", "SOLVER.MAX_EPOCHS": 1}
    for _ in range(2):
        run_main(unset(**tiny_folders | again), BaseModel, "run")
    assert "only the tests are left" in caplog.text
    assert said(caplog) == []
    assert "no effect" not in caplog.text


def test_what_is_void_is_said_once_at_the_start_of_the_real_script(run_script, tmp_path):
    """The configuration that the README once gave for one's own images, with two more keys."""
    (tmp_path / "own.yml").write_text("MODEL: {PRETRAINED: False, PRETRAIN_PATH: ./w.pth}\nGPU_IDS: []\n")
    options = ("TEST.RERANK_K1", "30", "LOGGING.MLFLOW", "False", "OUTPUT_DIR", "out")
    done = run_script("train_ctl_model.py", "--config_file", "own.yml", *options)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "MODEL.PRETRAIN_PATH ./w.pth has no effect: MODEL.PRETRAINED, MODEL.RESUME_TRAINING and TEST.ONLY_TEST are "
        "False; nor is there such a file.",
        "TEST.RERANK_K1 30 has no effect: TEST.RERANK is False.",
        "error: Folder /home/data/market1501/bounding_box_train does not exist; DATASETS.ROOT_DIR must be the folder "
        "above market1501. It is '/home/data', the default: nothing sets DATASETS.ROOT_DIR.",
    ]


def test_paths_of_a_program_that_merges_into_cfg_are_written_out(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    cfg = shared_cfg.clone()
    cfg.merge_from_list(["MODEL.PRETRAINED", False, "DATASETS.ROOT_DIR", "~/none", "OUTPUT_DIR", "$OUT", "GPU_IDS", []])
    with pytest.raises(UserError, match=f"^Folder {tmp_path}/none/market1501/bounding_box_train does not exist"):
        run_main(cfg, CTLModel, "run")
    assert (tmp_path / "out").is_dir()
    assert cfg.OUTPUT_DIR == "$OUT"
    cfg.OUTPUT_DIR = "$NOWHERE"
    with pytest.raises(UserError, match="OUTPUT_DIR is '\\$NOWHERE', but the environment variable NOWHERE is not set"):
        run_main(cfg, CTLModel, "run")
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_augmentation_resize_and_flip_of_a_run_and_of_the_test_of_its_checkpoint(tiny_folders, tmp_path, caplog):
    wide = {"INPUT.SIZE_TRAIN": [24, 24], "INPUT.SIZE_TEST": [24, 24], "SOLVER.MAX_EPOCHS": 1, "TEST.FLIP": True}
    (trained,) = run_main(unset(**tiny_folders | AUGMENTED | wide), CTLModel, "run")
    _, path = checkpoint_of(tmp_path / "out", 0)
    test = {"TEST.ONLY_TEST": True, "MODEL.PRETRAIN_PATH": str(path), "OUTPUT_DIR": str(tmp_path / "test")}
    caplog.clear()
    (tested,) = run_main(unset(*SCALING, *NETWORK, **tiny_folders | test), CTLModel, "run")
    assert said(caplog) == []
    assert "images 24x24 padded and mirrored, mean [0.485, 0.456, 0.406]" in caplog.text
    for kind in ("instances", "centroids"):
        assert tested[kind]["mAP"] == trained[kind]["mAP"]
    network = json.loads((tmp_path / "test/evaluation/metrics.json").read_text())["network"]
    assert (network["resize"], network["flip"]) == ("pad", True)
    identity = Embedder.from_checkpoint(path, "cpu").identity
    assert identity == {key: network[key] for key in identity if key != "dtype"} | {"dtype": "float32"}
    caplog.clear()
    other = {"INPUT.RESIZE": "stretch", "TEST.FLIP": False}
    run_main(unset(*SCALING, *NETWORK, **tiny_folders | test | other), CTLModel, "run")
    assert said(caplog) == [
        "INPUT.RESIZE: 'pad' in the checkpoint, 'stretch' here, which is used.",
        "TEST.FLIP: True in the checkpoint, False here, which is used.",
    ]
    assert "images 24x24, mean" in caplog.text
