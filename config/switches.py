"""The keys that another key, or the machine, switches off: what somebody set there would be lost without a word."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from yacs.config import CfgNode

from config.defaults import UNUSED_KEYS
from config.flatten import flatten_config
from config.origins import strength
from config.paths import is_auto
from config.validate import split_names
from utils.addresses import without_passwords

# The networks whose stem can do without a ReLU.
PLAIN_RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
# Prefixes of MODEL.NAME: networks of other packages.
PACKAGES = ("timm:", "torchvision:")
# The data sets of this project by the files that they read; others may read any key.
COCO_SETS = ("df1", "street2shop")
DRAWN_SETS = ("vehicleid_800", "vehicleid_1600", "vehicleid_2400")
SETS = (
    *("market1501", "dukemtmcreid", "occluded_duke", "msmt17_v1", "msmt17_v2", "cuhk03np_labeled", "cuhk03np_detected"),
    *("veri776", *DRAWN_SETS, *COCO_SETS, "csv", "folder"),
)


class Facts(NamedTuple):
    """What a run is, besides its configuration; each default stands for "not known"."""

    accelerator: str = ""
    processes: int = 0
    losses: tuple[str, ...] = ()


UNKNOWN = Facts()


class Switch(NamedTuple):
    """Keys that have no effect under a condition.

    Attributes:
        keys: the keys.
        by: the keys that switch them off; the first one and its value are the reason that is given.
        is_off: the condition.
        reason: the reason in words, where ``by`` alone does not tell it.
    """

    keys: tuple[str, ...]
    by: tuple[str, ...]
    is_off: Callable[[CfgNode, Facts], bool]
    reason: str = ""


def _reads_none_of(cfg: CfgNode, readers: tuple[str, ...]) -> bool:
    names = split_names(cfg.DATASETS.NAMES) + split_names(cfg.DATASETS.TESTS)
    return all(name in SETS and name not in readers for name in names)


def _continues_a_named_file(cfg: CfgNode) -> bool:
    return cfg.MODEL.RESUME_TRAINING and not is_auto(cfg.MODEL.PRETRAIN_PATH)


_MACHINE = ("GPU_IDS", "TRAINER.NUM_NODES", "TRAINER.ACCELERATOR", "SOLVER.DIST_BACKEND")

SWITCHES = (
    Switch(
        ("MODEL.DROP_PATH", "MODEL.PATCH_STRIDE"),
        ("MODEL.NAME",),
        lambda cfg, _: not cfg.MODEL.NAME.startswith(PACKAGES),
    ),
    Switch(
        ("MODEL.PRETRAIN_PATH",),
        ("MODEL.PRETRAINED", "MODEL.RESUME_TRAINING", "TEST.ONLY_TEST"),
        lambda cfg, _: not (cfg.MODEL.PRETRAINED or cfg.MODEL.RESUME_TRAINING or cfg.TEST.ONLY_TEST),
        "MODEL.PRETRAINED, MODEL.RESUME_TRAINING and TEST.ONLY_TEST are False",
    ),
    Switch(
        ("MODEL.PRETRAIN_HEAD",),
        ("MODEL.PRETRAINED", "MODEL.RESUME_TRAINING", "TEST.ONLY_TEST"),
        lambda cfg, _: (
            cfg.MODEL.PRETRAIN_HEAD and (not cfg.MODEL.PRETRAINED or cfg.TEST.ONLY_TEST or _continues_a_named_file(cfg))
        ),
        "the run starts no training from weights (MODEL.PRETRAINED)",
    ),
    Switch(
        ("MODEL.PRETRAIN_MIN_SHARE",),
        ("MODEL.PRETRAINED", "MODEL.RESUME_TRAINING", "TEST.ONLY_TEST"),
        lambda cfg, _: not cfg.TEST.ONLY_TEST and (not cfg.MODEL.PRETRAINED or _continues_a_named_file(cfg)),
        "the run starts no training from weights and tests none (MODEL.PRETRAINED, TEST.ONLY_TEST)",
    ),
    Switch(
        ("MODEL.LAST_STRIDE",),
        ("MODEL.NAME",),
        lambda cfg, _: re.match(r"timm:|torchvision:|osnet(_ibn|_ain)?_x\d_\d+$", cfg.MODEL.NAME) is not None,
    ),
    Switch(("MODEL.STEM_RELU",), ("MODEL.NAME",), lambda cfg, _: cfg.MODEL.NAME not in PLAIN_RESNETS),
    Switch(
        ("MODEL.RESUME_TRAINING",),
        ("TEST.ONLY_TEST",),
        lambda cfg, _: _continues_a_named_file(cfg) and cfg.TEST.ONLY_TEST,
    ),
    Switch(
        ("TEST.DRAWS",),
        ("DATASETS.NAMES", "DATASETS.TESTS"),
        # Validations are of the first of several sets, tests of it or of each that is named.
        lambda cfg, _: (
            {*split_names(cfg.DATASETS.NAMES)[:1], *split_names(cfg.DATASETS.TESTS)} <= {*SETS} - {*DRAWN_SETS}
        ),
    ),
    Switch(("DATASETS.CSV_PATH",), ("DATASETS.NAMES",), lambda cfg, _: _reads_none_of(cfg, ("csv",))),
    Switch(("DATASETS.CAMERA_FROM",), ("DATASETS.NAMES",), lambda cfg, _: _reads_none_of(cfg, ("folder",))),
    Switch(("DATASETS.JSON_TRAIN_PATH",), ("DATASETS.NAMES",), lambda cfg, _: _reads_none_of(cfg, COCO_SETS)),
    Switch(
        ("DATASETS.COMBINEALL",),
        ("TEST.ONLY_TEST",),
        lambda cfg, _: cfg.DATASETS.COMBINEALL and cfg.TEST.ONLY_TEST,
    ),
    Switch(("INPUT.RE_MODE", "INPUT.RE_AREA"), ("INPUT.RE_PROB",), lambda cfg, _: cfg.INPUT.RE_PROB == 0),
    Switch(("INPUT.COLOR_JITTER_PROB",), ("INPUT.COLOR_JITTER",), lambda cfg, _: not cfg.INPUT.COLOR_JITTER),
    Switch(("DATALOADER.CACHE_DIR",), ("DATALOADER.CACHE",), lambda cfg, _: cfg.DATALOADER.CACHE != "disk"),
    Switch(("DATALOADER.CACHE_GB",), ("DATALOADER.CACHE",), lambda cfg, _: cfg.DATALOADER.CACHE == "none"),
    Switch(
        ("DATALOADER.DROP_LAST",),
        ("DATASETS.NAMES",),
        # A set of another program may build a loader of its own, which gets the value.
        lambda cfg, _: not cfg.DATALOADER.DROP_LAST and _reads_none_of(cfg, ()),
        "DATALOADER.SAMPLER random_identity draws whole batches only",
    ),
    Switch(
        ("SOLVER.MIN_LR",),
        ("SOLVER.LR_SCHEDULER_NAME",),
        lambda cfg, _: cfg.SOLVER.LR_SCHEDULER_NAME != "cosine_annealing",
    ),
    Switch(
        ("SOLVER.GAMMA", "SOLVER.LR_STEPS"),
        ("SOLVER.LR_SCHEDULER_NAME",),
        lambda cfg, _: cfg.SOLVER.LR_SCHEDULER_NAME != "multistep_lr",
    ),
    Switch(
        ("SOLVER.MARGIN",),
        ("SOLVER.SOFT_MARGIN",),
        lambda cfg, _: cfg.SOLVER.SOFT_MARGIN and cfg.SOLVER.MARGIN is not None,
    ),
    Switch(("SOLVER.MOMENTUM",), ("SOLVER.OPTIMIZER_NAME",), lambda cfg, _: cfg.SOLVER.OPTIMIZER_NAME != "SGD"),
    Switch(
        ("SOLVER.BIAS_DECAY_FACTOR",),
        ("SOLVER.NO_DECAY", "SOLVER.WEIGHT_DECAY"),
        lambda cfg, _: cfg.SOLVER.NO_DECAY or cfg.SOLVER.WEIGHT_DECAY == 0,
        "biases have no decay (SOLVER.NO_DECAY, SOLVER.WEIGHT_DECAY)",
    ),
    Switch(
        ("SOLVER.NO_DECAY",),
        ("SOLVER.WEIGHT_DECAY",),
        lambda cfg, _: cfg.SOLVER.NO_DECAY and cfg.SOLVER.WEIGHT_DECAY == 0,
    ),
    Switch(("SOLVER.WARMUP_EPOCHS",), ("SOLVER.USE_WARMUP_LR",), lambda cfg, _: not cfg.SOLVER.USE_WARMUP_LR),
    Switch(
        ("SOLVER.WARMUP_EPOCHS",),
        ("SOLVER.WARMUP_STEPS",),
        lambda cfg, _: cfg.SOLVER.USE_WARMUP_LR and cfg.SOLVER.WARMUP_STEPS > 0,
    ),
    Switch(
        ("SOLVER.WARMUP_STEPS",),
        ("SOLVER.USE_WARMUP_LR",),
        lambda cfg, _: cfg.SOLVER.WARMUP_STEPS > 0 and not cfg.SOLVER.USE_WARMUP_LR,
    ),
    Switch(
        ("SOLVER.LABEL_SMOOTHING",),
        ("SOLVER.QUERY_XENT_WEIGHT",),
        lambda cfg, _: cfg.SOLVER.QUERY_XENT_WEIGHT == 0,
    ),
    Switch(("SOLVER.CENTER_LR",), ("SOLVER.CENTER_LOSS_WEIGHT",), lambda cfg, _: cfg.SOLVER.CENTER_LOSS_WEIGHT == 0),
    Switch(
        ("SOLVER.CENTROID_CONTRASTIVE_WEIGHT",),
        (),
        lambda _, facts: bool(facts.losses) and "centroid_triplet" not in facts.losses,
        "this model has no triplet loss with centroids; CTLModel has",
    ),
    Switch(
        ("SOLVER.GATHER_NEGATIVES",),
        _MACHINE,
        lambda cfg, facts: cfg.SOLVER.GATHER_NEGATIVES and facts.processes == 1,
        "the run has one process",
    ),
    Switch(
        ("TRAINER.SYNC_BATCHNORM",),
        _MACHINE,
        lambda cfg, facts: cfg.TRAINER.SYNC_BATCHNORM and facts.processes == 1,
        "the run has one process",
    ),
    Switch(
        ("TEST.RERANK_K1", "TEST.RERANK_K2", "TEST.RERANK_LAMBDA"),
        ("TEST.RERANK",),
        lambda cfg, _: not cfg.TEST.RERANK,
    ),
    Switch(
        ("TEST.VISUALIZE_TOPK", "TEST.VISUALIZE_MAX_NUMBER", "TEST.HEATMAPS"),
        ("TEST.VISUALIZE",),
        lambda cfg, _: cfg.TEST.VISUALIZE != "yes",
    ),
    Switch(
        ("TRAINER.FAST_MATH",),
        _MACHINE,
        lambda cfg, facts: cfg.TRAINER.FAST_MATH and facts.accelerator not in ("", "gpu"),
        "the run does not compute on CUDA",
    ),
    Switch(("USE_MIXED_PRECISION",), ("TRAINER.PRECISION",), lambda cfg, _: cfg.TRAINER.PRECISION != ""),
    Switch(("LOGGING.MLFLOW_URI",), ("LOGGING.MLFLOW",), lambda cfg, _: not cfg.LOGGING.MLFLOW),
    Switch(
        ("GPU_IDS",),
        ("TRAINER.ACCELERATOR",),
        # The default, [0], is right on any machine: one device that this one happens not to have.
        lambda cfg, facts: (
            cfg.SOLVER.DIST_BACKEND != "ddp_cpu"
            and bool(cfg.GPU_IDS)
            and (
                cfg.TRAINER.ACCELERATOR in ("cpu", "mps")
                or (facts.accelerator not in ("", "gpu") and list(cfg.GPU_IDS) != [0])
            )
        ),
        "the run does not compute on CUDA",
    ),
    Switch(("REPRODUCIBLE_SEED",), ("REPRODUCIBLE",), lambda cfg, _: not cfg.REPRODUCIBLE),
    Switch(("LOG_DIR",), (), lambda *_: True, "a run logs to OUTPUT_DIR"),
    Switch(UNUSED_KEYS, (), lambda *_: True, "accepted for the sake of older files, read by nothing"),
)


def find_unused(config: CfgNode, facts: Facts = UNKNOWN, among: str = "") -> list[str]:
    """One line for each switch that makes a wish of the user void.

    A key counts only if it was set more clearly than, or as clearly as, what switches it off: somebody who overrides
    a file on the command line, with MODEL.PRETRAINED False for instance, need not be told (see
    :func:`config.origins.strength`).

    Args:
        config: the configuration, as the user gave it.
        facts: what is known about the run.
        among: consider the keys that begin with this text only.
    """
    values = flatten_config(config)
    lines = []
    for switch in SWITCHES:
        if not switch.is_off(config, facts):
            continue
        threshold = max([1, *(strength(config, key) for key in switch.by)])
        lost = [key for key in switch.keys if key.startswith(among) and strength(config, key) >= threshold]
        if lost:
            reason = switch.reason or f"{switch.by[0]} is {values[switch.by[0]]}"
            lines.append(f"{_list(lost, values)} no effect: {reason}{_also_missing(lost, values)}.")
    return [without_passwords(line) for line in lines]


def find_foreign(config: CfgNode, used: tuple[str, ...]) -> list[str]:
    """One line that lists the keys on the command line that inference does not look at; none if there are none.

    Args:
        config: the configuration, as the user gave it.
        used: the keys, or beginnings of keys, that it looks at.
    """
    foreign = [key for key in flatten_config(config) if strength(config, key) == 2 and not key.startswith(used)]
    return [f"{', '.join(foreign)}: not used in inference."] if foreign else []


def _list(keys: list[str], values: dict[str, object]) -> str:
    return ", ".join(f"{key} {values[key]}" for key in keys) + (" has" if len(keys) == 1 else " have")


def _also_missing(keys: list[str], values: dict[str, object]) -> str:
    path = str(values["MODEL.PRETRAIN_PATH"])
    if keys != ["MODEL.PRETRAIN_PATH"]:
        return ""
    if is_auto(path):
        return "; MODEL.RESUME_TRAINING True continues the newest checkpoint"
    return "" if Path(path).exists() else "; nor is there such a file"
