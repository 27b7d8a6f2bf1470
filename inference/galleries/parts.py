"""Finished chunks of an unfinished gallery, in OUTPUT_DIR/embeddings.parts: 00000012.npy and 00000012.json.

The .json file gets its name last: with it, the chunk is finished, and nothing but its removal changes it.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference.galleries.labels import Label
from utils.errors import UserError
from utils.files import replacing
from utils.galleries import read_array

RUN, PARTS = "embeddings.run.json", "embeddings.parts"

_HEADER_BYTES = 128  # of a .npy file of rows, as numpy writes it


@dataclass(frozen=True)
class Part:
    """What one chunk gives to the gallery."""

    rows: Any  # [n, D] float32; a memory-mapped file when it is read
    paths: Sequence[str]  # [n]
    labels: Sequence[Label] = ()  # [n], or none
    skipped: Sequence[str] = ()  # images that could not be read; the name of a chunk that ends too early


def part_file(folder: Path, number: int, suffix: str) -> Path:
    """The .npy, .json or .claim file of a chunk of the gallery in ``folder``."""
    return folder / PARTS / f"{number:08d}{suffix}"


class PartWriter:
    """Writes a chunk, of which only the paths are held in memory.

    Args:
        folder: of the gallery.
        number: of the chunk, which no other process writes.
        dimension: length of a row (D).
    """

    def __init__(self, folder: Path, number: int, dimension: int) -> None:
        self._folder, self._number, self._dimension = folder, number, dimension
        self._paths: list[str] = []
        self._labels: list[Label] = []
        self._skipped: list[str] = []
        self._temporary = part_file(folder, number, ".npy.new")
        self._temporary.unlink(missing_ok=True)  # whoever wrote it may still have it open
        self._stream = self._temporary.open("wb")
        self._write_header()

    def add(
        self, rows: NDArray[np.float32], paths: Iterable[str], labels: Iterable[Label], skipped: Iterable[str]
    ) -> None:
        """Add rows [n, D] with their paths and labels (or none), and images that could not be read."""
        self._stream.write(np.ascontiguousarray(rows, "<f4").tobytes())
        self._paths += paths
        self._labels += labels
        self._skipped += skipped

    def finish(self) -> None:
        """Make it a finished chunk; once this returns, killing the process no longer loses it."""
        self._stream.seek(0)
        self._write_header()
        self._stream.close()
        with replacing(part_file(self._folder, self._number, ".npy"), self._temporary):
            pass
        entry = {"paths": self._paths, "labels": self._labels, "skipped": self._skipped}
        with replacing(part_file(self._folder, self._number, ".json")) as temporary:
            temporary.write_bytes(json.dumps(entry).encode())  # ASCII, in which file names with any bytes survive

    def _write_header(self) -> None:
        shape = (len(self._paths), self._dimension)
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._stream, header)
        assert self._stream.tell() == _HEADER_BYTES

    def close(self) -> None:
        """Close the file; what is not finished is written anew by whoever takes the chunk next."""
        self._stream.close()


def read_part(folder: Path, number: int) -> Part | None:
    """A chunk of the unfinished gallery in ``folder``; None if it is not finished.

    Raises:
        UserError: one of its files is damaged.
    """
    path = part_file(folder, number, ".json")
    try:
        entry = json.loads(path.read_text())
        rows = read_array(path.with_suffix(".npy"), "r")
        if len(rows) != len(entry["paths"]):
            raise ValueError(f"{len(rows)} rows for {len(entry['paths'])} paths")
    except FileNotFoundError:
        if path.exists():
            raise UserError(
                f"{path.with_suffix('.npy')} is missing: remove {path} to embed that chunk again."
            ) from None
        return None
    except (ValueError, KeyError, TypeError, EOFError) as error:
        raise UserError(
            f"{path} or its .npy file is damaged ({error}): remove both to embed that chunk again."
        ) from error
    return Part(rows, entry["paths"], [tuple(label) for label in entry["labels"]], entry["skipped"])


def finished_numbers(folder: Path) -> list[int]:
    """The chunks that are finished; [] without an unfinished gallery."""
    try:
        return sorted(int(path.stem) for path in (folder / PARTS).iterdir() if path.suffix == ".json")
    except FileNotFoundError:
        return []


def count_rows(folder: Path, number: int, dimension: int) -> int:
    """Rows of a finished chunk, by the length of its file."""
    return (part_file(folder, number, ".npy").stat().st_size - _HEADER_BYTES) // (4 * dimension)


def read_run(folder: Path) -> dict[str, Any] | None:
    """What the unfinished run in ``folder`` is, see :class:`inference.galleries.runs.EmbeddingRun`; None without one.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / RUN
    try:
        found = json.loads(path.read_text())
        part_numbers(found)
        found["about"]["embedder"]["dimension"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}): remove it, which discards the unfinished run.") from error
    return found


def part_numbers(run: dict[str, Any]) -> list[int]:
    """The chunks of a run in the order of the gallery."""
    return [*run["kept"], *range(run["first"], run["first"] + run["chunks"])]


def finished_parts(folder: Path) -> Iterator[Part]:
    """The chunks of the unfinished gallery in ``folder`` that are finished, from the first up to the first gap."""
    run = read_run(folder)
    for number in part_numbers(run) if run else ():
        part = read_part(folder, number)
        if part is None:
            return
        yield part
