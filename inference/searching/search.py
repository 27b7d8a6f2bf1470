"""Find the nearest gallery items: exactly, through a faiss index, or through a vector store.

Imports nothing heavy, so that programs can take options for their command line from here; torch and the optional
packages are imported where they are used.
"""

import argparse
import logging
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inference.results.files import FORMATS, write_results
from utils.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from evaluation.calibration import Calibration
    from inference.searching.exact import Found
    from inference.searching.exclusion import Exclusion, Finder

__all__ = [
    "SearchOptions",
    "SearchResult",
    "add_arguments",
    "formats_from_args",
    "options_from_args",
    "search",
    "search_gallery",
    "write_results",
]

logger = logging.getLogger(__name__)

INDEXES = ("exact", "faiss:flat", "faiss:ivf", "faiss:ivfpq", "faiss:hnsw")
_ROUNDINGS = 16  # how far two computations of a distance may differ, in units in the last place
RECALL_QUERIES = 50  # queries that are also searched exactly, to measure the recall of an index or store


@dataclass(frozen=True)
class SearchOptions:
    """How a gallery is searched.

    Attributes:
        index: "exact", or "faiss:flat", "faiss:ivf", "faiss:ivfpq", "faiss:hnsw", also with ":NUMBER" (see --index).
        store: "milvus:URI" to search a Milvus store instead; "" for none.
        metric, topk, normalize, max_distance: as for :func:`search_gallery`.
        calibration: gives the results' distances a probability; None if there is none.

    Raises:
        UserError: both an index and a store are given.
    """

    index: str = "exact"
    store: str = ""
    metric: str = "euclidean"
    topk: int = 100
    normalize: bool = False
    max_distance: float | None = None
    calibration: "Calibration | None" = None

    def __post_init__(self) -> None:
        if self.store and self.index != "exact":
            raise UserError(f"--index {self.index} and --store {self.store} exclude each other; give one of them.")


@dataclass(frozen=True)
class SearchResult:
    """The gallery items of each query, nearest first."""

    indices: "NDArray[np.int64]"  # [Q, K] rows of the gallery; -1 where a query has fewer results
    distances: "NDArray[np.float32]"  # [Q, K]; infinity where the index is -1
    recall: float | None = None  # share of the exact answer that was found; None after an exact search
    note: str = ""  # a line that tells the user how good the search was, or nothing
    left_out: str = ""  # a line that says what an exclusion left out, and how many queries have no result, or nothing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --index, --store, the limits of results, --format and --html; :func:`options_from_args` reads them."""
    parser.add_argument(
        "--index",
        type=_index,
        default="exact",
        metavar="KIND",
        help=f"{', '.join(INDEXES)}; default exact. A faiss index is saved beside the gallery and rebuilt when the "
        "gallery changes; faiss:ivfpq holds a few bytes of each image, faiss:ivf beyond a third of the memory stays on "
        "disk; faiss:ivf:64 (lists), faiss:ivfpq:64 or faiss:hnsw:256 (candidates) sets how thoroughly it is searched. "
        "pip install 'centroids-reid[search]'",
    )
    parser.add_argument(
        "--store",
        type=_store,
        metavar="milvus:URI",
        help="search a Milvus collection, which is filled from the gallery first if it differs: milvus:gallery.db (an "
        "embedded file) or milvus:http://host:19530; #name at the end names the collection; the access token comes "
        "from MILVUS_TOKEN. pip install 'centroids-reid[search]'",
    )
    _add_limits(parser)
    parser.add_argument(
        "--format",
        type=_formats,
        default=("npy",),
        metavar="LIST",
        help=f"one or more of {','.join(FORMATS)}; default npy",
    )
    parser.add_argument("--html", action="store_true", help="also write results.html, a contact sheet")


def _add_limits(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-distance",
        type=_distance,
        metavar="X",
        help="leave out results farther than X, in the unit of the results",
    )
    parser.add_argument(
        "--max-far",
        nargs=2,
        metavar=("RATE", "FILE"),
        help="leave out results beyond the distance that accepts at most RATE of the pairs of different identities, "
        "according to the table in FILE: the metrics.json of python -m evaluation --roc --output DIR, made with the "
        "same metric and normalisation",
    )
    parser.add_argument(
        "--min-probability",
        type=_distance,
        metavar="P",
        help="leave out results whose probability to be of the query's identity is below P, according to the file of "
        "--calibration, or else to calibration.json in the folder of the gallery",
    )
    parser.add_argument(
        "--calibration",
        metavar="FILE",
        help="write the probability of each result beside its distance; FILE is the calibration.json of python -m "
        "evaluation --calibrate isotonic --output DIR, made with the same network, metric and normalisation",
    )


def options_from_args(args: argparse.Namespace, metric: str, topk: int, normalize: bool) -> SearchOptions:
    """The options of a command line parsed with :func:`add_arguments`.

    Args:
        args: the command line.
        metric, topk, normalize: what the program learns from other options.

    Raises:
        UserError: --index and --store or two limits are combined, --max-far or --min-probability finds no threshold, or
            --calibration is of other distances.
    """
    limits = {"--max-distance": args.max_distance, "--max-far": args.max_far, "--min-probability": args.min_probability}
    given = [name for name, value in limits.items() if value is not None]
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)} exclude each other; give one of them.")
    limit, calibration = args.max_distance, None
    if args.max_far:
        from inference.searching.thresholds import threshold_from_file

        rate, file = args.max_far
        limit = threshold_from_file(rate, file, metric, normalize)
        logger.info("Keeping results up to the distance %.6g, for a false accept rate of %s.", limit, rate)
    if args.calibration:
        from inference.searching.thresholds import calibration_from_file

        calibration = calibration_from_file(args.calibration, metric, normalize)
    if args.min_probability is not None:
        if calibration is None:
            raise UserError(
                "--min-probability needs --calibration FILE, or calibration.json in the gallery's folder, which tells "
                "the probability of a distance: python -m evaluation --calibrate isotonic --output DIR writes it."
            )
        try:
            limit = calibration.distance(args.min_probability)
        except UserError as error:
            raise UserError(f"--min-probability {args.min_probability:g}: {error}") from error
        logger.info("Keeping results up to the distance %.6g, for a probability of %g.", limit, args.min_probability)
    return SearchOptions(args.index, args.store or "", metric, topk, normalize, limit, calibration)


def formats_from_args(args: argparse.Namespace) -> tuple[str, ...]:
    """The formats in which to write results, from --format and --html."""
    return (*args.format, "html") if args.html else args.format


def parse_index(text: str) -> tuple[str, int | None]:
    """``faiss:KIND`` or ``faiss:KIND:EFFORT`` -> the kind, and how thoroughly to search it (None: the default).

    Raises:
        UserError: anything else.
    """
    name, _, effort = text.removeprefix("faiss:").partition(":")
    if not text.startswith("faiss:") or f"faiss:{name}" not in INDEXES:
        raise UserError(f"the index is {text!r}; valid: {', '.join(INDEXES)}.")
    if not effort:
        return name, None
    if name == "flat" or not effort.isdecimal() or not int(effort):
        raise UserError(
            f"the index is {text!r}; faiss:ivf:, faiss:ivfpq: and faiss:hnsw: may be followed by a positive number."
        )
    return name, int(effort)


def parse_store(text: str) -> tuple[str, str]:
    """``milvus:URI`` or ``milvus:URI#COLLECTION`` -> URI and name of the collection ("gallery" if none is given).

    Raises:
        UserError: anything else.
    """
    uri, _, name = text.removeprefix("milvus:").partition("#")
    known = uri.startswith(("http://", "https://", "tcp://", "unix:")) or uri.endswith(".db")
    if not text.startswith("milvus:") or not known:
        raise UserError(f"the store is {text!r}; valid: milvus:FILE.db and milvus:http://HOST:PORT, with #COLLECTION.")
    name = name or "gallery"
    if not re.fullmatch(r"[A-Za-z_]\w{0,199}", name, re.ASCII):
        raise UserError(f"the collection of the store is {name!r}; valid: letters, digits and _, with no digit first.")
    return uri, name


def _index(text: str) -> str:
    if text != "exact":
        _checked(parse_index, text)
    return text


def _store(text: str) -> str:
    _checked(parse_store, text)
    return text


def _checked(parse: Callable[[str], Any], text: str) -> None:
    try:
        parse(text)
    except UserError as error:  # argparse shows the message of no other exception
        raise argparse.ArgumentTypeError(str(error)) from error


def _distance(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return value


def _formats(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(text.split(",")))
    for name in names:
        if name not in FORMATS:
            raise argparse.ArgumentTypeError(f"{name!r} is unknown; valid: {', '.join(FORMATS)}")
    return names


def search_gallery(
    query: Any,
    gallery: Any,
    *,
    metric: str = "euclidean",
    topk: int = 100,
    normalize: bool = False,
    block_bytes: int | None = None,
    max_distance: float | None = None,
    share: tuple[int, int] = (0, 1),
) -> "Found":
    """The nearest gallery items of each query by exact search, nearest first.

    Distances are computed in blocks, on the device of the gallery if it is a tensor. A memory-mapped gallery is read
    once, in order, so that memory holds only the queries, the results and a few times ``block_bytes``.

    Args:
        query: [Q, D] tensor or array of any number type; distances are float32.
        gallery: [N, D] tensor, array or memory-mapped array.
        metric: "euclidean" (the *squared* distance) or "cosine" (1 - similarity).
        topk: results for each query; 0 for all of them.
        normalize: scale embeddings to unit length first.
        block_bytes: bytes of distances held at once, 16 MiB by default; it changes distances by rounding only.
        max_distance: leave out items that are farther. Distances are sums of rounded squares and products, so an item
            equal to the query may have a distance of up to about 1e-6 of its squared length: 0 may miss some.
        share: number of a process and number of processes, to look at that process's blocks of the gallery only;
            results are then padded as with max_distance (see :func:`inference.searching.sharing.search_together`).

    Returns:
        ``indices`` [Q, K] int64, rows of the gallery, and ``distances`` [Q, K] float32, ascending, with equal distances
        in the order of the gallery. K is min(topk, N). With max_distance, rows with fewer results are padded with index
        -1 and distance infinity; if topk is 0 as well, K is the largest number of results of a query.

    Raises:
        UserError: embeddings are empty, unusable, not finite or of different widths, or topk is negative.
        UnknownNameError: the metric is unknown.
    """
    from inference.searching.exact import GalleryBlocks, items_within, nearest_items, prepare

    query, gallery = prepare(query, gallery)
    count = _count(topk, len(gallery))
    if topk == 0 and max_distance is not None:
        blocks = GalleryBlocks(query, gallery, metric, normalize, block_bytes, share=share)
        return items_within(blocks, len(query), max_distance)
    blocks = GalleryBlocks(query, gallery, metric, normalize, block_bytes, count, share)
    return _cut(*nearest_items(blocks, len(query), count, query.device), max_distance)


def _count(topk: int, num_gallery: int) -> int:
    if topk < 0:
        raise UserError(f"topk is {topk}; expected a positive number, or 0 for all.")
    return min(topk or num_gallery, num_gallery)


def _cut(indices: Any, distances: Any, max_distance: float | None) -> "Found":
    if max_distance is not None:
        far = ~(distances <= max_distance)
        indices[far], distances[far] = -1, math.inf
    return indices, distances


def search(
    query: Any,
    gallery: Any,
    options: SearchOptions | None = None,
    *,
    gallery_file: str | os.PathLike[str] | None = None,
    gallery_paths: Sequence[str] = (),
    exclusion: "Exclusion | None" = None,
    exactly: "Callable[..., Found] | None" = None,
) -> SearchResult:
    """The nearest gallery items of each query, through the index or store that the options name.

    Args:
        query, gallery: as for :func:`search_gallery`.
        options: None searches exactly for the 100 nearest.
        gallery_file: the .npy file of the gallery, beside which an index is saved; None saves no index. For a gallery
            in several files, embeddings.npy in their folder.
        gallery_paths: N names, which a store keeps beside the embeddings.
        exclusion: what must not be among the results, whose places the next ones take; None leaves out nothing.
        exactly: searches exactly, with the arguments of :func:`search_gallery`, which None stands for.

    A large gallery's recall is measured once and kept in a file beside it (see :mod:`inference.searching.recall`).

    Raises:
        UserError: as for :func:`search_gallery`; or a package is missing, the store cannot be reached, its collection
            belongs to another program, or the index or store cannot return that many results.
    """
    options = options or SearchOptions()
    find_exactly = partial(_search_exactly, exactly or search_gallery)
    if options.index == "exact" and not options.store:
        found, distances = find_exactly(query, gallery, options, exclusion)
        return SearchResult(found, distances, left_out=_left_out(found, options, exclusion))
    from inference.searching.exact import prepare
    from inference.searching.recall import recall_once
    from utils.distances import get_dist_func

    get_dist_func(options.metric)  # raises for an unknown name
    query, gallery = prepare(query, gallery)
    count = _count(options.topk, len(gallery))
    with _opened(gallery, options, count, gallery_file, gallery_paths) as (find, most):
        if exclusion is None:
            found, distances = find(query, count)
        else:
            found, distances = exclusion.nearest(find, query, count, len(gallery), most, options.max_distance)
    kept = _cut(found.copy(), distances.copy(), options.max_distance)
    left_out = _left_out(kept[0], options, exclusion)  # before the recall is measured, which counts anew
    engine = options.store or options.index
    share, queries, was_kept = recall_once(
        lambda: _recall(find_exactly, found, distances, query, gallery, options, exclusion),
        gallery,
        gallery_file,
        f"{engine}, topk {count}, {options.metric}{', unit length' if options.normalize else ''}",
    )
    note = f"{engine}: recall@{count} {share:.4f} against exact search, over {queries} queries"
    note += " of an earlier search" if was_kept else ""
    return SearchResult(*kept, share, note, left_out)


def _left_out(found: Any, options: SearchOptions, exclusion: "Exclusion | None") -> str:
    if exclusion is not None:
        return exclusion.describe(found, options.max_distance)
    empty = int((found < 0).all(1).sum())
    if options.max_distance is None or not empty:
        return ""
    return f"{empty} of {len(found)} queries have no result up to the distance {options.max_distance:.6g}"


@contextmanager
def _opened(
    gallery: Any,
    options: SearchOptions,
    count: int,
    gallery_file: str | os.PathLike[str] | None,
    gallery_paths: Sequence[str],
) -> "Iterator[tuple[Finder, int]]":
    """The search of the index or store that the options name, and the most results that it returns for a query."""
    # Index and store measure the squared Euclidean distance, which between unit vectors is twice the cosine distance.
    unit = options.normalize or options.metric == "cosine"

    def ordered(found: Any, distances: Any) -> "Found":
        import numpy as np

        order = np.lexsort((found, distances), axis=1)  # equal distances in the order of the gallery
        found, distances = np.take_along_axis(found, order, 1), np.take_along_axis(distances, order, 1)
        return found, distances / 2 if options.metric == "cosine" else distances

    if options.store:
        from inference.searching.stores import MOST_RESULTS, open_store
        from utils.galleries import read_about

        if count > MOST_RESULTS:
            raise UserError(f"Milvus returns at most {MOST_RESULTS} results for a query, not {count}: reduce --topk.")
        about = {} if gallery_file is None else read_about(Path(gallery_file).parent)
        revision = about.get("revision", "")
        with open_store(*parse_store(options.store), gallery, gallery_paths, unit, revision) as store:
            yield lambda query, count: ordered(*store.search(query, count, unit)), MOST_RESULTS
        return
    from inference.searching.indexes import GalleryIndex

    kind, effort = parse_index(options.index)
    if options.topk == 0 and kind != "flat":
        raise UserError(
            f"{options.index} finds only near items; topk 0 (all of them) needs the index exact or faiss:flat."
        )
    index = GalleryIndex(kind, effort, gallery, gallery_file, unit)
    yield lambda query, count: ordered(*index.search(query, count)), len(gallery)


def _search_exactly(
    exactly: "Callable[..., Found]",
    query: Any,
    gallery: Any,
    options: SearchOptions,
    exclusion: "Exclusion | None" = None,
    step: int = 1,
) -> "Found":
    """Search exactly for every ``step``-th query; query and gallery may be what :func:`search_gallery` takes."""

    def find(part: Any, count: int) -> "Found":
        return exactly(
            part,
            gallery,
            metric=options.metric,
            topk=count,
            normalize=options.normalize,
            max_distance=options.max_distance,
        )

    if exclusion is None:
        return find(query[::step], options.topk)
    from inference.searching.exact import prepare

    query, gallery = prepare(query, gallery)
    if options.topk == 0:
        return exclusion.among(*find(query[::step], 0), step)
    count = _count(options.topk, len(gallery))
    return exclusion.nearest(find, query, count, len(gallery), step=step)


def _recall(
    find_exactly: "Callable[..., Found]",
    found: Any,
    distances: Any,
    query: Any,
    gallery: Any,
    options: SearchOptions,
    exclusion: "Exclusion | None",
) -> tuple[float, int]:
    """The share of results that are among the exact ones or as near, and the number of queries that it covers."""
    import numpy as np

    step = -(-len(query) // RECALL_QUERIES)
    exact, limits = find_exactly(query, gallery, replace(options, max_distance=None), exclusion, step)
    found, distances = found[::step], distances[::step]
    listed = np.stack([np.isin(row, right) for row, right in zip(found, exact, strict=True)])
    # It does not matter which of several items at the last distance is found. Two computations of that distance differ
    # by the rounding of the squared lengths, and no item is longer than the query and the distance together.
    limit = np.where(exact < 0, -np.inf, limits).max(
        1, keepdims=True, initial=-np.inf
    )  # of the last one: there may be fewer
    if options.normalize or options.metric == "cosine":
        squares: Any = 2.0
    else:
        lengths = query[::step].float().norm(dim=1, keepdim=True).cpu().numpy()
        squares = lengths**2 + (lengths + np.sqrt(limit.clip(min=0))) ** 2
    limit = limit + _ROUNDINGS * np.finfo(np.float32).eps * squares
    hits = (found >= 0) & (listed | (distances <= limit))
    return float(hits.sum() / max((exact >= 0).sum(), 1)), len(exact)
