"""Where runs keep their checkpoints, and which checkpoint is the newest."""

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
PREFIX = "checkpoint"  # of the files in AUTO_FOLDER

_VERSION = re.compile(r"version_(\d+)")
# The names that utils.files.replacing gives files before it renames them.
_TEMPORARY = ".*.tmp"


def list_checkpoints(folder: str | os.PathLike[str], prefix: str = PREFIX) -> list[Path]:
    """The files {prefix}_{epoch}.pth in a folder, newest epoch first; [] if there is no such folder."""
    return [path for _, path in sorted(_numbered(Path(folder), _epoch_pattern(prefix)), reverse=True)]


def find_newest(runs: str | os.PathLike[str], belongs: Callable[[dict[str, Any]], bool]) -> Path | None:
    """Find the newest intact checkpoint: the last epoch in the last version_N that has one.

    Interrupted writes leave temporary files, which are removed on the way.

    Args:
        runs: the folder of all runs of a script, ``OUTPUT_DIR/train_ctl_model``.
        belongs: tells from a checkpoint's ``hyper_parameters`` whether it belongs to the run to continue.

    Returns:
        Its path, or None if there is none. Each unreadable file is skipped with a warning that names it. If all that
        can be read belong to other runs, one line says how many they are.
    """
    others: list[Path] = []
    versions = sorted(_numbered(Path(runs), _VERSION), reverse=True)
    for _, version in versions:
        remove_temporaries(version)
    for _, version in versions:
        for path in list_checkpoints(version / AUTO_FOLDER):
            try:
                checkpoint = load_ctl_checkpoint(path)
            except CheckpointError as error:
                logger.warning("skipped: %s", error)
                continue
            if belongs(checkpoint["hyper_parameters"]):
                return path
            others.append(path)
    if others:
        logger.info(
            "passed over: %d checkpoint(s) of runs with another seed (REPRODUCIBLE, REPRODUCIBLE_SEED) or number, the "
            "newest is %s",
            len(others),
            others[0],
        )
    return None


def version_of(checkpoint: str | os.PathLike[str], runs: str | os.PathLike[str]) -> str | None:
    """The name of the folder in ``runs`` that holds a checkpoint, where its run can go on; None if it is elsewhere."""
    top = Path(runs).resolve()
    return next((folder.name for folder in Path(checkpoint).resolve().parents if folder.parent == top), None)


def has_more_epochs(version: str | os.PathLike[str], epochs: int) -> bool:
    """Whether a run's folder version_N holds a checkpoint written after more than ``epochs`` epochs."""
    return any(epoch >= epochs for epoch, _ in _numbered(Path(version) / AUTO_FOLDER, _epoch_pattern(PREFIX)))


def remove_temporaries(version: str | os.PathLike[str]) -> None:
    """Remove the temporary files that a kill or a power failure left among a run's checkpoints."""
    for folder in (AUTO_FOLDER, BEST_FOLDER):
        for path in (Path(version) / folder).glob(_TEMPORARY):
            path.unlink(missing_ok=True)


def _epoch_pattern(prefix: str) -> re.Pattern[str]:
    return re.compile(rf"{re.escape(prefix)}_(\d+)\.pth")


def _numbered(folder: Path, pattern: re.Pattern[str]) -> list[tuple[int, Path]]:
    if not folder.is_dir():
        return []
    found = ((pattern.fullmatch(path.name), path) for path in folder.iterdir())
    return [(int(match[1]), path) for match, path in found if match]
