"""Where the checkpoints of runs lie, and which of them is the newest."""

import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from checkpoints.reading import load_ctl_checkpoint
from utils.errors import CheckpointError

logger = logging.getLogger(__name__)

AUTO_FOLDER, BEST_FOLDER = "auto_checkpoints", "checkpoints"

_VERSION = re.compile(r"version_(\d+)")
_EPOCH = re.compile(r"checkpoint_(\d+)\.pth")
# Names that checkpoints.writing.atomic_save writes under before it renames.
_TEMPORARY = ".*.tmp"


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
