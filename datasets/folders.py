"""Data sets whose file names tell identity and camera: 0002_c1s1_000451_03.jpg is identity 2 seen by camera 1."""

import re
from pathlib import Path

from datasets.bases import Annotation, ReidDataModule, Splits
from utils.errors import MissingPathError, UserError

_PID_CAMERA = re.compile(r"([-\d]+)_c(\d)")


def read_folder(
    folder: Path, num_cameras: int, max_pid: int | None = None, junk_pid: int | None = None
) -> list[Annotation]:
    """The ``*.jpg`` files of a folder in order of their names.

    Args:
        folder: not searched recursively.
        num_cameras: cameras are numbered from 1 to this in the file names.
        max_pid: greatest identity; None for no limit.
        junk_pid: images of this identity are left out; None keeps all.

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
    images = []
    for path in sorted(folder.glob("*.jpg")):
        pid, camera = _parse_name(path)
        if pid == junk_pid:
            continue
        if pid < 0 or (max_pid is not None and pid > max_pid):
            expected = "0 or more" if max_pid is None else f"0 to {max_pid}"
            raise UserError(f"{path}: identity {pid} is out of range; expected {expected}.")
        if not 1 <= camera <= num_cameras:
            raise UserError(f"{path}: camera {camera} is out of range; expected 1 to {num_cameras}.")
        images.append((str(path), pid, camera - 1))
    if not images:
        raise UserError(f"Folder {folder} holds no images of people; expected files such as 0002_c1s1_000451_03.jpg.")
    return images


def _parse_name(path: Path) -> tuple[int, int]:
    match = _PID_CAMERA.search(path.name)
    try:
        if match is not None:
            return int(match[1]), int(match[2])
    except ValueError:  # such as "1-2", which the pattern lets through
        pass
    raise UserError(
        f"{path}: identity and camera cannot be read from the name; expected one such as 0002_c1s1_000451_03.jpg."
    )


class FolderDataModule(ReidDataModule):
    """ROOT_DIR/<folder>/{bounding_box_train, query, bounding_box_test}."""

    folder: str
    num_cameras: int
    max_pid: int | None = None
    junk_pid: int | None = None

    def read_splits(self) -> Splits:
        root = Path(self.cfg.DATASETS.ROOT_DIR) / self.folder
        train, query, gallery = (
            read_folder(root / name, self.num_cameras, self.max_pid, self.junk_pid)
            for name in ("bounding_box_train", "query", "bounding_box_test")
        )
        return Splits(train, query, gallery)
