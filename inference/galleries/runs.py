"""The run that embeds images into a gallery: what several processes share of it, on the disk.

embeddings.run.json says what the run is, embeddings.parts holds its finished chunks (:mod:`inference.galleries.parts`)
and the claims on others (:mod:`inference.galleries.claims`). Whoever changes which run there is, or makes the gallery
of its parts, holds the lock embeddings.lock.
"""

import hashlib
import json
import logging
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

from inference.galleries import storing
from inference.galleries.claims import Claims, Membership
from inference.galleries.parts import (
    PARTS,
    RUN,
    Part,
    count_rows,
    finished_numbers,
    part_numbers,
    read_part,
    read_run,
)
from inference.galleries.sources import Chunk, Source
from utils.files import replacing

logger = logging.getLogger(__name__)

LOCK = "embeddings.lock"
LAUNCH = ".embeddings.launch"  # the last launch of several processes that finished a gallery here


class EmbeddingRun:
    """An unfinished gallery, as one of the processes that work on it sees it.

    Args:
        folder: where the gallery will be.
        entry: what embeddings.run.json says: ``about`` (what gallery.json will say), ``base`` (images of the gallery
            that the run extends, or None), ``kept`` (chunks of an earlier list of images, which come first), ``first``
            and ``chunks`` (number of the first chunk of the source, and how many there are), ``digest`` (of the
            source), ``launch`` (of the processes that began it), ``before`` (rows that were there then) and ``id``.
        source: the images of the chunks from ``first`` on.
    """

    def __init__(self, folder: Path, entry: dict[str, Any], source: Source | None = None) -> None:
        self.folder, self.entry = folder, entry
        self.source = source
        self._chunks = list(source.chunks()) if source is not None else []
        self._claims = Claims(folder)
        self._membership = Membership(folder / PARTS / "embeddings.members")

    @classmethod
    def open(cls, folder: Path) -> "EmbeddingRun | None":
        """The unfinished run in a folder, without its source; None if there is none."""
        entry = read_run(folder)
        if entry is None:
            shutil.rmtree(folder / PARTS, ignore_errors=True)  # of a process that ended while it removed them
            return None
        return cls(folder, entry)

    @classmethod
    def start(cls, folder: Path, entry: dict[str, Any], source: Source) -> "EmbeddingRun":
        """Write down a new run, in place of what there is of an earlier one unless ``kept`` names chunks of it."""
        entry = {"kept": [], "first": 0, **entry, "chunks": len(source.chunks()), "digest": digest_of(source)}
        run = cls(folder, {**entry, "id": uuid.uuid4().hex}, source)
        with writing(folder):
            if not entry["kept"] and (folder / PARTS).exists():
                shutil.rmtree(folder / PARTS)
            (folder / PARTS).mkdir(parents=True, exist_ok=True)
            run.rewrite(before=run.count_rows())
        return run

    def rewrite(self, **changes: Any) -> None:
        """Change what embeddings.run.json says."""
        self.entry |= changes
        with writing(self.folder), replacing(self.folder / RUN, self.folder / f"{RUN}.new") as temporary:
            temporary.write_text(json.dumps(self.entry))

    def is_there(self) -> bool:
        """Whether the run is still unfinished: nobody has made its gallery, or discarded it."""
        found = read_run(self.folder)
        return found is not None and found["id"] == self.entry["id"]

    def others_work(self) -> bool:
        """Whether another process works on it; asked by whoever holds the lock."""
        return self._membership.others_work()

    def join(self) -> "EmbeddingRun":
        """Begin to work on it."""
        self._membership.join()
        return self

    def chunk(self, number: int) -> Chunk:
        """The chunk of the source with a number."""
        return self._chunks[number - self.entry["first"]]

    def finished(self) -> list[int]:
        """The numbers of the finished chunks, in the order of the gallery."""
        done = set(finished_numbers(self.folder))
        return [number for number in part_numbers(self.entry) if number in done]

    def unfinished(self) -> list[int]:
        """The numbers of the others."""
        done = set(finished_numbers(self.folder))
        return [number for number in part_numbers(self.entry) if number not in done]

    def count_rows(self, numbers: Iterable[int] | None = None) -> int:
        """The rows of finished chunks; by default of all that are finished."""
        dimension = self.entry["about"]["embedder"]["dimension"]
        with suppress(FileNotFoundError):  # the gallery has been made meanwhile
            return sum(count_rows(self.folder, n, dimension) for n in (self.finished() if numbers is None else numbers))
        return 0

    def count_images(self) -> int:
        """The images that are embedded: those of the gallery that is extended, and of the finished chunks."""
        return (0 if self.entry.get("replace") else self.entry["base"] or 0) + self.count_rows()

    def claims(self) -> Iterator[int]:
        """Claim, one after another, the chunks that nobody has finished or works on."""
        with writing(self.folder):
            taken = True
            while taken:
                taken = False
                for number in self.unfinished():  # once for many: listing a hundred thousand chunks takes a while
                    if not self.is_there():
                        return
                    if self._claims.take(number):
                        taken = True
                        yield number

    def holder(self, number: int) -> str:
        """Who works on a chunk; "" if nobody does."""
        return self._claims.holder(number)

    def release(self, number: int) -> None:
        """Give back a chunk that this process has claimed, after writing it."""
        self._claims.release(number)

    def parts(self) -> Iterator[Part]:
        """All chunks, which are finished, in order."""
        for number in part_numbers(self.entry):
            part = read_part(self.folder, number)
            assert part is not None
            yield part

    def discard(self) -> None:
        """Remove the run from the disk."""
        self.close()
        with writing(self.folder):
            (self.folder / RUN).unlink(missing_ok=True)
            shutil.rmtree(self.folder / PARTS, ignore_errors=True)  # a shared disk may hold on to open files

    def announce(self) -> None:
        """Let processes of its launch that come when the run is over know that it has made the gallery."""
        if self.entry["launch"]:
            with writing(self.folder), replacing(self.folder / LAUNCH) as temporary:
                temporary.write_text(_launch_digest(self.entry["launch"], self.entry["about"]))

    def close(self) -> None:
        """Give back what this process has claimed; what it has written stays."""
        try:
            self._claims.release_all()
        finally:
            self._membership.leave()


def has_finished(folder: Path, launch: str | None, about: dict[str, Any]) -> bool:
    """Whether processes of this launch have made such a gallery in ``folder``."""
    with suppress(OSError):
        return launch is not None and (folder / LAUNCH).read_text() == _launch_digest(launch, about)
    return False


def _launch_digest(launch: str, about: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps([launch, about], sort_keys=True).encode()).hexdigest()


def digest_of(source: Source) -> str:
    """Differs if the images of a source, or its chunks, do."""
    digest = hashlib.sha256(source.digest().encode())
    for chunk in source.chunks():
        digest.update(chunk.name.encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()


def writing(folder: Path) -> AbstractContextManager[None]:
    """As :func:`inference.galleries.storing.writing`, of what a run keeps."""
    return storing.writing(folder, "What was embedded is kept: --resume continues from there.")
