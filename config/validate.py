"""Checks a configuration as far as is possible without data, weights or devices."""

import math
from numbers import Real
from typing import Any

from yacs.config import CfgNode

from config import DEFAULT_VALUES
from config.flatten import flatten_config
from utils.errors import ConfigError

CHOICES: dict[str, tuple[Any, ...]] = {
    "MODEL.LAST_STRIDE": (1, 2),
    "INPUT.RESIZE": ("stretch", "pad"),
    "INPUT.RE_MODE": ("mean", "pixel"),
    "DATASETS.CAMERA_FROM": ("name", "folder"),
    "DATASETS.ON_ERROR": ("stop", "skip"),
    "DATALOADER.SAMPLER": ("random_identity",),
    "DATALOADER.CACHE": ("none", "ram", "disk"),
    "MODEL.POOLING": ("avg", "max", "gem", "avgmax", "token"),
    "MODEL.NECK_FEAT": ("after", "before"),
    "SOLVER.OPTIMIZER_NAME": ("Adam", "AdamW", "SGD"),
    "SOLVER.DISTANCE_FUNC": ("euclidean", "cosine"),
    "SOLVER.LR_SCHEDULER_NAME": ("multistep_lr", "cosine_annealing"),
    "SOLVER.MONITOR_METRIC_MODE": ("max", "min"),
    "SOLVER.DIST_BACKEND": ("ddp", "ddp_spawn", "ddp_cpu"),
    "TEST.SELF_MATCH": ("drop", "keep"),
    "GALLERY.DTYPE": ("float32", "float16"),
    "LOGGING.ON_ERROR": ("continue", "stop"),
    "TEST.VISUALIZE": ("yes", "no"),
    "TRAINER.ACCELERATOR": ("auto", "cpu", "gpu", "mps"),
    "TRAINER.PROFILER": ("", "simple", "pytorch"),
    "TRAINER.PRECISION": (
        *("", "32", "32-true", "64", "64-true", "16", "16-mixed", "16-true", "bf16", "bf16-mixed", "bf16-true"),
        *("transformer-engine", "transformer-engine-float16"),
    ),
}

# Strategies of Lightning 1 that Lightning 2 no longer has.
GONE_BACKENDS = ("dp", "ddp2")

MINIMA: dict[str, int] = {
    "MODEL.BACKBONE_EMB_SIZE": 0,
    "MODEL.EMBED_DIM": 0,
    "MODEL.DROP_PATH": 0,
    "MODEL.PATCH_STRIDE": 0,
    "MODEL.PRETRAIN_MIN_SHARE": 0,
    "INPUT.PROB": 0,
    "INPUT.RE_PROB": 0,
    "INPUT.COLOR_JITTER_PROB": 0,
    "INPUT.GRAY_PROB": 0,
    "INPUT.PADDING": 0,
    "DATALOADER.NUM_WORKERS": -1,
    "DATALOADER.NUM_INSTANCE": 2,
    "DATALOADER.CACHE_GB": 0,
    "GALLERY.ROWS_PER_FILE": 1,
    "SOLVER.MAX_EPOCHS": 1,
    "SOLVER.BASE_LR": 0,
    "SOLVER.MIN_LR": 0,
    "SOLVER.MARGIN": 0,
    "SOLVER.CENTER_LR": 0,
    "SOLVER.CENTER_LOSS_WEIGHT": 0,
    "SOLVER.WEIGHT_DECAY": 0,
    "SOLVER.BIAS_DECAY_FACTOR": 0,
    "SOLVER.WARMUP_EPOCHS": 0,
    "SOLVER.WARMUP_STEPS": 0,
    "SOLVER.FREEZE_EPOCHS": 0,
    "SOLVER.MOMENTUM": 0,
    "SOLVER.LABEL_SMOOTHING": 0,
    "SOLVER.ACCUMULATE": 1,
    "SOLVER.CLIP_GRAD_NORM": 0,
    "SOLVER.EMA_DECAY": 0,
    "SOLVER.EVAL_PERIOD": 1,
    "SOLVER.IMS_PER_BATCH": 1,
    "SOLVER.QUERY_XENT_WEIGHT": 0,
    "SOLVER.QUERY_CONTRASTIVE_WEIGHT": 0,
    "SOLVER.CENTROID_CONTRASTIVE_WEIGHT": 0,
    "TEST.IMS_PER_BATCH": 1,
    "TEST.DRAWS": 1,
    "TEST.VISUALIZE_TOPK": 1,
    "TEST.RERANK_K1": 1,
    "TEST.RERANK_K2": 1,
    "TEST.RERANK_LAMBDA": 0,
    "TEST.QUERY_EXPANSION": 0,
    "TEST.VISUALIZE_MAX_NUMBER": 0,
    "TEST.HEATMAPS": 0,
    "TRAINER.NUM_NODES": 1,
    "LOGGING.EVERY_N_STEPS": 1,
    "REPRODUCIBLE_NUM_RUNS": 1,
    "REPRODUCIBLE_SEED": 0,
}

MAXIMA: dict[str, int] = {
    "MODEL.PRETRAIN_MIN_SHARE": 1,
    "INPUT.PROB": 1,
    "TEST.RERANK_LAMBDA": 1,
    "INPUT.RE_PROB": 1,
    "INPUT.COLOR_JITTER_PROB": 1,
    "INPUT.GRAY_PROB": 1,
    "SOLVER.MOMENTUM": 1,
    "SOLVER.LABEL_SMOOTHING": 1,
    "REPRODUCIBLE_SEED": 2**32 - 1,
}

ABOVE_ZERO = ("SOLVER.GAMMA", "SOLVER.BIAS_LR_FACTOR", "SOLVER.HEAD_LR_FACTOR", "SOLVER.LAYER_DECAY")

# Numbers that may also be None.
OPTIONAL_NUMBERS = ("SOLVER.MARGIN",)

# Keys that the original does not have.
NEW_KEYS = (
    *("DATALOADER.CACHE", "DATALOADER.CACHE_DIR", "DATALOADER.CACHE_GB", "DATASETS.CAMERA_FROM"),
    *("DATASETS.COMBINEALL", "DATASETS.CSV_PATH", "DATASETS.ON_ERROR", "DATASETS.TESTS"),
    *("GALLERY.DTYPE", "GALLERY.ROWS_PER_FILE"),
    *("INPUT.COLOR_JITTER", "INPUT.COLOR_JITTER_PROB", "INPUT.DRAFT_DECODING", "INPUT.EXIF_ORIENTATION"),
    *("INPUT.GRAY_PROB", "INPUT.RAND_AUGMENT", "INPUT.RESIZE", "INPUT.RE_AREA", "INPUT.RE_MODE"),
    *("LOGGING.EVERY_N_STEPS", "LOGGING.MLFLOW", "LOGGING.MLFLOW_URI", "LOGGING.ON_ERROR", "LOSSES.EXTRA"),
    *("LOSSES.EXTRA_ARGS", "LOSSES.EXTRA_WEIGHTS", "MODEL.CHANNELS_LAST", "MODEL.COMPILE", "MODEL.DROP_PATH"),
    *("MODEL.EMBED_DIM", "MODEL.FREEZE_AT", "MODEL.GRAD_CHECKPOINT", "MODEL.NECK_FEAT", "MODEL.PATCH_STRIDE"),
    *("MODEL.POOLING", "MODEL.PRETRAIN_HEAD", "MODEL.PRETRAIN_MIN_SHARE", "MODEL.STEM_RELU", "SOLVER.ACCUMULATE"),
    *("SOLVER.BIAS_DECAY_FACTOR", "SOLVER.BIAS_LR_FACTOR", "SOLVER.CLIP_GRAD_NORM", "SOLVER.EMA_DECAY"),
    *("SOLVER.FREEZE_EPOCHS", "SOLVER.GATHER_NEGATIVES", "SOLVER.HEAD_LR_FACTOR", "SOLVER.LABEL_SMOOTHING"),
    *("SOLVER.LAYER_DECAY", "SOLVER.MIN_LR", "SOLVER.NO_DECAY", "SOLVER.SOFT_MARGIN", "SOLVER.WARMUP_STEPS"),
    *("TEST.BEFORE_TRAINING", "TEST.DRAWS", "TEST.FLIP", "TEST.HEATMAPS", "TEST.QUERY_EXPANSION", "TEST.RERANK"),
    *("TEST.RERANK_K1", "TEST.RERANK_K2", "TEST.RERANK_LAMBDA", "TEST.SELF_MATCH", "TRAINER.ACCELERATOR"),
    *("TRAINER.FAST_MATH", "TRAINER.NUM_NODES", "TRAINER.PRECISION", "TRAINER.PROFILER", "TRAINER.PROGRESS_BAR"),
    "TRAINER.SYNC_BATCHNORM",
)


def check_keys(config: CfgNode) -> None:
    """Raise a ConfigError if a configuration lacks keys, as one made by another project's config/defaults.py does."""
    there = flatten_config(config)
    missing = [key for key in NEW_KEYS if key not in there]
    sections = sorted({key.partition(".")[0] for key in missing} - set(config))
    if missing:
        keys = [key for key in missing if key.partition(".")[0] not in sections]
        what = [f"the section(s) {', '.join(sections)}"] * bool(sections) + [", ".join(keys)] * bool(keys)
        raise ConfigError(
            f"The configuration lacks {' and '.join(what)}: its config/defaults.py belongs to another version. Keep "
            "this project's config/defaults.py and add your own keys to it (docs/MIGRATION.md)."
        )


def check_config(config: CfgNode) -> None:
    """Raise a ConfigError at the first value that cannot work, naming the key, its value and what is allowed.

    Keys that the tree lacks, such as those added since it was saved by an older version, are not required.
    """
    values = flatten_config(config)
    for key, value in values.items():
        check_value(key, value)
    if values.get("SOLVER.USE_AUTOMATIC_OPTIM"):
        raise ConfigError(
            "SOLVER.USE_AUTOMATIC_OPTIM is True; only False works: the training steps call their optimisers themselves."
        )
    if values.get("MODEL.COMPILE") and values.get("MODEL.GRAD_CHECKPOINT"):
        raise ConfigError("MODEL.COMPILE and MODEL.GRAD_CHECKPOINT are both True; choose one.")
    names = values.get("LOSSES.EXTRA", [])
    for key, what in (("LOSSES.EXTRA_WEIGHTS", "a weight"), ("LOSSES.EXTRA_ARGS", "a dictionary")):
        if values.get(key) and len(values[key]) != len(names):
            raise ConfigError(
                f"{key} is {values[key]}, but LOSSES.EXTRA is {names}; expected {what} for each loss, or none."
            )
    for key in ("SOLVER.MONITOR_METRIC_NAME", "DATASETS.NAMES"):
        if values.get(key) == "":
            raise ConfigError(f"{key} is empty; expected a name.")
    check_tests(values.get("DATASETS.TESTS") or "")
    for key in ("TEST.ONLY_TEST", "MODEL.RESUME_TRAINING"):
        if values.get(key) and not values.get("MODEL.PRETRAIN_PATH"):
            raise ConfigError(f"MODEL.PRETRAIN_PATH is empty; with {key} True it must name a checkpoint.")


def split_names(joined: str) -> list[str]:
    """The data sets that a value such as "market1501+dukemtmcreid" names; none for ""."""
    return [name.strip() for name in joined.split("+")] if joined else []


def check_tests(tests: str) -> None:
    """Raise a ConfigError if DATASETS.TESTS names a data set twice, or has a "+" without a name beside it."""
    names = split_names(tests)
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None or "" in names:
        wrong = f"names {twice!r} twice" if twice else "has a '+' without a name beside it"
        raise ConfigError(f"DATASETS.TESTS is {tests!r}, which {wrong}; expected different names joined by '+'.")


def check_value(key: str, value: Any) -> None:
    """Raise a ConfigError if a key alone cannot have this value; programs and checkpoints set values of any type."""
    _check_type(key, value)
    _check_number(key, value)
    _check_choice(key, value)
    _check_list(key, value)


def _check_type(key: str, value: Any) -> None:
    like = DEFAULT_VALUES.get(key)
    match like:
        case bool():
            fits, expected = isinstance(value, int), "True or False"
        case int() | float():
            fits, expected = isinstance(value, Real) or (value is None and key in OPTIONAL_NUMBERS), "a number"
        case str():
            fits, expected = isinstance(value, str | None), "text"
        case list() | tuple():
            fits, expected = isinstance(value, list | tuple), f"a list such as {list(like)}"
        case _:  # a key of another program
            return
    if not fits:
        raise ConfigError(f"{key} is {value!r}; expected {expected}.")


def _check_number(key: str, value: Any) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{key} is {value}; expected a finite number.")
    if value is None:
        return
    if key in MAXIMA and not MINIMA[key] <= value <= MAXIMA[key]:
        raise ConfigError(f"{key} is {value}; expected {MINIMA[key]} to {MAXIMA[key]}.")
    if key in MINIMA and value < MINIMA[key]:
        raise ConfigError(f"{key} is {value}; expected {MINIMA[key]} or more.")
    if key == "MODEL.DROP_PATH" and value >= 1:
        raise ConfigError(f"{key} is {value}; expected 0 to below 1.")
    if key == "MODEL.PATCH_STRIDE" and not isinstance(value, int):
        raise ConfigError(f"{key} is {value}; expected a whole number of pixels.")
    if key in ABOVE_ZERO and value <= 0:
        raise ConfigError(f"{key} is {value}; expected more than 0.")
    if key == "SOLVER.EMA_DECAY" and value >= 1:
        raise ConfigError(f"{key} is {value}; expected 0 or more, and less than 1.")


def _check_choice(key: str, value: Any) -> None:
    if key == "SOLVER.DIST_BACKEND" and value in GONE_BACKENDS:
        raise ConfigError(f"{key} is {value!r}, which Lightning 2 no longer has; use 'ddp'.")
    if key in CHOICES and value not in CHOICES[key]:
        allowed = ", ".join(repr(choice) for choice in CHOICES[key])
        raise ConfigError(f"{key} is {value!r}; allowed: {allowed}.")


def _check_list(key: str, value: Any) -> None:
    if key in ("INPUT.SIZE_TRAIN", "INPUT.SIZE_TEST"):
        if len(value) != 2 or not all(_is_int(side) and side >= 1 for side in value):
            raise ConfigError(f"{key} is {value}; expected height and width, two integers above 0.")
    elif key == "INPUT.PIXEL_MEAN":
        if len(value) != 3 or not all(_is_finite(mean) for mean in value):
            raise ConfigError(f"{key} is {value}; expected three numbers.")
    elif key == "INPUT.PIXEL_STD":
        if len(value) != 3 or not all(_is_finite(std) and std > 0 for std in value):
            raise ConfigError(f"{key} is {value}; expected three numbers above 0.")
    elif key == "INPUT.RE_AREA":
        if len(value) != 2 or not all(map(_is_finite, value)) or not 0 <= value[0] <= value[1] <= 1 or value[0] == 1:
            raise ConfigError(f"{key} is {value}; expected the least and the greatest share, 0 to 1.")
    elif key == "INPUT.COLOR_JITTER":
        right = len(value) in (0, 4) and all(_is_finite(part) and part >= 0 for part in value)
        if not right or max(value[3:], default=0) > 0.5:
            raise ConfigError(
                f"{key} is {value}; expected brightness, contrast, saturation and hue, four numbers of 0 or more, the "
                "last at most 0.5; or []."
            )
    elif key == "INPUT.RAND_AUGMENT":
        if len(value) not in (0, 2) or not all(map(_is_int, value)) or (value and not _is_augment(*value)):
            raise ConfigError(
                f"{key} is {value}; expected the number of operations, 1 or more, and their magnitude, 0 to 30, two "
                "integers; or []."
            )
    elif key == "MODEL.FREEZE_AT":
        if not all(isinstance(pattern, str) and pattern for pattern in value):
            raise ConfigError(f'{key} is {value}; expected a list of name patterns such as "backbone.base.layer1.*".')
    elif key == "LOSSES.EXTRA":
        if not all(isinstance(name, str) for name in value) or len(set(value)) != len(value):
            raise ConfigError(f"{key} is {value}; expected a list of different names.")
    elif key == "LOSSES.EXTRA_ARGS":
        if not all(isinstance(given, dict) and all(isinstance(name, str) for name in given) for given in value):
            raise ConfigError(
                f"{key} is {value}; expected a dictionary of arguments for each loss, such as [{{'m': 0.25}}, {{}}]."
            )
    elif key == "LOSSES.EXTRA_WEIGHTS":
        if not all(isinstance(weight, int | float) and 0 <= weight < math.inf for weight in value):
            raise ConfigError(f"{key} is {value}; expected numbers of 0 or more.")
    elif key == "SOLVER.LR_STEPS":
        if not all(_is_int(epoch) and epoch >= 1 for epoch in value) or list(value) != sorted(set(value)):
            raise ConfigError(f"{key} is {value}; expected ascending epochs, integers above 0.")
    elif key == "GPU_IDS" and (not all(_is_int(gpu) and gpu >= 0 for gpu in value) or len(set(value)) != len(value)):
        raise ConfigError(f"{key} is {value}; expected device indices, different integers of 0 or more, or [].")


def _is_augment(operations: int, magnitude: int) -> bool:
    return operations >= 1 and 0 <= magnitude <= 30


def _is_finite(value: Any) -> bool:
    return isinstance(value, Real) and math.isfinite(value)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
