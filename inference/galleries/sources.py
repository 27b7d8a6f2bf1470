"""Where the images of a gallery come from, cut into chunks that any process can take.

A chunk is what one process embeds at a time and what is kept if the run is interrupted. All processes that list a
source must find the same chunks, in the same order, which is that of the gallery's rows.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from inference.embedding.images import find_images
from inference.galleries.labels import Label, LabelledImages

CHUNK = 1024  # images of a list in a chunk: seconds of work, and few enough to lose


class Item(NamedTuple):
    """An image of a source."""

    path: str  # what paths.npy calls it
    image: Any  # what an Embedder takes: a path, or the bytes of a file
    label: Label | None = None


class Chunk(NamedTuple):
    """A part of a source."""

    name: str  # for messages: a file, or a range of a list
    key: Any  # what the source needs to read it
    count: int | None = None  # images in it, if that is known before it is read


class Source(Protocol):
    """Images in chunks."""

    @property
    def about(self) -> dict[str, Any]:
        """What gallery.json says of it: ``root``, ``in_subfolders`` and ``source``; values that JSON holds."""

    def chunks(self) -> Sequence[Chunk]:
        """The chunks, the same in each process."""

    def read(self, chunk: Chunk) -> Iterator[Item]:
        """The images of a chunk, in order, read one after another.

        Raises:
            UserError: the chunk cannot be read, or not to its end.
        """

    def digest(self) -> str:
        """Differs if the list of images (or of the files that hold them) or a label does."""


@dataclass(frozen=True)
class FileList:
    """Image files that are listed beforehand.

    Attributes:
        paths: [N] files, in the order of the rows.
        about: see :class:`Source`.
        labels: [N], or none.
        chunk_size: images in a chunk.
    """

    paths: Sequence[str]
    about: dict[str, Any]
    labels: Sequence[Label] = field(default=())
    chunk_size: int = CHUNK

    def chunks(self) -> Sequence[Chunk]:
        """Chunks of ``chunk_size`` files, the last of which may have fewer."""
        starts = range(0, len(self.paths), self.chunk_size)
        sizes = [min(self.chunk_size, len(self.paths) - start) for start in starts]
        return [Chunk(f"images {a} to {a + n - 1}", a, n) for a, n in zip(starts, sizes, strict=True)]

    def read(self, chunk: Chunk) -> Iterator[Item]:
        """The files of a chunk, which are not opened here."""
        for row in range(chunk.key, chunk.key + (chunk.count or 0)):
            yield Item(self.paths[row], self.paths[row], self.labels[row] if self.labels else None)

    def digest(self) -> str:
        """Of the paths and labels."""
        from inference.galleries.gallery import digest_of_paths

        if not self.labels:
            return digest_of_paths(self.paths)
        return digest_of_paths(str((path, *label)) for path, label in zip(self.paths, self.labels, strict=True))


def folder_source(root: str | os.PathLike[str], in_subfolders: bool = False, chunk_size: int = CHUNK) -> FileList:
    """The images of a folder, or one image file.

    Args:
        root: the folder or file.
        in_subfolders: take the images in and below its subfolders.
        chunk_size: images in a chunk.

    Raises:
        UserError: there are no such images; a folder cannot be listed.
    """
    about = {"root": os.fspath(root), "in_subfolders": in_subfolders, "source": None}
    return FileList(find_images(root, in_subfolders), about, chunk_size=chunk_size)


def labelled_source(root: str | os.PathLike[str], images: LabelledImages, chunk_size: int = CHUNK) -> FileList:
    """The images of a data set in ``root``, with their labels."""
    about = {"root": os.fspath(root), "in_subfolders": False, "source": images.source}
    return FileList(images.paths, about, images.labels, chunk_size)
