"""Removes rows of a gallery by path, or gives them new embeddings; only the files that hold them are written again."""

import fnmatch
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference.galleries.centroids import IMAGE_ROWS, SUMS, read_sums, write_sums
from inference.galleries.gallery import IMAGES, SKIPPED, Gallery, read_gallery
from inference.galleries.parts import read_run
from inference.galleries.storing import (
    ARRAYS,
    NEW,
    GalleryWriter,
    NumberColumn,
    RowFile,
    StrPath,
    TextColumn,
    absolute,
    blocks,
    commit,
    editing,
    remove_new_files,
    writing,
)
from utils.errors import UserError
from utils.galleries import ROW_FILES, file_name, find_file
from utils.rows import Rows

_WILDCARDS = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Deletion:
    """What :func:`delete_rows` removed, or would remove.

    Attributes:
        count: rows that go.
        left: rows that stay.
        unmatched: names that no row has.
    """

    count: int
    left: int
    unmatched: tuple[str, ...]


def delete_rows(folder: StrPath, names: Sequence[str], dry_run: bool = False) -> Deletion:
    """Remove the rows of images, or of identities from a gallery of centroids.

    Args:
        folder: of the gallery.
        names: paths as they are in the gallery, or otherwise written; or patterns with ``*``, ``?`` and ``[...]``,
            where ``*`` also stands for slashes.
        dry_run: only say what would go.

    Raises:
        UserError: there is no gallery, nothing would stay, a run that adds to the gallery is not finished, or the
            folder cannot be written to.
    """
    folder = Path(folder)
    if dry_run:
        return _find(read_gallery(folder), names)[1]
    read_gallery(folder)  # before a lock is left in a folder that is none
    with writing(folder), editing(folder):
        try:
            gallery = read_gallery(folder)
            if (run := read_run(folder)) is not None and run["base"] is not None:  # it knows how many rows there were
                raise UserError(
                    f"a run that adds to {folder} is not finished: finish it first (create_embeddings.py with the same "
                    "options and --resume), or discard it (without --resume)."
                )
            gone, deletion = _find(gallery, names)
            if deletion.count and not deletion.left:
                raise UserError(f"that would delete all {deletion.count} rows of {folder}; remove the folder instead.")
            if deletion.count:
                _rewrite(folder, gallery, gone)
        finally:
            remove_new_files(folder)
    return deletion


def _find(gallery: Gallery, names: Sequence[str]) -> tuple[NDArray[np.bool_], Deletion]:
    """Which rows the names mean [N] bool; a name that is the path of a row is no pattern."""
    are_names = gallery.holds != "images"
    exact: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        for key in {name} if are_names else {name, absolute(name)}:
            exact.setdefault(key, []).append(name)
    patterns = {name: re.compile(fnmatch.translate(name)) for name in names if _WILDCARDS.search(name)}
    gone, matched = np.zeros(len(gallery.paths), np.bool_), set[str]()
    for row, path in enumerate(map(str, gallery.paths)):
        found = exact.get(path) or ([] if are_names else exact.get(absolute(path), []))
        gone[row] = bool(found)
        matched.update(found)
    if patterns := {name: pattern for name, pattern in patterns.items() if name not in matched}:
        for row, path in enumerate(map(str, gallery.paths)):
            fitting = [name for name, pattern in patterns.items() if pattern.match(path)]
            gone[row] |= bool(fitting)
            matched.update(fitting)
    count = int(gone.sum())
    return gone, Deletion(count, len(gone) - count, tuple(name for name in names if name not in matched))


def _rewrite(folder: Path, gallery: Gallery, gone: NDArray[np.bool_]) -> None:
    """Write the files that hold rows to delete without them, and make that the gallery."""
    several = isinstance(gallery.embeddings, Rows)
    entries = list(gallery.about.get(ROW_FILES, ())) or [{"name": "", "rows": len(gone)}]
    files, kept, start = [], {SKIPPED}, 0
    for entry in entries:
        stop = start + entry["rows"]
        stays = np.flatnonzero(~gone[start:stop]) + start
        if len(stays) == entry["rows"]:
            kept |= {file_name(kind, entry["name"]) for kind in ARRAYS}
        elif len(stays):
            _write_rows(folder, entry["name"], gallery, stays)
        if len(stays):
            files.append({"name": entry["name"], "rows": len(stays)})
        start = stop
    images = int((~gone).sum())
    if gallery.of_centroids and find_file(folder, SUMS) is not None:
        images = _rewrite_sums(folder, gone)
    elif gallery.of_centroids:
        images = gallery.about.get("images", images)
    # Without "files", the digest of the images that were embedded, --resume does not take the gallery for complete.
    about = {key: value for key, value in gallery.about.items() if key != "files"} | {"revision": uuid.uuid4().hex}
    about |= {"count": int((~gone).sum()), "images": images}
    commit(folder, about | ({ROW_FILES: files} if several else {}), kept)


def _write_rows(folder: Path, name: str, gallery: Gallery, rows: NDArray[np.int64]) -> None:
    """Write some rows of a gallery as one of its files."""
    dtype = "float16" if gallery.embeddings.dtype == np.float16 else "float32"
    new = RowFile(folder, name, gallery.embeddings.shape[1], dtype)
    try:
        for block in blocks(gallery.embeddings, stop=len(rows)):
            chosen = rows[block]
            paths = gallery.paths[chosen].tolist()
            new.add(gallery.embeddings[chosen], paths, gallery.labels_of(chosen))
        new.finish()
    finally:
        new.close()


def _rewrite_sums(folder: Path, gone: NDArray[np.bool_]) -> int:
    """Write the sums of the identities that stay, and the images behind them; returns how many images those are."""
    sums, counts, images, rows = read_sums(folder, len(gone))
    write_sums(folder, sums[~gone], counts[~gone])
    stays = np.flatnonzero(~gone[rows])
    text, numbers = TextColumn(folder), NumberColumn()
    for start in range(0, len(stays), 1 << 16):
        text.add(images[stays[start : start + (1 << 16)]].tolist())
    numbers.add((np.cumsum(~gone) - 1)[rows[stays]].tolist())
    text.write(folder / f"{IMAGES}{NEW}")
    numbers.write(folder / f"{IMAGE_ROWS}{NEW}")
    return len(stays)


def replace_rows(folder: StrPath, paths: Sequence[str], rows: Any) -> int:
    """Give images of a gallery new embeddings, in the rows where they are; images that it lacks are added at its end.

    Args:
        folder: of a gallery without labels, if images are added.
        paths: [n].
        rows: [n, D] float32.

    Returns:
        How many rows the gallery has.

    Raises:
        UserError: there is no gallery of images of that dimension, or the folder cannot be written to.
    """
    with GalleryWriter.extending(folder, replace=paths) as writer:
        writer.add(rows, paths)
        return writer.finish()
