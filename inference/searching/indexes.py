"""faiss indexes of a gallery: built once, saved beside it, and rebuilt when the gallery changes."""

import hashlib
import json
import logging
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inference.searching.disk_lists import (
    lists_bytes,
    lists_file,
    move_lists_to_file,
    read_with_lists,
    replacing_left,
    require_space,
)
from inference.searching.exact import Found
from utils.distances import normalize
from utils.errors import UserError
from utils.files import write_text
from utils.memory import memory_limit
from utils.optional import require
from utils.rows import Rows

logger = logging.getLogger(__name__)

AnyPath = str | os.PathLike[str]

BLOCK_BYTES = 32 << 20  # of the gallery, read at once
_SAMPLES, _SAMPLE_ROWS = 64, 4  # positions, and rows at each, that tell one gallery from another of the same shape
POINTS_PER_LIST = 64  # for training; faiss wants 39 at least
_CODES = 256  # of each part of a product-quantised row: a byte
_TRAINING_BYTES = 512 << 20  # of rows that an index learns from
_MANY_LISTS = 4096  # beyond which assigning rows to lists would take longer than all else
_MOST_VISITED = 64  # lists that a search looks at unless it is told to look at more
_SHARE_OF_MEMORY = 3  # an index may hold a third of the memory: lists grow by doubling
_CANDIDATES, _LEAST_CANDIDATES = 10, 1000  # for each result, and for each query, whose distances are computed exactly
_LINKS, _BUILD_EFFORT = 32, 128  # of HNSW
_SEED = 1234
_LARGE = 1e15  # below, the sum of squares of any embedding is far from the end of float32


def fingerprint(gallery: Any, gallery_file: AnyPath | None = None) -> dict[str, Any]:
    """What tells one gallery from another: shape, type, a digest of sampled rows, and size and time of its files.

    Args:
        gallery: [N, D].
        gallery_file: its .npy file, embeddings.npy also for Rows of several files; None for an array in memory.
    """
    digest = hashlib.sha256()
    for start in np.unique(np.linspace(0, len(gallery) - 1, _SAMPLES).astype(np.int64)).tolist():
        rows = gallery[start : start + _SAMPLE_ROWS]
        rows = rows.detach().cpu().float().numpy() if isinstance(rows, torch.Tensor) else np.asarray(rows)
        digest.update(np.ascontiguousarray(rows).tobytes())
    found: dict[str, Any] = {"shape": list(gallery.shape), "dtype": str(gallery.dtype), "sample": digest.hexdigest()}
    if gallery_file is not None:
        files = gallery.files if isinstance(gallery, Rows) else [Path(gallery_file)]
        states = [path.stat() for path in files if path.exists()]  # else a change of the gallery is not complete
        modified = max((status.st_mtime_ns for status in states), default=0)
        found |= {"bytes": sum(status.st_size for status in states), "modified_ns": modified}
    return found


def embedding_blocks(
    name: str, embeddings: Any, unit: bool, block_bytes: int = BLOCK_BYTES
) -> Iterator[NDArray[np.float32]]:
    """The rows of [N, D] in order, in float32 blocks, scaled to unit length if ``unit`` is True.

    Raises:
        UserError: a value is not finite; the message gives ``name``, row and column.
    """
    rows = max(1, block_bytes // (4 * embeddings.shape[1]))
    for start in range(0, len(embeddings), rows):
        part = embeddings[start : start + rows]
        yield _block(name, part, range(start, start + len(part)), unit)


def _block(name: str, rows: Any, positions: Sequence[int], unit: bool) -> NDArray[np.float32]:
    """Rows in float32; ``positions`` are theirs among all rows."""
    if isinstance(rows, Tensor):
        block = rows.detach().cpu().float()
    else:
        block = torch.from_numpy(np.require(rows, np.float32, "W"))  # without a copy of a sample, which is one
    finite = block.isfinite()
    if not bool(finite.all()):
        row, column = (~finite).nonzero()[0].tolist()
        value = block[row, column].item()
        raise UserError(f"{name}[{positions[row]}, {column}] is {value}: every embedding must be finite.")
    if unit:
        return normalize(block).numpy()
    if float(block.abs().max()) > _LARGE:  # faiss ends the process where squares overflow
        wrong = (~block.square().sum(1).isfinite()).nonzero()
        if len(wrong):
            raise UserError(f"{name}[{positions[int(wrong[0])]}] is too large for distances in float32.")
    return block.numpy()


class GalleryIndex:
    """The saved index of a gallery; builds and saves it first if there is none.

    Args:
        kind: "flat" (exact), "ivf" (inverted lists), "ivfpq" (the same of rows of a few bytes, whose nearest are ranked
            by the gallery itself) or "hnsw" (a graph).
        effort: IVF lists or HNSW candidates to look at; None for a sixteenth of the lists but 64 at most, or twice the
            results.
        gallery: [N, D].
        gallery_file: its .npy file, embeddings.npy also for one in several files; None saves no index.
        unit: scale embeddings to unit length.

    Raises:
        UserError: faiss is missing, or embeddings are not finite.
    """

    def __init__(self, kind: str, effort: int | None, gallery: Any, gallery_file: AnyPath | None, unit: bool) -> None:
        logging.getLogger("faiss").setLevel(logging.WARNING)  # it reports which instruction sets it tries
        faiss = require("faiss", "search", f"--index faiss:{kind}")
        self._kind, self._effort, self._gallery, self._unit = kind, effort, gallery, unit
        self._index = open_index(faiss, kind, gallery, gallery_file, unit)

    def search(self, query: Any, count: int) -> Found:
        """The nearest items of queries [Q, D].

        Returns:
            ``indices`` [Q, count], padded with -1 where the index finds fewer, and squared Euclidean distances, padded
            with infinity.

        Raises:
            UserError: embeddings are not finite.
        """
        index, effort = self._index, self._effort
        find = index.search
        if self._kind.startswith("ivf"):
            index.nprobe = min(effort or min(max(8, index.nlist // 16), _MOST_VISITED), index.nlist)
            find = self._find_among_candidates if self._kind == "ivfpq" else find
        elif self._kind == "hnsw":
            index.hnsw.efSearch = min(max(effort or 2 * count, count), index.ntotal)
        found = [find(block, count) for block in embedding_blocks("query", query, self._unit)]
        distances = np.concatenate([block for block, _ in found])
        indices = np.concatenate([block for _, block in found])
        distances[indices < 0] = np.inf
        return indices, distances

    def _find_among_candidates(self, block: NDArray[np.float32], count: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """The nearest of those that the index thinks near, by distances from the gallery's own rows."""
        wanted = min(max(_CANDIDATES * count, _LEAST_CANDIDATES), self._index.ntotal)
        distances = np.full((len(block), count), np.inf, dtype=np.float32)
        indices = np.full((len(block), count), -1, dtype=np.int64)
        for i, candidates in enumerate(self._index.search(block, wanted)[1]):
            places = np.sort(candidates[candidates >= 0])  # files are read from front to back
            exact = self._distances(block[i], places)
            nearest = np.argsort(exact, kind="stable")[:count]
            distances[i, : len(nearest)], indices[i, : len(nearest)] = exact[nearest], places[nearest]
        return distances, indices

    def _distances(self, query: NDArray[np.float32], places: NDArray[np.int64]) -> NDArray[np.float32]:
        at_once = max(1, BLOCK_BYTES // query.nbytes)
        parts = [places[start : start + at_once] for start in range(0, len(places), at_once)]
        rows = (_block("gallery", self._gallery[part], part.tolist(), self._unit) for part in parts)
        return np.concatenate([np.square(part - query).sum(1) for part in rows] or [np.empty(0, np.float32)])


def index_paths(gallery_file: AnyPath, kind: str, unit: bool) -> tuple[Path, Path]:
    """The paths of a gallery's index, and of the note on the gallery that the index was built from."""
    path = Path(gallery_file)
    index = path.with_name(f"{path.stem}.{kind}{'-unit' if unit else ''}.faiss")
    return index, index.with_name(f"{index.name}.json")


def open_index(faiss: Any, kind: str, gallery: Any, gallery_file: AnyPath | None, unit: bool) -> Any:
    """The saved index if it was built from this gallery, else a new one, which is saved."""
    if gallery_file is None:
        return build_index(faiss, kind, gallery, unit)
    path, note = index_paths(gallery_file, kind, unit)
    wanted = {"format": 1, "kind": kind, "unit": unit, "gallery": fingerprint(gallery, gallery_file)}
    large = kind == "ivf" and lists_bytes(*gallery.shape) > memory_limit() // _SHARE_OF_MEMORY
    with suppress(OSError, ValueError, RuntimeError):  # missing or damaged: build
        if json.loads(note.read_text(encoding="utf-8")) == wanted:
            return _read_index(faiss, path, gallery.shape, large)
    logger.info("Building the index %s of %d items.", path, len(gallery))
    if large:
        _build_on_disk(faiss, gallery, unit, path, note)
        write_text(note, json.dumps(wanted, indent=2) + "\n")
        return _read_index(faiss, path, gallery.shape, large)
    index = build_index(faiss, kind, gallery, unit)
    try:
        note.unlink(missing_ok=True)  # so that the note never lies beside another index
        lists_file(path).unlink(missing_ok=True)
        with replacing_left(path) as temporary:
            faiss.write_index(index, str(temporary))
        write_text(note, json.dumps(wanted, indent=2) + "\n")
    except (OSError, RuntimeError, UserError) as error:  # a read-only folder
        logger.warning("The index %s cannot be saved: %s", path, error)
    return index


def _read_index(faiss: Any, path: Path, shape: Sequence[int], large: bool) -> Any:
    """A saved index; lists that are large, or have a file of their own, are mapped into memory.

    Raises:
        OSError, RuntimeError, ValueError: a file is missing, damaged or of another gallery.
    """
    lists = lists_file(path)
    if lists.exists():
        index = read_with_lists(faiss, path, lists_bytes(*shape))
    else:
        flags = faiss.IO_FLAG_MMAP if large else 0
        index = faiss.read_index(str(path), flags | faiss.IO_FLAG_SKIP_PRECOMPUTE_TABLE)
    if (index.ntotal, index.d) != tuple(shape):
        raise ValueError(f"{path} is of another gallery")
    return index


def _build_on_disk(faiss: Any, gallery: Any, unit: bool, path: Path, note: Path) -> None:
    """Build an index of inverted lists whose lists are in a file of their own.

    Raises:
        UserError: the disk is full or cannot be written to, or embeddings are not finite.
    """
    lists, size = lists_file(path), lists_bytes(*gallery.shape)
    logger.info(
        "Its lists (%.1f GiB) are more than a third of this machine's memory (%.1f GiB): they stay in %s, of which a "
        "search reads those that it visits.",
        *(size / 2**30, memory_limit() / 2**30, lists),
    )
    require_space(lists, size)
    try:
        note.unlink(missing_ok=True)
        index = _trained_index(faiss, "ivf", gallery, unit)
        blocks = partial(embedding_blocks, "gallery", gallery, unit)
        move_lists_to_file(faiss, index, blocks, len(gallery), lists)
        with replacing_left(path) as temporary:
            faiss.write_index(index, str(temporary))
    except (OSError, RuntimeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} cannot be written ({error}); make room, or write access, in its folder.") from error


def build_index(faiss: Any, kind: str, gallery: Any, unit: bool) -> Any:
    """A new faiss index of the gallery, trained where its kind is; the same gallery gives the same index."""
    index = _trained_index(faiss, kind, gallery, unit)
    for block in embedding_blocks("gallery", gallery, unit):
        index.add(block)
    return index


def lists_of(rows: int) -> int:
    """How many inverted lists an index of so many rows has."""
    root = math.sqrt(rows)
    return max(1, min(round(2 * root), max(_MANY_LISTS, round(root)), rows // 39))


def _trained_index(faiss: Any, kind: str, gallery: Any, unit: bool) -> Any:
    """An empty index that has learned from a sample of the gallery what it needs to."""
    rows, dims = gallery.shape
    lists = lists_of(rows)
    # A byte for 8 dimensions; a few rows are no sample of so many codes, and stay as they are.
    parts = max(n for n in range(1, max(1, min(dims // 8, 128)) + 1) if dims % n == 0)
    codes = f"PQ{parts}np" if rows >= _CODES else "Flat"  # np: codes need no order among themselves
    recipes = {"flat": "Flat", "ivf": f"IVF{lists},Flat", "ivfpq": f"IVF{lists},{codes}", "hnsw": f"HNSW{_LINKS},Flat"}
    index = faiss.index_factory(dims, recipes[kind])
    if kind == "hnsw":
        index.hnsw.efConstruction = _BUILD_EFFORT
    if not kind.startswith("ivf"):
        return index
    points = POINTS_PER_LIST * lists
    index.cp.min_points_per_centroid = 1  # a warning that the user could do nothing about
    if kind == "ivfpq" and rows >= _CODES:
        points = max(points, 39 * _CODES)
        index.pq.cp.min_points_per_centroid, index.pq.cp.max_points_per_centroid = 1, POINTS_PER_LIST
        index.use_precomputed_table = -1  # a table of lists x codes would be larger than the index
    points = min(points, max(lists, _TRAINING_BYTES // (4 * dims)), rows)
    draw = np.random.default_rng(_SEED).choice(rows, points, False)
    draw.sort()
    index.train(_block("gallery", gallery[draw], draw.tolist(), unit))
    return index
