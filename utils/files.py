"""Writing files so that a reader never meets a half-written one."""

import os
import uuid
from contextlib import suppress
from pathlib import Path

from utils.errors import UserError


def write_bytes(path: str | os.PathLike[str], data: bytes) -> Path:
    """Write a file whole: under a temporary name in the same folder, then moved. Makes the folder.

    Raises:
        UserError: the folder cannot be written to; the message names it.
    """
    path = Path(path)
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise UserError(f"{path} cannot be written ({error.strerror}); choose another output folder.") from error
    return path


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """As :func:`write_bytes`, in UTF-8."""
    return write_bytes(path, text.encode("utf-8"))
