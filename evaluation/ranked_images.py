"""Strips of ranked results: a query, then its nearest gallery images, framed in green if right and red if wrong."""

import io
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from evaluation.distance_blocks import block_height
from evaluation.protocols import Candidates, find_candidates, given_candidates
from evaluation.ranking import nearest
from evaluation.retrieval import RankingOptions, RetrievalSet
from utils.files import write_bytes
from utils.image import pil_loader
from utils.labels import BoolArray, IntArray

AnyPath = str | PathLike[str]
Colour = tuple[int, int, int]  # red, green, blue

GREEN, RED, BLACK, WHITE = (0, 255, 0), (255, 0, 0), (0, 0, 0), (255, 255, 255)
_ROWS_AT_ONCE = 64  # rows of distances copied and searched at a time
_GAP = 4  # pixels between two results
_CACHED = 256  # scaled gallery images kept in memory, since an image appears in many rankings


@dataclass(frozen=True)
class Ranking:
    """The first results of one query.

    Example:
        >>> Ranking(0, np.array([3, 1]), np.array([True, False]), np.array([0.2, 0.4], np.float32)).right.tolist()
        [True, False]
    """

    query: int  # index of the query
    images: IntArray  # [K] gallery images, nearest first; its first image stands for a centroid
    right: BoolArray  # [K] whether the result has the query's identity
    distances: NDArray[np.float32]  # [K]


def rank_for_display(
    retrieval: RetrievalSet,
    options: RankingOptions | None = None,
    *,
    topk: int = 10,
    queries: Iterable[int] | None = None,
    block_bytes: int | None = None,
) -> list[Ranking]:
    """Find the first results of queries, without the items that the protocol removes.

    Args:
        retrieval: queries and gallery images.
        options: protocol and distances; None ranks single images by squared Euclidean distance.
        topk: largest number of results, at least 1.
        queries: indices of the queries, in the order of the result; None takes all.
        block_bytes: memory for distances; None is 64 MiB.

    Returns:
        One ranking for each of ``queries``; none for no queries.

    Raises:
        NoValidQueryError, UserError, UnknownNameError: as for :func:`evaluation.metrics.evaluate`.

    Example:
        >>> images = RetrievalSet([[1.0]], [[0.2], [0.9]], [7], [8, 7], [0], [1, 1])
        >>> rank_for_display(images)[0].images.tolist()
        [1, 0]
    """
    return _rank(find_candidates(retrieval, options or RankingOptions(), block_bytes), topk, queries, block_bytes)


def rank_distances(
    distances: Any,
    q_pids: Any,
    g_pids: Any,
    q_camids: Any,
    g_camids: Any,
    *,
    topk: int = 10,
    queries: Iterable[int] | None = None,
) -> list[Ranking]:
    """Find the first results of queries as :func:`rank_for_display` does for single images, by given distances.

    Args:
        distances, q_pids, g_pids, q_camids, g_camids: as for :func:`evaluation.metrics.evaluate_distances`.
        topk, queries: as for :func:`rank_for_display`.

    Raises:
        UserError: as for :func:`evaluation.metrics.evaluate_distances`.

    Example:
        >>> rank_distances([[0.8, 0.1]], [7], [8, 7], [0], [1, 1])[0].images.tolist()
        [1, 0]
    """
    return _rank(given_candidates(distances, q_pids, g_pids, q_camids, g_camids), topk, queries, None)


def _rank(candidates: Candidates, topk: int, queries: Iterable[int] | None, block_bytes: int | None) -> list[Ranking]:
    wanted = list(range(len(candidates.q_pids)) if queries is None else queries)
    height = block_height(len(candidates.q_pids), candidates.width, block_bytes)
    found: dict[int, Ranking] = {}
    for start in sorted({i // height * height for i in wanted}):
        block = candidates.distances(start, min(start + height, len(candidates.q_pids)))
        rows = sorted({i for i in wanted if start <= i < start + height})
        for i in range(0, len(rows), _ROWS_AT_ONCE):
            part = np.array(rows[i : i + _ROWS_AT_ONCE], dtype=np.int64)
            chosen = block[torch.from_numpy(part - start).to(block.device)]  # a copy
            found |= _first_results(candidates, chosen, part, topk)
    return [found[i] for i in wanted]


def _first_results(candidates: Candidates, block: Tensor, queries: IntArray, topk: int) -> dict[int, Ranking]:
    """The rankings of queries, given their distances [B, C or more], which are overwritten."""
    strict = candidates.strict
    if strict is not None:
        own, relevant = strict.own[queries], strict.relevant[queries]
        known = np.flatnonzero(own >= 0)
        usable = np.flatnonzero(relevant >= 0)
        right_distance = block[usable, relevant[usable]]
        block[known, own[known]] = torch.inf
        block[usable, own[usable]] = right_distance
    elif candidates.same is not None:
        for row, query in enumerate(queries.tolist()):
            pairs = candidates.same.pairs(query, query + 1)
            block[row, pairs.column[pairs.removed]] = torch.inf
    columns, distances = nearest(block[:, : len(candidates.pids)], max(1, min(topk, len(candidates.pids))))
    images = candidates.images[columns]
    if strict is not None:
        images = np.where(columns == own[:, None], strict.images[relevant][:, None], images)
    rankings = {}
    for row, query in enumerate(queries.tolist()):
        shown = np.isfinite(distances[row])
        right = candidates.pids[columns[row]] == candidates.q_pids[query]
        rankings[query] = Ranking(query, images[row, shown], right[shown], distances[row, shown])
    return rankings


def render_rankings(
    rankings: Sequence[Ranking],
    query_paths: Sequence[AnyPath],
    gallery_paths: Sequence[AnyPath],
    output_dir: AnyPath,
    size: tuple[int, int] = (256, 128),
    exif_orientation: bool = True,
) -> dict[int, Path]:
    """Write one strip, a PNG, for each ranking: the query in a black frame, then the results from left to right.

    Args:
        rankings: what to show; none write nothing.
        query_paths, gallery_paths: image files of all queries and of the gallery.
        output_dir: folder for the strips, created if missing.
        size: height and width of each image in a strip, frame included.
        exif_orientation: turn images upright as their EXIF data says, as the network sees them by default.

    Returns:
        Index of the query -> its strip, named after the query's file and numbered if the name is taken.

    Raises:
        UserError: an image cannot be read or a strip cannot be written; the message names the file.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from PIL import Image
        >>> ranking = Ranking(0, np.array([0]), np.array([True]), np.zeros(1, np.float32))
        >>> with TemporaryDirectory() as folder:
        ...     paths = [f"{folder}/q.png"]
        ...     Image.new("RGB", (4, 8)).save(paths[0])
        ...     strips = render_rankings([ranking], paths, paths, f"{folder}/strips", (32, 16))
        ...     strips[0].name, Image.open(strips[0]).size
        ('q.png', (44, 32))
    """
    border = max(2, min(size) // 20)
    inner = (max(1, size[1] - 2 * border), max(1, size[0] - 2 * border))  # width, height
    scaled = lru_cache(maxsize=_CACHED)(lambda path: _scaled(path, inner, exif_orientation))
    longest = max((len(ranking.images) for ranking in rankings), default=0)
    taken: set[str] = set()
    written = {}
    for ranking in rankings:
        query_path = query_paths[ranking.query]
        results = zip(ranking.images.tolist(), ranking.right.tolist(), strict=True)
        cells = [(_scaled(query_path, inner, exif_orientation), BLACK)]
        cells += [(scaled(gallery_paths[image]), GREEN if right else RED) for image, right in results]
        encoded = io.BytesIO()
        # Run lengths alone make files as small as Pillow's default does, in a fifth to a half of the time.
        _strip(cells, longest, border).save(encoded, "PNG", compress_level=1, compress_type=zlib.Z_RLE)
        name = _unique(Path(query_path).stem, ranking.query, taken)
        written[ranking.query] = write_bytes(Path(output_dir) / f"{name}.png", encoded.getvalue())
    return written


def _scaled(path: AnyPath, inner: tuple[int, int], exif_orientation: bool) -> Image.Image:
    return pil_loader(path, exif_orientation).resize(inner, Image.Resampling.BILINEAR)  # as the network's images are


def _strip(cells: list[tuple[Image.Image, Colour]], longest: int, border: int) -> Image.Image:
    """Draw images of one size, each in a frame of its colour, with room for the query and ``longest`` results."""
    width, height = (side + 2 * border for side in cells[0][0].size)
    strip = Image.new("RGB", (width + longest * (width + _GAP) + 2 * _GAP, height), WHITE)
    for i, (image, colour) in enumerate(cells):
        left = i * (width + _GAP) + (2 * _GAP if i else 0)  # the results stand apart from the query
        strip.paste(colour, (left, 0, left + width, height))
        strip.paste(image, (left + border, border))
    return strip


def _unique(stem: str, index: int, taken: set[str]) -> str:
    """``stem``, or if another strip has that name, ``stem`` with the query's index and more; case is ignored."""
    name, more = stem, 0
    while name.casefold() in taken:
        name = f"{stem}_{index}" + (f"_{more}" if more else "")
        more += 1
    taken.add(name.casefold())
    return name
