"""Writing checkpoints: the whole new file, or the old one as it was."""

import os
from typing import Any, BinaryIO, cast

import torch

from utils.files import replacing


def atomic_save(obj: Any, path: str | os.PathLike[str]) -> None:
    """torch.save that leaves either the whole new file or the old one, never a part.

    Args:
        obj: what to save; pass checkpoints through :func:`checkpoints.plain.to_plain` first.
        path: the file; its folder is made if need be.

    Raises:
        OSError: the folder cannot be written, or the disk is full. No temporary file is left.
    """
    with replacing(path) as temporary, temporary.open("wb") as stream:
        guarded = _FailingOnce(stream)
        torch.save(obj, cast(BinaryIO, guarded))
        if guarded.error is not None:
            raise guarded.error


class _FailingOnce:
    """A stream that keeps its first error and takes no more bytes.

    torch's zip writer answers an error of the stream by one of its own about positions, some versions by ending the
    process; this lets it finish, so that the disk's own words are reported.
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
