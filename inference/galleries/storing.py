"""Writes galleries: one file of rows or several, in float32 or float16, all at once or after the rows that are there.

Rows go to files whose names end in .new; see :mod:`utils.galleries` for how they become the gallery. A process that is
killed at any moment leaves the gallery as it was or as it was to be.
"""

import json
import logging
import os
import re
import shutil
import uuid
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from inference.galleries.float16 import RecallSample
from inference.galleries.gallery import CAMIDS, PATHS, PIDS, SKIPPED, Gallery, npy_header, read_gallery
from inference.galleries.labels import Label, describe_label
from utils.errors import UserError
from utils.files import replacing
from utils.galleries import ABOUT, LOCK, NEW, NEXT, ROW_FILES, file_name, read_change
from utils.locks import lock, try_lock, unlock

logger = logging.getLogger(__name__)

StrPath = str | os.PathLike[str]

ROWS_PER_FILE = 1_000_000  # the default of GALLERY.ROWS_PER_FILE
DTYPES = {"float32": "<f4", "float16": "<f2"}
ARRAYS = ("embeddings", "camids", "pids", "paths")
_OURS = re.compile(
    r"(embeddings|paths|pids|camids)(-\d{5,})?\.npy|(sums|counts|images|image_rows)\.npy|skipped\.txt"
    r"|gallery\.json(\.next)?"
)
_COPIED_BYTES = 32 << 20
_TEXT_BYTES = 1 << 20


class GalleryWriter:
    """Writes a gallery; a context manager, which leaves the folder as it was unless :meth:`finish` is called.

    While it is open, no other process writes to the gallery.

    Args:
        folder: of the gallery; it is created if it does not exist.
        about: what gallery.json says, see :class:`inference.galleries.gallery.EmbeddingRun`.
        dtype: "float32" or "float16" for the rows on the disk.
        rows_per_file: with more rows than this, the gallery has several files.

    Raises:
        UserError: a value is beyond the range of float16, or the folder cannot be written to (a full disk, say).
    """

    def __init__(
        self, folder: StrPath, about: dict[str, Any], dtype: str = "float32", rows_per_file: int = ROWS_PER_FILE
    ) -> None:
        self.folder, self.about, self.dtype, self.rows_per_file = Path(folder), dict(about), dtype, rows_per_file
        self._extends, self._dimension = False, 0
        self._replaced: Sequence[str] | None = None
        self._rows_of: dict[str, list[int]] = {}  # absolute path -> the rows to replace
        self._old_labels: Callable[[list[int]], list[Label]] = lambda rows: []
        self._changed: dict[int, Any] = {}  # of the kept files, copies with new embeddings in some rows
        self._kept: list[dict[str, Any]] = []  # files that stay as they are, as gallery.json lists them
        self._written: list[dict[str, Any]] = []
        self._file: RowFile | None = None
        self._sample = RecallSample() if dtype == "float16" else None
        self._stack = ExitStack()

    @classmethod
    def extending(
        cls,
        folder: StrPath,
        about: dict[str, Any] | None = None,
        dtype: str | None = None,
        rows_per_file: int = ROWS_PER_FILE,
        replace: Sequence[str] | None = None,
    ) -> "GalleryWriter":
        """A writer that adds rows to the gallery in a folder; of several files, only the last is written again.

        Args:
            folder: of the gallery, which exists.
            about: what gallery.json is to say; None keeps what it says.
            dtype: that of the gallery; None takes it from there.
            rows_per_file: rows at which a new file begins.
            replace: images whose rows :meth:`add` replaces where the gallery has them, however their paths are
                written; None replaces nothing.

        Raises:
            UserError: there is no such gallery (on entering).
        """
        writer = cls(folder, about or {}, dtype or "", rows_per_file)
        writer._extends, writer._replaced = True, replace
        return writer

    def __enter__(self) -> "GalleryWriter":
        with writing(self.folder):
            self._stack.enter_context(editing(self.folder))
        try:
            if self._extends:
                self._take_over()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with self._stack:
            if self._file is not None:
                self._file.close()
            remove_new_files(self.folder)

    def add(self, rows: NDArray[Any], paths: Sequence[str], labels: Sequence[Label] = ()) -> None:
        """Add rows at the end.

        Args:
            rows: [n, D] float32.
            paths: [n] what paths.npy says of them.
            labels: [n], or none; with labels or without for all rows of a gallery.
        """
        self._dimension = self._dimension or rows.shape[1]
        if rows.shape[1] != self._dimension:
            raise UserError(
                f"the gallery in {self.folder} has the dimension {self._dimension}, but here it is {rows.shape[1]}: "
                "use the same model, or another OUTPUT_DIR."
            )
        if self._sample is not None:
            self._sample.add(rows)
        if self._rows_of and (known := [i for i, path in enumerate(paths) if absolute(path) in self._rows_of]):
            for i in known:
                there = self._rows_of[absolute(paths[i])]
                if labels and labels[i] not in (old := self._old_labels(there)):
                    raise UserError(
                        f"the gallery in {self.folder} has {describe_label(old[0])} for {paths[i]}, but here it is "
                        f"{describe_label(labels[i])}: delete the image (edit_gallery.py) and append it."
                    )
                for row in there:
                    self._replace(row, rows[i : i + 1], paths[i : i + 1])
            new = np.setdiff1d(np.arange(len(paths)), known).tolist()
            rows, paths, labels = rows[new], [paths[i] for i in new], [labels[i] for i in new] if labels else ()
        self._add(rows, paths, labels)

    def _add(self, rows: NDArray[Any], paths: Sequence[str], labels: Sequence[Label]) -> None:
        start = 0
        while start < len(rows):
            if self._file is None or self._file.count >= self.rows_per_file:
                self._next_file()
            assert self._file is not None
            stop = min(len(rows), start + self.rows_per_file - self._file.count)
            with writing(self.folder):
                self._file.add(rows[start:stop], paths[start:stop], labels[start:stop])
            start = stop

    def finish(self, images: int | None = None, skipped: Sequence[str] = (), ends: Sequence[str] = ()) -> int:
        """Make the rows the gallery.

        Args:
            images: how many images are behind the rows; None for as many as rows.
            skipped: images that could not be read.
            ends: files that go as soon as the gallery counts, such as what says that a run is unfinished.

        Returns:
            The number of rows.
        """
        if self._file is not None:
            self._end_file()
        for changed in self._changed.values():
            changed.flush()
        self._changed.clear()
        files = self._kept + self._written
        if not files:
            raise UserError(f"nothing to write to {self.folder}: there are no images.")
        count = sum(entry["rows"] for entry in files)
        about = {"count": count, "images": count if images is None else images, **self.about}
        measured = self._sample.measure() if self._sample is not None else None
        if measured and measured["rows"] >= about.get("float16", {}).get("rows", 0):  # not that of a few added rows
            about["float16"] = measured
        with writing(self.folder):
            if len(files) == 1 and not self._kept:
                for kind in ARRAYS:
                    _rename(self.folder / f"{file_name(kind, files[0]['name'])}{NEW}", f"{file_name(kind, '')}{NEW}")
            else:
                about[ROW_FILES] = files
            if skipped:
                text = b"".join(path.encode("utf-8", "surrogateescape") + b"\n" for path in skipped)
                (self.folder / f"{SKIPPED}{NEW}").write_bytes(text)
            kept = {file_name(kind, entry["name"]) for kind in ARRAYS for entry in self._kept}
            commit(self.folder, about, kept, ends)
        return count

    def _take_over(self) -> None:
        """Keep the full files of the gallery, and copy the rows of the last one, to go on after them."""
        found = read_gallery(self.folder)
        self.check_dtype(found)
        self._dimension = found.embeddings.shape[1]
        stays = ("float16", "revision") if self.about else found.about.keys() - {"count", "images", ROW_FILES}
        self.about |= {key: value for key, value in found.about.items() if key in stays}
        self._find_replaced(found)
        if self.dtype == "float16":
            self._sample = RecallSample()
        first = 0
        entries = list(found.about.get(ROW_FILES, ()))
        if entries:
            last = entries.pop() if entries[-1]["rows"] < self.rows_per_file else None
            self._kept, first = entries, sum(entry["rows"] for entry in entries)
            if last is None:
                return
        for block in blocks(found.embeddings, first):
            labels = found.labels_of(block)
            self._add(np.asarray(found.embeddings[block]), [str(path) for path in found.paths[block]], labels)

    def check_dtype(self, found: Gallery) -> None:
        """Take the dtype of the gallery to extend; raise a UserError if it is to be another."""
        dtype = "float16" if found.embeddings.dtype == np.float16 else "float32"
        if self.dtype and self.dtype != dtype:
            raise UserError(
                f"the gallery in {self.folder} holds {dtype}, but GALLERY.DTYPE is {self.dtype}: set it to {dtype}, or "
                "name another OUTPUT_DIR."
            )
        self.dtype = dtype

    def _find_replaced(self, found: Gallery) -> None:
        if self._replaced is None:
            return
        if found.holds != "images":
            raise UserError(f"{self.folder} holds {found.holds}; only rows of images can be replaced.")
        wanted = set(map(absolute, self._replaced))
        for row, path in enumerate(found.paths):
            if (name := absolute(str(path))) in wanted:
                self._rows_of.setdefault(name, []).append(row)
        self._old_labels = found.labels_of
        self.about["revision"] = uuid.uuid4().hex

    def _replace(self, row: int, values: NDArray[Any], paths: Sequence[str]) -> None:
        """Give a row of the gallery that is extended another embedding [1, D]."""
        files = [*self._kept, *self._written]
        starts = np.cumsum([0, *(entry["rows"] for entry in files)])
        number = int(np.searchsorted(starts, row, side="right")) - 1
        row -= int(starts[number])
        if number == len(files):
            assert self._file is not None
            self._file.replace(row, values, paths)
            return
        name = file_name("embeddings", files[number]["name"])
        with writing(self.folder):
            if number not in self._changed:
                if number < len(self._kept):
                    shutil.copyfile(self.folder / name, self.folder / f"{name}{NEW}")
                self._changed[number] = np.load(self.folder / f"{name}{NEW}", mmap_mode="r+")
            self._changed[number][row] = np.frombuffer(encoded(values, self.dtype, paths), DTYPES[self.dtype])

    def _next_file(self) -> None:
        if self._file is not None:
            self._end_file()
        files = self._kept + self._written
        number = int(files[-1]["name"]) + 1 if files else 0
        with writing(self.folder):
            self._file = RowFile(self.folder, f"{number:05d}", self._dimension, self.dtype)

    def _end_file(self) -> None:
        assert self._file is not None
        with writing(self.folder):
            self._file.finish()
        self._written.append({"name": self._file.name, "rows": self._file.count})
        self._file = None


def blocks(rows: Any, first: int = 0, stop: int | None = None) -> Iterator[slice]:
    """Slices from ``first`` to ``stop`` of rows [N, D], each small enough to be held in memory."""
    step, stop = max(1, _COPIED_BYTES // (4 * max(rows.shape[1], 1))), len(rows) if stop is None else stop
    for start in range(first, stop, step):
        yield slice(start, min(start + step, stop))


def absolute(path: str) -> str:
    """A path that is the same however it is written, without following links."""
    return os.path.abspath(path)  # noqa: PTH100 - which would follow them


def encoded(rows: NDArray[Any], dtype: str, paths: Sequence[str]) -> bytes:
    """The bytes of rows [n, D] on the disk.

    Raises:
        UserError: a value is beyond the range of float16; the message gives the row's path.
    """
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(rows, dtype=DTYPES[dtype])
    if dtype == "float16" and (lost := np.isinf(stored) & np.isfinite(rows)).any():
        row, column = np.argwhere(lost)[0].tolist()
        raise UserError(
            f"{paths[row]}: the embedding has the value {float(rows[row, column]):g}, and float16 holds at most 65504: "
            "set GALLERY.DTYPE float32."
        )
    return stored.tobytes()


# ----------------------------------------------------------------------------------------------- the change of a folder


@contextmanager
def editing(folder: Path) -> Iterator[None]:
    """Keep other processes from writing to a gallery, after completing a change that was interrupted."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = try_lock(folder / LOCK)
    with ExitStack() as stack:
        if descriptor is None:
            logger.info("Another process is writing to %s: waiting for it.", folder)
            stack.enter_context(lock(folder / LOCK))
        else:
            stack.callback(unlock, folder / LOCK, descriptor)
        complete(folder)
        remove_new_files(folder)
        yield


def commit(folder: Path, about: dict[str, Any], kept: Iterable[str] = (), ends: Iterable[str] = ()) -> None:
    """Make all .new files of a folder the gallery, with ``kept`` and nothing else of the present one.

    Args:
        folder: of the gallery, within :func:`editing`.
        about: what gallery.json is to say.
        kept: files of the present gallery that belong to the new one.
        ends: other files to remove.
    """
    (folder / f"{ABOUT}{NEW}").write_bytes(json.dumps(about, indent=1).encode() + b"\n")
    present = {path.name for path in folder.iterdir()}
    new = {name.removesuffix(NEW) for name in present if name.endswith(NEW) and _OURS.fullmatch(name.removesuffix(NEW))}
    for name in new:
        with (folder / f"{name}{NEW}").open("rb") as stream:
            os.fsync(stream.fileno())
    # paths.npy last: a folder that has it holds a whole gallery, for programs that know nothing of a change.
    rename = sorted(new, key=lambda name: (name == PATHS, name == ABOUT, name))
    remove = sorted(name for name in present if _OURS.fullmatch(name) and name not in new | set(kept))
    remove += ends
    with replacing(folder / NEXT, folder / f"{NEXT}{NEW}") as temporary:
        temporary.write_text(json.dumps({"rename": rename, "remove": remove}), encoding="utf-8")
    complete(folder)


def complete(folder: Path) -> None:
    """Do what ``gallery.json.next`` lists, if there is one; can be repeated after an interruption."""
    change = read_change(folder)
    if change is None:
        return
    first = [name for name in (PATHS, PIDS, CAMIDS) if name in change["rename"] and (folder / f"{name}{NEW}").exists()]
    for name in (*first, *change["remove"]):
        (folder / name).unlink(missing_ok=True)
    for name in change["rename"]:
        _rename(folder / f"{name}{NEW}", name)
    (folder / NEXT).unlink()


def _rename(path: Path, name: str) -> None:
    if path.exists():
        path.replace(path.with_name(name))


def remove_new_files(folder: Path) -> None:
    """Remove what an interrupted change has left, unless it holds already."""
    if not folder.is_dir() or (folder / NEXT).exists():
        return
    for path in folder.glob(f"*{NEW}"):
        if _OURS.fullmatch(path.name.removesuffix(NEW)):
            path.unlink(missing_ok=True)


@contextmanager
def writing(folder: Path, kept: str = "Nothing of the gallery is lost: run the command again.") -> Iterator[None]:
    """Turn errors of the disk into a UserError, which ends by saying what is kept and what to do."""
    try:
        yield
    except OSError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"OUTPUT_DIR: cannot write to {str(folder)!r} ({error.strerror or error}); name a writable folder with "
            f"enough free space. {kept}"
        ) from error


# ------------------------------------------------------------------------------------------------------- files of a row


class RowFile:
    """The arrays of some rows, in files with temporary names.

    Args:
        folder: of the gallery.
        name: such as 00003; "" for a gallery in one file.
        dimension: D.
        dtype: "float32" or "float16".
    """

    def __init__(self, folder: Path, name: str, dimension: int, dtype: str) -> None:
        self.folder, self.name, self.count = folder, name, 0
        self._dimension, self._dtype = dimension, dtype
        self._rows = self._path("embeddings").open("wb")
        self._rows.write(npy_header(DTYPES[dtype], (0, dimension)))
        self._paths = TextColumn(folder)
        self._labels: tuple[Column | None, Column | None] = (None, None)

    def _path(self, kind: str) -> Path:
        return self.folder / f"{file_name(kind, self.name)}{NEW}"

    def add(self, rows: NDArray[Any], paths: Sequence[str], labels: Sequence[Label]) -> None:
        """Add rows [n, D]; the first call says whether there are labels, and of which kind."""
        self._rows.write(encoded(rows, self._dtype, paths))
        self._paths.add(paths)
        if labels:
            if self.count == 0:
                self._labels = (column_for(self.folder, labels[0][0]), column_for(self.folder, labels[0][1]))
            for place, column in enumerate(self._labels):
                if column is not None:
                    column.add([label[place] for label in labels])
        self.count += len(rows)

    def replace(self, row: int, values: NDArray[Any], paths: Sequence[str]) -> None:
        """Give a row other values [1, D]."""
        data = encoded(values, self._dtype, paths)
        self._rows.seek(len(npy_header(DTYPES[self._dtype], (0, 0))) + row * len(data))
        self._rows.write(data)
        self._rows.seek(0, os.SEEK_END)

    def finish(self) -> None:
        """Complete the files."""
        self._rows.seek(0)
        self._rows.write(npy_header(DTYPES[self._dtype], (self.count, self._dimension)))
        self._rows.close()
        self._paths.write(self._path("paths"))
        for kind, column in zip(("pids", "camids"), self._labels, strict=True):
            if column is not None:
                column.write(self._path(kind))

    def close(self) -> None:
        """Close the files, complete or not."""
        with suppress(OSError):  # a full disk, which is told already
            self._rows.close()
        self._paths.close()


class TextColumn:
    """Text that becomes a .npy file, and is on the disk until its longest item is known."""

    def __init__(self, folder: Path) -> None:
        self._stream: BinaryIO = TemporaryFile(dir=folder)  # noqa: SIM115 - closed by write
        self._width = 1
        self.count = 0

    def add(self, values: Iterable[Any]) -> None:
        """Add items; a zero character ends each, which no file name holds."""
        texts = [str(value) for value in values]
        self._stream.write("".join(f"{text}\0" for text in texts).encode("utf-8", "surrogatepass"))
        self._width = max(self._width, max(map(len, texts), default=1))
        self.count += len(texts)

    def close(self) -> None:
        """Forget the items."""
        with suppress(OSError):
            self._stream.close()

    def write(self, path: Path) -> None:
        """Write the .npy file and forget the items."""
        dtype = np.dtype(f"<U{self._width}")
        self._stream.seek(0)
        rest = b""
        with path.open("wb") as stream, self._stream:
            stream.write(npy_header(dtype.str, (self.count,)))
            while data := self._stream.read(_TEXT_BYTES):
                *whole, rest = (rest + data).split(b"\0")
                stream.write(np.array([text.decode("utf-8", "surrogatepass") for text in whole], dtype).tobytes())


class NumberColumn:
    """Whole numbers that become a .npy file."""

    def __init__(self) -> None:
        self._values = array("q")

    def add(self, values: Iterable[Any]) -> None:
        """Add items."""
        self._values.extend(values)

    def write(self, path: Path) -> None:
        """Write the .npy file."""
        path.write_bytes(npy_header("<i8", (len(self._values),)) + np.array(self._values, "<i8").tobytes())


Column = TextColumn | NumberColumn


def column_for(folder: Path, first: int | str | None) -> Column | None:
    """A column for values like the first one; None for labels that are not known."""
    return None if first is None else NumberColumn() if isinstance(first, int) else TextColumn(folder)
