"""Locks between processes, also on several machines that share a folder; a lock dies with its process."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

StrPath = str | os.PathLike[str]


def try_lock(path: StrPath) -> int | None:
    """Lock a file, which is created if it does not exist: its descriptor for :func:`unlock`; None if it is locked."""
    return _locked(path, waits=False)


@contextmanager
def lock(path: StrPath) -> Iterator[None]:
    """Hold the lock of a file, waiting for it; the file is removed afterwards."""
    descriptor = _locked(path, waits=True)
    assert descriptor is not None
    try:
        yield
    finally:
        unlock(path, descriptor)


def unlock(path: StrPath, descriptor: int) -> None:
    """Remove a locked file and release its lock."""
    Path(path).unlink(missing_ok=True)
    os.close(descriptor)


def _locked(path: StrPath, waits: bool) -> int | None:
    import fcntl

    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
            if Path(path).exists() and os.path.samestat(os.fstat(descriptor), Path(path).stat()):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)  # whoever held the lock has removed the file
