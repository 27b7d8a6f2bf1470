"""Leave items out of the results of a query: the query itself, and images from its own camera."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference.searching.exact import Found
from utils.errors import UserError
from utils.files import content_digest

IntArray = NDArray[np.int64]
Finder = Callable[[Any, int], Found]  # queries [Q, D] and a number of results -> the nearest items, nearest first

_SPARE = 8  # asked for beyond the results themselves: a query has few copies
_GROWTH = 4  # of what is asked for, where too little was left
_AT_ONCE = 1 << 24  # results held at once while more are asked for
_UNKNOWN, _UNREADABLE = -2, -1


class Exclusion:
    """What must not be among the results of each query.

    Args:
        query_paths: Q image files.
        gallery_paths: N image files.
        itself: leave out the query's own file: the same path, or the same content.
        cameras: names of the cameras of the Q queries and of the N gallery images, to leave out results from the
            query's own camera; None keeps all cameras.
    """

    def __init__(
        self,
        query_paths: Sequence[str],
        gallery_paths: Sequence[str],
        *,
        itself: bool = False,
        cameras: tuple[Sequence[str], Sequence[str]] | None = None,
    ) -> None:
        self.counts = {"of the query itself": 0, "from the query's own camera": 0}
        self.unreadable = ""  # a gallery file whose content could not be compared
        self._itself = itself
        self._query_paths, self._gallery_paths = [_absolute(path) for path in query_paths], gallery_paths
        self._query_sizes = np.array([_size(path) for path in query_paths], dtype=np.int64)
        self._sizes = np.full(len(gallery_paths), _UNKNOWN, dtype=np.int64)
        self._digests: dict[str, bytes] = {}
        self._cameras: tuple[IntArray, IntArray] | None = None
        if cameras is not None:
            numbers: dict[str, int] = {}
            query, gallery = ([numbers.setdefault(name, len(numbers)) for name in names] for names in cameras)
            self._cameras = np.array(query, dtype=np.int64), np.array(gallery, dtype=np.int64)

    def nearest(
        self,
        find: Finder,
        query: Any,
        count: int,
        num_gallery: int,
        most: int | None = None,
        max_distance: float | None = None,
        step: int = 1,
    ) -> Found:
        """The nearest ``count`` items of each query among those that may be its results.

        Asks for more than ``count``, and again for more where too few of them may stay.

        Args:
            find: a search that leaves nothing out.
            query: [Q, D].
            count: results for each query.
            num_gallery: N.
            most: results that ``find`` can return for a query, if that is not N.
            max_distance: farther items are not missed; None for no limit.
            step: search for every ``step``-th query only.

        Returns:
            Indices and distances [Q / step, count], padded with -1 and infinity where the gallery has no more.

        Raises:
            UserError: ``most`` results are too few.
        """
        self.counts = dict.fromkeys(self.counts, 0)
        queries = np.arange(len(query))[::step]
        indices = np.full((len(queries), count), -1, dtype=np.int64)
        distances = np.full((len(queries), count), np.inf, dtype=np.float32)
        most = num_gallery if most is None else min(most, num_gallery)
        ask = max(count, min(most, count + (_SPARE if self._cameras is None else max(count, _SPARE))))
        waiting = np.arange(len(queries))
        while len(waiting):
            short = []
            height = max(1, _AT_ONCE // ask)
            for rows in (waiting[start : start + height] for start in range(0, len(waiting), height)):
                found, near = find(query[queries[rows]], ask)
                out = self._reasons(queries[rows], found)
                stays = (found >= 0) & ~out.any(0)
                is_done = (stays.sum(1) >= count) | (found < 0).any(1) | (ask == num_gallery)
                if max_distance is not None:
                    is_done |= near[:, -1] > max_distance
                    out &= near <= max_distance
                done = rows[is_done]
                self._count((out & (stays.cumsum(1) < count))[:, is_done])
                indices[done], distances[done] = _first(found[is_done], near[is_done], stays[is_done], count)
                short.append(rows[~is_done])
            waiting = np.concatenate(short)
            if len(waiting) and ask == most:
                raise UserError(
                    f"of the {most} results that the store returns for {self._query_paths[queries[waiting[0]]]}, fewer "
                    f"than {count} may stay: reduce --topk, or search without --store."
                )
            ask = min(most, ask * _GROWTH)
        return indices, distances

    def among(self, found: IntArray, near: NDArray[np.float32], step: int = 1) -> Found:
        """What may stay of the complete results [Q / step, K] of every ``step``-th query, as wide as the longest."""
        self.counts = dict.fromkeys(self.counts, 0)
        out = self._reasons(np.arange(len(self._query_paths))[::step], found)
        stays = (found >= 0) & ~out.any(0)
        self._count(out)
        return _first(found, near, stays, int(stays.sum(1).max(initial=0)))

    def describe(self, indices: IntArray, max_distance: float | None = None) -> str:
        """One line that says how many results up to the distance were left out, and how many queries have none."""
        parts = [f"{number} {name}" for name, number in self.counts.items() if number]
        within = "" if max_distance is None else f" of those up to the distance {max_distance:.6g}"
        lines = f"results left out{within}: {', '.join(parts) or 'none'}"
        empty = int((indices < 0).all(1).sum())
        if empty:
            lines += f"; {empty} of {len(indices)} queries have no other result"
        if self.unreadable:
            lines += f"; copies under other names are not recognised where a file is missing, such as {self.unreadable}"
        return lines

    def _count(self, out: NDArray[np.bool_]) -> None:
        for name, mask in zip(self.counts, out, strict=True):
            self.counts[name] += int(mask.sum())

    def _reasons(self, queries: IntArray, found: IntArray) -> NDArray[np.bool_]:
        """[2, Q, K] bool: the item is the query itself; else, it is from the query's camera."""
        own = self._is_itself(queries, found) if self._itself else np.zeros(found.shape, dtype=np.bool_)
        if self._cameras is None:
            return np.stack([own, np.zeros_like(own)])
        query, gallery = self._cameras
        same = (found >= 0) & (query[queries][:, None] == gallery[found])
        return np.stack([own, same & ~own])

    def _is_itself(self, queries: IntArray, found: IntArray) -> NDArray[np.bool_]:
        named = np.unique(found[found >= 0])
        for row in named[self._sizes[named] == _UNKNOWN].tolist():
            self._sizes[row] = _size(self._gallery_paths[row])
            if self._sizes[row] == _UNREADABLE:
                self.unreadable = self.unreadable or str(self._gallery_paths[row])
        sizes = np.where(found >= 0, self._sizes[found], _UNKNOWN)
        # Equal files have equal sizes, so that few are read; those that are gone count as equal: they may be named.
        suspects = sizes == self._query_sizes[queries][:, None]
        for place in np.argwhere(suspects):
            row, column = place.tolist()
            query, item = self._query_paths[queries[row]], _absolute(self._gallery_paths[found[row, column]])
            suspects[row, column] = query == item or (b"" != self._digest(query) == self._digest(item))
        return suspects

    def _digest(self, path: str) -> bytes:
        if path not in self._digests:
            self._digests[path] = content_digest(path)
        return self._digests[path]


def _first(found: IntArray, near: NDArray[np.float32], may_stay: NDArray[np.bool_], count: int) -> Found:
    """The first ``count`` results of each row that may stay, padded with -1 and infinity."""
    order = np.argsort(~may_stay, axis=1, kind="stable")[:, :count]
    stays = np.take_along_axis(may_stay, order, 1)
    indices = np.where(stays, np.take_along_axis(found, order, 1), -1)
    distances = np.where(stays, np.take_along_axis(near, order, 1), np.float32(np.inf))
    return indices, distances


def _absolute(path: Any) -> str:
    return os.path.abspath(str(path))  # noqa: PTH100 - without following links


def _size(path: Any) -> int:
    try:
        return Path(str(path)).stat().st_size
    except OSError:
        return _UNREADABLE
