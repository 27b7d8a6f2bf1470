"""A configuration beside the one that a checkpoint records: what is taken from there, and what differs."""

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from yacs.config import CfgNode

from config import DEFAULT_VALUES
from config.defaults import UNUSED_KEYS
from config.origins import comparable, was_set
from config.validate import check_value
from utils.addresses import without_passwords
from utils.errors import CheckpointError, ConfigError

# What the weights were trained for, and how their embeddings are made. They fit other values as well, and then give
# other numbers.
SCALING_IN_TESTS = (
    *("INPUT.SIZE_TEST", "INPUT.RESIZE", "INPUT.PIXEL_MEAN", "INPUT.PIXEL_STD", "INPUT.EXIF_ORIENTATION", "TEST.FLIP"),
    *("INPUT.DRAFT_DECODING", "MODEL.NECK_FEAT"),
)
SCALING = ("INPUT.SIZE_TRAIN", *SCALING_IN_TESTS)
NETWORK = (
    *("MODEL.NAME", "MODEL.BACKBONE_EMB_SIZE", "MODEL.LAST_STRIDE", "MODEL.STEM_RELU", "MODEL.PATCH_STRIDE"),
    *("MODEL.POOLING", "MODEL.EMBED_DIM"),
)
# Those of them that checkpoints of older versions do not name: these were trained as the default says.
_ONCE_IMPLIED = ("MODEL.STEM_RELU", "MODEL.POOLING", "MODEL.EMBED_DIM")
# What optimisers are built from.
OPTIMISATION = (
    *("SOLVER.OPTIMIZER_NAME", "SOLVER.BASE_LR", "SOLVER.CENTER_LR", "SOLVER.WEIGHT_DECAY", "SOLVER.LR_SCHEDULER_NAME"),
    *("SOLVER.MIN_LR", "SOLVER.GAMMA", "SOLVER.LR_STEPS", "SOLVER.USE_WARMUP_LR", "SOLVER.WARMUP_EPOCHS"),
    *("SOLVER.MOMENTUM", "SOLVER.BIAS_LR_FACTOR", "SOLVER.BIAS_DECAY_FACTOR", "SOLVER.HEAD_LR_FACTOR"),
    *("SOLVER.LAYER_DECAY", "SOLVER.NO_DECAY", "SOLVER.WARMUP_STEPS"),
)
# What the numbers of a test depend on besides those.
RANKING = ("SOLVER.DISTANCE_FUNC", "TEST.FEAT_NORM")
# Keys whose difference from the checkpoint to continue from means nothing, and why.
NOT_COMPARED = {
    "MODEL.PRETRAINED": "the weights are those of the checkpoint",
    "MODEL.PRETRAIN_PATH": "names the checkpoint itself",
    "MODEL.PRETRAIN_HEAD": "the weights are those of the checkpoint",
    "MODEL.PRETRAIN_MIN_SHARE": "the weights are those of the checkpoint",
    "TEST.BEFORE_TRAINING": "the training has begun",
    "MODEL.RESUME_TRAINING": "is what makes the run continue",
    "TEST.ONLY_TEST": "a run that continues does not only test",
    "GALLERY.DTYPE": "a run writes no gallery",
    "GALLERY.ROWS_PER_FILE": "a run writes no gallery",
    "LOG_DIR": "is where this run writes",
    "OUTPUT_DIR": "is where this run writes",
    **dict.fromkeys(UNUSED_KEYS, "nothing reads it"),
}
COMPARED = tuple(key for key in DEFAULT_VALUES if key not in NOT_COMPARED)

_ABSENT = object()


def check_recorded(stored: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Raise a CheckpointError if what may be taken from hyper-parameters, those of the file ``path``, cannot work."""
    found = {key: _recorded(stored, key) for key in (*NETWORK, *SCALING)}
    try:
        for section in {key.partition(".")[0] for key in DEFAULT_VALUES if "." in key} & stored.keys():
            if not isinstance(stored[section], Mapping):
                raise ConfigError(f"{section} is {stored[section]!r}; expected a section with keys.")
        for key, value in found.items():
            if value is not _ABSENT:
                check_value(key, value)
        for key in ("num_classes", "data_seed"):
            if not isinstance(stored.get(key, 0), int):
                raise ConfigError(f"{key} is {stored[key]!r}; expected an integer.")
    except ConfigError as error:
        raise CheckpointError(f"{path} records a value that cannot work: {error}") from error


def adopt(config: CfgNode, stored: Mapping[str, Any], may_name_network: bool = True) -> CfgNode:
    """A copy of a configuration in which the SCALING and NETWORK keys that nobody set come from a checkpoint.

    Args:
        config: the configuration.
        stored: hyper-parameters of the checkpoint. Keys that they lack are left as they are.
        may_name_network: False leaves the network alone unless the configuration names the same one.
    """
    config = config.clone()
    config.defrost()
    name = _recorded(stored, "MODEL.NAME")
    named = was_set(config, "MODEL.NAME")
    is_same = name == config.MODEL.NAME if named else may_name_network
    for key in (*SCALING, *(NETWORK if is_same else ())):
        value = _recorded(stored, key)
        if value is not _ABSENT and not was_set(config, key):
            section, _, leaf = key.rpartition(".")
            config[section][leaf] = list(value) if isinstance(value, list | tuple) else value
    return config


def differences(
    config: CfgNode,
    stored: Mapping[str, Any],
    keys: Iterable[str] = COMPARED,
    from_checkpoint: Iterable[str] = (),
    optimised_by: str = "",
) -> list[str]:
    """One line for each key whose value differs from the checkpoint's, which says what is used.

    Args:
        config: the configuration, after :func:`adopt`.
        stored: hyper-parameters of the checkpoint. Keys that they lack, as those of older versions do, are left out.
        keys: which keys to compare.
        from_checkpoint: those of them for which the checkpoint's value is used; for the others, that of ``config``.
        optimised_by: the method of another program's that builds the optimisers; "" if this project does.
    """
    lines = []
    for key, there, here in differing(config, stored, keys):
        by_default = "" if was_set(config, key) else " by default"
        if key in from_checkpoint:
            lines.append(f"{key}: {there!r} in the checkpoint, which is used, {here!r} here{by_default}.")
        elif optimised_by and key in OPTIMISATION:
            which = f"which is used depends on {optimised_by}: its own optimisers continue as the checkpoint left them"
            lines.append(f"{key}: {there!r} in the checkpoint, {here!r} here{by_default}; {which}.")
        else:
            lines.append(f"{key}: {there!r} in the checkpoint, {here!r} here{by_default}, which is used.")
    return [without_passwords(line) for line in lines]


def differing(config: CfgNode, stored: Mapping[str, Any], keys: Iterable[str]) -> Iterator[tuple[str, Any, Any]]:
    """The keys whose values differ, with the checkpoint's and the configuration's; see :func:`differences`."""
    for key in keys:
        there, here = comparable(_recorded(stored, key)), comparable(_recorded(config, key))
        if there is not _ABSENT and here is not _ABSENT and there != here:
            yield key, there, here


def _recorded(stored: Mapping[str, Any], key: str) -> Any:
    node: Any = stored
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            implied = key in _ONCE_IMPLIED and isinstance(node, Mapping) and "NAME" in node
            return DEFAULT_VALUES[key] if implied else _ABSENT
        node = node[part]
    return node
