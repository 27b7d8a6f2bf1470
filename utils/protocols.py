"""What each protocol ranks: single images, or centroids of them. Checks the inputs of an evaluation on the way."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from utils.centroids import StrictGallery, published_centroids, strict_centroids
from utils.distance_blocks import DistanceBlocks, as_embeddings
from utils.errors import UnknownNameError, UserError
from utils.labels import Cameras, IntArray, int_array
from utils.ranking import SameIdentity

PROTOCOLS = ("instance", "centroid", "centroid_strict")

NO_VALID_QUERY = (
    "No query can be evaluated: none has a gallery item of its identity from another camera. Check the identities and "
    "cameras of queries and gallery; for data without cameras, give queries and gallery different camera numbers."
)


@dataclass(frozen=True)
class Candidates:
    """The items that are ranked for each query, C of them, and how their distances are found."""

    protocol: str
    distances: DistanceBlocks  # [M, C], in the strict protocol with further columns behind
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
    *,
    metric: str,
    protocol: str,
    keep_camids: bool,
    feat_norm: bool,
) -> Candidates:
    """Check the inputs and build what the protocol ranks; see :func:`utils.eval_reid.evaluate_embeddings`."""
    if protocol not in PROTOCOLS:
        raise UnknownNameError(f"protocol is {protocol!r}; valid names: {', '.join(PROTOCOLS)}.")
    query, gallery = as_embeddings("query", query), as_embeddings("gallery", gallery)
    q_pids = int_array("q_pids", q_pids, len(query), "query")
    g_pids = int_array("g_pids", g_pids, len(gallery), "gallery")
    q_camids = int_array("q_camids", q_camids, len(query), "query")
    if protocol == "instance":
        same = SameIdentity(q_pids, g_pids, q_camids, Cameras("g_camids", g_camids, len(gallery)))
        distances = DistanceBlocks(query, gallery, metric, feat_norm)
        return Candidates(protocol, distances, q_pids, g_pids, np.arange(len(g_pids)), same, None)
    g_camids = int_array("g_camids", g_camids, len(gallery), "gallery")
    labels = (g_pids, g_camids, q_pids, q_camids, keep_camids)
    names = ("query", "gallery centroids")
    if protocol == "centroid":
        built = published_centroids(gallery, *labels)
        if not len(built.pids):
            raise UserError(NO_VALID_QUERY)
        sets = built.camera_sets if built.camera_sets is not None else [()] * len(built.pids)
        same = SameIdentity(q_pids, built.pids, q_camids, Cameras("camera sets", sets, len(sets), as_sets=True))
        distances = DistanceBlocks(query, built.embeddings, metric, feat_norm, names)
        return Candidates(protocol, distances, q_pids, built.pids, built.images, same, None)
    strict = strict_centroids(gallery, *labels)
    distances = DistanceBlocks(query, strict.embeddings, metric, feat_norm, names)
    return Candidates(protocol, distances, q_pids, strict.pids, strict.images[: len(strict.pids)], None, strict)
