"""Finds folders and images, and reads the text files that list images."""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from datasets.notes import HIDDEN, LOOP, NOT_AN_IMAGE, OTHER_FOLDER, PassedOver
from utils.errors import MissingPathError, UserError
from utils.image import IMAGE_SUFFIXES

# What operating systems and archives leave in folders; published data sets have some too. Nobody takes it for data.
_LITTER = {"Thumbs.db", "desktop.ini", ".DS_Store"}
_HIDDEN = (".", "@eaDir", "__MACOSX")


def find_folder(root: Path, names: Sequence[str], passed: PassedOver | None = None) -> Path:
    """The first of the folders ``root/name`` that exists; the first of all if none does.

    Args:
        root: the folder above.
        names: in the order of preference.
        passed: collects those that exist as well.
    """
    found = [root / name for name in names if (root / name).is_dir()]
    if passed is not None:
        # Where case does not matter, two spellings name one folder.
        passed.add(OTHER_FOLDER, *(folder for folder in found[1:] if not folder.samefile(found[0])))
    return found[0] if found else root / names[0]


def list_folder(
    folder: Path, passed: PassedOver, suffixes: Sequence[str] = IMAGE_SUFFIXES
) -> tuple[list[Path], list[Path]]:
    """List the images of a folder and its subfolders, each sorted by name.

    Args:
        folder: exists.
        passed: collects hidden files and folders, and other files.
        suffixes: those of images, in upper or lower case.

    Raises:
        UserError: the folder cannot be read.
    """
    images, folders = [], []
    try:
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"Folder {folder} cannot be read ({error.strerror}).") from error
    endings = tuple(suffix.lower() for suffix in suffixes)
    for entry in entries:
        path = folder / entry.name
        if entry.name in _LITTER:
            continue
        if entry.name.startswith(_HIDDEN):
            passed.add(HIDDEN, path)
        elif os.path.isdir(entry) if entry.is_symlink() else entry.is_dir():  # noqa: PTH112 (no error for a loop)
            folders.append(path)
        elif path.suffix.lower() in endings:
            images.append(path)
        else:
            passed.add(NOT_AN_IMAGE, path)
    return images, folders


def list_deeper(
    folder: Path, passed: PassedOver, suffixes: Sequence[str] = IMAGE_SUFFIXES, above: Iterable[Path] = ()
) -> Iterator[Path]:
    """The images of a folder and of all folders below it, sorted by name in each.

    Args:
        folder: exists.
        passed: collects links to a folder above as well, which are not followed.
        suffixes: those of images.
        above: where the way from the first folder to this one has led.
    """
    parent = folder.parent.resolve()
    above = {*above, parent, *parent.parents}
    if folder.resolve() in above:
        passed.add(LOOP, folder)
        return
    images, folders = list_folder(folder, passed, suffixes)
    yield from images
    for subfolder in folders:
        yield from list_deeper(subfolder, passed, suffixes, above)


def check_images(paths: Iterable[str], named_by: str | os.PathLike[str], advice: str = "") -> None:
    """Raise MissingPathError if images do not exist, naming the first one and how many are missing.

    Args:
        paths: image files.
        named_by: the file that names them, for the message.
        advice: a sentence at the end of the message.
    """
    # Listing a folder once is far quicker than checking each of its files.
    names_in: dict[str, set[str]] = {}
    missing = []
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in names_in:
            names_in[folder] = _list_names(folder)
        # A file system may ignore case, and an unreadable folder cannot be listed.
        if name not in names_in[folder] and not os.path.isfile(path):  # noqa: PTH113 (False rather than an error)
            missing.append(path)
    if missing:
        text = f"Image {missing[0]} does not exist; {named_by} names {len(missing)} missing image(s)."
        folder, name = os.path.split(missing[0])
        alike = next((other for other in sorted(names_in[folder]) if other.lower() == name.lower()), None)
        if alike:
            advice = f"The folder has {alike}: write the name as the file has it, in upper and lower case."
        raise MissingPathError(f"{text} {advice}".rstrip())


def _list_names(folder: str) -> set[str]:
    try:
        return set(os.listdir(folder))  # noqa: PTH208 (plain strings: speed)
    except OSError:
        return set()


def read_list(path: Path) -> list[tuple[str, int]]:
    """Read a file that lists images, one per line: a name, white space, the number of the identity.

    Returns:
        (name, identity) of each line; never empty.

    Raises:
        MissingPathError: no such file.
        UserError: a malformed line, or no lines.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise MissingPathError(
            f"{path} does not exist; DATASETS.ROOT_DIR must be the folder that holds the data set's own folder."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as a list of images: {error}.") from error
    entries = []
    for number, line in enumerate(lines, start=1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 2 or not fields[1].isdecimal():
            raise UserError(f"{path}, line {number}: {line!r}; expected an image and the number of its identity.")
        entries.append((fields[0], int(fields[1])))
    if not entries:
        raise UserError(f"{path} is empty; expected lines with an image and the number of its identity.")
    return entries


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises MissingPathError, or UserError if it cannot be read."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise MissingPathError(f"{path} does not exist; see DATASETS.JSON_TRAIN_PATH.") from None
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}.") from error
