"""Write checkpoints so that a failure leaves the old file intact."""

import os
from typing import Any, BinaryIO, cast

import torch

from utils.files import replacing


def atomic_save(obj: Any, path: str | os.PathLike[str]) -> None:
    """Save like torch.save, but leave either the whole new file or the old one, never part of a file.

    Args:
        obj: what to save; pass checkpoints through :func:`checkpoints.plain.to_plain` first.
        path: the file; its folder is created if missing.

    Raises:
        OSError: the folder cannot be written to, or the disk is full. No temporary file is left behind.
    """
    with replacing(path) as temporary, temporary.open("wb") as stream:
        guarded = _FirstErrorStream(stream)
        torch.save(obj, cast(BinaryIO, guarded))
        if guarded.error is not None:
            raise guarded.error


class _FirstErrorStream:
    """A stream that records its first error and then discards all bytes.

    When the stream raises, torch's zip writer reports a misleading error about positions, and some versions end the
    process. This lets the writer finish, so that the original error of the disk is reported.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        if self.error is None:
            try:
                return self.stream.write(data)
            except OSError as error:
                self.error = error
        return memoryview(data).nbytes

    def flush(self) -> None:
        if self.error is None:
            try:
                self.stream.flush()
            except OSError as error:
                self.error = error
