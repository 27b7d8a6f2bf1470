"""Files on this machine or behind a URL that fsspec knows (s3://, gs://, https://, memory://), read with patience.

What may pass (a lost connection, a busy server) is tried again after WAITS; what will not (no such file, no permission)
is reported at once. Access to a store is configured as fsspec documents it: by the environment or ``~/.config/fsspec``.
"""

import glob
import io
import logging
import os
import re
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

from utils.addresses import without_passwords
from utils.errors import MissingPathError, UserError
from utils.files import is_folder
from utils.optional import require

logger = logging.getLogger(__name__)

WAITS = (1.0, 2.0, 4.0, 8.0)  # seconds before the second try, the third and so on

T = TypeVar("T")

_URL = re.compile(r"(?:[\w+.-]+::)*([A-Za-z][A-Za-z0-9+.-]+)://")  # fsspec's, chained or not; not C:\ on Windows
_BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}")
_FINAL = (
    *(FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ImportError),
    *(ValueError, TypeError, AttributeError, NotImplementedError),  # an error of a program does not pass either
)
_PASSING = (408, 425, 429)  # of the 400s, HTTP's words for "later"
_BLOCK_BYTES = 1 << 18


def is_url(path: str) -> bool:
    """Whether a path is one of fsspec's, not of this machine."""
    return bool(_URL.match(path))


def join(folder: str, path: str) -> str:
    """``path`` where it is a URL or absolute; otherwise what it names below ``folder``, which may be a URL."""
    if is_url(path) or os.path.isabs(path):  # noqa: PTH117 - paths stay as they are written
        return path
    return f"{folder.rstrip('/')}/{path}" if is_url(folder) else os.path.join(folder, path)  # noqa: PTH118


def folder_of(path: str) -> str:
    """The folder of a file; "" for a file in the current one."""
    return path.rpartition("/")[0] if is_url(path) else os.path.dirname(path)  # noqa: PTH120


def check_protocols(paths: Iterable[str]) -> None:
    """Raise a UserError if a package that one of the URLs needs is missing, before any work is done."""
    for url in {found[0]: path for path in paths if (found := _URL.match(path))}.values():
        _file_system(url)


def open_file(path: str, sleep: Callable[[float], None] | None = None) -> io.BufferedReader:
    """Open a file for reading from its start to its end; one behind a URL goes on where its connection broke.

    Args:
        path: of this machine, or a URL.
        sleep: waits so many seconds between two tries; None sleeps.

    Raises:
        MissingPathError: there is no such file.
        UserError: it cannot be opened; from its ``read``: a URL cannot be read after the last try.
        OSError: from its ``read``, for a file of this machine.
    """
    if is_url(path):
        stream = _Resuming(path, sleep)
        stream.reopen()
        return io.BufferedReader(stream, _BLOCK_BYTES)
    try:
        return io.BufferedReader(io.FileIO(path), _BLOCK_BYTES)
    except FileNotFoundError:
        raise MissingPathError(f"{path} does not exist.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from error


def read_file(url: str, sleep: Callable[[float], None] | None = None) -> bytes:
    """The bytes of a small file behind a URL, in one request.

    Raises:
        UserError: see :func:`open_file`.
    """
    fs, name = _file_system(url)
    return retrying(lambda: fs.cat_file(name), url, sleep)


def size_of(path: str) -> int | None:
    """Bytes of a file, None if that is not told.

    Raises:
        MissingPathError: there is no such file.
    """
    try:
        if is_url(path):
            fs, name = _file_system(path)
            return retrying(lambda: fs.info(name), path).get("size")
        return Path(path).stat().st_size
    except MissingPathError:
        raise
    except FileNotFoundError:
        raise MissingPathError(f"{path} does not exist.") from None
    except (OSError, UserError):
        return None


def list_folder(path: str) -> list[str] | None:
    """The files in a folder (behind a URL also those below it), sorted, without hidden ones; None if it is no folder.

    Raises:
        UserError: it cannot be listed.
    """
    if is_url(path):
        fs, name = _file_system(path)
        if not retrying(lambda: fs.isdir(name), path):
            return None
        return _as_urls(fs, path, name, retrying(lambda: fs.find(name), path))
    return expand(join(glob.escape(path), "*")) if is_folder(path) else None


def expand(pattern: str) -> list[str]:
    """The files that a pattern names: ``{00..12}`` and ``{a,b}`` in the order given, ``*``, ``?``, ``[..]`` sorted.

    A name without such marks, or of a file that exists, stands for itself. In a URL ``?`` and ``[`` are no marks.

    Raises:
        UserError: a folder behind a URL cannot be listed.

    >>> expand("shards/{008..010}.tar")
    ['shards/008.tar', 'shards/009.tar', 'shards/010.tar']
    """
    if not is_url(pattern) and os.path.lexists(pattern):
        return [pattern]
    braces = _BRACES.search(pattern)
    if braces:
        first, last, names = braces.groups()
        parts = [f"{n:0{len(first)}}" for n in range(int(first), int(last) + 1)] if first else names.split(",")
        filled = (pattern[: braces.start()] + part + pattern[braces.end() :] for part in parts)
        return [path for one in filled for path in expand(one)]
    if is_url(pattern) and "*" in pattern:
        fs, name = _file_system(pattern)
        found = retrying(lambda: fs.glob(name, detail=True), pattern)
        return _as_urls(fs, pattern, name, (path for path, info in found.items() if info.get("type") != "directory"))
    if not is_url(pattern) and glob.has_magic(pattern):
        return sorted(path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))  # noqa: PTH113, PTH207
    return [pattern]


def _as_urls(fs: Any, url: str, name: str, paths: Iterable[str]) -> list[str]:
    """Files of a file system as URLs, sorted, without hidden ones.

    Args:
        fs: the file system of ``url``, which it calls ``name``.
        url, name, paths: see above.
    """
    found = [path for path in sorted(paths) if not path.rpartition("/")[2].startswith(".")]
    if url.endswith(name):  # some file systems' own unstrip_protocol forgets the host
        return [url[: len(url) - len(name)] + path for path in found]
    return [fs.unstrip_protocol(path) for path in found]


def retrying(work: Callable[[], T], url: str, sleep: Callable[[float], None] | None = None) -> T:
    """The result of ``work``, tried again after WAITS while it fails with an error that may pass.

    Raises:
        MissingPathError: there is no such file.
        UserError: another error, that of the last try; the message names the URL.
    """
    name = without_passwords(url)
    for wait in (*WAITS, None):
        try:
            return work()
        except UserError:
            raise
        except Exception as raised:
            error = _reason(raised)
            if isinstance(error, FileNotFoundError):
                raise MissingPathError(f"{name} does not exist.") from None
            text = without_passwords(f"{type(error).__name__}: {error}")
            if not _may_pass(error):
                raise UserError(f"{name} cannot be read ({text}).") from error
            if wait is None:
                raise UserError(
                    f"{name} cannot be read, tried {len(WAITS) + 1} times ({text}); run again when it can be reached."
                ) from error
            logger.warning("%s: %s; trying again in %g s.", name, text, wait)
            (sleep or time.sleep)(wait)
    raise AssertionError("the last try returns or raises")


def _reason(error: Exception) -> BaseException:
    """Why something failed: over http, a server that is away or refuses is reported as a file that is not there."""
    cause = error.__cause__
    if not isinstance(error, FileNotFoundError) or cause is None:
        return error
    is_away = isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError)
    return cause if is_away or _status(cause) not in (0, 404, 410) else error


def _status(error: BaseException) -> int:
    """The status of HTTP that an error tells; 0 if it does not."""
    return next((s for s in (getattr(error, n, None) for n in ("status", "code")) if isinstance(s, int)), 0)


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, _FINAL):
        return False
    return not 400 <= _status(error) < 500 or _status(error) in _PASSING


def _file_system(url: str) -> tuple[Any, str]:
    """The file system of a URL, and what that calls the file."""
    core = require("fsspec.core", "remote", f"{without_passwords(url)} is a URL: reading it")
    try:
        return core.url_to_fs(url)
    except ImportError as error:  # fsspec says which package to install
        raise UserError(f"{without_passwords(url)} cannot be read: {error}.") from error
    except ValueError as error:
        raise UserError(
            f"{without_passwords(url)} cannot be read ({error}); expected a URL that fsspec knows, such as "
            "s3://bucket/file."
        ) from error


class _Resuming(io.RawIOBase):
    """A file behind a URL, read in sequence; after a broken connection it is opened again at the same place."""

    def __init__(self, url: str, sleep: Callable[[float], None] | None) -> None:
        super().__init__()
        self.name, self._sleep = without_passwords(url), sleep
        self._url = url
        self._file: Any = None
        self._offset = 0

    def readable(self) -> bool:
        return True

    def reopen(self) -> None:
        """Open the file at the place reached, with patience."""
        retrying(self._opened, self._url, self._sleep)

    def readinto(self, buffer: Any) -> int:
        data = retrying(lambda: self._read(len(buffer)), self._url, self._sleep)
        buffer[: len(data)] = data
        self._offset += len(data)
        return len(data)

    def close(self) -> None:
        self._drop()
        super().close()

    def _read(self, count: int) -> bytes:
        with ExitStack() as on_error:
            on_error.callback(self._drop)
            file = self._opened()
            data = file.read(count)
            size = getattr(file, "size", None)
            if not data and isinstance(size, int) and self._offset < size:
                raise ConnectionError(f"it ended after {self._offset} of {size} bytes")
            on_error.pop_all()
        return data

    def _opened(self) -> Any:
        if self._file is None:
            fs, name = _file_system(self._url)
            in_one = {"block_size": 0} if "http" in fs.protocol else {}  # or it asks for block after block
            file = fs.open(name, "rb", **({} if self._offset else in_one))
            with ExitStack() as on_error:
                on_error.callback(lambda: file.close())
                if self._offset and not _seeks(file, self._offset):
                    file.close()
                    file = fs.open(name, "rb", **in_one)
                    _skip(file, self._offset)
                on_error.pop_all()
            self._file = file
        return self._file

    def _drop(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()


def _seeks(file: Any, offset: int) -> bool:
    """Go to a place in a file; False if its file system, or the server behind that, cannot."""
    try:
        file.seek(offset)
        file.read(1)
        file.seek(offset)
    except (ValueError, NotImplementedError, AttributeError):
        return False
    return True


def _skip(file: Any, count: int) -> None:
    while count:
        if not (skipped := len(file.read(min(count, _BLOCK_BYTES)))):
            raise ConnectionError("it has become shorter, or broke off again")
        count -= skipped
