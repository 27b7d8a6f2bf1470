"""Where an image cache is stored, who removes it, and how its size stays within its limit."""

import hashlib
import os
import re
import shutil
import stat
import tempfile
import time
import uuid
import weakref
from contextlib import suppress
from pathlib import Path

from utils.errors import UserError
from utils.files import require_writable

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

MEMORY = Path("/dev/shm")  # Linux; elsewhere temporary files are the nearest thing
_PREFIX = "centroids-reid"
_LOCK = "lock"
_PARTS = "0123456789abcdef"
_ENTRY = re.compile(r"[0-9a-f]{31}|\.[0-9a-f]{32}\.tmp")
_HALF_WRITTEN_SECONDS = 3600


class FolderLease:
    """Holds a folder in shared memory; the last process that holds it removes it, even if another was killed.

    Folders left behind by runs whose processes have all ended are removed as well.

    Args:
        folder: created if missing.

    Raises:
        UserError: the folder cannot be created or belongs to someone else, or this system has no file locks.
    """

    def __init__(self, folder: Path) -> None:
        if fcntl is None:
            raise UserError("DATALOADER.CACHE is ram, which needs file locks that this system lacks; use disk or none.")
        self.folder = folder
        for other in folder.parent.glob(f"{_PREFIX}-{os.getuid()}-*"):
            if other != folder:
                _remove_if_unused(other)
        try:
            descriptor = _lock(folder)
            _make_parts(folder)
        except OSError as error:
            raise UserError(
                f"DATALOADER.CACHE is ram, but {folder} cannot be used ({error.strerror}); use disk or none."
            ) from error
        weakref.finalize(self, _release, folder, descriptor, os.getpid())


def shared_folder(key: str) -> Path:
    """Path of a folder in memory, the same for all processes of this user with the same key; it is not created."""
    base = MEMORY if os.access(MEMORY, os.W_OK) else Path(tempfile.gettempdir())
    digest = hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
    return base / f"{_PREFIX}-{os.getuid() if hasattr(os, 'getuid') else 0}-{digest}"


def disk_folder(folder: str) -> Path:
    """The folder of the disk cache, created if missing.

    Args:
        folder: DATALOADER.CACHE_DIR; "" for the user's cache folder.

    Raises:
        UserError: it cannot be created or written to.
    """
    if folder:
        base = Path(folder).expanduser()
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / _PREFIX
    place = require_writable((base / "pictures").absolute(), "DATALOADER.CACHE_DIR")
    _make_parts(place)
    return place


def free_bytes(folder: Path) -> int:
    """Bytes that can still be written to the file system of a folder."""
    return shutil.disk_usage(folder).free


def prune(folder: Path, keep: set[str], room: int) -> None:
    """Remove entries of other data sets and sizes, the oldest first, until they take up at most ``room`` bytes.

    Args:
        folder: from :func:`disk_folder`; files in it that are not entries are left alone.
        keep: paths of entries that stay.
        room: bytes.
    """
    others = []
    for part in _PARTS:
        for entry in os.scandir(folder / part):
            if entry.path not in keep and _ENTRY.fullmatch(entry.name):
                with suppress(FileNotFoundError):  # another process may be tidying up as well
                    status = entry.stat()
                    others.append((status.st_mtime, status.st_size, entry.path))
    excess = sum(size for _, size, _ in others) - room
    too_old = time.time() - _HALF_WRITTEN_SECONDS
    for changed, size, path in sorted(others):
        if excess > 0 or (path.endswith(".tmp") and changed < too_old):
            excess -= size
            with suppress(OSError):
                Path(path).unlink(missing_ok=True)


def _make_parts(folder: Path) -> None:
    if (folder / _PARTS[-1]).is_dir():
        return
    for part in _PARTS:
        (folder / part).mkdir(exist_ok=True)


def _lock(folder: Path) -> int:
    """Share a lock on the folder; returns the open descriptor, which holds the lock until it is closed."""
    while True:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        if status.st_uid != os.getuid() or not stat.S_ISDIR(status.st_mode):
            raise UserError(f"DATALOADER.CACHE is ram, but {folder} belongs to another user; use disk or none.")
        try:
            descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        except FileNotFoundError:  # removed just now
            continue
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        with suppress(FileNotFoundError):
            if os.fstat(descriptor).st_ino == (folder / _LOCK).stat().st_ino:
                return descriptor
        os.close(descriptor)


def _remove_if_unused(folder: Path) -> None:
    try:
        descriptor = os.open(folder / _LOCK, os.O_RDWR)
    except OSError:
        return
    _remove_if_alone(folder, descriptor)


def _release(folder: Path, descriptor: int, owner: int) -> None:
    if os.getpid() == owner:  # not in a worker process, which has a copy
        _remove_if_alone(folder, descriptor)


def _remove_if_alone(folder: Path, descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Rename it first: a worker process that is still writing then finds no folder, and leaves nothing behind.
        gone = folder.rename(folder.with_name(f"{_PREFIX}-{os.getuid()}-{uuid.uuid4().hex}"))
        shutil.rmtree(gone, ignore_errors=True)
    except OSError:  # others hold it
        pass
    finally:
        os.close(descriptor)
