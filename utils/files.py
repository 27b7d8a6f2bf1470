"""Writing files so that a reader never meets a half-written one, and the folder that a run writes to."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile

from utils.errors import UserError

StrPath = str | os.PathLike[str]


@contextmanager
def replacing(path: StrPath, temporary: StrPath | None = None) -> Iterator[Path]:
    """A temporary name beside ``path``, to be written inside the block; moved to ``path`` when the block ends well.

    Makes the folder. Nothing is left when the block raises; what was at ``path`` before then stays. A process that is
    killed leaves ``.<32 hexadecimal digits>.tmp``, which nobody takes for an image.

    Args:
        path: the file.
        temporary: another temporary name.

    Raises:
        OSError: the folder cannot be written to, or the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp") if temporary is None else Path(temporary)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def written_whole(path: StrPath, keep_ending: bool = False) -> Iterator[Path]:
    """As :func:`replacing`, for what a user asked for: errors of the disk are UserErrors.

    Args:
        path: the file.
        keep_ending: give the temporary name the ending of ``path``, for writers that go by it.

    Raises:
        UserError: the folder cannot be written to, or ``path`` is a folder; the message names the file.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{str(path)!r} is a folder; the name of a file is expected.")
    temporary = path.with_name(f".{uuid.uuid4().hex}{path.suffix}") if keep_ending else None
    try:
        with replacing(path, temporary) as name:
            yield name
    except OSError as error:
        if isinstance(error, UserError):  # of what the block read
            raise
        reason = error.strerror or error
        raise UserError(f"{path} cannot be written ({reason}); choose another output folder.") from error


def write_bytes(path: StrPath, data: bytes) -> Path:
    """Write a file, see :func:`written_whole`."""
    with written_whole(path) as temporary:
        temporary.write_bytes(data)
    return Path(path)


def write_text(path: StrPath, text: str) -> Path:
    """As :func:`write_bytes`, in UTF-8."""
    return write_bytes(path, text.encode("utf-8"))


def output_folder(output_dir: str, data_set: str) -> Path:
    """Where a run writes: OUTPUT_DIR, or logs/{DATASETS.NAMES} if that is empty. The folder is not made."""
    return Path(output_dir or Path("logs") / data_set)


def require_writable(folder: StrPath, named_by: str) -> Path:
    """Make a folder, and try whether files can be written there, before a long computation whose results go there.

    Args:
        folder: the folder.
        named_by: the key or option that names it, for the message.

    Raises:
        UserError: they cannot.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"{named_by}: cannot write to {os.fspath(folder)!r} ({reason}); name a folder that you may write to."
        ) from error
    return Path(folder)
