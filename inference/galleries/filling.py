"""Embedding the chunks of a run that nobody works on, one after another, until all are finished."""

import itertools
import logging
import time
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from inference.embedding.embedder import EmbeddedBatch, Embedder
from inference.embedding.progress import Progress
from inference.galleries.parts import PartWriter
from inference.galleries.runs import EmbeddingRun, writing
from inference.galleries.sources import Item
from utils.errors import UserError

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 2.0  # between two counts of what others have finished, for the bar alone
_SAY_SECONDS = 60.0  # without anything happening, before that is said
_WAIT_SECONDS = 0.2  # between two looks whether another process has finished a chunk, or dropped out


@dataclass
class _Batch:
    """Some images of a chunk that this process has claimed; the last batch of a chunk is not full, and may be empty."""

    number: int  # of the chunk
    items: list[Item] = field(default_factory=list)
    error: UserError | None = None  # why the chunk ends here
    is_last: bool = False


def fill(run: EmbeddingRun, embedder: Embedder, on_error: str, bar: "RunProgress") -> None:
    """Embed the chunks of a run, beside any other processes that do, until all are finished.

    Args:
        run: where to.
        embedder: the model.
        on_error: "stop" at an image or chunk that cannot be read, or "skip" it.
        bar: counts the images.

    Raises:
        UserError: an image or chunk cannot be read and on_error is "stop", or the folder cannot be written to.
    """
    since = time.monotonic()
    while run.is_there() and (left := run.unfinished()):
        _fill_free(run, embedder, on_error, bar)
        bar.look()
        if run.unfinished() != left:
            since = time.monotonic()
        elif time.monotonic() - since < _SAY_SECONDS:
            time.sleep(_WAIT_SECONDS)
        else:
            by = run.holder(left[0]) or "nobody"
            logger.info("Waiting for chunks, %d in all; number %d is claimed by %s.", len(left), left[0], by)
            since = time.monotonic()


def _fill_free(run: EmbeddingRun, embedder: Embedder, on_error: str, bar: "RunProgress") -> None:
    ahead: deque[_Batch] = deque()  # batches that are being read
    part: PartWriter | None = None
    try:
        with closing(embedder.embed_given_batches(_images(run, embedder.batch_size, ahead), "skip")) as embedded:
            while (result := _next(embedded, run)) is not None:
                batch = ahead.popleft()
                with writing(run.folder):
                    part = part or PartWriter(run.folder, batch.number, embedder.dimension)
                    _add(part, batch, result, run, on_error)
                    if batch.is_last:
                        part.finish()
                        run.release(batch.number)
                        part = None
                bar.count(batch)
    finally:
        if part is not None:  # before anybody else may take its chunk
            part.close()


def _images(run: EmbeddingRun, size: int, ahead: "deque[_Batch]") -> Iterator[list[Any]]:
    """The images of chunk after chunk, in batches that never span two."""
    assert run.source is not None
    for number in run.claims():
        items, batch = run.source.read(run.chunk(number)), _Batch(number)
        while not batch.is_last:
            batch = _Batch(number)
            try:
                for item in itertools.islice(items, size):
                    batch.items.append(item)
            except UserError as error:
                batch.error = error
            batch.is_last = len(batch.items) < size
            ahead.append(batch)
            yield [item.image for item in batch.items]


def _next(embedded: Generator[EmbeddedBatch, None, None], run: EmbeddingRun) -> EmbeddedBatch | None:
    try:
        return next(embedded, None)
    except UserError as error:
        raise _stopped(error, run) from error


def _add(part: PartWriter, batch: _Batch, result: EmbeddedBatch, run: EmbeddingRun, on_error: str) -> None:
    skipped = []
    for position, error in result.errors.items():
        item = batch.items[position - result.start]
        if item.path not in str(error):
            error = UserError(f"{item.path}: {error}")
        if on_error == "stop":
            raise _stopped(error, run) from error
        logger.warning("skipped %s: %s", item.path, error)
        skipped.append(item.path)
    if batch.error is not None:
        name = run.chunk(batch.number).name
        if on_error == "stop":
            raise _stopped(batch.error, run) from batch.error
        logger.warning("skipped the rest of %s: %s", name, batch.error)
        skipped.append(name)
    kept = [batch.items[position - result.start] for position in result.kept]
    labels = [item.label for item in kept if item.label is not None]
    part.add(result.embeddings, [item.path for item in kept], labels, skipped)


def _stopped(error: UserError, run: EmbeddingRun) -> UserError:
    return UserError(
        f"{error} {run.count_images()} images are embedded: --resume continues from there, --on-error skip leaves out "
        "images that cannot be read."
    )


class RunProgress:
    """A bar that counts the images of all processes.

    Args:
        run: what they work on.
        shown: whether to show it.
        print_freq: see :class:`inference.embedding.progress.Progress`.
    """

    def __init__(self, run: EmbeddingRun, shown: bool, print_freq: int | None) -> None:
        self._run, self._seen, self._counted, self._next_look = run, set(run.finished()), 0, 0.0
        done = run.count_images()
        counts = [run.chunk(number).count for number in run.unfinished()]
        self.done, self.left = done, None if None in counts else sum(count or 0 for count in counts)
        total = None if self.left is None else done + self.left
        self._bar = Progress(total, print_freq, shown, done=done)

    def count(self, batch: _Batch) -> None:
        """Count a batch of this process, and at the end of a chunk what the others have finished."""
        self._update(len(batch.items))
        if batch.is_last:
            self._seen.add(batch.number)
            if time.monotonic() > self._next_look:
                self.look()

    def look(self) -> None:
        """Count the chunks that others have finished."""
        self._next_look = time.monotonic() + _LOOK_SECONDS
        for number in set(self._run.finished()).difference(self._seen):
            self._seen.add(number)
            self._update(self._run.count_rows([number]))

    def _update(self, images: int) -> None:
        self._counted += images
        self._bar.update(images)

    def __enter__(self) -> "RunProgress":
        self._bar.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        if kind is None and self.left is not None:  # another process may have made the gallery before the last look
            self._bar.update(self.left - self._counted)
        self._bar.__exit__(kind, *error)
