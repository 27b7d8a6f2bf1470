"""Galleries of centroids, with the sums behind them, so that images can be added later.

Beside the gallery lie sums.npy [C, D] float64 and counts.npy [C] int64, whose quotients are the rows, and images.npy
[M] text and image_rows.npy [M] int64: the images behind the rows, and the row of each.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from inference.galleries.gallery import IMAGES, npy_header, read_gallery
from inference.galleries.identities import pid_function
from inference.galleries.labels import Label
from inference.galleries.storing import (
    NEW,
    ROWS_PER_FILE,
    GalleryWriter,
    NumberColumn,
    StrPath,
    TextColumn,
    blocks,
    writing,
)
from utils.centroids import divide
from utils.errors import UserError
from utils.galleries import find_file, read_array

SUMS, COUNTS, IMAGE_ROWS = "sums.npy", "counts.npy", "image_rows.npy"


class IdentitySums:
    """The sum of the embeddings of each identity, in float64, and how many they are.

    Memory grows with the identities, not with the images.

    Args:
        dimension: D.

    Example:
        >>> sums = IdentitySums(2)
        >>> sums.add(np.ones((2, 2), np.float32), ["ann", "bob"]).tolist()
        [0, 1]
        >>> sums.add(np.full((1, 2), 3, np.float32), ["ann"]).tolist(), sums.centroids().tolist()
        ([0], [[2.0, 2.0], [1.0, 1.0]])
    """

    def __init__(self, dimension: int) -> None:
        self._sums = torch.zeros(0, dimension, dtype=torch.float64)
        self._counts = np.zeros(0, np.int64)
        self._row_of: dict[str, int] = {}

    @classmethod
    def of(cls, names: Iterable[str], sums: NDArray[np.float64], counts: NDArray[np.int64]) -> "IdentitySums":
        """The sums [C, D] and counts [C] of identities that are known already."""
        found = cls(sums.shape[1])
        found._row_of = {name: row for row, name in enumerate(names)}
        found._sums, found._counts = torch.from_numpy(np.array(sums)), np.array(counts)
        return found

    @property
    def names(self) -> list[str]:
        """The identities, in order of first appearance."""
        return list(self._row_of)

    @property
    def sums(self) -> NDArray[np.float64]:
        """[C, D]."""
        return self._sums[: len(self._row_of)].numpy()

    @property
    def counts(self) -> NDArray[np.int64]:
        """[C]."""
        return self._counts[: len(self._row_of)]

    def add(self, rows: NDArray[Any], pids: Sequence[str]) -> NDArray[np.int64]:
        """Add embeddings [n, D] of identities [n], one after the other; returns the row of each identity [n]."""
        places = np.array([self._row_of.setdefault(pid, len(self._row_of)) for pid in pids], np.int64)
        missing = len(self._row_of) - len(self._counts)
        if missing > 0:
            more = max(missing, len(self._counts))  # twice as many: each sum is copied a few times at most
            self._sums = torch.cat([self._sums, torch.zeros(more, self._sums.shape[1], dtype=torch.float64)])
            self._counts = np.concatenate([self._counts, np.zeros(more, np.int64)])
        self._sums.index_add_(0, torch.from_numpy(places), torch.from_numpy(np.array(rows, np.float64)))
        np.add.at(self._counts, places, 1)
        return places

    def centroids(self, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """The mean embeddings of the identities from ``start`` to ``stop``."""
        return divide(torch.from_numpy(self.sums[start:stop].copy()), self.counts[start:stop]).numpy()


class CentroidWriter:
    """Writes a gallery of centroids from rows of images; used as a :class:`GalleryWriter` is.

    Args:
        folder, about, dtype, rows_per_file: as there; ``about["pid_from"]`` says how to read identities from paths
            that have no labels.
        extends: add to the gallery in the folder.

    Raises:
        UserError: as there; or (on entering) the gallery to extend has no sums, or identities of another kind.
    """

    def __init__(
        self,
        folder: StrPath,
        about: dict[str, Any],
        dtype: str = "float32",
        rows_per_file: int = ROWS_PER_FILE,
        extends: bool = False,
    ) -> None:
        self._writer = GalleryWriter(folder, about, dtype, rows_per_file)
        self._pid_of = pid_function(about["pid_from"], about["root"])
        self._extends = extends
        self._sums: IdentitySums | None = None

    def __enter__(self) -> "CentroidWriter":
        self._writer.__enter__()
        try:
            with writing(self._writer.folder):
                self._images, self._rows = TextColumn(self._writer.folder), NumberColumn()
                if self._extends:
                    self._take_over()
        except BaseException:
            self._writer.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._images.close()
        self._writer.__exit__()

    def add(self, rows: NDArray[Any], paths: Sequence[str], labels: Sequence[Label] = ()) -> None:
        """Add the embeddings [n, D] of images; a label tells the identity of an image, its path otherwise."""
        if not len(rows):
            return
        if self._sums is None:
            self._sums = IdentitySums(rows.shape[1])
        with writing(self._writer.folder):
            pids = [str(pid) for pid, _ in labels] if labels else [self._pid_of(path) for path in paths]
            self._rows.add(self._sums.add(rows, pids).tolist())
            self._images.add(paths)

    def finish(self, images: int | None = None, skipped: Sequence[str] = (), ends: Sequence[str] = ()) -> int:
        """As there, with the centroids of the images; ``images`` is counted here."""
        if self._sums is not None:
            names = self._sums.names
            for block in blocks(self._sums.sums):
                self._writer.add(self._sums.centroids(block.start, block.stop), names[block])
            with writing(self._writer.folder):
                write_sums(self._writer.folder, self._sums.sums, self._sums.counts)
                count = self._images.count
                self._images.write(self._writer.folder / f"{IMAGES}{NEW}")
                self._rows.write(self._writer.folder / f"{IMAGE_ROWS}{NEW}")
            images = count
        return self._writer.finish(images, skipped, ends)

    def _take_over(self) -> None:
        folder, about = self._writer.folder, self._writer.about
        found = read_gallery(folder)
        if found.about.get("pid_from") != about["pid_from"]:
            raise UserError(
                f"the gallery in {folder} has pid_from {found.about.get('pid_from')!r}, but here it is "
                f"{about['pid_from']!r}: append with the same options, or name another OUTPUT_DIR."
            )
        self._writer.check_dtype(found)
        sums, counts, images, rows = read_sums(folder, len(found.paths))
        self._sums = IdentitySums.of((str(name) for name in found.paths), sums, counts)
        for start in range(0, len(images), 1 << 16):
            self._images.add(images[start : start + (1 << 16)].tolist())
        self._rows.add(rows.tolist())


def read_sums(folder: Path, count: int) -> list[Any]:
    """Sums, counts, images and image rows of the ``count`` centroids in a folder, memory-mapped.

    Raises:
        UserError: an older version made the gallery, or the files do not belong to it.
    """
    paths = [find_file(folder, name) for name in (SUMS, COUNTS, IMAGES, IMAGE_ROWS)]
    found = [read_array(path, "r") for path in paths if path is not None]
    if len(found) < len(paths) or not len(found[0]) == len(found[1]) == count or len(found[2]) != len(found[3]):
        raise UserError(
            f"{folder} does not hold the sums behind its centroids ({SUMS}, {COUNTS}, {IMAGES}, {IMAGE_ROWS}); older "
            "versions did not write them: embed all images again, without --append."
        )
    return found


def write_sums(folder: Path, sums: NDArray[np.float64], counts: NDArray[np.int64]) -> None:
    """Write sums [C, D] and counts [C] under temporary names."""
    with (folder / f"{SUMS}{NEW}").open("wb") as stream:
        stream.write(npy_header("<f8", sums.shape))
        for block in blocks(sums):
            stream.write(np.ascontiguousarray(sums[block], "<f8").tobytes())
    (folder / f"{COUNTS}{NEW}").write_bytes(npy_header("<i8", counts.shape) + counts.astype("<i8").tobytes())
