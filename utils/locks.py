"""Locks between processes, also on several machines that share a folder; a lock dies with its process."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.errors import UserError

StrPath = str | os.PathLike[str]

_TEXT_BYTES = 1000


def try_lock(path: StrPath, shared: bool = False) -> int | None:
    """Lock a file, which is created if it does not exist.

    Args:
        path: the file, in a folder that exists.
        shared: several processes may hold the lock at once, if all of them share it.

    Returns:
        A descriptor for :func:`unlock`; None if another process, or another descriptor of this one, holds the lock.

    Raises:
        UserError: this file system, or this operating system, has no locks.
        OSError: the file cannot be opened.
    """
    return _locked(path, waits=False, shared=shared)


@contextmanager
def lock(path: StrPath) -> Iterator[None]:
    """Hold the lock of a file, waiting for it; the file is removed afterwards. Raises as :func:`try_lock`."""
    descriptor = _locked(path, waits=True)
    assert descriptor is not None
    try:
        yield
    finally:
        unlock(path, descriptor)


def unlock(path: StrPath, descriptor: int) -> None:
    """Remove a locked file and release its lock."""
    try:
        Path(path).unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def sign(descriptor: int) -> str:
    """Write into a locked file which process holds it.

    Returns:
        What the holder before wrote, if it ended without releasing its lock; else "".
    """
    before = os.pread(descriptor, _TEXT_BYTES, 0).decode("utf-8", "replace")
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"machine {socket.gethostname()} (process {os.getpid()})".encode(), 0)
    return before


def _locked(path: StrPath, waits: bool, shared: bool = False) -> int | None:
    try:
        import fcntl
    except ImportError:
        raise UserError("this operating system has no flock, which processes need to share a folder.") from None
    mode = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if waits else fcntl.LOCK_NB)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, mode)
            if Path(path).exists() and os.path.samestat(os.fstat(descriptor), Path(path).stat()):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        except FileNotFoundError:
            pass  # removed between the two looks
        except OSError as error:
            os.close(descriptor)
            raise UserError(
                f"{os.fspath(path)!r} cannot be locked ({error.strerror}): name a folder on a file system that has "
                "flock, such as a local disk, NFS 4, or Lustre mounted with -o flock."
            ) from error
        os.close(descriptor)  # whoever held the lock has removed the file
