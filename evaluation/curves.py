"""Precision at levels of recall, and how well the queries of each camera find the images of every other one."""

from dataclasses import dataclass

import numpy as np

from evaluation.metrics import relevant_ranks
from evaluation.notes import no_valid_query
from evaluation.protocols import find_candidates
from evaluation.ranking import Ranks
from evaluation.retrieval import FloatArray, RankingOptions, RetrievalSet
from utils.errors import NoValidQueryError
from utils.labels import Cameras, IntArray

RECALL_STEPS = 100  # 101 levels
MOST_CAMERAS = 30  # in a table, on either side


@dataclass(frozen=True)
class CameraTable:
    """Mean average precision for each camera of queries and each camera of gallery images.

    Example:
        >>> images = RetrievalSet([[1.0]], [[0.2], [0.9]], [7], [8, 7], [0], [1, 2])
        >>> table = measure_curves(images).cameras
        >>> table.query_cameras.tolist(), table.gallery_cameras.tolist(), table.queries.tolist()
        ([0], [1, 2], [[0, 1]])
    """

    query_cameras: IntArray  # [A], ascending; of more than MOST_CAMERAS those with the most queries
    gallery_cameras: IntArray  # [B], likewise
    mean_ap: FloatArray  # [A, B]; NaN without a query
    queries: IntArray  # [A, B] queries with a right image from the gallery's camera: the mean is over these
    left_out: int  # cameras on either side that the table has no room for


@dataclass(frozen=True)
class Curves:
    """What the ranks of the relevant items tell beyond the metrics.

    Example:
        >>> images = RetrievalSet([[1.0]], [[0.9], [0.2]], [7], [8, 7], [0], [1, 1])
        >>> measure_curves(images).precision[[0, 100]].tolist()
        [0.5, 0.5]
    """

    precision: FloatArray  # [101] at recall 0, 0.01, ..., 1
    cameras: CameraTable | None  # None for centroids, for data without cameras and for items with several of them


def measure_curves(
    retrieval: RetrievalSet, options: RankingOptions | None = None, block_bytes: int | None = None
) -> Curves:
    """Compute the precision-recall curve, and mAP for pairs of cameras, from the ranks of the relevant items.

    Precision is interpolated, for each query alone: at a level of recall it is the largest precision at this or any
    greater recall (Manning, Raghavan and Schuetze 2008, "Introduction to Information Retrieval", section 8.4), taken at
    101 levels as COCO does (Lin et al. 2014); the curve is the mean over the queries with a relevant item.

    The average precision of a query for a camera of the gallery is that of a gallery without right images from any
    other camera: those are left out of its ranking, wrong images of all cameras stay.

    Args:
        retrieval: queries and gallery images.
        options: protocol and distances; None ranks single images by squared Euclidean distance.
        block_bytes: memory for distances; None is 64 MiB. The result does not depend on it.

    Raises:
        NoValidQueryError, UserError, UnknownNameError: as for :func:`evaluation.metrics.evaluate`.

    Example:
        >>> images = RetrievalSet([[1.0]], [[0.9], [0.2]], [7], [7, 8], [0], [1, 1])
        >>> measure_curves(images).cameras.mean_ap.tolist()
        [[1.0]]
    """
    options = options or RankingOptions()
    precision = _MeanPrecision()
    cells = _Cells(retrieval) if _has_single_cameras(retrieval, options) else None
    for ranks in relevant_ranks(find_candidates(retrieval, options, block_bytes), block_bytes):
        precision.add(ranks)
        if cells is not None:
            cells.add(ranks)
    if not precision.queries:
        raise NoValidQueryError(no_valid_query(retrieval))
    return Curves(precision.total / precision.queries, None if cells is None else cells.table())


def _has_single_cameras(retrieval: RetrievalSet, options: RankingOptions) -> bool:
    if options.protocol != "instance" or not retrieval.has_cameras:
        return False
    return Cameras("g_camids", retrieval.g_camids, retrieval.num_gallery).single


class _MeanPrecision:
    def __init__(self) -> None:
        self.total, self.queries = np.zeros(RECALL_STEPS + 1), 0

    def add(self, ranks: Ranks) -> None:
        starts = np.flatnonzero(np.diff(ranks.row, prepend=-1))
        for rank in np.split(ranks.rank, starts[1:]):  # one query after another, so that sums do not depend on blocks
            count = len(rank)
            if not count:
                continue  # a part without any relevant item
            best = np.maximum.accumulate((np.arange(1, count + 1) / (rank + 1.0))[::-1])[::-1]
            found = -(-np.arange(RECALL_STEPS + 1) * count // RECALL_STEPS)  # the least number with that recall
            self.total += best[np.maximum(found, 1) - 1]
            self.queries += 1


class _Cells:
    """Sums of average precision by camera of the query and camera of the gallery."""

    def __init__(self, retrieval: RetrievalSet) -> None:
        self.query_cameras, self._of_query, dropped = _number(retrieval.q_camids)
        self.gallery_cameras, self._of_item, more = _number(retrieval.single_cameras())
        self._left_out = dropped + more
        shape = (len(self.query_cameras), len(self.gallery_cameras))
        self._sums, self._queries = np.zeros(shape), np.zeros(shape, dtype=np.int64)

    def add(self, ranks: Ranks) -> None:
        camera = self._of_item[ranks.column]
        row, first = ranks.row, np.searchsorted(ranks.row, ranks.row, side="left")
        wrong = ranks.rank - (np.arange(len(row)) - first)  # wrong items before each relevant one
        shown = np.flatnonzero((camera >= 0) & (self._of_query[row] >= 0))
        order = shown[np.lexsort((ranks.rank[shown], camera[shown], row[shown]))]
        if not len(order):
            return
        row, camera, wrong = row[order], camera[order], wrong[order]
        starts = np.flatnonzero((np.diff(row, prepend=-1) != 0) | (np.diff(camera, prepend=-1) != 0))
        counts = np.diff(starts, append=len(order))
        place = np.arange(1, len(order) + 1) - np.repeat(starts, counts)  # 1, 2, ... within query and camera
        average = np.add.reduceat(place / (wrong + place), starts) / counts
        cell = (self._of_query[row[starts]], camera[starts])
        np.add.at(self._sums, cell, average)
        np.add.at(self._queries, cell, 1)

    def table(self) -> CameraTable:
        mean = np.full(self._sums.shape, np.nan)
        np.divide(self._sums, self._queries, out=mean, where=self._queries > 0)
        return CameraTable(self.query_cameras, self.gallery_cameras, mean, self._queries, self._left_out)


def _number(camids: IntArray) -> tuple[IntArray, IntArray, int]:
    """The cameras that a table shows, the place there of each image's own (-1: none), and how many are not shown."""
    cameras, number, counts = np.unique(camids, return_inverse=True, return_counts=True)
    shown = np.sort(np.argsort(-counts, kind="stable")[:MOST_CAMERAS])
    place = np.full(len(cameras), -1)
    place[shown] = np.arange(len(shown))
    return cameras[shown], place[number.reshape(-1)], len(cameras) - len(shown)
