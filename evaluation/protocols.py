"""What each protocol ranks: single images, or centroids of them. Checks the inputs of an evaluation on the way."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from utils.centroids import StrictGallery, published_centroids, strict_centroids
from utils.distance_blocks import DistanceBlocks, as_embeddings
from utils.errors import NoValidQueryError, UnknownNameError
from utils.labels import Cameras, IntArray, int_array
from utils.ranking import SameIdentity
from utils.rerank import QueryExpansion, Rerank, RerankedDistances, expand_queries

PROTOCOLS = ("instance", "centroid", "centroid_strict")

NO_VALID_QUERY = (
    "No query can be evaluated: none has a gallery item of its identity from another camera. Check the identities and "
    "cameras of queries and gallery; for data without cameras, give queries and gallery different camera numbers."
)


@dataclass(frozen=True)
class Settings:
    """How a gallery is ranked; the keywords of :func:`utils.eval_reid.evaluate_embeddings`.

    Raises:
        UnknownNameError: another protocol.
    """

    metric: str = "euclidean"
    protocol: str = "instance"
    keep_camids: bool = True
    feat_norm: bool = False
    rerank: Rerank | None = None
    query_expansion: QueryExpansion | None = None

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise UnknownNameError(f"protocol is {self.protocol!r}; valid names: {', '.join(PROTOCOLS)}.")


@dataclass(frozen=True)
class Candidates:
    """The items that are ranked for each query, C of them, and how their distances are found."""

    protocol: str
    distances: DistanceBlocks | RerankedDistances  # [M, width], the items first
    width: int
    q_pids: IntArray  # [M]
    pids: IntArray  # [C]
    images: IntArray  # [C] a gallery image that stands for the item: itself, or the first one in the centroid
    same: SameIdentity | None  # finds the items of a query's identity; None in the strict protocol
    strict: StrictGallery | None  # None in the other protocols


def prepare(
    query: Any,
    gallery: Any,
    q_pids: Any,
    g_pids: Any,
    q_camids: Any,
    g_camids: Any,
    settings: Settings,
    block_bytes: int | None = None,
) -> Candidates:
    """Check the inputs and build what the protocol ranks.

    Args:
        query, gallery, q_pids, g_pids, q_camids, g_camids: as for :func:`utils.eval_reid.evaluate_embeddings`.
        settings: protocol and distances.
        block_bytes: distances held at once.

    Raises:
        UserError: as there.
    """
    query, gallery = as_embeddings("query", query), as_embeddings("gallery", gallery)
    q_pids = int_array("q_pids", q_pids, len(query), "query")
    g_pids = int_array("g_pids", g_pids, len(gallery), "gallery")
    q_camids = int_array("q_camids", q_camids, len(query), "query")
    if settings.protocol == "instance":
        cameras = Cameras("g_camids", g_camids, len(gallery))
    else:
        g_camids = int_array("g_camids", g_camids, len(gallery), "gallery")
    if settings.query_expansion is not None:
        query = expand_queries(query, gallery, settings.query_expansion, settings.feat_norm, block_bytes)
    if settings.protocol == "instance":
        distances = _distances(query, gallery, settings, "gallery", block_bytes)
        same, images = SameIdentity(q_pids, g_pids, q_camids, cameras), np.arange(len(g_pids))
        return Candidates("instance", distances, len(gallery), q_pids, g_pids, images, same, None)
    labels = (g_pids, g_camids, q_pids, q_camids, settings.keep_camids)
    if settings.protocol == "centroid":
        return _published(query, gallery, labels, settings, block_bytes)
    strict = strict_centroids(gallery, *labels)
    distances = _distances(query, strict.embeddings, settings, "gallery centroids", block_bytes)
    images = strict.images[: len(strict.pids)]
    width = len(strict.embeddings)
    return Candidates(settings.protocol, distances, width, q_pids, strict.pids, images, None, strict)


def _published(query: Tensor, gallery: Tensor, labels: Any, settings: Settings, block_bytes: int | None) -> Candidates:
    built = published_centroids(gallery, *labels)
    if not len(built.pids):
        raise NoValidQueryError(NO_VALID_QUERY)
    sets = built.camera_sets if built.camera_sets is not None else [()] * len(built.pids)
    _, _, q_pids, q_camids, _ = labels
    same = SameIdentity(q_pids, built.pids, q_camids, Cameras("camera sets", sets, len(sets), as_sets=True))
    distances = _distances(query, built.embeddings, settings, "gallery centroids", block_bytes)
    return Candidates("centroid", distances, len(built.pids), q_pids, built.pids, built.images, same, None)


def _distances(
    query: Tensor, gallery: Tensor, settings: Settings, name: str, block_bytes: int | None
) -> DistanceBlocks | RerankedDistances:
    plain = DistanceBlocks(query, gallery, settings.metric, settings.feat_norm, names=("query", name))
    if settings.rerank is None:
        return plain
    return RerankedDistances(query, gallery, settings.rerank, settings.metric, settings.feat_norm, block_bytes)
