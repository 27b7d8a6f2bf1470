"""Which gallery items are a query's own image: the same file, or another file of the same content.

Data without cameras has no same-camera filter, which would leave such items out of the ranking: a query would find
itself first, and Top-1 would be 100 %.
"""

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from utils.files import content_digest, digests_of_equals
from utils.labels import IntArray

AnyPath = str | os.PathLike[str]


@dataclass(frozen=True)
class SelfMatches:
    """Groups of queries and gallery items that are one image.

    Example:
        >>> own = SelfMatches(queries=np.array([-1, 0]), gallery=np.array([0, -1, -1]))
        >>> own.count, own.first
        (1, 1)
    """

    queries: IntArray  # [M] the query's group, counted from 0; -1 if the gallery does not hold it
    gallery: IntArray  # [N] the item's group, -1 if it is not a query

    @classmethod
    def among_copies(
        cls, copies: Mapping[str, int], q_paths: Sequence[AnyPath], g_paths: Sequence[AnyPath]
    ) -> "SelfMatches":
        """Those of one division into queries and gallery, from the groups that :func:`find_copies` found in all."""
        sides = [np.array([copies.get(os.fspath(path), -1) for path in paths]) for paths in (q_paths, g_paths)]
        return cls(*(np.where(np.isin(own, other), own, -1) for own, other in (sides, sides[::-1])))

    @property
    def count(self) -> int:
        """Number of queries that the gallery holds."""
        return int((self.queries >= 0).sum())

    @property
    def first(self) -> int:
        """Index of the first of them."""
        return int((self.queries >= 0).argmax())

    def as_cameras(self) -> tuple[IntArray, IntArray]:
        """Cameras [M] and [N] by which the same-camera filter removes the query's own item from its ranking, and no
        other: 0 for queries, 1 for gallery items, and from 2 upwards one for each group.
        """
        return tuple(  # type: ignore[return-value]
            np.where(groups >= 0, groups + 2, other) for groups, other in ((self.queries, 0), (self.gallery, 1))
        )


def find_self_matches(q_paths: Sequence[AnyPath], g_paths: Sequence[AnyPath]) -> SelfMatches:
    """Find the gallery items that are a query's own image.

    Files are the same if their paths lead to the same place, or if they exist and hold the same bytes. Only files of a
    size that occurs among both queries and gallery are read.

    Args:
        q_paths, g_paths: M and N image files, which need not exist; "" is a file that nobody knows.

    Example:
        >>> find_self_matches(["a/1.jpg", "a/2.jpg"], ["b/1.jpg", "./a/2.jpg"]).gallery.tolist()
        [-1, 0]
    """
    folder = lru_cache(maxsize=None)(os.path.realpath)
    own, there = ([_place(path, folder) for path in paths] for paths in (q_paths, g_paths))
    sizes = {place: _size(place) for place in {*own, *there}}
    shared = {sizes[place] for place in own} & {sizes[place] for place in there} - {0}
    read = [place for place, size in sizes.items() if size in shared]
    with ThreadPoolExecutor() as pool:
        content = dict(zip(read, pool.map(content_digest, read), strict=True))
    keys = [[content.get(place) or place for place in places] for places in (own, there)]
    held = set(keys[1]) - {""}
    number = {key: i for i, key in enumerate(dict.fromkeys(key for key in keys[0] if key in held))}
    return SelfMatches(*(np.array([number.get(key, -1) for key in side], dtype=np.int64) for side in keys))


def find_copies(paths: Sequence[AnyPath]) -> dict[str, int]:
    """Find images that are one image: the same file, or files of the same content.

    Args:
        paths: image files, which need not exist. Only files of a size that occurs twice are read.

    Returns:
        Path -> number of its group, for the images in groups of two or more.

    Example:
        >>> find_copies(["a/1.jpg", "a/2.jpg", "a/1.jpg"])
        {'a/1.jpg': 0}
    """
    names = [os.fspath(path) for path in paths]
    digests = digests_of_equals(names)
    keys = [digests.get(name, name) for name in names]
    several = [key for key, times in Counter(keys).items() if times > 1 and key]
    number = {key: i for i, key in enumerate(several)}
    return {name: number[key] for name, key in zip(names, keys, strict=True) if key in number}


def _place(path: AnyPath, real_folder: Callable[[str], str]) -> str:
    # Only folders are resolved, once each: a link to a file is found by its content.
    if not path:
        return ""
    head, tail = os.path.split(os.fspath(path))
    return os.path.join(real_folder(head), tail)  # noqa: PTH118 - for 100,000 paths


def _size(place: str) -> int:
    try:
        return os.stat(place).st_size  # noqa: PTH116
    except OSError:
        return 0
