"""Arrays in several files, read as one without reading them into memory."""

import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from utils.errors import UserError

MOST_OPEN = 200  # files that are kept open; each mapped file holds a descriptor, of which a process has 1024

_AT_ONCE = 1 << 16  # rows that are read at once by iteration


class Rows:
    """Several arrays [n, ...] as one [N, ...], in order.

    Slices with a step of 1 inside one array are views, so that a reader of a memory-mapped file can drop its pages; all
    others are copies. Text is as wide as the widest of the arrays.

    Args:
        arrays: one or more, of equal shapes but for the first dimension. Of more than MOST_OPEN memory-mapped files,
            each is opened anew whenever it is read.

    Raises:
        UserError: while reading: a file was removed or replaced in the meantime.

    Example:
        >>> rows = Rows([np.arange(3), np.arange(3, 5)])
        >>> len(rows), int(rows[3]), rows[2:4].tolist(), rows[[4, 0]].tolist()
        (5, 3, [2, 3], [4, 0])
    """

    def __init__(self, arrays: Sequence[Any]) -> None:
        many = len(arrays) > MOST_OPEN
        self.arrays = [Reopened(x) if many and isinstance(x, np.memmap) and x.filename else x for x in arrays]
        self.starts = np.cumsum([0, *map(len, arrays)])  # of each array, and the end
        self.dtype: np.dtype[Any] = np.result_type(*(array.dtype for array in arrays))
        self.shape = (int(self.starts[-1]), *arrays[0].shape[1:])
        self.ndim = len(self.shape)

    @property
    def files(self) -> list[Path]:
        """The files of memory-mapped arrays."""
        return [Path(str(array.filename)) for array in self.arrays]

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[Any]:
        for array in self.arrays:
            for start in range(0, len(array), _AT_ONCE):
                part = array[start : start + _AT_ONCE]
                yield from part
                forget_pages(part)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.concatenate([array[:] for array in self.arrays]).astype(dtype or self.dtype, copy=False)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            return self._between(start, stop) if step == 1 else self._chosen(np.arange(start, stop, step))
        if isinstance(key, int | np.integer):
            row = key + len(self) if key < 0 else key
            if not 0 <= row < len(self):
                raise IndexError(f"row {key} of {len(self)}")
            place = self._place(row)
            return self.arrays[place][row - self.starts[place]]
        chosen = np.asarray(key)
        if isinstance(key, tuple):
            raise TypeError("rows are chosen by one index, not by several")
        if chosen.dtype.kind not in "iu" and len(chosen):
            raise TypeError(f"rows are chosen by slices and whole numbers, not by {chosen.dtype}")
        return self._chosen(chosen.astype(np.int64))

    def _place(self, row: Any) -> int:
        return int(np.searchsorted(self.starts, row, side="right")) - 1

    def _between(self, start: int, stop: int) -> Any:
        stop = max(start, stop)
        parts, place = [], self._place(start)
        while place < len(self.arrays) and self.starts[place] < stop:
            first, end = self.starts[place : place + 2]
            parts.append(self.arrays[place][max(start - first, 0) : min(stop, end) - first])
            place += 1
        if len(parts) == 1:
            return parts[0]
        joined = np.concatenate([*parts, np.empty((0, *self.shape[1:]), self.dtype)])
        for part in parts:
            forget_pages(part)
        return joined

    def _chosen(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        rows = np.where(rows < 0, rows + len(self), rows)
        if len(rows.ravel()) and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of {len(self)}")
        found = np.empty((*rows.shape, *self.shape[1:]), self.dtype)
        places = np.searchsorted(self.starts, rows, side="right") - 1
        for place in np.unique(places).tolist():
            here = places == place
            found[here] = self.arrays[place][rows[here] - self.starts[place]]
        return found


class Reopened:
    """A .npy file that is opened whenever it is read, in place of a memory-mapped array, which holds a descriptor.

    Args:
        array: the file, memory-mapped.

    Raises:
        UserError: while reading: the file was removed or replaced in the meantime.
    """

    def __init__(self, array: "np.memmap[Any, Any]") -> None:
        self.filename, self.dtype, self.shape = Path(str(array.filename)), array.dtype, array.shape
        self._state = self._now()

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> Any:
        if self._now() != self._state:
            raise UserError(f"{self.filename} has changed while it was being read; start again.")
        return np.load(self.filename, mmap_mode="r", allow_pickle=False)[key]

    def _now(self) -> tuple[int, int] | None:
        try:
            status = self.filename.stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns


def forget_pages(part: Any) -> None:
    """Let the system reclaim the memory of a part of a mapped file that has been read."""
    # But not of copy-on-write maps, whose changes exist in memory only.
    if not isinstance(part, np.memmap) or part.mode not in ("r", "r+", "w+") or not part.flags.c_contiguous:
        return
    owner: Any = part
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if isinstance(owner, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        start = part.ctypes.data - np.frombuffer(owner, dtype=np.uint8).ctypes.data
        aligned = start // mmap.PAGESIZE * mmap.PAGESIZE
        owner.madvise(mmap.MADV_DONTNEED, aligned, start + part.nbytes - aligned)
