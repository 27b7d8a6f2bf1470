"""The tree of defaults, its documentation, the shared object, and the YAML files of the repository."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
from yacs.config import CfgNode

from config import cfg, defaults
from config.flatten import flatten_config
from config.load import load_config
from config.reference import format_reference, read_reference
from config.validate import CHOICES, MAXIMA, MINIMA, NEW_KEYS, check_config, check_keys
from tests.launch import run_code
from tests.support import GOLDEN, ROOT
from utils.devices import DEFAULT_WORKERS
from utils.errors import ConfigError

RECORDED = json.loads((GOLDEN / "config_defaults.json").read_text())
ADDED = {
    "DATASETS.TESTS": "",
    "DATASETS.COMBINEALL": False,
    "DATASETS.CSV_PATH": "",
    "DATASETS.CAMERA_FROM": "name",
    "INPUT.EXIF_ORIENTATION": True,
    "INPUT.DRAFT_DECODING": False,
    "INPUT.RESIZE": "stretch",
    "INPUT.COLOR_JITTER": [],
    "INPUT.COLOR_JITTER_PROB": 1.0,
    "INPUT.GRAY_PROB": 0.0,
    "INPUT.RAND_AUGMENT": [],
    "INPUT.RE_MODE": "mean",
    "INPUT.RE_AREA": [0.02, 0.4],
    "TEST.FLIP": False,
    "GALLERY.DTYPE": "float32",
    "GALLERY.ROWS_PER_FILE": 1_000_000,
    "LOSSES.EXTRA": [],
    "LOSSES.EXTRA_ARGS": [],
    "LOSSES.EXTRA_WEIGHTS": [],
    "SOLVER.MIN_LR": 0.0,
    "SOLVER.BIAS_LR_FACTOR": 1.0,
    "SOLVER.BIAS_DECAY_FACTOR": 1.0,
    "SOLVER.HEAD_LR_FACTOR": 1.0,
    "SOLVER.LAYER_DECAY": 1.0,
    "SOLVER.NO_DECAY": False,
    "SOLVER.WARMUP_STEPS": 0,
    "SOLVER.FREEZE_EPOCHS": 0,
    "SOLVER.LABEL_SMOOTHING": 0.1,
    "MODEL.FREEZE_AT": [],
    "SOLVER.GATHER_NEGATIVES": False,
    "SOLVER.SOFT_MARGIN": False,
    "SOLVER.ACCUMULATE": 1,
    "SOLVER.CLIP_GRAD_NORM": 0.0,
    "SOLVER.EMA_DECAY": 0.0,
    "TRAINER.SYNC_BATCHNORM": False,
    "DATASETS.ON_ERROR": "stop",
    "TEST.RERANK": False,
    "TEST.RERANK_K1": 20,
    "TEST.RERANK_K2": 6,
    "TEST.RERANK_LAMBDA": 0.3,
    "TEST.QUERY_EXPANSION": 0,
    "TEST.SELF_MATCH": "drop",
    "TEST.HEATMAPS": 0,
    "TRAINER.ACCELERATOR": "auto",
    "TRAINER.NUM_NODES": 1,
    "TRAINER.PRECISION": "",
    "TRAINER.PROGRESS_BAR": True,
    "DATALOADER.CACHE": "none",
    "DATALOADER.CACHE_GB": 8.0,
    "DATALOADER.CACHE_DIR": "",
    "LOGGING.EVERY_N_STEPS": 10,
    "LOGGING.MLFLOW": True,
    "LOGGING.MLFLOW_URI": "",
    "LOGGING.ON_ERROR": "continue",
    "MODEL.POOLING": "avg",
    "MODEL.EMBED_DIM": 0,
    "MODEL.NECK_FEAT": "after",
    "MODEL.CHANNELS_LAST": True,
    "MODEL.COMPILE": False,
    "MODEL.DROP_PATH": 0.0,
    "MODEL.PATCH_STRIDE": 0,
    "MODEL.GRAD_CHECKPOINT": False,
    "MODEL.PRETRAIN_HEAD": False,
    "MODEL.PRETRAIN_MIN_SHARE": 1.0,
    "MODEL.STEM_RELU": False,
    "TEST.BEFORE_TRAINING": False,
    "TEST.DRAWS": 10,
    "TRAINER.FAST_MATH": False,
    "TRAINER.PROFILER": "",
}


def test_defaults_are_the_recorded_ones() -> None:
    expected = flatten_config(CfgNode(RECORDED)) | ADDED
    expected["SOLVER.LR_STEPS"] = tuple(expected["SOLVER.LR_STEPS"])  # JSON has no tuples
    actual = flatten_config(cfg)
    assert actual == expected
    assert {key: type(value) for key, value in actual.items()} == {key: type(value) for key, value in expected.items()}


def test_what_must_be_left_out_for_the_original_is_told() -> None:
    passage = (ROOT / "docs" / "MIGRATION.md").read_text().partition("## Rolling back")[2]
    assert set(re.findall(r"`([A-Z]+\.[A-Z0-9_]+)`", passage)) == set(ADDED)


def test_a_configuration_of_another_version_is_told_apart() -> None:
    assert set(NEW_KEYS) == set(ADDED)
    check_keys(cfg)
    of_the_original = CfgNode(RECORDED)
    with pytest.raises(
        ConfigError, match=r"sections?\(?s?\)? GALLERY, LOGGING, LOSSES, TRAINER and DATALOADER.CACHE, .*MIGRATION"
    ):
        check_keys(of_the_original)


def test_defaults_pass_their_own_check() -> None:
    check_config(cfg)


def test_the_default_number_of_workers_is_told_from_a_chosen_one() -> None:
    assert cfg.DATALOADER.NUM_WORKERS == DEFAULT_WORKERS


def test_cfg_is_the_one_shared_mutable_tree() -> None:
    assert cfg is defaults._C
    program = (
        "from config import cfg\n"
        "cfg.merge_from_file('configs/256_resnet50.yml')\n"
        "cfg.merge_from_list(['MODEL.PRETRAIN_PATH', 'a.ckpt', 'MODEL.PRETRAINED', True, 'TEST.ONLY_TEST', True,\n"
        "                     'MODEL.RESUME_TRAINING', False, 'GPU_IDS', '[]', 'SOLVER.LR_STEPS', [1, 2]])\n"
        "import config.defaults, config.cli\n"
        "assert config.defaults._C.MODEL.PRETRAIN_PATH == 'a.ckpt'\n"
        "assert config.defaults._C.SOLVER.BASE_LR == 1e-4 and config.cfg.GPU_IDS == []\n"
        "assert config.cli.load_config().MODEL.PRETRAIN_PATH == 'a.ckpt'\n"
    )
    done = run_code(program)
    assert done.returncode == 0, done.stderr


def test_every_key_is_documented_with_its_default() -> None:
    reference = {key.name: key for section in read_reference() for key in section.keys}
    values = flatten_config(cfg)
    assert sorted(reference) == sorted(values)
    for name, value in values.items():
        assert ast.literal_eval(reference[name].default) == value, name
        assert reference[name].comment.endswith("."), name
    assert all(section.comment for section in read_reference())
    unused = {name for name, key in reference.items() if "Accepted, unused" in key.comment}
    assert unused == set(defaults.UNUSED_KEYS)


def test_reference_text_holds_every_key_and_comment() -> None:
    text = format_reference()
    words = " ".join(text.split())
    for section in read_reference():
        for key in section.keys:
            assert f"  {key.name} = {key.default}\n" in text
            assert key.comment in words


def test_reference_groups_keys_by_section() -> None:
    for section in read_reference():
        for key in section.keys:
            assert key.name.rpartition(".")[0] == section.name


@pytest.mark.parametrize("key", sorted({*CHOICES, *MINIMA, *MAXIMA}))
def test_rules_are_about_keys_that_exist(key: str) -> None:
    assert key in flatten_config(cfg)


@pytest.mark.parametrize("key", sorted(CHOICES))
def test_documentation_names_the_choices(key: str) -> None:
    if key == "TRAINER.PRECISION":  # Lightning's list; the comment names a few of them
        return
    comment = next(k.comment for section in read_reference() for k in section.keys if k.name == key)
    for choice in CHOICES[key]:
        assert str(choice) in comment


COMMON = {
    "MODEL.BACKBONE_EMB_SIZE": 2048,
    "MODEL.KEEP_CAMID_CENTROIDS": True,
    "DATALOADER.NUM_INSTANCE": 4,
    "SOLVER.BASE_LR": 1e-4,
    "SOLVER.OPTIMIZER_NAME": "Adam",
    "SOLVER.MAX_EPOCHS": 120,
    "SOLVER.EVAL_PERIOD": 40,
    "USE_MIXED_PRECISION": True,
    "REPRODUCIBLE_NUM_RUNS": 3,
}
FILES: dict[str, dict[str, Any]] = {
    "256_resnet50.yml": {
        "MODEL.NAME": "resnet50",
        "MODEL.PRETRAIN_PATH": "./models/resnet50-19c8e357.pth",
        "INPUT.SIZE_TRAIN": [256, 128],
        "INPUT.SIZE_TEST": [256, 128],
    },
    "320_resnet50_ibn_a.yml": {
        "MODEL.NAME": "resnet50_ibn_a",
        "MODEL.PRETRAIN_PATH": "./models/r50_ibn_a.pth",
        "INPUT.SIZE_TRAIN": [320, 320],
        "INPUT.SIZE_TEST": [320, 320],
    },
}


@pytest.mark.parametrize("name", sorted(FILES))
def test_yaml_holds_the_pinned_keys_and_changes_no_other(name: str) -> None:
    expected = flatten_config(cfg) | COMMON | FILES[name]
    assert flatten_config(load_config(ROOT / "configs" / name)) == expected
    plain_yacs = cfg.clone()
    plain_yacs.merge_from_file(str(ROOT / "configs" / name))
    assert flatten_config(plain_yacs) == expected


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.y*ml")), ids=lambda path: path.name)
def test_every_yaml_loads(path: Path) -> None:
    load_config(path)
