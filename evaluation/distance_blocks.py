"""The distances of ``utils.distances`` in blocks of queries, without a copy of the gallery.

The result must not depend on how many queries are in memory at once, but matrix products of different heights may
round differently. So every product has the same height, the *tile*, which depends only on the numbers of queries and
gallery items. A block is a whole number of tiles, and the last tile is padded with zeros.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.distances import get_dist_func, normalize
from utils.errors import UserError

BlockFunc = Callable[[int, int], Tensor]

DEFAULT_BLOCK_BYTES = 64 << 20
_TILE_BYTES = 128 << 20
MAX_TILE = 1024  # taller products are hardly faster
_TORCH_TYPES = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8")
_STEP = 16  # tile heights are multiples of this, so that all tiles have the same alignment
CHUNK_BYTES = 32 << 20  # of the gallery, converted to float32 and multiplied at a time on an accelerator
_CPU_CHUNK_BYTES = 4 << 20  # the same on a CPU, where wider products are slower
_LEAST_CHUNK = 128  # rows; products with a handful of columns round in their own way
# On a CPU, sums run over parts that stay in the cache and are too small for several threads.
_CACHED_BYTES = 120 << 10


def as_embeddings(name: str, values: Any) -> Tensor:
    """Convert ``values`` to a tensor [N, D], without a copy if possible.

    Args:
        name: what error messages call the values.
        values: tensor, or anything that numpy turns into an array of numbers.

    Raises:
        UserError: the values are not numbers, not two-dimensional, or have no rows or no columns.

    Example:
        >>> as_embeddings("query", [[1.0, 0.0]]).shape
        torch.Size([1, 2])
    """
    if not isinstance(values, torch.Tensor):
        array = np.asarray(values)
        if array.dtype.kind not in "fiu":
            raise UserError(f"{name} holds {array.dtype} values; expected real numbers.")
        if not array.dtype.isnative or array.dtype.name not in _TORCH_TYPES or min(array.strides, default=0) < 0:
            array = np.ascontiguousarray(array, dtype=np.float32)
        with warnings.catch_warnings():
            # Torch warns against writing to read-only arrays, such as memory-mapped files. Nothing here writes to them.
            warnings.filterwarnings("ignore", message=".*not writable", category=UserWarning)
            values = torch.from_numpy(array)
    if values.dim() != 2:
        raise UserError(f"{name} has the shape {list(values.shape)}; expected [rows, dimensions].")
    if not len(values):
        raise UserError(f"{name} is empty; expected one row for each image.")
    if not values.shape[1]:
        raise UserError(f"{name} has the shape {list(values.shape)}; expected one dimension or more.")
    return values.detach()


def given_distances(distances: BlockFunc | Any, num_query: int, num_gallery: int) -> BlockFunc:
    """Blocks of distances that the caller has computed, or computes, checked as they are used.

    Args:
        distances: [M, N] floating, or a function (start, stop) -> [stop - start, N].
        num_query, num_gallery: M and N, 1 or more.

    Returns:
        A function (start, stop) -> [stop - start, N] float32. It raises a UserError if its block has another shape or
        holds a value that is not finite.

    Raises:
        UserError: the matrix has another shape.

    Example:
        >>> given_distances([[0.5, 0.1], [0.2, 0.3]], 2, 2)(1, 2).tolist()
        [[0.20000000298023224, 0.30000001192092896]]
    """
    if callable(distances):
        compute = distances
    else:
        matrix = as_embeddings("distances", distances)
        if tuple(matrix.shape) != (num_query, num_gallery):
            raise UserError(
                f"distances has the shape {list(matrix.shape)}; expected {[num_query, num_gallery]} for these pids."
            )

        def compute(start: int, stop: int) -> Tensor:
            return matrix[start:stop]

    def checked(start: int, stop: int) -> Tensor:
        block = torch.as_tensor(compute(start, stop)).detach().to(torch.float32)
        if tuple(block.shape) != (stop - start, num_gallery):
            raise UserError(
                f"distances({start}, {stop}) has the shape {list(block.shape)}; expected "
                f"[{stop - start}, {num_gallery}]."
            )
        if not torch.stack(block.aminmax()).isfinite().all():  # aminmax propagates NaN
            row, column = (~block.isfinite()).nonzero()[0].tolist()
            raise UserError(
                f"distances[{start + row}, {column}] is {block[row, column].item()}; expected a finite number."
            )
        return block

    return checked


@contextmanager
def exact_float32() -> Iterator[None]:
    """Compute matrix products in full float32, whatever the TF32 setting, and without gradients.

    Autocast needs no handling: it leaves products that write to an existing tensor alone.

    Example:
        >>> with exact_float32():
        ...     torch.get_float32_matmul_precision()
        'highest'
    """
    precision = torch.get_float32_matmul_precision()
    if precision != "highest":
        torch.set_float32_matmul_precision("highest")
    try:
        with torch.no_grad():
            yield
    finally:
        if precision != "highest":
            torch.set_float32_matmul_precision(precision)


def row_squares(name: str, x: Tensor) -> Tensor:
    """Squared Euclidean length of each row, [N] float32.

    Args:
        name: what error messages call the rows.
        x: [N, D] floating; no rows give no lengths.

    Raises:
        UserError: a row has a NaN or an infinite value, or is too large for float32 distances.

    Example:
        >>> row_squares("query", torch.tensor([[3.0, 4.0]])).tolist()
        [25.0]
    """
    squares = torch.empty(len(x), dtype=torch.float32, device=x.device)
    for start, part in _float_chunks(x, _CACHED_BYTES if x.device.type == "cpu" else CHUNK_BYTES):
        squares[start : start + len(part)] = part.square().sum(1)
    limit = torch.finfo(torch.float32).max / 8  # keeps sums of squares finite
    bad = (~(squares < limit)).nonzero()
    if len(bad):
        row = int(bad[0])
        finite = x[row].isfinite()
        if bool(finite.all()):
            raise UserError(f"{name}[{row}] is too large for distances in float32.")
        column = int((~finite).nonzero()[0])
        raise UserError(f"{name}[{row}, {column}] is {x[row, column].item()}: every embedding must be finite.")
    return squares


def _float_chunks(x: Tensor, chunk_bytes: int, least: int = 1) -> Iterator[tuple[int, Tensor]]:
    """Rows in float32; the last chunk is longer if fewer than ``least`` would be left."""
    rows, start = max(least, chunk_bytes // (4 * max(x.shape[1], 1))), 0
    while start < len(x):
        stop = start + rows if len(x) - start - rows >= least else len(x)
        yield start, x[start:stop].to(torch.float32)
        start = stop


def tile_height(num_query: int, num_gallery: int) -> int:
    """The number of queries in every matrix product, chosen from the two sizes so that the last tile is nearly full.

    Example:
        >>> tile_height(num_query=100, num_gallery=1000)
        112
    """
    most = min(MAX_TILE, max(_TILE_BYTES // (4 * max(num_gallery, 1)) // _STEP * _STEP, _STEP))
    tiles = -(-num_query // most)
    return -(-num_query // tiles // _STEP) * _STEP


def block_height(num_query: int, num_gallery: int, block_bytes: int | None) -> int:
    """The number of queries in a block: as many whole tiles as ``block_bytes`` allows, but at least one.

    Args:
        num_query, num_gallery: M and N, 1 or more.
        block_bytes: size limit of the distances in a block; None is 64 MiB.

    Raises:
        UserError: block_bytes is not positive.

    Example:
        >>> block_height(num_query=5000, num_gallery=20000, block_bytes=None)
        1008
    """
    block_bytes = DEFAULT_BLOCK_BYTES if block_bytes is None else block_bytes
    if block_bytes <= 0:
        raise UserError(f"block_bytes is {block_bytes}; expected a positive number of bytes.")
    tile = tile_height(num_query, num_gallery)
    most = -(-num_query // tile)
    return tile * max(1, min(most, block_bytes // (4 * max(num_gallery, 1) * tile)))


class DistanceBlocks:
    """Distances from blocks of queries to the whole gallery, on the device of the gallery.

    Args:
        query: [M, D] of any float type, M >= 1; distances are float32.
        gallery: [N, D] floating, N >= 1.
        metric: "euclidean" (squared) or "cosine".
        feat_norm: scale embeddings to unit length first.
        names: what error messages call the queries and the gallery.

    Raises:
        UserError: a value is not finite, or queries and gallery differ in width.
        UnknownNameError: any other metric.

    Example:
        >>> distances = DistanceBlocks(torch.tensor([[0.0], [1]]), torch.tensor([[1.0], [3]]))
        >>> distances(0, 2).tolist()
        [[1.0, 9.0], [0.0, 4.0]]
    """

    def __init__(
        self,
        query: Tensor,
        gallery: Tensor,
        metric: str = "euclidean",
        feat_norm: bool = False,
        names: tuple[str, str] = ("query", "gallery"),
    ) -> None:
        get_dist_func(metric)  # raises for an unknown name
        if query.shape[1] != gallery.shape[1]:
            raise UserError(f"{names[0]} has {query.shape[1]} dimensions but {names[1]} has {gallery.shape[1]}.")
        self.query, self.gallery, self.metric = query, gallery, metric
        self.normalized = feat_norm or metric == "cosine"
        self.tile = tile_height(len(query), len(gallery))
        with exact_float32():
            self._longest_query = float(row_squares(names[0], query).max()) ** 0.5
            squares = row_squares(names[1], gallery)
            if self.normalized:
                self._longest_query = min(self._longest_query, 1.0)
                # As utils.distances.normalize, but on the products: a scaled copy of the gallery would be large.
                self._scale = 1 / (squares.sqrt() + 1e-12)
                squares = squares * self._scale.square()
        self._squares = squares
        self._buffer: Tensor | None = None

    def __call__(self, start: int, stop: int) -> Tensor:
        """Compute distances [stop - start, N], valid until the next call; start must be a multiple of the tile."""
        rows = -(-(stop - start) // self.tile) * self.tile
        if self._buffer is None or len(self._buffer) < rows:
            self._buffer = torch.empty(rows, len(self.gallery), device=self.gallery.device)
        with exact_float32():
            for offset in range(0, rows, self.tile):
                self.fill_tile(self._buffer[offset : offset + self.tile], start + offset)
        return self._buffer[: stop - start]

    def bounds(self) -> tuple[float, float]:
        """Lower and upper bound of all distances, up to rounding."""
        if self.metric == "cosine":
            return 0.0, 2.0
        longest = self._longest_query + float(self._squares.max()) ** 0.5
        return 0.0, longest**2

    def fill_tile(self, out: Tensor, start: int) -> None:
        """Write the distances of the tile of queries from ``start`` on to ``out`` [tile, N], chunk by chunk."""
        rows = self.query[start : start + self.tile]
        x = torch.zeros(self.tile, rows.shape[1], device=out.device)
        x[: len(rows)] = rows
        if self.normalized:
            x = normalize(x)
        x_squares = x.square().sum(1, keepdim=True)
        one = torch.ones((), device=out.device)
        chunk_bytes = _CPU_CHUNK_BYTES if out.device.type == "cpu" else CHUNK_BYTES
        for first, y in _float_chunks(self.gallery, chunk_bytes, _LEAST_CHUNK):
            columns = slice(first, first + len(y))
            part, squares = out[:, columns], self._squares[columns]
            if not self.normalized:
                torch.add(x_squares, squares, out=part).addmm_(x, y.t(), beta=1, alpha=-2)
                continue
            torch.mm(x, y.t(), out=part)
            if self.metric == "cosine":
                torch.addcmul(one, part, -self._scale[columns], out=part)  # 1 - similarity
            else:
                torch.addcmul(squares, part, -2 * self._scale[columns], out=part).add_(x_squares)
