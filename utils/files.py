"""Write files so that no reader ever sees a half-written one, and check the folder that a run writes to."""

import hashlib
import os
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile

from utils.errors import UserError

StrPath = str | os.PathLike[str]


@contextmanager
def replacing(path: StrPath, temporary: StrPath | None = None) -> Iterator[Path]:
    """Yield a temporary path for the block to write, and move it to ``path`` when the block succeeds.

    Creates the folder if missing. If the block raises, the temporary file is removed and ``path`` keeps what it held. A
    killed process leaves ``.<32 hexadecimal digits>.tmp``, a name that no search for images picks up.

    Args:
        path: the file.
        temporary: the temporary path; None chooses one beside ``path``.

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
    """As :func:`replacing`, for output that a user requested: errors of the disk become UserErrors.

    Args:
        path: the file.
        keep_ending: give the temporary name the suffix of ``path``, for writers that choose the format by it.

    Raises:
        UserError: the folder cannot be written to, or ``path`` is a folder; the message names the file.
    """
    path = Path(path)
    if is_folder(path):
        raise UserError(f"{str(path)!r} is a folder; expected the name of a file.")
    temporary = path.with_name(f".{uuid.uuid4().hex}{path.suffix}") if keep_ending else None
    try:
        with replacing(path, temporary) as name:
            yield name
    except OSError as error:
        if isinstance(error, UserError):  # raised by the block about its own input
            raise
        reason = error.strerror or error
        raise UserError(f"{path} cannot be written ({reason}); choose another output folder.") from error


def write_bytes(path: StrPath, data: bytes) -> Path:
    """Write a file as :func:`written_whole` does, and return its path."""
    with written_whole(path) as temporary:
        temporary.write_bytes(data)
    return Path(path)


def write_text(path: StrPath, text: str) -> Path:
    """As :func:`write_bytes`, for text in UTF-8; names of files that are no UTF-8 keep their bytes."""
    return write_bytes(path, text.encode("utf-8", "surrogateescape"))


def write_together(texts: Mapping[Path, str]) -> tuple[Path, ...]:
    """As :func:`write_text`, for files that belong together: none is replaced before all are on the disk."""
    with ExitStack() as stack:
        for path, text in texts.items():
            temporary = stack.enter_context(written_whole(path))
            temporary.write_bytes(text.encode("utf-8", "surrogateescape"))
    return tuple(texts)


def output_folder(output_dir: str, data_set: str) -> Path:
    """The folder that a run writes to: OUTPUT_DIR, or logs/{DATASETS.NAMES} if that is empty. It is not created.

    The colon of a data set such as my_package.data:Shop becomes a dot: not every file system has it in names.
    """
    return Path(output_dir or Path("logs") / data_set.replace(":", "."))


def require_writable(folder: StrPath, named_by: str) -> Path:
    """Create a folder and check that files can be written there, before a long computation fails to save its results.

    Args:
        folder: the folder.
        named_by: the key or option that names it, for the message.

    Raises:
        UserError: the folder cannot be created or written to.
    """
    try:
        try_folder(folder)
    except (OSError, ValueError) as error:  # a ValueError: the name holds a zero byte
        raise UserError(
            f"{named_by}: cannot write to {os.fspath(folder)!r} ({_reason(error)}); choose a folder that you may write "
            "to."
        ) from error
    return Path(folder)


def is_folder(path: StrPath) -> bool:
    """Whether there is such a folder; False, not an error, for a name that no file can have."""
    with suppress(OSError):
        return Path(path).is_dir()
    return False


def require_file(path: StrPath, named_by: str) -> None:
    """Raise a UserError if ``path`` is a folder, or a name that no file can have, which ``named_by`` gives."""
    if is_folder(path):
        raise UserError(f"{named_by}: {os.fspath(path)!r} is a folder; expected the name of a file.")
    try:
        Path(path).stat()
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        raise UserError(f"{named_by}: no file can be called {os.fspath(path)!r} ({_reason(error)}).") from error


def _reason(error: Exception) -> object:
    return getattr(error, "strerror", None) or error


def try_folder(folder: StrPath) -> None:
    """Create a folder, and raise an OSError that names it if no file can be written there."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fspath(folder)) from error


def content_digest(path: StrPath) -> bytes:
    """A digest of a file's bytes; b"" for a file that cannot be read."""
    try:
        with Path(path).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").digest()
    except OSError:
        return b""


def digests_of_equals(paths: Iterable[str]) -> dict[str, bytes]:
    """The digests of those files that may have equal content; a file whose size no other has is not read.

    Files that cannot be read have none.
    """
    by_size: defaultdict[int, list[str]] = defaultdict(list)
    for path in dict.fromkeys(paths):
        with suppress(OSError):  # whoever needs the file itself will say so
            by_size[Path(path).stat().st_size].append(path)
    sought = (path for group in by_size.values() if len(group) > 1 for path in group)
    return {path: digest for path in sought if (digest := content_digest(path))}
