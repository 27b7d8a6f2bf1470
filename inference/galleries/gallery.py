"""Galleries on disk: embeddings.npy [N, D] float32, paths.npy [N] text, gallery.json, and the runs that make them.

Where the identities and cameras of the images are known: pids.npy and camids.npy [N], int64 or text, in the same order.

During a run, ``embeddings.npy.partial`` holds its rows and ``embeddings.journal`` a line for each finished batch. The
line is written after the rows, and rows count only once their line is there; so a run that was killed continues with
the first batch that has no line. At the end the files are renamed, ``paths.npy`` last: a folder with ``paths.npy``
holds a whole gallery.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedRandom
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

from inference.galleries.identities import pid_function
from inference.galleries.labels import Label
from utils.centroids import identity_centroids
from utils.errors import MissingPathError, UserError
from utils.files import replacing
from utils.galleries import ABOUT, find_file, read_about, read_array, read_rows, steadily, with_untold

logger = logging.getLogger(__name__)

StrPath = str | os.PathLike[str]

EMBEDDINGS, PATHS, SKIPPED = "embeddings.npy", "paths.npy", "skipped.txt"
PIDS, CAMIDS, IMAGES = "pids.npy", "camids.npy", "images.npy"
PARTIAL, JOURNAL = "embeddings.npy.partial", "embeddings.journal"

_HEADER_BYTES = 128  # in the .npy files written here: enough for any shape
_CHUNK_BYTES = 32 << 20


# --------------------------------------------------------------------------------------------------- finished galleries


@dataclass(frozen=True)
class Gallery:
    """A gallery on disk; its arrays are memory-mapped files, or Rows of several."""

    embeddings: Any  # [N, D] floating
    paths: Any  # [N] image files, or names of identities
    about: dict[str, Any]  # see EmbeddingRun.about; {} for a gallery without gallery.json
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
        unfinished: where there is no gallery yet, take what the run that writes it has finished.

    Raises:
        MissingPathError: embeddings.npy or paths.npy does not exist.
        UserError: one of them is not a file of its kind, or they do not belong together.
    """
    folder = Path(folder)
    return steadily(folder, lambda: _read(folder))


def _read(folder: Path) -> Gallery:
    about = read_about(folder)
    arrays = {
        Path(name).stem: read_rows(folder, about, Path(name).stem, "r") for name in (EMBEDDINGS, PATHS, PIDS, CAMIDS)
    }
    for name in (EMBEDDINGS, PATHS):
        if arrays[Path(name).stem] is None:
            hint = " There is an unfinished run: --resume finishes it." if (folder / JOURNAL).exists() else ""
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


# -------------------------------------------------------------------------------------------------------------- a run


class EmbeddingRun:
    """A run that embeds images into a gallery, and its files on disk.

    Args:
        folder: where the gallery will be.
        about: ``embedder`` (``Embedder.identity``), ``root`` (the folder of the images), ``in_subfolders``, ``source``
            (the subset of a data set, whose rows have labels; None for a folder), and ``pid_from`` (None for a gallery
            of images, else how to read identities from paths, see ``pid_function``).
    """

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        self.folder = folder
        self.about = about
        self.done: list[str] = []
        self.labels: list[Label] = []  # one for each done, or none
        self.skipped: list[str] = []
        self.complete = False
        self._rows: BinaryIO | None = None
        self._journal: BinaryIO | None = None

    @property
    def dimension(self) -> int:
        """Length of an embedding (D)."""
        return self.about["embedder"]["dimension"]

    @classmethod
    def start(cls, folder: Path, about: dict[str, Any], base: Gallery | None = None) -> "EmbeddingRun":
        """Start a new run with the rows of ``base``, the gallery to extend; discards an unfinished run."""
        run = cls(folder, about)
        with _writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / JOURNAL).unlink(missing_ok=True)
            run._rows = (folder / PARTIAL).open("w+b")
            run._rows.write(bytes(_HEADER_BYTES))
            lines = [_line({"about": about})]
            if base is not None:
                for part in _chunks(base.embeddings):
                    run._rows.write(_row_bytes(part))
                run.done, run.labels = [str(path) for path in base.paths], list(base.labels)
                lines.append(_line({"done": run.done, "labels": run.labels, "skipped": []}))
            _sync(run._rows)
            # Written together with its first lines: a journal exists only once the rows of the base are there.
            _replace(folder / JOURNAL, lines)
            run._journal = (folder / JOURNAL).open("ab")
        return run

    @classmethod
    def open(cls, folder: Path) -> "EmbeddingRun | None":
        """The unfinished run in a folder, up to its last finished batch; None if there is none."""
        path = folder / JOURNAL
        if not path.exists():
            return None
        with _writing(folder):
            stream = path.open("r+b")
            length, entries = _read_journal(stream)
            if not entries or "about" not in entries[0]:
                logger.warning("%s is damaged: nothing of that unfinished run can be used.", path)
                stream.close()
                return None
            stream.truncate(length)
            stream.seek(length)
        run = cls(folder, with_untold(entries[0]["about"]))
        run._journal = stream
        for entry in entries[1:]:
            run.done += entry.get("done", ())
            run.labels += map(tuple, entry.get("labels", ()))
            run.skipped += entry.get("skipped", ())
            if entry.get("complete"):
                run.complete = True
                run.about["files"] = entry.get("files")
        return run

    def reopen_rows(self) -> None:
        """Open the file of rows, to add more after those that count.

        Raises:
            UserError: the file has fewer rows than the journal says.
        """
        with _writing(self.folder):
            length = _HEADER_BYTES + len(self.done) * self.dimension * 4
            path = self.folder / PARTIAL
            if not path.exists() or path.stat().st_size < length:
                raise UserError(f"{path} is shorter than {JOURNAL} says; run without --resume to start over.")
            self._rows = path.open("r+b")
            self._rows.truncate(length)
            self._rows.seek(length)

    def add(
        self,
        embeddings: NDArray[np.float32],
        done: Sequence[str],
        skipped: Sequence[str],
        labels: Sequence[Label] = (),
    ) -> None:
        """Write a batch; once this returns, killing the process no longer loses it."""
        assert self._rows is not None and self._journal is not None
        with _writing(self.folder):
            self._rows.write(_row_bytes(embeddings))
            _sync(self._rows)
            self._journal.write(_line({"done": list(done), "labels": list(labels), "skipped": list(skipped)}))
            self._journal.flush()
        self.done += done
        self.labels += labels
        self.skipped += skipped

    def finish(self, files: Iterable[str] | None = None) -> int:
        """Give the files their final names; can be repeated after an interruption.

        Args:
            files: all images that the run was to embed; None if that is no longer known.

        Returns:
            The number of rows in the gallery.
        """
        assert self._journal is not None
        with _writing(self.folder):
            names = self.done
            partial, paths = self.folder / PARTIAL, self.folder / PATHS
            if self.complete and not partial.exists() and paths.exists():  # only the journal is left to remove
                self._end()
                return len(read_gallery(self.folder).paths)
            if not self.complete:
                self._complete(files)
            # From here on the folder holds no whole gallery, nor labels that are of other rows.
            for name in (PATHS, PIDS, CAMIDS):
                (self.folder / name).unlink(missing_ok=True)
            if self.about["pid_from"] is not None:
                names = self._write_centroids()
            elif partial.exists():
                partial.replace(self.folder / EMBEDDINGS)
            self._write_labels()
            if self.skipped:
                skipped = (path.encode("utf-8", "surrogateescape") + b"\n" for path in self.skipped)
                _replace(self.folder / SKIPPED, skipped)
            else:
                (self.folder / SKIPPED).unlink(missing_ok=True)
            about = {"count": len(names), "images": len(self.done), **self.about}
            _replace(self.folder / ABOUT, [json.dumps(about, indent=1).encode() + b"\n"])
            _replace(paths, _text_array(names))
            partial.unlink(missing_ok=True)
            self._end()
        return len(names)

    def _end(self) -> None:
        self.close()
        (self.folder / JOURNAL).unlink()

    def _complete(self, files: Iterable[str] | None) -> None:
        assert self._rows is not None and self._journal is not None
        self._rows.seek(0)
        self._rows.write(npy_header("<f4", (len(self.done), self.dimension)))
        _sync(self._rows)
        if files is not None:
            self.about["files"] = digest_of_paths(files)
        self._journal.write(_line({"complete": True, "files": self.about.get("files")}))
        _sync(self._journal)
        self.complete = True

    def _write_centroids(self) -> list[str]:
        pid_of = pid_function(self.about["pid_from"], self.about["root"])
        rows = np.load(self.folder / PARTIAL, mmap_mode="r+")
        centroids, names = identity_centroids(torch.from_numpy(rows), [pid_of(path) for path in self.done])
        del rows
        header = npy_header("<f4", tuple(centroids.shape))
        _replace(self.folder / EMBEDDINGS, [header, _row_bytes(centroids.numpy())])
        return names

    def _write_labels(self) -> None:
        for column, name in ((1, CAMIDS), (0, PIDS)):  # pids last: with them, nothing is missing
            values: list[Any] = [label[column] for label in self.labels if label[column] is not None]
            if not values:
                continue
            if isinstance(values[0], int):
                _replace(self.folder / name, [npy_header("<i8", (len(values),)), np.array(values, "<i8").tobytes()])
            else:
                _replace(self.folder / name, _text_array(values))

    def discard(self) -> None:
        """Remove the unfinished run from disk."""
        self.close()
        with _writing(self.folder):
            (self.folder / JOURNAL).unlink(missing_ok=True)
            (self.folder / PARTIAL).unlink(missing_ok=True)

    def close(self) -> None:
        """Close the files; what was added stays."""
        for stream in (self._rows, self._journal):
            if stream is not None:
                stream.close()
        self._rows = self._journal = None


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


def _text_array(names: Sequence[str], at_once: int = 1 << 16) -> Iterator[bytes]:
    """The bytes of a .npy file of text."""
    width = max(1, max(map(len, names), default=1))
    dtype = np.dtype(f"<U{width}")
    yield npy_header(dtype.str, (len(names),))
    for start in range(0, len(names), at_once):
        yield np.array(names[start : start + at_once], dtype=dtype).tobytes()


def _row_bytes(embeddings: Any) -> bytes:
    return np.ascontiguousarray(embeddings, dtype="<f4").tobytes()


def _chunks(embeddings: Any) -> Iterator[Any]:
    rows = max(1, _CHUNK_BYTES // (4 * max(embeddings.shape[1], 1)))
    for start in range(0, len(embeddings), rows):
        yield embeddings[start : start + rows]


def _line(entry: dict[str, Any]) -> bytes:
    return json.dumps(entry).encode() + b"\n"  # ASCII, in which file names with any bytes survive


def _read_journal(stream: BufferedRandom) -> tuple[int, list[dict[str, Any]]]:
    """Where the complete lines of a journal end, and the entries in them."""
    length, entries = 0, []
    for line in stream:
        try:
            entry = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            entry = None
        if not isinstance(entry, dict):
            break
        entries.append(entry)
        length += len(line)
    return length, entries


def _replace(path: Path, parts: Iterable[bytes]) -> None:
    """Write a file whole, through a temporary file that the next run overwrites if this one is killed."""
    with replacing(path, path.with_name(f"{path.name}.new")) as temporary, temporary.open("wb") as stream:
        for part in parts:
            stream.write(part)


def _sync(stream: BinaryIO) -> None:
    stream.flush()
    os.fsync(stream.fileno())


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"OUTPUT_DIR: cannot write to {str(folder)!r} ({error.strerror or error}); name a writable folder with "
            "enough free space. What was embedded is kept: --resume continues from there."
        ) from error
