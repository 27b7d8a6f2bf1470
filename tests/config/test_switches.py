"""Keys that others switch off: every key has a switch or a reason to have none, and every switch says its line."""

import json
from typing import Any

import pytest
import torch
import yaml

from config import DEFAULT_VALUES
from config.load import load_config
from config.switches import COCO_SETS, SETS, SWITCHES, Facts, find_foreign, find_unused
from datasets.registry import DATASETS
from modelling.backbones import BACKBONES, NetworkOptions, get_backbone
from modelling.backbones.osnet import OSNet
from tests.support import GOLDEN, ROOT

CPU, CUDA = Facts("cpu", 1), Facts("gpu", 1)
TABLE = {key: switch for switch in SWITCHES for key in switch.keys}
TRAINING = "training reads it; that TEST.ONLY_TEST trains nothing is what that key is for"
ALWAYS = "every run reads it"
WITHOUT_SWITCH = {
    "MODEL.PRETRAINED": "MODEL.RESUME_TRAINING and TEST.ONLY_TEST name the weights to take in its place",
    "TEST.SELF_MATCH": "depends on the data: whether it has cameras",
    "TEST.BEFORE_TRAINING": "engine.run says when there is no training to come",
    "GALLERY.DTYPE": "create_embeddings.py reads it, whatever else is set",
    "GALLERY.ROWS_PER_FILE": "create_embeddings.py reads it, whatever else is set",
    "MODEL.KEEP_CAMID_CENTROIDS": "depends on the data; engine.run says it",
    "DATASETS.ROOT_DIR": "csv may need it or not; every other set reads it",
    "LOSSES.EXTRA_ARGS": "refused by config.validate without LOSSES.EXTRA",
    "LOSSES.EXTRA_WEIGHTS": "refused by config.validate without LOSSES.EXTRA",
    "SOLVER.USE_AUTOMATIC_OPTIM": "has only one allowed value",
    "SOLVER.EVAL_PERIOD": "engine.run warns if it is above MAX_EPOCHS",
    "SOLVER.DIST_BACKEND": "ddp_cpu chooses the device; ddp and ddp_spawn do the same on one process",
    "TRAINER.NUM_NODES": "the run waits for that many machines, whatever else is set",
    **dict.fromkeys(
        (
            *("MODEL.COMPILE", "MODEL.GRAD_CHECKPOINT", "INPUT.SIZE_TRAIN", "INPUT.PROB", "INPUT.RE_PROB"),
            *("INPUT.COLOR_JITTER", "INPUT.GRAY_PROB", "INPUT.RAND_AUGMENT"),
            *("INPUT.PADDING", "DATALOADER.SAMPLER", "DATALOADER.NUM_INSTANCE"),
            *("DATALOADER.USE_RESAMPLING", "SOLVER.OPTIMIZER_NAME", "SOLVER.MAX_EPOCHS", "SOLVER.BASE_LR"),
            *("SOLVER.SOFT_MARGIN", "SOLVER.CENTER_LOSS_WEIGHT", "SOLVER.WEIGHT_DECAY", "SOLVER.LR_SCHEDULER_NAME"),
            *("SOLVER.USE_WARMUP_LR", "SOLVER.MONITOR_METRIC_NAME", "SOLVER.MONITOR_METRIC_MODE"),
            *("SOLVER.IMS_PER_BATCH", "SOLVER.QUERY_XENT_WEIGHT", "SOLVER.QUERY_CONTRASTIVE_WEIGHT", "LOSSES.EXTRA"),
            *("SOLVER.BIAS_LR_FACTOR", "SOLVER.HEAD_LR_FACTOR", "SOLVER.LAYER_DECAY", "SOLVER.FREEZE_EPOCHS"),
            "MODEL.FREEZE_AT",
            *("SOLVER.ACCUMULATE", "SOLVER.CLIP_GRAD_NORM", "SOLVER.EMA_DECAY"),
        ),
        TRAINING,
    ),
    **dict.fromkeys(
        (
            *("MODEL.NAME", "MODEL.BACKBONE_EMB_SIZE", "MODEL.USE_CENTROIDS"),
            *("MODEL.POOLING", "MODEL.EMBED_DIM", "MODEL.NECK_FEAT"),
            *(
                "MODEL.CHANNELS_LAST",
                "INPUT.DRAFT_DECODING",
                "INPUT.EXIF_ORIENTATION",
                "INPUT.SIZE_TEST",
                "INPUT.RESIZE",
                "INPUT.PIXEL_MEAN",
                "INPUT.PIXEL_STD",
                "DATASETS.NAMES",
                "DATASETS.TESTS",
            ),
            *("DATASETS.ON_ERROR", "DATALOADER.NUM_WORKERS", "DATALOADER.CACHE", "SOLVER.DISTANCE_FUNC"),
            *("TEST.IMS_PER_BATCH", "TEST.FEAT_NORM", "TEST.FLIP", "TEST.ONLY_TEST", "TEST.VISUALIZE", "TEST.RERANK"),
            *("TEST.QUERY_EXPANSION", "TRAINER.ACCELERATOR", "TRAINER.PRECISION", "TRAINER.PROFILER"),
            *(
                "TRAINER.PROGRESS_BAR",
                "LOGGING.EVERY_N_STEPS",
                "LOGGING.MLFLOW",
                "LOGGING.ON_ERROR",
                "OUTPUT_DIR",
                "REPRODUCIBLE",
            ),
            "REPRODUCIBLE_NUM_RUNS",
        ),
        ALWAYS,
    ),
}


@pytest.mark.parametrize("key", DEFAULT_VALUES)
def test_every_key_has_a_switch_or_a_reason_to_have_none(key):
    assert (key in TABLE) != (key in WITHOUT_SWITCH)


def test_the_tables_hold_keys_only_and_each_once():
    assert {*TABLE, *WITHOUT_SWITCH} == set(DEFAULT_VALUES)
    pairs = [(key, switch.by) for switch in SWITCHES for key in switch.keys]
    assert len(set(pairs)) == len(pairs)
    assert {key for switch in SWITCHES for key in switch.by} <= set(DEFAULT_VALUES)
    assert all(switch.by or switch.reason for switch in SWITCHES)
    assert set(SETS) == set(DATASETS)
    assert set(COCO_SETS) <= set(SETS)


# What is set, what is known, and the line; then what makes it quiet.
CASES: list[tuple[dict[str, Any], Facts, str, Any]] = [
    (
        {"MODEL.LAST_STRIDE": 2, "MODEL.NAME": "timm:convnext_tiny"},
        CPU,
        "MODEL.LAST_STRIDE 2 has no effect: MODEL.NAME is timm:convnext_tiny.",
        {"MODEL.NAME": "resnet18"},
    ),
    (
        {"MODEL.DROP_PATH": 0.1, "MODEL.PATCH_STRIDE": 12, "MODEL.NAME": "resnet18"},
        CPU,
        "MODEL.DROP_PATH 0.1, MODEL.PATCH_STRIDE 12 have no effect: MODEL.NAME is resnet18.",
        {"MODEL.NAME": "timm:vit_base_patch16_224"},
    ),
    (
        {"MODEL.PRETRAIN_PATH": "no.pth", "MODEL.PRETRAINED": False},
        CPU,
        "MODEL.PRETRAIN_PATH no.pth has no effect: MODEL.PRETRAINED, MODEL.RESUME_TRAINING and TEST.ONLY_TEST are "
        "False; nor is there such a file.",
        {"TEST.ONLY_TEST": True},
    ),
    (
        {"MODEL.PRETRAIN_PATH": "auto", "MODEL.PRETRAINED": False},
        CPU,
        "MODEL.PRETRAIN_PATH auto has no effect: MODEL.PRETRAINED, MODEL.RESUME_TRAINING and TEST.ONLY_TEST are "
        "False; MODEL.RESUME_TRAINING True continues the newest checkpoint.",
        {"MODEL.RESUME_TRAINING": True},
    ),
    (
        {"DATASETS.COMBINEALL": True, "TEST.ONLY_TEST": True, "MODEL.PRETRAIN_PATH": "a.ckpt"},
        CPU,
        "DATASETS.COMBINEALL True has no effect: TEST.ONLY_TEST is True.",
        {"TEST.ONLY_TEST": False},
    ),
    (
        {"MODEL.PRETRAIN_HEAD": True, "MODEL.PRETRAINED": False},
        CPU,
        "MODEL.PRETRAIN_HEAD True has no effect: the run starts no training from weights (MODEL.PRETRAINED).",
        {"MODEL.PRETRAINED": True},
    ),
    (
        {"MODEL.PRETRAIN_HEAD": True, "MODEL.RESUME_TRAINING": True, "MODEL.PRETRAIN_PATH": "a.ckpt"},
        CPU,
        "MODEL.PRETRAIN_HEAD True has no effect: the run starts no training from weights (MODEL.PRETRAINED).",
        {"MODEL.PRETRAIN_PATH": "auto:a.ckpt"},
    ),
    (
        {"MODEL.PRETRAIN_MIN_SHARE": 0.5, "MODEL.PRETRAINED": False},
        CPU,
        "MODEL.PRETRAIN_MIN_SHARE 0.5 has no effect: the run starts no training from weights and tests none "
        "(MODEL.PRETRAINED, TEST.ONLY_TEST).",
        {"TEST.ONLY_TEST": True, "MODEL.PRETRAIN_PATH": "a.ckpt"},
    ),
    (
        {"GPU_IDS": [0, 1]},
        CPU,
        "GPU_IDS [0, 1] has no effect: the run does not compute on CUDA.",
        {"SOLVER.DIST_BACKEND": "ddp_cpu"},
    ),
    (
        {"GPU_IDS": [1]},
        CPU,
        "GPU_IDS [1] has no effect: the run does not compute on CUDA.",
        {"GPU_IDS": [0]},  # the default, which README gives too
    ),
    (
        {"DATALOADER.DROP_LAST": False},
        CPU,
        "DATALOADER.DROP_LAST False has no effect: DATALOADER.SAMPLER random_identity draws whole batches only.",
        {"DATASETS.NAMES": "my_package.data:Shop"},
    ),
    (
        {"DATASETS.CAMERA_FROM": "folder"},
        CPU,
        "DATASETS.CAMERA_FROM folder has no effect: DATASETS.NAMES is market1501.",
        {"DATASETS.NAMES": "folder"},
    ),
    (
        {"INPUT.RE_MODE": "pixel", "INPUT.RE_AREA": [0.1, 0.2], "INPUT.RE_PROB": 0},
        CPU,
        "INPUT.RE_MODE pixel, INPUT.RE_AREA [0.1, 0.2] have no effect: INPUT.RE_PROB is 0.0.",
        {"INPUT.RE_PROB": 0.1},
    ),
    (
        {"INPUT.COLOR_JITTER_PROB": 0.5},
        CPU,
        "INPUT.COLOR_JITTER_PROB 0.5 has no effect: INPUT.COLOR_JITTER is [].",
        {"INPUT.COLOR_JITTER": [0.1, 0.1, 0.1, 0]},
    ),
    (
        {"MODEL.LAST_STRIDE": 2, "MODEL.NAME": "osnet_ain_x0_75"},
        CPU,
        "MODEL.LAST_STRIDE 2 has no effect: MODEL.NAME is osnet_ain_x0_75.",
        {"MODEL.NAME": "resnet18"},
    ),
    (
        {"MODEL.STEM_RELU": True, "MODEL.NAME": "resnet50_ibn_a"},
        CPU,
        "MODEL.STEM_RELU True has no effect: MODEL.NAME is resnet50_ibn_a.",
        {"MODEL.NAME": "resnet50"},
    ),
    (
        {"MODEL.RESUME_TRAINING": True, "TEST.ONLY_TEST": True, "MODEL.PRETRAIN_PATH": "a.ckpt"},
        CPU,
        "MODEL.RESUME_TRAINING True has no effect: TEST.ONLY_TEST is True.",
        {"MODEL.PRETRAIN_PATH": "auto"},
    ),
    (
        {"DATASETS.CSV_PATH": "a.csv"},
        CPU,
        "DATASETS.CSV_PATH a.csv has no effect: DATASETS.NAMES is market1501.",
        {"DATASETS.NAMES": "market1501 + csv"},
    ),
    (
        {"DATASETS.JSON_TRAIN_PATH": "a.json", "DATASETS.NAMES": "csv+folder"},
        CPU,
        "DATASETS.JSON_TRAIN_PATH a.json has no effect: DATASETS.NAMES is csv+folder.",
        {"DATASETS.NAMES": "csv+my_package.data:Shop"},
    ),
    (
        {"DATALOADER.CACHE_DIR": "/c", "DATALOADER.CACHE": "ram"},
        CPU,
        "DATALOADER.CACHE_DIR /c has no effect: DATALOADER.CACHE is ram.",
        {"DATALOADER.CACHE": "disk"},
    ),
    (
        {"DATALOADER.CACHE_GB": 9},
        CPU,
        "DATALOADER.CACHE_GB 9.0 has no effect: DATALOADER.CACHE is none.",
        {"DATALOADER.CACHE": "ram"},
    ),
    (
        {"SOLVER.MIN_LR": 1e-6},
        CPU,
        "SOLVER.MIN_LR 1e-06 has no effect: SOLVER.LR_SCHEDULER_NAME is multistep_lr.",
        {"SOLVER.LR_SCHEDULER_NAME": "cosine_annealing"},
    ),
    (
        {"SOLVER.GAMMA": 0.5, "SOLVER.LR_STEPS": [5], "SOLVER.LR_SCHEDULER_NAME": "cosine_annealing"},
        CPU,
        "SOLVER.GAMMA 0.5, SOLVER.LR_STEPS (5,) have no effect: SOLVER.LR_SCHEDULER_NAME is cosine_annealing.",
        {"SOLVER.LR_SCHEDULER_NAME": "multistep_lr"},
    ),
    (
        {"SOLVER.WARMUP_EPOCHS": 3, "SOLVER.USE_WARMUP_LR": False},
        CPU,
        "SOLVER.WARMUP_EPOCHS 3 has no effect: SOLVER.USE_WARMUP_LR is False.",
        {"SOLVER.USE_WARMUP_LR": True},
    ),
    (
        {"SOLVER.WARMUP_EPOCHS": 3, "SOLVER.WARMUP_STEPS": 500},
        CPU,
        "SOLVER.WARMUP_EPOCHS 3 has no effect: SOLVER.WARMUP_STEPS is 500.",
        {"SOLVER.WARMUP_STEPS": 0},
    ),
    (
        {"SOLVER.WARMUP_STEPS": 500, "SOLVER.USE_WARMUP_LR": False},
        CPU,
        "SOLVER.WARMUP_STEPS 500 has no effect: SOLVER.USE_WARMUP_LR is False.",
        {"SOLVER.USE_WARMUP_LR": True},
    ),
    (
        {"SOLVER.MOMENTUM": 0.5, "SOLVER.OPTIMIZER_NAME": "AdamW"},
        CPU,
        "SOLVER.MOMENTUM 0.5 has no effect: SOLVER.OPTIMIZER_NAME is AdamW.",
        {"SOLVER.OPTIMIZER_NAME": "SGD"},
    ),
    (
        {"SOLVER.BIAS_DECAY_FACTOR": 0, "SOLVER.NO_DECAY": True},
        CPU,
        "SOLVER.BIAS_DECAY_FACTOR 0.0 has no effect: biases have no decay (SOLVER.NO_DECAY, SOLVER.WEIGHT_DECAY).",
        {"SOLVER.NO_DECAY": False},
    ),
    (
        {"SOLVER.NO_DECAY": True, "SOLVER.WEIGHT_DECAY": 0},
        CPU,
        "SOLVER.NO_DECAY True has no effect: SOLVER.WEIGHT_DECAY is 0.0.",
        {"SOLVER.WEIGHT_DECAY": 1e-4},
    ),
    (
        {"SOLVER.LABEL_SMOOTHING": 0, "SOLVER.QUERY_XENT_WEIGHT": 0},
        CPU,
        "SOLVER.LABEL_SMOOTHING 0.0 has no effect: SOLVER.QUERY_XENT_WEIGHT is 0.0.",
        {"SOLVER.QUERY_XENT_WEIGHT": 1},
    ),
    (
        {"SOLVER.CENTER_LR": 0.1, "SOLVER.CENTER_LOSS_WEIGHT": 0},
        CPU,
        "SOLVER.CENTER_LR 0.1 has no effect: SOLVER.CENTER_LOSS_WEIGHT is 0.0.",
        {"SOLVER.CENTER_LOSS_WEIGHT": 0.1},
    ),
    (
        {"SOLVER.CENTROID_CONTRASTIVE_WEIGHT": 2},
        Facts(losses=("query_xent",)),
        "SOLVER.CENTROID_CONTRASTIVE_WEIGHT 2.0 has no effect: this model has no triplet loss with centroids; "
        "CTLModel has.",
        Facts(losses=("query_xent", "centroid_triplet")),
    ),
    (
        {"SOLVER.MARGIN": 0.3, "SOLVER.SOFT_MARGIN": True},
        CPU,
        "SOLVER.MARGIN 0.3 has no effect: SOLVER.SOFT_MARGIN is True.",
        {"SOLVER.MARGIN": None},
    ),
    (
        {"SOLVER.GATHER_NEGATIVES": True},
        CPU,
        "SOLVER.GATHER_NEGATIVES True has no effect: the run has one process.",
        Facts("cpu", 2),
    ),
    (
        {"TRAINER.SYNC_BATCHNORM": True},
        CUDA,
        "TRAINER.SYNC_BATCHNORM True has no effect: the run has one process.",
        Facts("gpu", 2),
    ),
    (
        {"TEST.RERANK_K1": 5, "TEST.RERANK_LAMBDA": 0.1},
        CPU,
        "TEST.RERANK_K1 5, TEST.RERANK_LAMBDA 0.1 have no effect: TEST.RERANK is False.",
        {"TEST.RERANK": True},
    ),
    (
        {"TEST.VISUALIZE_TOPK": 5, "TEST.VISUALIZE_MAX_NUMBER": 9, "TEST.HEATMAPS": 3},
        CPU,
        "TEST.VISUALIZE_TOPK 5, TEST.VISUALIZE_MAX_NUMBER 9, TEST.HEATMAPS 3 have no effect: TEST.VISUALIZE is no.",
        {"TEST.VISUALIZE": "yes"},
    ),
    (
        {"TEST.DRAWS": 3, "DATASETS.NAMES": "market1501+vehicleid_800"},
        CPU,
        "TEST.DRAWS 3 has no effect: DATASETS.NAMES is market1501+vehicleid_800.",
        {"DATASETS.NAMES": "vehicleid_800+market1501"},
    ),
    (
        {"TRAINER.FAST_MATH": True},
        CPU,
        "TRAINER.FAST_MATH True has no effect: the run does not compute on CUDA.",
        CUDA,
    ),
    (
        {"USE_MIXED_PRECISION": True, "TRAINER.PRECISION": "32-true"},
        CPU,
        "USE_MIXED_PRECISION True has no effect: TRAINER.PRECISION is 32-true.",
        {"TRAINER.PRECISION": ""},
    ),
    (
        {"LOGGING.MLFLOW_URI": "sqlite:///a.db", "LOGGING.MLFLOW": False},
        CPU,
        "LOGGING.MLFLOW_URI sqlite:///a.db has no effect: LOGGING.MLFLOW is False.",
        {"LOGGING.MLFLOW": True},
    ),
    (
        {"GPU_IDS": [1], "TRAINER.ACCELERATOR": "cpu"},
        CPU,
        "GPU_IDS [1] has no effect: the run does not compute on CUDA.",
        {"SOLVER.DIST_BACKEND": "ddp_cpu"},
    ),
    (
        {"REPRODUCIBLE_SEED": 5},
        CPU,
        "REPRODUCIBLE_SEED 5 has no effect: REPRODUCIBLE is False.",
        {"REPRODUCIBLE": True},
    ),
    ({"LOG_DIR": "there"}, CPU, "LOG_DIR there has no effect: a run logs to OUTPUT_DIR.", None),
    (
        {"SOLVER.CLUSTER_MARGIN": 0.5, "TEST.WEIGHT": "a.pth"},
        CPU,
        "SOLVER.CLUSTER_MARGIN 0.5, TEST.WEIGHT a.pth have no effect: accepted for the sake of older files, read by "
        "nothing.",
        None,
    ),
]


def given(options, **more):
    return load_config("", [part for pair in (options | more).items() for part in pair])


@pytest.mark.parametrize(("options", "facts", "line", "undo"), CASES, ids=[", ".join(case[0]) for case in CASES])
def test_what_a_switch_says_and_when_it_is_quiet(options, facts, line, undo, tmp_path):
    assert find_unused(given(options), facts) == [line]
    path = tmp_path / "user.yml"
    path.write_text(yaml.safe_dump({key: DEFAULT_VALUES[key] for key in options}))
    assert find_unused(load_config(path), facts) == []  # nobody asks for anything
    if isinstance(undo, dict):
        assert find_unused(given(options, **undo), facts) == []
    elif undo is not None:
        assert find_unused(given(options), undo) == []


def test_every_switch_has_a_case():
    shown = {key for options, _, line, _ in CASES for key in options if line.startswith(key) or f", {key} " in line}
    assert all(shown & set(switch.keys) for switch in SWITCHES)


def test_a_file_that_is_there_is_not_called_missing(tmp_path):
    (tmp_path / "w.pth").touch()
    (line,) = find_unused(given({"MODEL.PRETRAIN_PATH": str(tmp_path / "w.pth"), "MODEL.PRETRAINED": False}))
    assert line.endswith("TEST.ONLY_TEST are False.")


def test_who_overrides_a_file_need_not_be_told(tmp_path):
    """But is told of what stands on the same level, or above the switch."""
    path = tmp_path / "user.yml"
    path.write_text("MODEL: {PRETRAIN_PATH: w.pth}\n")
    assert find_unused(load_config(path)) == []
    assert find_unused(load_config(path, ["MODEL.PRETRAINED", "False"])) == []
    path.write_text("MODEL: {PRETRAIN_PATH: w.pth, PRETRAINED: False}\n")
    assert len(find_unused(load_config(path))) == 1
    path.write_text("MODEL: {PRETRAINED: False}\n")
    assert len(find_unused(load_config(path, ["MODEL.PRETRAIN_PATH", "w.pth"]))) == 1


def test_one_section_alone():
    config = given({"DATASETS.CSV_PATH": "a.csv", "TEST.RERANK_K1": 3})
    assert len(find_unused(config)) == 2
    assert find_unused(config, among="DATASETS.") == [
        "DATASETS.CSV_PATH a.csv has no effect: DATASETS.NAMES is market1501."
    ]


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yml")), ids=lambda path: path.name)
@pytest.mark.parametrize("facts", [CPU, CUDA], ids=["cpu", "cuda"])
def test_the_published_files_are_clean(path, facts):
    assert find_unused(load_config(path, ["OUTPUT_DIR", "out", "GPU_IDS", "[0]"]), facts) == []


def test_a_file_that_lists_every_default_is_clean(tmp_path):
    path = tmp_path / "all.yml"
    path.write_text(yaml.safe_dump(json.loads((GOLDEN / "config_defaults.json").read_text())))
    assert find_unused(load_config(path), CPU) == []


def test_keys_on_the_command_line_that_inference_does_not_use_are_named(tmp_path):
    path = tmp_path / "user.yml"
    path.write_text("TEST: {RERANK: True}\n")
    config = load_config(path, ["TEST.FEAT_NORM", "True", "DATASETS.ROOT_DIR", "x", "SOLVER.MARGIN", "1"])
    assert find_foreign(config, ("DATASETS.",)) == ["SOLVER.MARGIN, TEST.FEAT_NORM: not used in inference."]
    assert find_foreign(config, ("DATASETS.", "SOLVER.MARGIN", "TEST.")) == []


def test_passwords_are_not_shown():
    config = given({"LOGGING.MLFLOW_URI": "https://me:secret@host", "LOGGING.MLFLOW": False})
    assert find_unused(config) == ["LOGGING.MLFLOW_URI https://***@host has no effect: LOGGING.MLFLOW is False."]


@pytest.mark.parametrize("name", BACKBONES)
def test_what_a_network_lacks_is_told(name):
    config = given({"MODEL.NAME": name, "MODEL.LAST_STRIDE": 2, "MODEL.STEM_RELU": True})
    lines = [line.split()[0] for line in find_unused(config)]
    assert ("MODEL.LAST_STRIDE" in lines) == isinstance(build(name), OSNet)
    stems = [build(name, stem_relu=relu).stem_relu for relu in (False, True)] if "osnet" not in name else [True, True]
    assert ("MODEL.STEM_RELU" in lines) == (stems == [True, True])


def build(name, **options):
    with torch.device("meta"):
        return get_backbone(name).build(NetworkOptions(**options))


def test_several_sets_of_which_none_reads_a_key():
    assert find_unused(given({"DATASETS.CSV_PATH": "a.csv", "DATASETS.NAMES": "market1501 + veri776"})) == [
        "DATASETS.CSV_PATH a.csv has no effect: DATASETS.NAMES is market1501 + veri776."
    ]
