"""The inverted lists of a gallery beyond memory: in a file beside the index, of which a search reads what it visits.

The gallery is read twice: once to learn how long each list is, and once to write every row to its place. faiss maps the
file into memory when it opens the index. A list is its rows, float32 [n, D], followed by their places in the gallery,
int64 [n].
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from utils.errors import UserError
from utils.files import replacing
from utils.locks import try_lock, unlock

WRITE_BYTES = 256 << 20  # of rows sorted at once: the longer their runs, the fewer writes
_PLACE_BYTES = 8


def lists_file(index_file: Path) -> Path:
    """Where the lists of an index are, if they are not in the index itself."""
    return index_file.with_name(f"{index_file.name}.lists")


def lists_bytes(rows: int, dims: int) -> int:
    """The size of that file."""
    return rows * (4 * dims + _PLACE_BYTES)


@contextmanager
def replacing_left(path: Path) -> Iterator[Path]:
    """As :func:`utils.files.replacing`, and removes what builds of ``path`` left that were killed.

    Raises:
        OSError: the folder cannot be written to, or the disk is full.
    """
    for left in path.parent.glob(f".{escape(path.name)}.*.tmp"):
        if (descriptor := try_lock(left)) is not None:  # else another process writes it
            unlock(left, descriptor)
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    descriptor = try_lock(temporary)
    assert descriptor is not None
    try:
        with replacing(path, temporary):
            yield temporary
    finally:
        unlock(temporary, descriptor)


def require_space(file: Path, size: int) -> None:
    """Raise a UserError if the disk has no room for the lists, before they are computed."""
    free = shutil.disk_usage(file.parent).free
    if free < size:
        raise UserError(
            f"{file} needs {size / 2**30:.1f} GiB, but its disk has {free / 2**30:.1f} GiB left: make room, or search "
            "with --index faiss:ivfpq, which is much smaller."
        )


def move_lists_to_file(faiss: Any, index: Any, blocks: Any, rows: int, file: Path) -> None:
    """Fill the lists of a trained, empty IVF index of float32 rows in a file, and let the index refer to it.

    Memory holds a few times WRITE_BYTES and 12 bytes for each row.

    Args:
        faiss: the package.
        index: a trained IndexIVFFlat; it can be written and read again afterwards, but not searched.
        blocks: a function (bytes) -> the rows in order, in float32 blocks of about so many bytes.
        rows: their number.
        file: for the lists.

    Raises:
        UserError: the file cannot be written, as on a full disk.
    """
    numbers = np.empty(rows, np.int32)  # of the list of each row
    start = 0
    for block in blocks(WRITE_BYTES // 8):
        numbers[start : start + len(block)] = index.quantizer.search(block, 1)[1][:, 0]
        start += len(block)
    sizes = np.bincount(numbers, minlength=index.nlist)
    offsets = np.cumsum(sizes * (index.code_size + _PLACE_BYTES)) - sizes * (index.code_size + _PLACE_BYTES)
    try:
        with replacing_left(file) as temporary, temporary.open("rb+") as stream:
            _write_rows(stream, blocks(WRITE_BYTES), numbers, sizes, offsets)
    except OSError as error:
        if isinstance(error, UserError):  # about a row of the gallery
            raise
        reason = error.strerror or error
        raise UserError(
            f"{file} cannot be written ({reason}): it needs {lists_bytes(rows, index.d) / 2**30:.1f} GiB; make room, "
            "or search with --index faiss:ivfpq, which is much smaller."
        ) from error
    lists = faiss.OnDiskInvertedLists(index.nlist, index.code_size, file.name)
    lists.lists.clear()  # as many empty ones
    for size, offset in zip(sizes.tolist(), offsets.tolist(), strict=True):
        one = faiss.OnDiskOneList()
        one.size = one.capacity = size
        one.offset = offset
        lists.lists.push_back(one)
    lists.totsize = lists_bytes(rows, index.d)
    index.replace_invlists(lists, True)
    lists.this.disown()
    index.ntotal = rows


def read_with_lists(faiss: Any, index_file: Path, size: int) -> Any:
    """An index whose lists are in a file beside it, wherever the two are now.

    Raises:
        ValueError: the file is not ``size`` bytes long.
        OSError, RuntimeError: a file is missing or damaged.
    """
    file = lists_file(index_file)
    if file.stat().st_size != size:
        raise ValueError(f"{file} is not whole")
    # The index holds the bare name of the file, which faiss would look for in the current folder.
    index = faiss.read_index(str(index_file), faiss.IO_FLAG_SKIP_IVF_DATA | faiss.IO_FLAG_READ_ONLY)
    lists = faiss.downcast_InvertedLists(index.invlists)
    lists.filename = str(file)
    lists.do_mmap()
    return index


def _write_rows(
    stream: Any, blocks: Any, numbers: NDArray[np.int32], sizes: NDArray[np.int64], offsets: NDArray[np.int64]
) -> None:
    filled, start = np.zeros_like(sizes), 0
    for block in blocks:
        own = numbers[start : start + len(block)]
        order = np.argsort(own, kind="stable")
        ends = np.append(np.flatnonzero(np.diff(own[order])) + 1, len(own))
        first = 0
        for end in ends.tolist():
            chosen, number = order[first:end], own[order[first]]
            row_bytes = block[0].nbytes
            stream.seek(offsets[number] + filled[number] * row_bytes)
            stream.write(block[chosen].data)
            stream.seek(offsets[number] + sizes[number] * row_bytes + filled[number] * _PLACE_BYTES)
            stream.write((chosen + start).data)
            filled[number] += end - first
            first = end
        start += len(block)
