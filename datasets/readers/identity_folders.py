"""The user's own data in folders: ROOT_DIR/{train, query, gallery}/<identity>/<images>."""

import re
from pathlib import Path

from datasets.bases import ReidDataModule, Splits
from datasets.readers.numbering import SUBSETS, Entry, build_splits
from utils.errors import MissingPathError, UserError
from utils.image import IMAGE_SUFFIXES

_CAMERA = re.compile(r"_c(\d+)")


def read_identity_folders(folder: Path) -> list[Entry]:
    """Read the images of all identities, sorted by path; the folder's name is the identity, ``_c3`` is camera 3.

    Hidden files and folders, files other than images, and deeper folders are ignored.

    Raises:
        UserError: an image lies in the folder itself, so that it has no identity.
    """
    entries = []
    for identity in _visible(folder):
        if identity.is_dir():
            images = [path for path in _visible(identity) if _is_image(path)]
            entries += [Entry(str(path), identity.name, _camera_of(path)) for path in images]
        elif _is_image(identity):
            raise UserError(
                f"{identity} is not in the folder of an identity; expected {folder / '<identity>' / identity.name}."
            )
    return entries


class OwnFolder(ReidDataModule):
    """DATASETS.NAMES folder. Identities may have any names; the camera, ``_c<number>`` in a file name, is optional."""

    @property
    def title(self) -> str:
        """The folder."""
        return str(self.cfg.DATASETS.ROOT_DIR)

    def read_splits(self) -> Splits:
        root = Path(self.cfg.DATASETS.ROOT_DIR)
        only_test = self.cfg.TEST.ONLY_TEST
        entries: dict[str, list[Entry]] = {}
        for subset in SUBSETS:
            folder = root / subset
            if folder.is_dir():
                entries[subset] = read_identity_folders(folder)
            elif subset == "train" and only_test:
                entries[subset] = []
            else:
                raise MissingPathError(
                    f"Folder {folder} does not exist; DATASETS.ROOT_DIR must hold train, query and gallery, each with "
                    "a folder of images for each identity."
                )
            if not entries[subset] and folder.is_dir():
                raise UserError(f"Folder {folder} holds no images; expected files such as 0002/anything_c1.jpg in it.")
        return build_splits(entries, str(root), may_lack_training=only_test)


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES


def _camera_of(path: Path) -> str:
    match = _CAMERA.search(path.stem)
    return match[1] if match else ""
