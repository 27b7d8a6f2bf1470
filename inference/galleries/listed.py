"""Images that a text file or a table lists, or that lie in a folder behind a URL; some or all may be URLs."""

import logging
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

from datasets.notes import PassedOver, say
from datasets.readers.table import OPTIONAL_COLUMN, read_rows
from inference.galleries.labels import Label, as_numbers
from inference.galleries.sources import Chunk, Content, FileList, Item
from utils.addresses import without_passwords
from utils.errors import UserError
from utils.remote import check_protocols, folder_of, is_url, join, read_file

logger = logging.getLogger(__name__)

_FETCHES, _IMAGES_AHEAD = 16, 64  # of images behind URLs: at a time, and read before they are taken


@dataclass(frozen=True)
class ImageList(FileList):
    """As a FileList; several images behind URLs are fetched at a time, a little ahead of whoever takes them."""

    @classmethod
    def of(cls, paths: Sequence[str], about: dict[str, Any], labels: Sequence[Label] = ()) -> Self:
        """The list, once it is known that its URLs can be read here.

        Raises:
            UserError: a package for a URL is missing.
        """
        check_protocols(paths)
        return cls(paths, about, labels)

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


def read_list(path: str, about: dict[str, Any]) -> ImageList:
    """The images of a text file with a path a line; relative paths start from its folder.

    Args:
        path: file or URL, in UTF-8; bytes that are none stay as they are in names of files.
        about: see :class:`inference.galleries.sources.Source`.

    Raises:
        UserError: the file cannot be read, is empty or names an image twice.
    """
    name = without_passwords(path)
    text = read_file(path).decode("utf-8-sig", "surrogateescape")
    if "\0" in text:
        raise UserError(f"{name} is no text in UTF-8 (it has zero bytes, as UTF-16 does); save it in UTF-8.")
    lines = [(f"line {number}", line) for number, line in enumerate(text.split("\n"), 1)]
    rows = [(place, written) for place, line in lines if (written := line.rstrip("\r")).strip()]
    return ImageList.of(_paths(path, rows), about)


def read_image_table(path: str, about: dict[str, Any], fields: Sequence[str] | None = None) -> ImageList:
    """The images of a table with the column path, and their labels.

    Args:
        path: a CSV or Parquet file or URL, see :func:`datasets.readers.table.read_rows`; relative paths start from its
            folder.
        about: see :class:`inference.galleries.sources.Source`.
        fields: the columns of identity and, if there are two, camera; None takes pid and camid, if they are there.

    Raises:
        UserError: the file cannot be read, lacks a column, has one twice, has an empty cell or names an image twice.
    """
    name = without_passwords(path)
    passed = PassedOver(name)
    required, optional = ("path", *(fields or ())), () if fields else ("pid", OPTIONAL_COLUMN)
    rows = list(read_rows(path, required, passed, optional))
    columns = [column for column in fields or optional if rows and column in rows[0][1]]
    if columns == [OPTIONAL_COLUMN] and not fields:
        logger.warning("%s has cameras but no column pid: the gallery gets neither.", name)
        columns = []
    for column in ("path", *columns[:1]):
        if place := next((place for place, row in rows if not row[column].strip()), None):
            raise UserError(f"{name}, {place}: {column} is empty.")
    say(passed.notes(), logger)
    paths = _paths(path, [(place, row["path"].strip()) for place, row in rows])
    return ImageList.of(paths, about, _labels(name, [[row[column].strip() for column in columns] for _, row in rows]))


def _labels(name: str, cells: list[list[str]]) -> list[Label]:
    """Numbers where all names are numbers; a camera is None if no image has one."""
    if not cells or not cells[0]:
        return []
    numbers = [as_numbers({text: text for text in set(column)}) for column in zip(*cells, strict=True)]
    if len(numbers) == 2 and "" in numbers[1]:
        if len(numbers[1]) > 1:
            raise UserError(f"{name}: some images have a camera, some have none; fill the column, or leave it out.")
        numbers[1] = {"": None}
    if len(numbers) == 1:
        return [(numbers[0][pid], None) for (pid,) in cells]
    return [(numbers[0][pid], numbers[1][camera]) for pid, camera in cells]


def _paths(path: str, rows: Sequence[tuple[str, str]]) -> list[str]:
    """Paths that can be opened, each once, from where they stand and how they are written."""
    name, folder = without_passwords(path), folder_of(path)
    if not rows:
        raise UserError(f"{name} lists no images.")
    places: dict[str, str] = {}
    for place, written in rows:
        first = places.setdefault(join(folder, written), place)
        if first is not place:
            raise UserError(f"{name}, {place}: {written} stands in {first} already; leave one of them out.")
    paths = list(places)
    if not is_url(paths[0]) and not os.path.exists(paths[0]):  # noqa: PTH110 - False, not an error, for any name
        logger.warning(
            "%s: the first image, %s, does not exist. Relative paths start from the folder of the list, %s.",
            *(name, paths[0], folder or "the current one"),
        )
    return paths
