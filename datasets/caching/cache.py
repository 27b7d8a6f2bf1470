"""Pictures kept decoded and resized (DATALOADER.CACHE): one small file each, in shared memory or on disk.

Files rather than one block of memory: worker processes, the training processes of one machine and other runs find the
same entry by its name; each entry is there whole or not at all; and where there is no room left, decoding goes on.
"""

import errno
import hashlib
import logging
import os
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import PIL
import torch
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor

from datasets.caching.folders import FolderLease, disk_folder, free_bytes, prune, shared_folder
from datasets.transforms.pixels import Picture, resize_to_planes
from utils.image import pil_loader

log = logging.getLogger(__name__)

_FORMAT = 1
_STAMP_BYTES = 16
# Worker processes hand over their batches in the same memory; where it is full, they die.
_SHARE_OF_FREE_MEMORY = 0.5


class PictureCache:
    """Reads picture files through a folder of entries; called like ``pil_loader``.

    An entry is named by path and size; it begins with a stamp of the file's length and time of change, and of what
    decoded it, and holds the pixels as they are. One whose stamp differs is written anew.

    Args:
        folder: from :mod:`datasets.caching.folders`.
        paths: the files that may be kept; others are decoded each time.
        size: height and width of the pictures.
        lease: what keeps the folder alive, if anything must.
    """

    def __init__(
        self, folder: Path, paths: Sequence[str], size: Sequence[int], lease: FolderLease | None = None
    ) -> None:
        self.folder = folder
        self.paths = frozenset(paths)
        self.size = (int(size[0]), int(size[1]))
        self._lease = lease
        self._base = str(Path.cwd())
        self._writes = True

    def __call__(self, path: str) -> Picture:
        """The picture of a file: uint8 [3, height, width] if it may be kept, else as ``pil_loader`` returns it.

        Raises:
            MissingPathError, UserError: as ``pil_loader``.
        """
        if path not in self.paths:
            return pil_loader(path)
        try:
            status = os.stat(path)  # noqa: PTH116 - a Path would cost more than the call
        except OSError:
            return pil_loader(path)  # which says what is wrong
        entry = self.entry_of(path)
        stamp = _digest(f"{status.st_size} {status.st_mtime_ns} {PIL.__version__} {_FORMAT}")
        pixels = self._read(entry, stamp)
        if pixels is None:
            pixels = resize_to_planes(pil_loader(path), self.size)
            self._write(entry, stamp, pixels)
        return pixels

    def entry_of(self, path: str) -> str:
        """The file that holds, or would hold, the pixels of a picture."""
        name = _digest(f"{os.path.join(self._base, path)} {self.size}").hex()  # noqa: PTH118 - as above
        return f"{self.folder}/{name[0]}/{name[1:]}"

    def _read(self, entry: str, stamp: bytes) -> Tensor | None:
        data = bytearray(_STAMP_BYTES + _picture_bytes(self.size))
        try:
            with open(entry, "rb", buffering=0) as file:  # noqa: PTH123 - as above
                length = file.readinto(data)
        except OSError:
            return None
        if length != len(data) or data[:_STAMP_BYTES] != stamp:
            return None
        return torch.frombuffer(data, dtype=torch.uint8, offset=_STAMP_BYTES).view(3, *self.size)

    def _write(self, entry: str, stamp: bytes, pixels: Tensor) -> None:
        if not self._writes:
            return
        temporary = Path(entry).with_name(f".{uuid.uuid4().hex}.tmp")
        try:
            temporary.write_bytes(stamp + pixels.numpy().tobytes())
            temporary.replace(entry)
        except OSError as error:
            # Without the folder the run is at its end: what removed it is the last process that held it.
            self._writes = False
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            if error.errno != errno.ENOENT:
                log.warning("Cache %s: cannot write (%s); further pictures are not kept.", self.folder, error.strerror)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_lease": None}  # the process that made it keeps it


def picture_loaders(
    kind: str, gigabytes: float, folder: str, wanted: Sequence[tuple[Sequence[str], Sequence[int]]]
) -> list[Callable[[str], Picture]]:
    """What reads the pictures of each part of a data set.

    Args:
        kind: none, ram or disk.
        gigabytes: room for all parts together; the first pictures of the first parts get it.
        folder: of the disk cache; "" for the usual one.
        wanted: for each part its paths and the height and width of its pictures.

    Raises:
        UserError: the folder cannot be used.
    """
    if kind == "none":
        return [pil_loader for _ in wanted]
    limit = room = int(gigabytes * 1e9)
    lease = None
    if kind == "ram":
        key = [str(Path.cwd()), *((list(paths), list(size)) for paths, size in wanted)]
        lease = FolderLease(shared_folder(repr(key)))
        place = lease.folder
        room = min(room, int(free_bytes(place) * _SHARE_OF_FREE_MEMORY) + _bytes_in(place))
    else:
        place = disk_folder(folder)
    caches = []
    left = room
    for paths, size in wanted:
        distinct = list(dict.fromkeys(paths))
        kept = distinct[: left // _picture_bytes(size)]
        left -= len(kept) * _picture_bytes(size)
        caches.append(PictureCache(place, kept, size, lease))
    if kind == "disk":
        rank_zero_only(prune)(place, {cache.entry_of(path) for cache in caches for path in cache.paths}, left)
    _report(kind, place, caches, sum(len(set(paths)) for paths, _ in wanted), room < limit)
    return list(caches)


@rank_zero_only
def _report(kind: str, place: Path, caches: Sequence[PictureCache], pictures: int, is_cramped: bool) -> None:
    kept = sum(len(cache.paths) for cache in caches)
    gigabytes = sum(len(cache.paths) * _picture_bytes(cache.size) for cache in caches) / 1e9
    log.info("Cache (%s, %s): %d of %d pictures, %.2f GB.", kind, place, kept, pictures, gigabytes)
    if kept == pictures:
        return
    if is_cramped:
        log.warning(
            "Cache %s: only half of what is free there may be filled, so %d pictures are decoded each time; give the "
            "machine more shared memory (docker: --shm-size), or set DATALOADER.CACHE disk.",
            *(place, pictures - kept),
        )
    else:
        log.warning("Cache: %d pictures are beyond DATALOADER.CACHE_GB and are decoded each time.", pictures - kept)


def _picture_bytes(size: Sequence[int]) -> int:
    return 3 * int(size[0]) * int(size[1])


def _bytes_in(folder: Path) -> int:
    return sum(entry.stat().st_size for part in folder.iterdir() if part.is_dir() for entry in os.scandir(part))


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=_STAMP_BYTES).digest()
