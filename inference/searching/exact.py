"""Exact nearest neighbours in blocks of queries and gallery items, with the best so far kept for each query.

The gallery is read once, in order, and may be a file that is larger than memory.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluation.distance_blocks import DistanceBlocks, as_embeddings, block_height
from evaluation.ranking import nearest
from utils.errors import UserError
from utils.rows import Rows, forget_pages

Found = tuple[NDArray[np.int64], NDArray[np.float32]]

_BLOCK_BYTES = 16 << 20  # of distances: few enough to be looked through before they leave the CPU's cache
_MAX_ROWS = 1024  # queries in a block; more hardly speed up the matrix products


class GalleryBlocks:
    """Distances from all queries to the gallery, one block of the gallery after another.

    Args:
        query: [Q, D], on the device that computes.
        gallery: [N, D] tensor, array, memory-mapped array or several of these (Rows).
        metric, normalize: as for :class:`evaluation.distance_blocks.DistanceBlocks`.
        block_bytes: bytes of distances, and of embeddings, held at once; None for 16 MiB.
        least: the smallest number of gallery items in a block, if the gallery has as many.

    Raises:
        UserError: block_bytes is not positive; while iterating, a value is not finite.
    """

    def __init__(
        self, query: Tensor, gallery: Any, metric: str, normalize: bool, block_bytes: int | None, least: int = 1
    ) -> None:
        self._query, self._gallery, self._metric, self._normalize = query, gallery, metric, normalize
        self._bytes = _BLOCK_BYTES if block_bytes is None else block_bytes
        if self._bytes <= 0:
            raise UserError(f"block_bytes is {self._bytes}; expected a positive number of bytes.")
        widest = self._bytes // (4 * max(min(len(query), _MAX_ROWS), gallery.shape[1]))
        self.columns = min(max(widest, least, 1), len(gallery))

    def __iter__(self) -> Iterator[tuple[int, int, Tensor]]:
        """Yields (first query, first gallery item, distances [B, C]); distances are valid until the next step."""
        for first in range(0, len(self._gallery), self.columns):
            part = self._gallery[first : first + self.columns]
            name = f"gallery[{first}:]" if first else "gallery"  # rows in messages count from there
            embeddings = as_embeddings(name, part).to(self._query.device)
            distances = DistanceBlocks(self._query, embeddings, self._metric, self._normalize, ("query", name))
            height = block_height(len(self._query), len(embeddings), self._bytes)
            for start in range(0, len(self._query), height):
                block = distances(start, min(start + height, len(self._query)))
                # Rounding leaves the squared distance of equal items a little above or below zero.
                yield start, first, block.clamp_(min=0) if self._metric == "euclidean" else block
            forget_pages(part)


def prepare(query: Any, gallery: Any) -> tuple[Tensor, Any]:
    """Queries and gallery as [rows, dimensions], the queries on the device of the gallery if it is a tensor.

    Raises:
        UserError: one of them has another shape, no rows or no numbers, or their widths differ.
    """
    query = as_embeddings("query", query)
    if not isinstance(gallery, torch.Tensor | np.ndarray | Rows):
        gallery = np.asarray(gallery)
    # One row is enough to check what a large file holds, without reading all of it.
    as_embeddings("gallery", gallery[:1] if gallery.ndim == 2 else gallery)
    if query.shape[1] != gallery.shape[1]:
        raise UserError(
            f"query has {query.shape[1]} dimensions but gallery has {gallery.shape[1]}; embed both with the same model."
        )
    return (query.to(gallery.device) if isinstance(gallery, torch.Tensor) else query), gallery


def nearest_items(blocks: GalleryBlocks, num_query: int, count: int, device: torch.device) -> Found:
    """The ``count`` nearest gallery items of each query, in the order of a stable sort of all distances."""
    distances = torch.full((num_query, count), torch.inf, device=device)
    indices = torch.full((num_query, count), -1, dtype=torch.int64, device=device)
    for start, first, block in blocks:
        rows = slice(start, start + len(block))
        new_distances, new_columns = _closer(block, distances[rows, -1:], count)
        if first == 0:
            distances[rows], indices[rows] = new_distances, new_columns
            continue
        # Earlier results come from earlier in the gallery, and go first among equal distances.
        merged, order = torch.cat([distances[rows], new_distances], 1).sort(dim=1, stable=True)
        indices[rows] = torch.cat([indices[rows], new_columns + first], 1).gather(1, order[:, :count])
        distances[rows] = merged[:, :count]
    return indices.cpu().numpy(), distances.cpu().numpy()


def items_within(blocks: GalleryBlocks, num_query: int, max_distance: float) -> Found:
    """All gallery items at most ``max_distance`` from each query, nearest first, padded with -1 and infinity."""
    hits = []
    for start, first, block in blocks:
        row, column = (block <= max_distance).nonzero(as_tuple=True)
        hits.append([values.cpu().numpy() for values in (row + start, column + first, block[row, column])])
    rows, columns, values = (np.concatenate(parts) for parts in zip(*hits, strict=True))
    order = np.lexsort((columns, values, rows))
    rows, columns, values = rows[order], columns[order], values[order]
    rank = np.arange(len(rows)) - np.searchsorted(rows, rows, side="left")
    width = int(rank.max(initial=-1)) + 1
    indices = np.full((num_query, width), -1, dtype=np.int64)
    distances = np.full((num_query, width), np.inf, dtype=np.float32)
    indices[rows, rank], distances[rows, rank] = columns, values
    return indices, distances


def _closer(block: Tensor, bound: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The entries of each row below its bound, all or the ``count`` smallest: distances and columns [B, W].

    Equal distances are in the order of their columns. Rows are padded with infinity.
    """
    closer = block < bound
    if int(closer.count_nonzero()) >= len(block) * count:  # the first block, or a gallery whose items come ever closer
        if count >= block.shape[1]:
            ordered = block.sort(dim=1, stable=True)
            return ordered.values, ordered.indices
        columns, values = nearest(block, count)
        return torch.from_numpy(values).to(block.device), torch.from_numpy(columns).to(block.device)
    row, column = _positions(closer)
    per_row = torch.bincount(row, minlength=len(block))
    slot = torch.arange(len(row), device=row.device) - (per_row.cumsum(0) - per_row)[row]
    width = int(per_row.max())
    distances = torch.full((len(block), width), torch.inf, device=block.device)
    kept = torch.zeros((len(block), width), dtype=torch.int64, device=block.device)
    distances[row, slot], kept[row, slot] = block[row, column], column
    return distances, kept


def _positions(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of the True entries, row by row."""
    if mask.device.type != "cpu":
        row, column = mask.nonzero(as_tuple=True)
        return row, column
    flat = torch.from_numpy(np.flatnonzero(mask.numpy()))  # several times faster than torch's nonzero
    row = flat.div(mask.shape[1], rounding_mode="floor")
    return row, flat - row * mask.shape[1]
