"""Which checkpoint "auto" takes, and what it says where there is none."""

import os

import pytest
import torch

from config.cli import load_config
from train_ctl_model import CTLModel
from utils import misc
from utils.checkpoint import atomic_save
from utils.errors import UserError
from utils.resume import find_newest, is_auto, list_checkpoints, start_weights, version_of

STATE = {"state_dict": {key: torch.zeros(1) for key in ("backbone.a", "bn.weight", "center_loss.centers")}}
STATE["state_dict"]["fc_query.weight"] = torch.zeros(2, 1)


def save(runs, version, epoch, **hparams):
    path = runs / f"version_{version}" / "auto_checkpoints" / f"checkpoint_{epoch}.pth"
    atomic_save(STATE | {"hyper_parameters": hparams}, path)
    return path


def test_the_last_epoch_of_the_last_version_that_belongs(tmp_path):
    save(tmp_path, 2, 90, run=0)
    save(tmp_path, 10, 3, run=0)
    newest = save(tmp_path, 10, 12, run=0)
    other = save(tmp_path, 11, 1, run=1)
    (tmp_path / "version_12").mkdir()
    (tmp_path / "version_x").mkdir()
    assert find_newest(tmp_path, lambda hparams: hparams["run"] == 0) == newest
    assert find_newest(tmp_path, lambda hparams: True) == other
    assert find_newest(tmp_path, lambda hparams: False) is None
    assert find_newest(tmp_path / "nothing", lambda hparams: True) is None
    assert version_of(newest, tmp_path) == "version_10"
    assert version_of(tmp_path / "elsewhere.pth", tmp_path) is None


def test_a_file_that_is_cut_off_is_passed_over_and_remains_of_writes_are_removed(tmp_path, caplog):
    older, broken = save(tmp_path, 0, 3), save(tmp_path, 0, 4)
    os.truncate(broken, broken.stat().st_size // 2)
    remains = broken.with_name(".checkpoint_5.pth.17.tmp")
    remains.touch()
    (broken.parent / "notes.txt").touch()
    assert find_newest(tmp_path, lambda hparams: True) == older
    assert "checkpoint_4.pth" in caplog.text
    assert not remains.exists()
    assert list_checkpoints(broken.parent) == [broken, older]


@pytest.mark.parametrize(
    ("path", "auto", "weights"),
    [("auto", True, ""), ("auto:a/b.pth", True, "a/b.pth"), ("auto.pth", False, ""), ("", False, "")],
)
def test_auto(path, auto, weights):
    assert is_auto(path) == auto
    if auto:
        assert start_weights(path) == weights


def options(tmp_path, *more):
    values = ["MODEL.RESUME_TRAINING", True, "OUTPUT_DIR", str(tmp_path), *more]
    cfg = load_config("", values)
    cfg.LOG_DIR = str(tmp_path)
    return cfg


def test_a_fresh_start_needs_weights_to_start_from(tmp_path):
    with pytest.raises(UserError, match=r"no checkpoint of this run.*auto:FILE, or set MODEL.PRETRAINED False"):
        misc.run_single(options(tmp_path, "MODEL.PRETRAIN_PATH", "auto"), CTLModel, "run")
    cfg = misc._resolve_auto(options(tmp_path, "MODEL.PRETRAIN_PATH", "auto:w.pth"), "run", 0, 0)
    assert (cfg.MODEL.RESUME_TRAINING, cfg.MODEL.PRETRAIN_PATH) == (False, "w.pth")


@pytest.mark.parametrize(("reproducible", "seed", "run", "expected"), [(True, 8, 0, 1), (False, 8, 1, 0)])
def test_each_of_several_runs_finds_its_own(tmp_path, reproducible, seed, run, expected):
    paths = [save(tmp_path / "run", number, 0, data_seed=7 + number, run_number=1 - number) for number in range(2)]
    cfg = options(tmp_path, "MODEL.PRETRAIN_PATH", "auto", "REPRODUCIBLE", reproducible)
    cfg = misc._resolve_auto(cfg, "run", run, seed)
    assert str(paths[expected]) == cfg.MODEL.PRETRAIN_PATH
    assert cfg.MODEL.RESUME_TRAINING
