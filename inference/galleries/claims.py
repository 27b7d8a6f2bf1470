"""Which process works on which chunk of an unfinished gallery: whoever holds the lock of its .claim file.

The locks are on the folder that all processes share, and die with their process; so nothing else is needed for
processes to divide the work, to come late, or to drop out.
"""

import logging
import os
from contextlib import ExitStack, suppress
from pathlib import Path

from inference.galleries.parts import part_file
from utils.locks import sign, try_lock, unlock

logger = logging.getLogger(__name__)


class Claims:
    """The chunks that this process works on.

    Args:
        folder: of the gallery.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: dict[int, int] = {}  # number -> descriptor of its lock

    def take(self, number: int) -> bool:
        """Claim a chunk; False if it is finished, or somebody works on it."""
        if number in self._held:
            return False
        try:
            descriptor = try_lock(part_file(self._folder, number, ".claim"))
        except FileNotFoundError:  # the run has ended, and its files are gone
            return False
        if descriptor is None:
            return False
        self._held[number] = descriptor
        if part_file(self._folder, number, ".json").exists():  # finished since the chunks were listed
            self.release(number)
            return False
        if before := sign(descriptor):
            logger.warning("%s ended without finishing chunk %d; it is taken over.", before, number)
        return True

    def holder(self, number: int) -> str:
        """Who works on a chunk: "machine NAME (process NUMBER)"; "" if nobody does."""
        with suppress(OSError):
            return part_file(self._folder, number, ".claim").read_text(encoding="utf-8", errors="replace")
        return ""

    def release(self, number: int) -> None:
        """Give a chunk back, finished or not."""
        unlock(part_file(self._folder, number, ".claim"), self._held.pop(number))

    def release_all(self) -> None:
        """Give all chunks back."""
        with ExitStack() as stack:
            for number in self._held:
                stack.callback(self.release, number)


class Membership:
    """Tells others that a process works on a run, as long as it lives.

    Args:
        path: a file in the folder of the run's parts.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def others_work(self) -> bool:
        """Whether another process works on the run; no process may join it while this is asked."""
        if self._descriptor is not None or not self._path.parent.exists():
            return False
        descriptor = try_lock(self._path)
        if descriptor is not None:
            os.close(descriptor)
        return descriptor is None

    def join(self) -> None:
        """Work on the run."""
        self._descriptor = try_lock(self._path, shared=True)

    def leave(self) -> None:
        """Work on it no longer."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
