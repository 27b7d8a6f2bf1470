"""Finding the checkpoint that an interrupted run continues from."""

import logging
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from utils.checkpoint import CheckpointError, describe, load_ctl_checkpoint
from utils.errors import UserError
from utils.legacy_checkpoint import upgrade_legacy

logger = logging.getLogger(__name__)

# MODEL.PRETRAIN_PATH "auto": the newest checkpoint of OUTPUT_DIR. "auto:FILE": where there is none, start from FILE.
AUTO = "auto"
AUTO_FOLDER, BEST_FOLDER = "auto_checkpoints", "checkpoints"

_VERSION = re.compile(r"version_(\d+)")
_EPOCH = re.compile(r"checkpoint_(\d+)\.pth")
# Names that utils.checkpoint.atomic_save writes under before it renames.
_TEMPORARY = ".*.tmp"


def is_auto(path: str) -> bool:
    """Whether a MODEL.PRETRAIN_PATH asks for the newest checkpoint instead of naming a file."""
    return path == AUTO or path.startswith(f"{AUTO}:")


def start_weights(path: str) -> str:
    """The file that "auto:FILE" starts a fresh training from; "" for plain "auto"."""
    return path.partition(":")[2]


def list_checkpoints(folder: str | os.PathLike[str]) -> list[Path]:
    """The files checkpoint_{epoch}.pth of a folder, the newest epoch first; [] if there is no such folder."""
    return [path for _, path in sorted(_numbered(Path(folder), _EPOCH), reverse=True)]


def find_newest(runs: str | os.PathLike[str], belongs: Callable[[dict[str, Any]], bool]) -> Path | None:
    """The newest checkpoint that can be read whole: of the last version_N that has one, the last epoch.

    Args:
        runs: the folder of all runs of a script, ``OUTPUT_DIR/train_ctl_model``.
        belongs: tells from a checkpoint's ``hyper_parameters`` whether it is one of the run to continue.

    Returns:
        Its path, or None if there is none. Files that cannot be read are named in a warning and passed over; what
        writes that were cut short have left is removed.
    """
    versions = sorted(_numbered(Path(runs), _VERSION), reverse=True)
    for _, version in versions:
        remove_temporaries(version)
    for _, version in versions:
        for path in list_checkpoints(version / AUTO_FOLDER):
            try:
                checkpoint = load_ctl_checkpoint(path)
            except CheckpointError as error:
                logger.warning("passed over: %s", error)
                continue
            if belongs(checkpoint["hyper_parameters"]):
                return path
    return None


def version_of(checkpoint: str | os.PathLike[str], runs: str | os.PathLike[str]) -> str | None:
    """The folder version_N below ``runs`` that a checkpoint lies in, where the run it belongs to can go on; or None."""
    top = Path(runs).resolve()
    return next((folder.name for folder in Path(checkpoint).resolve().parents if folder.parent == top), None)


def has_more_epochs(version: str | os.PathLike[str], epochs: int) -> bool:
    """Whether a run's folder version_N holds a state after more than ``epochs`` epochs."""
    return any(epoch >= epochs for epoch, _ in _numbered(Path(version) / AUTO_FOLDER, _EPOCH))


def count_epochs(checkpoint: dict[str, Any]) -> int:
    """Epochs that a checkpoint, ours or the original's, has finished."""
    return upgrade_legacy(checkpoint)["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]


def check_continues(path: str, checkpoint: dict[str, Any], num_classes: int) -> None:
    """Raise a UserError if a checkpoint was trained on another number of identities, or holds weights alone."""
    found = checkpoint["state_dict"]["fc_query.weight"].shape[0]
    if found != num_classes:
        raise UserError(
            f"{path} was trained on {found} identities, but the training set here has {num_classes}: resume on the "
            "data set it was trained on (DATASETS.NAMES, DATASETS.ROOT_DIR), or test with TEST.ONLY_TEST True."
        )
    if not checkpoint.get("optimizer_states") or not checkpoint.get("lr_schedulers"):
        raise UserError(
            f"{path} holds no states of optimisers and schedule, so training cannot continue from it: resume from a "
            "file in auto_checkpoints or checkpoints, or test it with TEST.ONLY_TEST True."
        )


def check_same_network(path: str, checkpoint: dict[str, Any], own: Iterable[str], name: str) -> None:
    """Raise a UserError if a checkpoint is of another network than MODEL.NAME ``name``, whose weights are ``own``."""
    if checkpoint["state_dict"].keys() != set(own):
        raise UserError(
            f"{path} holds {describe(checkpoint)}, but MODEL.NAME is {name}: set MODEL.NAME and "
            "MODEL.BACKBONE_EMB_SIZE to those of its training."
        )


def remove_temporaries(version: str | os.PathLike[str]) -> None:
    """Remove what writes that were cut short by a kill or a power failure have left of a run's checkpoints."""
    for folder in (AUTO_FOLDER, BEST_FOLDER):
        for path in (Path(version) / folder).glob(_TEMPORARY):
            path.unlink(missing_ok=True)


def _numbered(folder: Path, pattern: re.Pattern[str]) -> list[tuple[int, Path]]:
    if not folder.is_dir():
        return []
    found = ((pattern.fullmatch(path.name), path) for path in folder.iterdir())
    return [(int(match[1]), path) for match, path in found if match]
