"""The user's own data in folders: ROOT_DIR/{train, query, gallery}/<identity>/<images>."""

import re
from collections.abc import Iterable
from pathlib import Path

from datasets.bases import ReidDataModule, Splits
from datasets.notes import OTHER_FOLDER, WITHOUT_IMAGES, Note, PassedOver
from datasets.readers.files import list_deeper, list_folder
from datasets.readers.numbering import SUBSETS, Entry, build_splits
from utils.errors import MissingPathError, UserError

_CAMERA = re.compile(r"_c(\d+)")
# What others call their subsets; beside the three that are read, such a folder is more likely forgotten than meant.
_OTHER_SUBSETS = ("val", "valid", "validation", "test", "probe")


def read_identity_folders(folder: Path, passed: PassedOver | None = None, camera_from: str = "name") -> list[Entry]:
    """Read the images of all identities, sorted by path; the name of the first folder is the identity.

    Folders below that of an identity are read as well.

    Args:
        folder: holds a folder for each identity.
        passed: collects what is left out: hidden files and folders, files other than images, empty folders.
        camera_from: what names the camera: "name" (``_c3`` in a file name is camera 3; none without it), or "folder"
            (the folder below that of the identity, whatever its name).

    Raises:
        UserError: an image lies in the folder itself, so that it has no identity; or in that of its identity although
            the folder below is the camera.
    """
    passed = passed or PassedOver(folder)
    images, identities = list_folder(folder, passed)
    if images:
        expected = folder / "<identity>" / images[0].name
        raise UserError(f"{images[0]} is not in the folder of an identity; expected {expected}.")
    entries = []
    for identity in identities:
        found = [Entry(str(path), identity.name, "") for path in list_deeper(identity, passed)]
        if not found:
            passed.add(WITHOUT_IMAGES, identity)
        entries += [image._replace(camera=_camera_of(Path(image.path), identity, camera_from)) for image in found]
    return entries


def _camera_of(path: Path, identity: Path, camera_from: str) -> str:
    if camera_from == "name":
        match = _CAMERA.search(path.stem)
        return match[1] if match else ""
    if path.parent == identity:
        raise UserError(
            f"{path} lies in the folder of its identity; with DATASETS.CAMERA_FROM folder expected that of a camera: "
            f"{identity / '<camera>' / path.name}."
        )
    return path.relative_to(identity).parts[0]


class OwnFolder(ReidDataModule):
    """DATASETS.NAMES folder. Identities may have any names; the camera is optional.

    DATASETS.CAMERA_FROM says what names it: ``_c<number>`` in a file name, or the folder below that of the identity.
    """

    @property
    def title(self) -> str:
        """The folder."""
        return str(self.cfg.DATASETS.ROOT_DIR)

    def read_splits(self) -> Splits:
        root, camera_from = Path(self.cfg.DATASETS.ROOT_DIR), self.cfg.DATASETS.CAMERA_FROM
        passed = PassedOver(root)
        passed.add(OTHER_FOLDER, *(root / name for name in _OTHER_SUBSETS if (root / name).is_dir()))
        entries: dict[str, list[Entry]] = {}
        for subset in SUBSETS:
            folder = root / subset
            if folder.is_dir():
                entries[subset] = read_identity_folders(folder, passed, camera_from)
            elif subset not in self.needed_subsets:
                entries[subset] = []
            else:
                raise MissingPathError(
                    f"Folder {folder} does not exist; DATASETS.ROOT_DIR must hold train, query and gallery, each with "
                    "a folder of images for each identity."
                )
            if not entries[subset] and folder.is_dir():
                text = f"Folder {folder} holds no images; expected files such as 0002/anything_c1.jpg in it."
                raise UserError(" ".join((text, *passed.notes())))
        splits = build_splits(entries, str(root), self.needed_subsets, passed)
        if camera_from == "folder":
            return splits
        images = (image for subset in SUBSETS for image in entries[subset])
        return splits._replace(notes=splits.notes + deeper_note(root, images, 2, "set DATASETS.CAMERA_FROM folder"))


def deeper_note(root: Path, images: Iterable[Entry], levels: int, way_out: str) -> tuple[str, ...]:
    """Say that folders below those of the identities were read; nothing if there are none.

    Args:
        root: the folder that was read.
        images: all images in it.
        levels: folders between ``root`` and an image that lies in the folder of its identity, that one included.
        way_out: the setting by which such a folder is a camera.
    """
    deeper = [image.path for image in images if len(Path(image.path).relative_to(root).parts) > levels + 1]
    if not deeper:
        return ()
    text = (
        f"{root}: {len(deeper)} image(s) in folders below those of the identities are read as images of the identity "
        f"(such as {deeper[0]}); if these folders are cameras, {way_out}."
    )
    return (Note(text, deeper),)
