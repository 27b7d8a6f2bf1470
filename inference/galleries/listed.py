"""Images that a text file or a table lists, or that lie in a folder behind a URL; some or all may be URLs."""

import io
import logging
import os
import re
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

from datasets.notes import PassedOver, say
from datasets.readers.table import OPTIONAL_COLUMN, read_rows
from inference.galleries.labels import Label, as_numbers
from inference.galleries.sources import CHUNK, Chunk, Content, FileList, Item
from utils.addresses import without_passwords
from utils.errors import UserError
from utils.remote import check_protocols, folder_of, is_url, join, open_file, read_file

logger = logging.getLogger(__name__)

_FETCHES, _IMAGES_AHEAD = 16, 64  # of images behind URLs: at a time, and read before they are taken


@dataclass(frozen=True)
class ImageList(FileList):
    """As a FileList; several images behind URLs are fetched at a time, a little ahead of whoever takes them."""

    @classmethod
    def of(
        cls, paths: Sequence[str], about: dict[str, Any], labels: Sequence[Label] = (), chunk_size: int = CHUNK
    ) -> Self:
        """The list, once it is known that its URLs can be read here.

        Raises:
            UserError: a package for a URL is missing.
        """
        check_protocols(paths)
        return cls(paths, about, labels, chunk_size)

    @property
    def labelled(self) -> bool:
        """Whether the images have labels."""
        return bool(self.labels)

    def read(self, chunk: Chunk) -> Iterator[Item]:
        """The images of a chunk; what cannot be fetched raises an error only when it is decoded."""
        executor = ThreadPoolExecutor(_FETCHES, thread_name_prefix="fetch")  # starts threads when they are needed
        waiting: deque[Item] = deque()
        try:
            for item in super().read(chunk):
                if is_url(item.path):
                    content = Content(without_passwords(item.path), executor.submit(read_file, item.path))
                    item = item._replace(image=content)
                waiting.append(item)
                if len(waiting) > _IMAGES_AHEAD:
                    yield waiting.popleft()
            yield from waiting
        except GeneratorExit:  # nobody wants the rest
            executor.shutdown(cancel_futures=True)
            raise
        finally:
            executor.shutdown(wait=False)  # what was yielded is still being fetched


def read_list(path: str, about: dict[str, Any], chunk_size: int = CHUNK) -> ImageList:
    """The images of a text file with a path a line; relative paths start from its folder.

    Args:
        path: file or URL, in UTF-8; bytes that are none stay as they are in names of files.
        about: see :class:`inference.galleries.sources.Source`.
        chunk_size: images in a chunk.

    Raises:
        UserError: the file cannot be read, is empty or names an image twice.
    """
    paths = _Paths(path)
    try:
        with open_file(path) as file:
            for number, line in enumerate(io.TextIOWrapper(file, "utf-8-sig", "surrogateescape"), 1):
                if "\0" in line:
                    raise UserError(f"{paths.name} is no text in UTF-8 (it has zero bytes, as UTF-16 does).")
                if line.strip():
                    paths.add(f"line {number}", line.removesuffix("\n"))
    except OSError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{paths.name} cannot be read ({error.strerror or error}).") from error
    return ImageList.of(paths.finished(), about, chunk_size=chunk_size)


def read_image_table(
    path: str, about: dict[str, Any], fields: Sequence[str] | None = None, chunk_size: int = CHUNK
) -> ImageList:
    """The images of a table with the column path, and their labels.

    Args:
        path: a CSV or Parquet file or URL, see :func:`datasets.readers.table.read_rows`; relative paths start from its
            folder.
        about: see :class:`inference.galleries.sources.Source`.
        fields: the columns of identity and, if there are two, camera; None takes pid and camid, if they are there.
        chunk_size: images in a chunk.

    Raises:
        UserError: the file cannot be read, lacks a column, has one twice, has an empty cell or names an image twice.
    """
    paths = _Paths(path)
    passed = PassedOver(paths.name)
    required, optional = ("path", *(fields or ())), () if fields else ("pid", OPTIONAL_COLUMN)
    cells: list[tuple[str, ...]] = []
    columns: Sequence[str] | None = fields
    for place, row in read_rows(path, required, passed, optional):
        if columns is None:
            columns = [column for column in optional if column in row]
            if columns == [OPTIONAL_COLUMN]:
                logger.warning("%s has cameras but no column pid: the gallery gets neither.", paths.name)
                columns = []
        for column in ("path", *columns[:1]):
            if not row[column].strip():
                raise UserError(f"{paths.name}, {place}: {column} is empty.")
        paths.add(place, row["path"].strip())
        cells.append(tuple(sys.intern(row[column].strip()) for column in columns))
    say(passed.notes(), logger)
    return ImageList.of(paths.finished(), about, _labels(paths.name, cells), chunk_size)


def _labels(name: str, cells: Sequence[tuple[str, ...]]) -> list[Label]:
    """Numbers where all names are numbers; a camera is None if no image has one."""
    if not cells or not cells[0]:
        return []
    numbers = [as_numbers({text: text for text in set(column)}) for column in zip(*cells, strict=True)]
    if len(numbers) == 1:
        return [(numbers[0][pid], None) for (pid,) in cells]
    if "" in numbers[1]:
        if len(numbers[1]) > 1:
            raise UserError(f"{name}: some images have a camera, some have none; fill the column, or leave it out.")
        numbers[1] = {"": None}
    return [(numbers[0][pid], numbers[1][camera]) for pid, camera in cells]


class _Paths:
    """Collects the paths of a list so that they can be opened, each once.

    Args:
        path: the list.
    """

    def __init__(self, path: str) -> None:
        self.name, self._folder = without_passwords(path), folder_of(path)
        self._paths: dict[str, None] = {}

    def add(self, place: str, written: str) -> None:
        path = join(self._folder, re.sub(r"^(\./+)+", "", written))  # as `find .` writes them
        if path in self._paths:
            raise UserError(f"{self.name}, {place}: {written} is listed above already; leave one of them out.")
        self._paths[path] = None

    def finished(self) -> list[str]:
        paths = list(self._paths)
        if not paths:
            raise UserError(f"{self.name} lists no images.")
        if any("@" in path and without_passwords(path) != path for path in paths):
            logger.warning(
                "%s: addresses with a password, which the gallery will hold; ~/.config/fsspec can hold it instead.",
                self.name,
            )
        if not is_url(paths[0]) and not os.path.exists(paths[0]):  # noqa: PTH110 - False, not an error, for any name
            logger.warning(
                "%s: the first image, %s, does not exist. Relative paths start from the folder of the list, %s.",
                *(self.name, paths[0], self._folder or "the current one"),
            )
        return paths
