"""What the script of an evaluation's page reads: images, their thumbnails, ranked lists and the points of the map."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from evaluation.embedding_map import EmbeddingMap
from evaluation.page_parts import thumbnail
from evaluation.ranked_images import Ranking
from evaluation.retrieval import EvalResult, RetrievalSet
from utils.errors import UserError
from utils.labels import Cameras, number_by_appearance

AnyPath = str | os.PathLike[str]

MOST_THUMBNAILS = 5000  # about 10 MB of a page, and seconds of work
_HEIGHT = 64


@dataclass(frozen=True)
class Shown:
    """What a page shows beside the numbers and curves.

    Attributes:
        rankings: of the queries whose results are listed; the others are listed without.
        strips: index of the query -> PNG, as :func:`evaluation.ranked_images.render_rankings` returns it; linked.
        heat_maps: index of the query -> image file; shown beside the query and linked.
        exif_orientation: turn images upright as their EXIF data says, as the network sees them by default.

    Example:
        >>> len(Shown().rankings)
        0
    """

    rankings: Sequence[Ranking] = ()
    strips: Mapping[int, AnyPath] = field(default_factory=dict)
    heat_maps: Mapping[int, AnyPath] = field(default_factory=dict)
    exif_orientation: bool = True


class Thumbnails:
    """Small images, each stored once, up to a number of them.

    Args:
        exif_orientation: turn images upright as their EXIF data says.
        most: files beyond it get none.

    Example:
        >>> images = Thumbnails()
        >>> images.number("missing.jpg"), images.missing
        (-1, ['missing.jpg'])
    """

    def __init__(self, exif_orientation: bool = True, most: int = MOST_THUMBNAILS) -> None:
        self.encoded: list[str] = []  # JPEGs in base64
        self.missing: list[str] = []  # files that cannot be read
        self._numbers: dict[tuple[str, int], int] = {}
        self._exif_orientation, self._most = exif_orientation, most
        self.left_out = 0  # files beyond the greatest number

    def number(self, path: AnyPath, height: int = _HEIGHT) -> int:
        """The place of an image in ``encoded``; -1 if it has none."""
        key = (os.fspath(path), height)
        if key not in self._numbers:
            self._numbers[key] = self._add(*key)
        return self._numbers[key]

    def _add(self, path: str, height: int) -> int:
        if len(self._numbers) >= self._most:
            self.left_out += 1
            return -1
        try:
            self.encoded.append(thumbnail(path, height, self._exif_orientation).partition(",")[2])
        except UserError:
            self.missing.append(path)
            return -1
        return len(self.encoded) - 1


class _Images:
    """The images that a page names, each once; queries are 0 to M - 1, gallery images follow."""

    def __init__(self, retrieval: RetrievalSet, thumbnails: Thumbnails) -> None:
        self._set, self._thumbnails = retrieval, thumbnails
        self._cameras = None
        if retrieval.has_cameras:
            self._cameras = Cameras("g_camids", retrieval.g_camids, retrieval.num_gallery)
        self.rows: list[list[Any]] = []  # name, identity, cameras, thumbnail
        self._numbers: dict[int, int] = {}

    def number(self, row: int, is_seen: bool = True) -> int:
        """The place of an image among the rows; one that is never seen needs no thumbnail."""
        if row not in self._numbers:
            self._numbers[row] = len(self.rows)
            self.rows.append(self._describe(row, is_seen))
        return self._numbers[row]

    def _describe(self, row: int, is_seen: bool) -> list[Any]:
        of, num_query = self._set, self._set.num_query
        is_query = row < num_query
        place = row if is_query else row - num_query
        paths, pids = (of.q_paths, of.q_pids) if is_query else (of.g_paths, of.g_pids)
        path = os.fspath(paths[place]) if paths is not None else ""
        name = Path(path).name or f"{'query' if is_query else 'gallery image'} {place}"
        cameras: list[int] = []
        if self._cameras is not None:
            cameras = [int(of.q_camids[place])] if is_query else self._cameras.of(place)
        number = self._thumbnails.number(path) if path and is_seen else -1
        return [name, of.names.pid(pids[place]), [of.names.camera(camera) for camera in cameras], number]


def worst_first(result: EvalResult) -> list[int]:
    """All queries, those with the lowest AP first, of equal AP those with the latest first match; without a match last.

    Example:
        >>> from evaluation.metrics import evaluate
        >>> images = RetrievalSet([[1.0], [1.0], [5]], [[0.9], [0.2]], [7, 8, 9], [7, 8], [0, 0, 0], [1, 1])
        >>> worst_first(evaluate(images))
        [1, 0, 2]
    """
    queries = result.query_index.tolist()
    scores = zip(result.average_precision.tolist(), (-result.first_match).tolist(), queries, strict=True)
    return [query for *_, query in sorted(scores)] + sorted(set(range(result.num_queries)) - set(queries))


def page_data(
    folder: Path,
    result: EvalResult,
    retrieval: RetrievalSet,
    shown: Shown,
    drawn: EmbeddingMap | None,
    thumbnails: Thumbnails,
) -> str:
    """The data of a page as JSON that may stand in HTML: it holds no ``<``.

    Args:
        folder: of the page; strips and heat maps are linked from there.
        result: the evaluation of ``retrieval``.
        retrieval: what was evaluated.
        shown: what is listed and linked.
        drawn: the map.
        thumbnails: where small images are put.

    Example:
        >>> from evaluation.metrics import evaluate
        >>> images = RetrievalSet([[1.0]], [[0.9]], [7], [7], [0], [1])
        >>> page_data(Path(), evaluate(images), images, Shown(), None, Thumbnails())[:35]
        '{"identities":["7"],"cameras":["0"]'
    """
    images = _Images(retrieval, thumbnails)
    num_query = retrieval.num_query
    points = []
    if drawn is not None:
        for row, (x, y) in zip(drawn.images.tolist(), (1000 * drawn.points).round().astype(int).tolist(), strict=True):
            points.append([images.number(row), x, 1000 - y, int(row < num_query)])
    found = {query: i for i, query in enumerate(result.query_index.tolist())}
    rankings = {ranking.query: ranking for ranking in shown.rankings}
    queries = []
    for query in worst_first(result):
        about: list[Any] = [images.number(query, query in rankings), None, None, 0, None, None, None]
        if query in found:
            i = found[query]
            about[1] = round(float(result.average_precision[i]), 6)
            about[2:4] = int(result.first_match[i]), int(result.num_relevant[i])
        if query in rankings:
            ranking = rankings[query]
            listed = zip(ranking.images.tolist(), ranking.right.tolist(), ranking.distances.tolist(), strict=True)
            about[4] = [[images.number(num_query + j), int(right), float(f"{d:.4g}")] for j, right, d in listed]
        if query in shown.strips:
            about[5] = _link(shown.strips[query], folder)
        if query in shown.heat_maps:
            file = shown.heat_maps[query]
            about[6] = [thumbnails.number(file, 2 * _HEIGHT), _link(file, folder)]
        queries.append(about)
    return _as_json(images.rows, thumbnails, queries, points)


def _link(file: AnyPath, folder: Path) -> str:
    return quote(Path(os.path.relpath(file, folder)).as_posix())


def _as_json(rows: list[list[Any]], thumbnails: Thumbnails, queries: list[Any], points: list[Any]) -> str:
    names, identity = number_by_appearance([row[1] for row in rows])
    cameras, camera = number_by_appearance([name for row in rows for name in row[2]])
    numbers = iter(camera.tolist())
    listed = [
        [name, pid, [next(numbers) for _ in seen], thumb]
        for (name, _, seen, thumb), pid in zip(rows, identity.tolist(), strict=True)
    ]
    table = {"identities": names, "cameras": cameras, "images": listed, "thumbnails": thumbnails.encoded}
    text = json.dumps(table | {"queries": queries, "map": points}, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")  # no name ends the element, or opens a comment, that holds it
