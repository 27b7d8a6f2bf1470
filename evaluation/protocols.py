"""What each protocol ranks: single images or centroids."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from evaluation.centroid_protocols import StrictGallery, published_centroids, strict_centroids
from evaluation.distance_blocks import BlockFunc, DistanceBlocks, given_distances
from evaluation.notes import no_valid_query
from evaluation.ranking import SameIdentity
from evaluation.rerank import RerankedDistances, expand_queries
from evaluation.retrieval import RankingOptions, RetrievalSet
from utils.distributed import Processes
from utils.errors import NoValidQueryError, UserError
from utils.labels import Cameras, IntArray, int_array


@dataclass(frozen=True)
class Candidates:
    """The C items that are ranked for each query, and what computes their distances.

    Example:
        >>> images = RetrievalSet([[1.0]], [[0.9], [0.2]], [7], [7, 8], [0], [1, 1])
        >>> find_candidates(images, RankingOptions(protocol="centroid_strict")).pids.tolist()
        [7, 8]
    """

    protocol: str
    distances: BlockFunc  # rows of [M, width], with the C items in the first columns
    width: int
    q_pids: IntArray  # [M]
    pids: IntArray  # [C]
    images: IntArray  # [C] the gallery image that represents the item: itself, or the first one in the centroid
    same: SameIdentity | None  # finds the items of the query's identity; None in the strict protocol
    strict: StrictGallery | None  # None in the other protocols


def find_candidates(
    retrieval: RetrievalSet, options: RankingOptions, block_bytes: int | None = None, processes: Processes | None = None
) -> Candidates:
    """Build what a protocol ranks.

    Args:
        retrieval: queries and gallery images.
        options: protocol and distances.
        block_bytes: memory for distances; None is 64 MiB.
        processes: processes that share the search for re-ranking; each must call with the same arguments.

    Raises:
        NoValidQueryError: the published protocol builds no centroid.
        UserError: a value is not finite, or a gallery item has several cameras in a centroid protocol.

    Example:
        >>> images = RetrievalSet([[1.0]], [[0.9], [0.2]], [7], [7, 8], [0], [1, 1])
        >>> find_candidates(images, RankingOptions()).width
        2
    """
    query, gallery = retrieval.query, retrieval.gallery
    q_camids, g_camids = retrieval.filter_cameras()
    # Check the cameras before any distance is computed.
    if options.protocol == "instance":
        cameras = Cameras("g_camids", g_camids, len(gallery))
    else:
        g_camids = retrieval.single_cameras() if retrieval.has_cameras else g_camids
        labels = (retrieval.g_pids, g_camids, retrieval.q_pids, q_camids)
    if options.query_expansion is not None:
        query = expand_queries(query, gallery, options.query_expansion, options.feat_norm, block_bytes)
    if options.protocol == "instance":
        distances = _distances(query, gallery, options, "gallery", processes)
        same = SameIdentity(retrieval.q_pids, retrieval.g_pids, q_camids, cameras)
        images = np.arange(len(gallery))
        return Candidates("instance", distances, len(gallery), retrieval.q_pids, retrieval.g_pids, images, same, None)
    if options.protocol == "centroid":
        return _published(retrieval, query, labels, options, processes)
    # Without cameras, these are stand-ins, which set queries' own images apart.
    keep_camids = options.keep_camids if retrieval.has_cameras else retrieval.self_matches is not None
    strict = strict_centroids(gallery, *labels, keep_camids)
    distances = _distances(query, strict.embeddings, options, "gallery centroids", processes)
    images = strict.images[: len(strict.pids)]
    width = len(strict.embeddings)
    return Candidates(options.protocol, distances, width, retrieval.q_pids, strict.pids, images, None, strict)


def given_candidates(distances: BlockFunc | Any, q_pids: Any, g_pids: Any, q_camids: Any, g_camids: Any) -> Candidates:
    """What the instance protocol ranks by distances that the caller has computed, or computes.

    Args:
        distances: [M, N] floating, or a function (start, stop) -> [stop - start, N]; ranked in float32.
        q_pids, g_pids, q_camids, g_camids: as for :class:`~evaluation.retrieval.RetrievalSet`.

    Raises:
        UserError: there are no queries or no gallery items, or the lengths do not agree.

    Example:
        >>> given_candidates([[0.5, 0.1]], [7], [7, 8], [0], [1, 1]).distances(0, 1).shape
        torch.Size([1, 2])
    """
    q_pids, g_pids = int_array("q_pids", q_pids), int_array("g_pids", g_pids)
    q_camids = int_array("q_camids", q_camids, len(q_pids), "q_pids")
    cameras = Cameras("g_camids", g_camids, len(g_pids))
    for name, pids in (("q_pids", q_pids), ("g_pids", g_pids)):
        if not len(pids):
            raise UserError(f"{name} is empty; expected at least one pid.")
    blocks = given_distances(distances, len(q_pids), len(g_pids))
    same = SameIdentity(q_pids, g_pids, q_camids, cameras)
    return Candidates("instance", blocks, len(g_pids), q_pids, g_pids, np.arange(len(g_pids)), same, None)


def _published(
    retrieval: RetrievalSet,
    query: Tensor,
    labels: Sequence[IntArray],
    options: RankingOptions,
    processes: Processes | None,
) -> Candidates:
    g_pids, g_camids, q_pids, q_camids = labels
    keep_camids = options.keep_camids and retrieval.has_cameras
    built = published_centroids(retrieval.gallery, g_pids, g_camids, q_pids, q_camids, keep_camids)
    if not len(built.pids):
        raise NoValidQueryError(no_valid_query(retrieval))
    sets = built.camera_sets if built.camera_sets is not None else [()] * len(built.pids)
    same = SameIdentity(q_pids, built.pids, q_camids, Cameras("camera sets", sets, len(sets), as_sets=True))
    distances = _distances(query, built.embeddings, options, "gallery centroids", processes)
    return Candidates("centroid", distances, len(built.pids), q_pids, built.pids, built.images, same, None)


def _distances(
    query: Tensor, gallery: Tensor, options: RankingOptions, name: str, processes: Processes | None
) -> DistanceBlocks | RerankedDistances:
    plain = DistanceBlocks(query, gallery, options.metric, options.feat_norm, names=("query", name))
    if options.rerank is None:
        return plain
    return RerankedDistances(query, gallery, options.rerank, options.metric, options.feat_norm, processes)
