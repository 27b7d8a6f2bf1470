"""Reads what create_embeddings.py leaves in a folder, as far as the search and the evaluation both need it.

A gallery has the arrays embeddings, paths and, where they are known, pids and camids. Each is one file
(embeddings.npy), or several (embeddings-00000.npy, ...), which gallery.json lists under ``row_files`` with their rows.

A change of a gallery is written to files whose names end in .new. It holds once ``gallery.json.next`` exists, which
lists the files to rename and to remove; then they get their names. So a reader that finds ``gallery.json.next`` reads
the .new files that are left in place of those that they replace.
"""

import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from utils.errors import MissingPathError, UserError
from utils.locks import lock
from utils.rows import MOST_OPEN, Reopened, Rows

ABOUT, NEXT, NEW = "gallery.json", "gallery.json.next", ".new"
LOCK = "gallery.lock"  # held by whoever changes the gallery
ROW_FILES = "row_files"
# How every gallery was made before gallery.json told.
_UNTOLD = {"resize": "stretch", "flip": False, "pooling": "avg", "neck_feat": "after", "draft_decoding": False}
_ATTEMPTS = 20  # to read a gallery that is being changed again and again, before asking for a pause

T = TypeVar("T")


def read_about(folder: Path) -> dict[str, Any]:
    """What gallery.json says of a gallery; {} if there is none, as in those of the original and of other programs.

    Raises:
        UserError: the file cannot be read, or is no such description.
    """
    path = find_file(folder, ABOUT)
    if path is None:
        return {}
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        about = error
    if not isinstance(about, dict) or not isinstance(about.get("embedder", {}), dict) or not _lists_files(about):
        raise UserError(
            f"{path} is damaged ({about if isinstance(about, Exception) else 'not an object'}), so nothing tells which "
            "model made the gallery: create it again, or remove the file to go on without that check."
        )
    return with_untold(about)


def _lists_files(about: dict[str, Any]) -> bool:
    entries = about.get(ROW_FILES, [])
    kinds = {"name": str, "rows": int}
    return isinstance(entries, list) and all(
        isinstance(entry, dict) and all(isinstance(entry.get(key), kind) for key, kind in kinds.items())
        for entry in entries
    )


def with_untold(about: dict[str, Any]) -> dict[str, Any]:
    """The description of a gallery, with what one of an older version does not say of its embedder."""
    return about | {"embedder": _UNTOLD | about["embedder"]} if about.get("embedder") else about


def find_file(folder: Path, name: str) -> Path | None:
    """A file of a gallery, also while a change of the gallery is not complete; None if there is none."""
    change = read_change(folder)
    if change is not None:
        if name in change["rename"] and (new := folder / f"{name}{NEW}").exists():
            return new
        if name in change["remove"]:
            return None
    return folder / name if (folder / name).exists() else None


def read_change(folder: Path) -> dict[str, list[str]] | None:
    """What is left to rename and to remove in a folder; None after a change that is complete."""
    try:
        return json.loads((folder / NEXT).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(
            f"{folder / NEXT} is damaged ({error}): it lists the files of a change of the gallery; remove it, and "
            "create the gallery again."
        ) from error


def file_name(array: str, name: str) -> str:
    """The file of an array: embeddings.npy, or embeddings-00003.npy for the name 00003."""
    return f"{array}-{name}.npy" if name else f"{array}.npy"


def row_files(about: dict[str, Any]) -> list[str]:
    """The names of the files that hold the rows of a gallery, [""] for a gallery in one file."""
    return [entry["name"] for entry in about.get(ROW_FILES, ())] or [""]


def array_files(folder: Path, about: dict[str, Any], array: str) -> list[Path]:
    """The files of an array of a gallery, in order; [] if the gallery lacks the array.

    Raises:
        MissingPathError: some of its files are there, others are not.
    """
    names = [file_name(array, name) for name in row_files(about)]
    found = {name: path for name in names if (path := find_file(folder, name))}
    if found and len(found) < len(names):
        missing = next(name for name in names if name not in found)
        raise MissingPathError(
            f"{folder / missing} does not exist, but gallery.json lists it: create the gallery again."
        )
    return list(found.values())


def read_rows(folder: Path, about: dict[str, Any], array: str, mmap_mode: Any = None) -> Any:
    """An array of a gallery in one file or several; None if the gallery lacks it.

    Raises:
        UserError: a file cannot be read, is missing, or has another number of rows than gallery.json says.
    """
    files = array_files(folder, about, array)
    if not files or ROW_FILES not in about:
        return read_array(files[0], mmap_mode) if files else None
    many = len(files) > MOST_OPEN
    arrays = [Reopened(read_array(path, "r")) if many else read_array(path, "r") for path in files]
    for path, part, entry in zip(files, arrays, about[ROW_FILES], strict=True):
        if not part.shape or len(part) != entry["rows"] or part.shape[1:] != arrays[0].shape[1:]:
            raise UserError(
                f"{path} has the shape {list(part.shape)}, but gallery.json says that it has {entry['rows']} rows: "
                "create the gallery again."
            )
    rows = Rows(arrays)
    return rows if mmap_mode else np.asarray(rows)


def steadily(folder: Path, read: Callable[[], T]) -> T:
    """What ``read`` reads of a gallery, all of it before or all of it after any change made at the same time."""
    for _ in range(_ATTEMPTS):
        before = _state(folder)
        try:
            found = read()
        except (OSError, UserError):
            is_changing = before[0] is not None  # files get other names before the state is another
            if not is_changing and _state(folder) == before:
                raise
        else:
            if _state(folder) == before:
                return found
    with lock(folder / LOCK):
        return read()


def _state(folder: Path) -> Sequence[Any]:
    found: list[tuple[int, int] | None] = []
    for name in (NEXT, ABOUT):
        try:
            status = (folder / name).stat()
            found.append((status.st_ino, status.st_mtime_ns))
        except OSError:
            found.append(None)
    return found


def read_array(path: Path, mmap_mode: Any = None) -> Any:
    """The array in a .npy file, in memory or, with ``mmap_mode``, on disk. Raises UserError if there is none."""
    try:
        array = np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("it is an .npz file")
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read as a .npy file of numbers or text ({error}).") from error
    return array
