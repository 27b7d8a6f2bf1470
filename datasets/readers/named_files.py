"""Data sets whose file names give identity and camera: 0002_c1s1_000451_03.jpg is identity 2 seen by camera 1."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets.bases import Annotation, ReidDataModule, Splits
from datasets.notes import IN_SUBFOLDER, PassedOver
from datasets.readers.files import find_folder, list_deeper, list_folder
from utils.errors import MissingPathError, UserError
from utils.image import IMAGE_SUFFIXES

_OWN_DATA = "For data of your own use DATASETS.NAMES folder or csv, which take any identities and cameras."


@dataclass(frozen=True)
class NameRule:
    """How to read the file names of a data set; they number cameras from 1."""

    num_cameras: int
    max_pid: int | None = None  # greatest identity; None for no limit
    junk_pid: int | None = None  # images of this identity are left out; None keeps all
    pattern: str = r"([-\d]+)_c(\d+)"  # identity, camera
    suffixes: tuple[str, ...] = IMAGE_SUFFIXES  # in upper or lower case
    example: str = "0002_c1s1_000451_03.jpg"


def read_folder(folder: Path, rule: NameRule, passed: PassedOver | None = None) -> list[Annotation]:
    """Read the images of a folder, sorted by name; subfolders are not searched.

    Args:
        folder: holds the images.
        rule: how to read their names.
        passed: collects the files that are left out, but for the junk of the data set itself.

    Returns:
        (path, pid, camid) of each image, camid from 0; never empty.

    Raises:
        MissingPathError: no such folder.
        UserError: a name that does not parse, identity or camera out of range, or no images.
    """
    if not folder.is_dir():
        raise MissingPathError(
            f"Folder {folder} does not exist; DATASETS.ROOT_DIR must be the folder above {folder.parent.name}."
        )
    passed = PassedOver(folder) if passed is None else passed
    paths, subfolders = list_folder(folder, passed, rule.suffixes)
    for subfolder in subfolders:
        passed.add(IN_SUBFOLDER, *list_deeper(subfolder, passed, rule.suffixes))
    images = []
    for path in paths:
        pid, camera = _parse_name(path, rule)
        if pid == rule.junk_pid:
            continue
        if pid < 0 or (rule.max_pid is not None and pid > rule.max_pid):
            expected = "0 or more" if rule.max_pid is None else f"0 to {rule.max_pid}"
            raise UserError(f"{path}: identity {pid} is out of range; expected {expected}. {_OWN_DATA}")
        if not 1 <= camera <= rule.num_cameras:
            raise UserError(f"{path}: camera {camera} is out of range; expected 1 to {rule.num_cameras}. {_OWN_DATA}")
        images.append((str(path), pid, camera - 1))
    if not images:
        text = f"Folder {folder} holds no images of the data set; expected files such as {rule.example}."
        raise UserError(" ".join((text, *passed.notes())))
    return images


def _parse_name(path: Path, rule: NameRule) -> tuple[int, int]:
    match = re.search(rule.pattern, path.name)
    try:
        if match is not None:
            return int(match[1]), int(match[2])
    except ValueError:  # such as "1-2", which the pattern lets through
        pass
    raise UserError(
        f"{path}: identity and camera cannot be read from the name; expected one such as {rule.example}. {_OWN_DATA}"
    )


class FolderDataModule(ReidDataModule):
    """ROOT_DIR/<one of folders>/<subfolders>, by default {bounding_box_train, query, bounding_box_test}."""

    folders: tuple[str, ...]
    subfolders: tuple[str, str, str] = ("bounding_box_train", "query", "bounding_box_test")
    rule: NameRule

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # A subclass may name another folder, as the original's classes did.
        self._choose(Path(self.cfg.DATASETS.ROOT_DIR) / (getattr(type(self), "dataset_dir", None) or self.folders[0]))

    def _choose(self, folder: Path) -> None:
        self.dataset_dir = folder
        self.train_dir, self.query_dir, self.gallery_dir = (folder / name for name in self.subfolders)

    def read_splits(self) -> Splits:
        passed = PassedOver(self.dataset_dir)
        if len(self.folders) > 1 and not hasattr(type(self), "dataset_dir"):
            self._choose(find_folder(Path(self.cfg.DATASETS.ROOT_DIR), self.folders, passed))
        train, query, gallery = (
            read_folder(Path(folder), self.rule, passed)
            for folder in (self.train_dir, self.query_dir, self.gallery_dir)
        )
        return Splits(train, query, gallery, notes=passed.notes())
