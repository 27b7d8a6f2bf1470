"""The cache of decoded and resized images (DATALOADER.CACHE): one small file each, in shared memory or on disk.

It consists of files rather than one block of memory, so that worker processes, the training processes of one machine
and other runs find the same entry by its name, and an entry is either complete or absent. Images that do not fit are
decoded each time.
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

from datasets.caching.folders import MEMORY, FolderLease, disk_folder, free_bytes, prune, shared_folder
from datasets.transforms.pixels import DecodedImage, ResizedPlanes
from utils.image import image_loader, pil_loader

log = logging.getLogger(__name__)

_FORMAT = 2  # 1: versions that did not know EXIF's orientation
_STAMP_BYTES = 16
# Worker processes hand over their batches in the same memory; when it is full, they die.
_SHARE_OF_FREE_MEMORY = 0.5


class ImageCache:
    """Reads image files through a folder of entries; called like ``pil_loader``.

    An entry is named after the path, the resize and INPUT.EXIF_ORIENTATION. It begins with a stamp, made from the
    file's length, its modification time and the version of the decoder; the raw pixels follow. An entry with another
    stamp is rewritten.

    Args:
        folder: from :mod:`datasets.caching.folders`.
        paths: the files that may be cached; others are decoded each time.
        resize: to which size the images are brought, and how.
        lease: keeps the folder alive, if it needs that.
        exif_orientation: as for ``pil_loader``.
    """

    def __init__(
        self,
        folder: Path,
        paths: Sequence[str],
        resize: ResizedPlanes,
        lease: FolderLease | None = None,
        exif_orientation: bool = True,
    ) -> None:
        self.folder = folder
        self.paths = frozenset(paths)
        self.resize = resize
        self.exif_orientation = exif_orientation
        self._lease = lease
        self._base = str(Path.cwd())
        self._writes = True

    def __call__(self, path: str) -> DecodedImage:
        """Read an image: uint8 [3, height, width] if it may be cached, else as ``pil_loader`` returns it.

        Raises:
            MissingPathError, UserError: as ``pil_loader``.
        """
        if path not in self.paths:
            return pil_loader(path, self.exif_orientation, self.resize.least)
        try:
            status = os.stat(path)  # noqa: PTH116 - a Path would cost more than the call
        except OSError:
            return pil_loader(
                path, self.exif_orientation, self.resize.least
            )  # raises the error that says what is wrong
        entry = self.entry_of(path)
        stamp = _digest(f"{status.st_size} {status.st_mtime_ns} {PIL.__version__} {_FORMAT}")
        pixels = self._read(entry, stamp)
        if pixels is None:
            pixels = self.resize(pil_loader(path, self.exif_orientation, self.resize.least))
            self._write(entry, stamp, pixels)
        return pixels

    def entry_of(self, path: str) -> str:
        """The file that holds, or would hold, the pixels of an image."""
        absolute = os.path.join(self._base, path)  # noqa: PTH118 - as above
        border = "" if self.resize.fill is None else f" on {self.resize.fill}"
        stored = "" if self.exif_orientation else " as stored"
        drafted = " drafted" if self.resize.draft else ""
        name = _digest(f"{absolute} {self.resize.size}{border}{stored}{drafted}").hex()
        return f"{self.folder}/{name[0]}/{name[1:]}"

    def _read(self, entry: str, stamp: bytes) -> Tensor | None:
        data = bytearray(_STAMP_BYTES + _image_bytes(self.resize))
        try:
            with open(entry, "rb", buffering=0) as file:  # noqa: PTH123 - as above
                length = file.readinto(data)
        except OSError:
            return None
        if length != len(data) or data[:_STAMP_BYTES] != stamp:
            return None
        return torch.frombuffer(data, dtype=torch.uint8, offset=_STAMP_BYTES).view(3, *self.resize.size)

    def _write(self, entry: str, stamp: bytes, pixels: Tensor) -> None:
        if not self._writes:
            return
        temporary = Path(entry).with_name(f".{uuid.uuid4().hex}.tmp")
        try:
            temporary.write_bytes(stamp + pixels.numpy().tobytes())
            temporary.replace(entry)
        except OSError as error:
            # If the folder is gone, the run has ended: the last process that held the folder removed it.
            self._writes = False
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            if error.errno != errno.ENOENT:
                log.warning("Cache %s: cannot write (%s); further images are not cached.", self.folder, error.strerror)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_lease": None}  # stays with the process that took it


def image_loaders(
    kind: str,
    gigabytes: float,
    folder: str,
    wanted: Sequence[tuple[Sequence[str], ResizedPlanes]],
    exif_orientation: bool = True,
) -> list[Callable[[str], DecodedImage]]:
    """Build a function for each part of a data set that reads its images.

    Args:
        kind: none, ram or disk.
        gigabytes: room for all parts together; it goes to the first images of the first parts.
        folder: of the disk cache; "" for the default one.
        wanted: for each part its paths and how its images are resized.
        exif_orientation: as for ``pil_loader``.

    Raises:
        UserError: the folder cannot be used.
    """
    if kind == "none":
        return [image_loader(exif_orientation, resize.least) for _, resize in wanted]
    limit = room = int(gigabytes * 1e9)
    lease = None
    if kind == "ram":
        key = [str(Path.cwd()), exif_orientation, *((list(paths), resize) for paths, resize in wanted)]
        lease = FolderLease(shared_folder(repr(key)))
        place = lease.folder
        if place.parent != MEMORY:
            rank_zero_only(log.warning)("Cache ram: there is no writable %s; %s takes its place.", MEMORY, place.parent)
        room = min(room, int(free_bytes(place) * _SHARE_OF_FREE_MEMORY) + _bytes_in(place))
    else:
        place = disk_folder(folder)
    caches = []
    left = room
    for paths, resize in wanted:
        distinct = list(dict.fromkeys(paths))
        kept = distinct[: left // _image_bytes(resize)]
        left -= len(kept) * _image_bytes(resize)
        caches.append(ImageCache(place, kept, resize, lease, exif_orientation))
    if kind == "disk":
        rank_zero_only(prune)(place, {cache.entry_of(path) for cache in caches for path in cache.paths}, left)
    _report(kind, place, caches, sum(len(set(paths)) for paths, _ in wanted), room < limit)
    return list(caches)


@rank_zero_only
def _report(kind: str, place: Path, caches: Sequence[ImageCache], images: int, is_cramped: bool) -> None:
    kept = sum(len(cache.paths) for cache in caches)
    gigabytes = sum(len(cache.paths) * _image_bytes(cache.resize) for cache in caches) / 1e9
    log.info("Cache (%s, %s): %d of %d images, %.2f GB.", kind, place, kept, images, gigabytes)
    if kept == images:
        return
    if is_cramped:
        log.warning(
            "Cache %s: only half of the free space there may be used, so %d images are decoded each time; give the "
            "machine more shared memory (docker: --shm-size), or set DATALOADER.CACHE disk.",
            *(place, images - kept),
        )
    else:
        log.warning("Cache: %d images do not fit in DATALOADER.CACHE_GB and are decoded each time.", images - kept)


def _image_bytes(resize: ResizedPlanes) -> int:
    return 3 * resize.size[0] * resize.size[1]


def _bytes_in(folder: Path) -> int:
    return sum(entry.stat().st_size for part in folder.iterdir() if part.is_dir() for entry in os.scandir(part))


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=_STAMP_BYTES).digest()
