"""faiss indexes of a gallery: built once, saved beside it, and rebuilt when the gallery changes."""

import hashlib
import json
import logging
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inference.searching.exact import Found
from utils.distances import normalize
from utils.errors import UserError
from utils.files import write_text, written_whole
from utils.optional import require
from utils.rows import Rows

logger = logging.getLogger(__name__)

AnyPath = str | os.PathLike[str]

BLOCK_BYTES = 32 << 20  # of the gallery, read at once
_SAMPLES, _SAMPLE_ROWS = 64, 4  # positions, and rows at each, that tell one gallery from another of the same shape
POINTS_PER_LIST = 64  # for training; faiss wants 39 at least
_LINKS, _BUILD_EFFORT = 32, 128  # of HNSW
_SEED = 1234


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
    block = rows.detach().cpu().float() if isinstance(rows, Tensor) else torch.from_numpy(np.array(rows, np.float32))
    finite = block.isfinite()
    if not bool(finite.all()):
        row, column = (~finite).nonzero()[0].tolist()
        value = block[row, column].item()
        raise UserError(f"{name}[{positions[row]}, {column}] is {value}: every embedding must be finite.")
    return (normalize(block) if unit else block).numpy()


class GalleryIndex:
    """The saved index of a gallery; builds and saves it first if there is none.

    Args:
        kind: "flat" (exact), "ivf" (inverted lists) or "hnsw" (a graph).
        effort: IVF lists or HNSW candidates to look at; None for a sixteenth of the lists, or twice the results.
        gallery: [N, D].
        gallery_file: its .npy file, embeddings.npy also for one in several files; None saves no index.
        unit: scale embeddings to unit length.

    Raises:
        UserError: faiss is missing, or embeddings are not finite.
    """

    def __init__(self, kind: str, effort: int | None, gallery: Any, gallery_file: AnyPath | None, unit: bool) -> None:
        logging.getLogger("faiss").setLevel(logging.WARNING)  # it reports which instruction sets it tries
        faiss = require("faiss", "search", f"--index faiss:{kind}")
        self._kind, self._effort, self._unit = kind, effort, unit
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
        if self._kind == "ivf":
            index.nprobe = min(effort or max(8, index.nlist // 16), index.nlist)
        elif self._kind == "hnsw":
            index.hnsw.efSearch = min(max(effort or 2 * count, count), index.ntotal)
        found = [index.search(block, count) for block in embedding_blocks("query", query, self._unit)]
        distances = np.concatenate([block for block, _ in found])
        indices = np.concatenate([block for _, block in found])
        distances[indices < 0] = np.inf
        return indices, distances


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
    with suppress(OSError, ValueError, RuntimeError):  # missing or damaged: build
        if json.loads(note.read_text(encoding="utf-8")) == wanted:
            index = faiss.read_index(str(path))
            if (index.ntotal, index.d) == tuple(gallery.shape):
                return index
    logger.info("Building the index %s of %d items.", path, len(gallery))
    index = build_index(faiss, kind, gallery, unit)
    try:
        note.unlink(missing_ok=True)  # so that the note never lies beside another index
        with written_whole(path) as temporary:
            faiss.write_index(index, str(temporary))
        write_text(note, json.dumps(wanted, indent=2) + "\n")
    except (OSError, RuntimeError, UserError) as error:  # a read-only folder
        logger.warning("The index cannot be saved: %s", error)
    return index


def build_index(faiss: Any, kind: str, gallery: Any, unit: bool) -> Any:
    """A new faiss index of the gallery, trained where its kind is; the same gallery gives the same index."""
    lists = max(1, min(round(2 * math.sqrt(len(gallery))), len(gallery) // 39))
    recipe = {"flat": "Flat", "ivf": f"IVF{lists},Flat", "hnsw": f"HNSW{_LINKS},Flat"}[kind]
    index = faiss.index_factory(gallery.shape[1], recipe)
    if kind == "hnsw":
        index.hnsw.efConstruction = _BUILD_EFFORT
    elif kind == "ivf":
        draw = np.random.default_rng(_SEED).choice(len(gallery), min(len(gallery), POINTS_PER_LIST * lists), False)
        draw.sort()
        index.train(_block("gallery", gallery[draw], draw.tolist(), unit))
    for block in embedding_blocks("gallery", gallery, unit):
        index.add(block)
    return index
