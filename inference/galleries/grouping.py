"""Galleries of groups of images, such as tracklets: one row for each group, made from a gallery of images."""

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datasets.readers.table import read_rows
from inference.galleries.gallery import Gallery, read_gallery, read_skipped
from inference.galleries.labels import Label, describe_label
from inference.galleries.storing import ROWS_PER_FILE, GalleryWriter
from utils.aggregation import aggregate_groups
from utils.errors import UserError
from utils.galleries import ABOUT
from utils.labels import IntArray

logger = logging.getLogger(__name__)

IMAGES = "images"  # the folder in OUTPUT_DIR with the gallery of images behind a gallery of groups
BY_COLUMN = "csv:"

_ROWS = 1 << 15  # of images that are read at a time; a larger group is read whole


@dataclass(frozen=True)
class Grouping:
    """How images become groups.

    Attributes:
        by: "folder" or "csv:COLUMN", for gallery.json.
        how: "mean", "medoid" or "robust", see :func:`utils.aggregation.aggregate`.
        name_of: the name of the group of an image, by its path.
    """

    by: str
    how: str
    name_of: Callable[[str], str]


def folder_function(root: str | os.PathLike[str]) -> Callable[[str], str]:
    """A function that names the folder of an image: its path below ``root``, which is its name where it lies there.

    Images that lie in ``root`` itself are of the group with its name, those elsewhere of groups with whole paths.
    """
    top = os.path.abspath(root)  # noqa: PTH100 - without following links

    def folder_of(path: str) -> str:
        folder = Path(os.path.abspath(path)).parent  # noqa: PTH100
        below = folder.relative_to(top).as_posix() if folder.is_relative_to(top) else str(folder)
        return folder.name if below == "." else below

    return folder_of


def column_function(table: str, column: str, split: str, image_folder: str) -> Callable[[str], str]:
    """A function that finds the group of an image in a column of a table.

    Args:
        table: a file with the columns path, split and ``column``.
        column: the name of the group.
        split: whose rows are read.
        image_folder: that relative paths start from.

    Raises:
        UserError: the table cannot be read, an image has no group in it, or two; from the returned function: the table
            does not have the image.
    """
    group_of: dict[str, str] = {}
    for place, row in read_rows(Path(table), ("path", "split", column)):
        if row["split"].strip() != split:
            continue
        path, group = row["path"].strip(), row[column].strip()
        if not group:
            raise UserError(f"{table}, {place}: {column} is empty; give every image of {split} the name of its group.")
        known = group_of.setdefault(os.path.abspath(os.path.join(image_folder, path)), group)  # noqa: PTH100, PTH118
        if known != group:
            raise UserError(f"{table}, {place}: {path} is of {column} {group!r}, but of {known!r} in an earlier row.")

    def by_table(path: str) -> str:
        group = group_of.get(os.path.abspath(path))  # noqa: PTH100
        if group is None:
            raise UserError(f"{path} has no row of split {split} in {table}, so nothing tells its {column}.")
        return group

    return by_table


def number_groups(
    images: Iterable[tuple[str, Label | None]], grouping: Grouping
) -> tuple[list[str], IntArray, list[Label | None]]:
    """The groups of images, in order of first appearance.

    Args:
        images: [N] paths and labels.
        grouping: tells the groups.

    Returns:
        The names of the G groups, the group of each image [N], and the label of each group.

    Raises:
        UserError: an image has no group, or a group has images of two identities or cameras.
    """
    numbers: dict[str, int] = {}
    labels: list[Label | None] = []

    def number() -> Iterator[int]:
        for path, label in images:
            group = numbers.setdefault(name := grouping.name_of(path), len(numbers))
            if group == len(labels):
                labels.append(label)
            elif label != labels[group]:
                first, now = (describe_label(one) if one else "nobody" for one in (labels[group], label))
                raise UserError(
                    f"the group {name!r} (--group {grouping.by}) has images of {first} and of {now}, such as {path}; "
                    "expected one identity and one camera in each."
                )
            yield group

    groups = np.fromiter(number(), np.int64)
    return list(numbers), groups, labels


def _paths_and_labels(gallery: Gallery) -> Iterator[tuple[str, Label | None]]:
    for start in range(0, len(gallery.paths), _ROWS):
        part = slice(start, start + _ROWS)
        paths, labels = gallery.paths[part].tolist(), gallery.labels_of(part)
        yield from zip(paths, labels or len(paths) * [None], strict=True)


def group_gallery(
    images: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    grouping: Grouping,
    rows_per_file: int = ROWS_PER_FILE,
) -> int:
    """Write the gallery of groups of a gallery of images.

    A part of the rows is in memory at a time: images whose groups stand together are read in one sequence.

    Args:
        images: the folder of the gallery of images.
        folder: where the other goes; paths.npy holds the names of the groups, pids.npy and camids.npy their labels.
        grouping: what the groups are, and how they become rows.
        rows_per_file: with more rows than this, the gallery has several files.

    Returns:
        The number of groups.

    Raises:
        UserError: there is no such gallery, or as for :func:`number_groups`, or the folder cannot be written to.
    """
    gallery = read_gallery(images)
    names, groups, labels = number_groups(_paths_and_labels(gallery), grouping)
    if len(names) == 1 and len(groups) > 1:
        logger.warning("All %d images are of one group, %r: the gallery has one row.", len(groups), names[0])
    _warn_of_lost_groups(Path(images), set(names), grouping)
    kept = ("embedder", "root", "in_subfolders", "source", "pid_from")
    about = {key: gallery.about.get(key) for key in kept} | {"group": grouping.by, "aggregate": grouping.how}
    with GalleryWriter(folder, about, str(gallery.embeddings.dtype), rows_per_file) as writer:
        for first, last, rows in _aggregated(gallery, groups, len(names), grouping.how):
            known = [label for label in labels[first:last] if label]  # all or none
            writer.add(rows, names[first:last], known)
        return writer.finish(len(groups))


def is_grouped(images: str | os.PathLike[str], folder: str | os.PathLike[str]) -> bool:
    """Whether ``folder`` holds a gallery of groups that was written after the gallery of images."""
    made = Path(folder) / ABOUT
    return made.exists() and made.stat().st_mtime_ns >= (Path(images) / ABOUT).stat().st_mtime_ns


def _aggregated(gallery: Gallery, groups: IntArray, count: int, how: str) -> Iterator[tuple[int, int, Any]]:
    """The rows of groups first to last, several groups at a time."""
    order = np.argsort(groups, kind="stable")
    ends = np.cumsum(np.bincount(groups, minlength=count))
    first = 0
    while first < count:
        start = ends[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(ends, start + _ROWS, "right")))
        members = order[start : ends[last - 1]]
        is_together = bool((np.diff(members) == 1).all())
        rows = gallery.embeddings[members[0] : members[-1] + 1] if is_together else gallery.embeddings[members]
        yield first, last, aggregate_groups(np.asarray(rows), groups[members] - first, last - first, how).numpy()
        first = last


def _warn_of_lost_groups(images: Path, names: set[str], grouping: Grouping) -> None:
    if lost := sorted({grouping.name_of(path) for path in read_skipped(images)} - names):
        logger.warning("%d groups have no image that could be read, and no row, such as %r.", len(lost), lost[0])
