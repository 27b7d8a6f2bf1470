"""Galleries on disk: embeddings.npy [N, D] float32, paths.npy [N] text, gallery.json.

Where the identities and cameras of the images are known: pids.npy and camids.npy [N], int64 or text, in the same order.
A gallery that is being made is in other files, see :mod:`inference.galleries.runs`.
"""

import hashlib
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from inference.galleries.labels import Label
from inference.galleries.parts import RUN, finished_parts, read_run
from utils.errors import MissingPathError, UserError
from utils.galleries import ABOUT, array_files, find_file, read_about, read_array, read_rows, steadily
from utils.rows import Reopened, Rows

logger = logging.getLogger(__name__)

StrPath = str | os.PathLike[str]

EMBEDDINGS, PATHS, SKIPPED = "embeddings.npy", "paths.npy", "skipped.txt"
PIDS, CAMIDS, IMAGES = "pids.npy", "camids.npy", "images.npy"

_HEADER_BYTES = 128  # in the .npy files written here: enough for any shape


# --------------------------------------------------------------------------------------------------- finished galleries


def read_skipped(folder: Path) -> list[str]:
    """What skipped.txt of a gallery lists: images, and files of images, that could not be read."""
    file = find_file(folder, SKIPPED)
    return [] if file is None else [os.fsdecode(line) for line in file.read_bytes().splitlines()]


@dataclass(frozen=True)
class Gallery:
    """A gallery on disk; its arrays are memory-mapped files, or Rows of several."""

    embeddings: Any  # [N, D] floating
    paths: Any  # [N] image files, or names of identities
    about: dict[str, Any]  # see runs.EmbeddingRun; {} for a gallery without gallery.json
    pids: Any = None  # [N] numbers or text; None where they are not known
    camids: Any = None  # [N], or None
    images: Any = None  # of a gallery of centroids, the image files behind them; None where they are not known
    unfinished: bool = False  # whether more rows are being written

    @property
    def of_centroids(self) -> bool:
        """Whether each row is the centroid of an identity."""
        return self.about.get("pid_from") is not None

    @property
    def holds(self) -> str:
        """What each row is of: "images", "centroids of identities" or "groups of images"."""
        of_groups = self.about.get("group") is not None
        return "centroids of identities" if self.of_centroids else "groups of images" if of_groups else "images"

    @property
    def labels(self) -> list[Label]:
        """[N], or [] where they are not known; read anew at each use."""
        return self.labels_of(slice(None))

    def labels_of(self, rows: Any) -> list[Label]:
        """The labels of the rows that a slice or whole numbers choose."""
        if self.pids is None:
            return []
        pids = self.pids[rows].tolist()
        return list(zip(pids, [None] * len(pids) if self.camids is None else self.camids[rows].tolist(), strict=True))


def read_gallery(folder: StrPath, unfinished: bool = False) -> Gallery:
    """Open the gallery in a folder, without reading its embeddings yet.

    Args:
        folder: what create_embeddings.py wrote to.
        unfinished: where there is no gallery yet, take the first chunks of the run that writes it, up to one that is
            not finished.

    Raises:
        MissingPathError: embeddings.npy or paths.npy does not exist.
        UserError: one of them is not a file of its kind, or they do not belong together; the unfinished gallery is one
            of centroids, which depend on all images.
    """
    folder = Path(folder)
    return steadily(folder, lambda: (_read_unfinished(folder) if unfinished else None) or _read(folder))


def _read_unfinished(folder: Path) -> Gallery | None:
    """What is finished of a gallery that is being written; None if there is a whole one, or nothing yet."""
    run = read_run(folder)
    if run is None or array_files(folder, read_about(folder), "paths"):
        return None
    rows: list[Reopened] = []
    paths: list[Any] = []
    labels: list[Label] = []
    for part in finished_parts(folder):
        if len(part.rows):
            rows.append(Reopened(part.rows))  # there may be more chunks than a process can hold open
            paths.append(np.array(part.paths))
            labels += part.labels
    if not rows:
        return None
    if run["about"]["pid_from"] is not None:
        raise UserError(f"{folder} is becoming a gallery of centroids, which can be searched once it is finished.")
    columns = [np.array([label[place] for label in labels]) if labels else None for place in (0, 1)]
    pids, camids = (None if column is None or column.dtype == object else column for column in columns)
    return Gallery(Rows(rows), Rows(paths), run["about"], pids, camids, unfinished=True)


def _read(folder: Path) -> Gallery:
    about = read_about(folder)
    arrays = {
        Path(name).stem: read_rows(folder, about, Path(name).stem, "r") for name in (EMBEDDINGS, PATHS, PIDS, CAMIDS)
    }
    for name in (EMBEDDINGS, PATHS):
        if arrays[Path(name).stem] is None:
            hint = " There is an unfinished run: --resume finishes it." if (folder / RUN).exists() else ""
            raise MissingPathError(
                f"{folder / name} does not exist; expected a folder that create_embeddings.py wrote to.{hint}"
            )
    images = find_file(folder, IMAGES)
    gallery = Gallery(about=about, images=None if images is None else read_array(images, "r"), **arrays)
    embeddings, paths = gallery.embeddings, gallery.paths
    if embeddings.ndim != 2 or embeddings.dtype.kind != "f":
        raise UserError(
            f"{folder / EMBEDDINGS} has the shape {list(embeddings.shape)} of {embeddings.dtype}; expected "
            "floating-point numbers [N, D]."
        )
    if paths.ndim != 1 or paths.dtype.kind != "U":
        raise UserError(f"{folder / PATHS} has the shape {list(paths.shape)} of {paths.dtype}; expected text [N].")
    if len(embeddings) != len(paths):
        raise UserError(
            f"{folder / EMBEDDINGS} has {len(embeddings)} rows but {folder / PATHS} has {len(paths)}: they do not "
            "belong together; create the gallery again."
        )
    for name in (PIDS, CAMIDS):
        column = arrays[Path(name).stem]
        if column is not None and (column.shape != (len(paths),) or column.dtype.kind not in "iU"):
            raise UserError(
                f"{folder / name} has the shape {list(column.shape)} of {column.dtype}; expected whole numbers or text "
                f"[{len(paths)}], as many as {PATHS}: create the gallery again."
            )
    return gallery


def check_same_embedder(expected: dict[str, Any], found: dict[str, Any], what: str, way_out: str) -> None:
    """Raise a UserError if two sets of embeddings must not be mixed, judging by their ``Embedder.identity``.

    Args:
        expected: identity of the embedder of this run.
        found: identity of the embedder that made the gallery, or {} if unknown.
        what: the gallery, as the message calls it.
        way_out: the end of the message: what the user can do.
    """
    for key, value in expected.items():
        if key in found and found[key] != value:
            was, now = (f"{str(v)[:12]}..." if key == "weights" else v for v in (found[key], value))
            raise UserError(f"{what} was made with {key} {was}, but here it is {now}: {way_out}")


def check_comparable(gallery: Gallery, embedder: dict[str, Any], folder: StrPath) -> None:
    """Raise a UserError if a gallery and the queries of an embedder (``Embedder.identity``) differ in dimension.

    Other differences, such as the weights or the image size, only cause a warning.
    """
    dimension = gallery.embeddings.shape[1]
    if dimension != embedder["dimension"]:
        raise UserError(
            f"the gallery in {folder} has {dimension} dimensions, but the queries have {embedder['dimension']}: embed "
            "both with the same model."
        )
    found = gallery.about.get("embedder", {})
    if not found:
        logger.info(
            "%s does not say which model made the gallery; it must be that of the queries.", Path(folder) / ABOUT
        )
    differing = [key for key, value in embedder.items() if key in found and found[key] != value]
    if differing:
        logger.warning(
            "The gallery in %s and the queries differ in %s; distances between them may mean little.",
            folder,
            ", ".join(differing),
        )


# ------------------------------------------------------------------------------------------------------ files and bytes


def npy_header(descr: str, shape: tuple[int, ...]) -> bytes:
    """The header of a .npy file (format version 1.0), with the same length for every shape."""
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape!r}, }}"
    head = b"\x93NUMPY\x01\x00" + (_HEADER_BYTES - 10).to_bytes(2, "little")
    return head + text.ljust(_HEADER_BYTES - 11).encode() + b"\n"


def digest_of_paths(paths: Iterable[str]) -> str:
    """SHA-256 of a list of paths."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()
