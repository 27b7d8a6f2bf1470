"""The galleries of the centroid protocols: the published one, with its error, and the strict one."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.centroids import divide, rows_at_once, segment_sums
from utils.errors import UserError
from utils.labels import IntArray, int_array


@dataclass(frozen=True)
class CameraCentroids:
    """Centroids of a gallery's identities: over all their images, or over those from all cameras but one.

    Identities are numbered by their place among ``pids``, ascending.
    """

    gallery: Tensor  # [N, D]
    identity: IntArray  # [N], place of each image's identity in pids
    camids: IntArray  # [N]
    pids: IntArray  # [C] ascending

    @classmethod
    def of(cls, gallery: Tensor, pids: IntArray, camids: IntArray) -> "CameraCentroids":
        """Number the identities of images with the given pids [N] and camids [N]."""
        names, identity = np.unique(pids, return_inverse=True)
        return cls(gallery, identity.reshape(-1).astype(np.int64), camids, names)

    def place(self, pids: IntArray) -> IntArray:
        """The number of each identity, -1 for one without images."""
        found = np.searchsorted(self.pids, pids).clip(max=max(len(self.pids) - 1, 0))
        return np.where(self.pids[found] == pids, found, -1) if len(self.pids) else np.full(len(pids), -1)

    def all_images(self) -> Tensor:
        """The mean of all images of each identity, [C, D] float32."""
        return divide(*segment_sums(self.gallery, self.identity, len(self.pids)))

    def cameras(self, identity: IntArray) -> list[tuple[IntArray, IntArray]]:
        """For each of W identities its cameras, ascending, and the first image from each of them."""
        pairs, first = np.unique(np.stack((self.identity, self.camids), 1), axis=0, return_index=True)
        starts = np.searchsorted(pairs[:, 0], identity, side="left")
        stops = np.searchsorted(pairs[:, 0], identity, side="right")
        return [(pairs[i:j, 1], first[i:j]) for i, j in zip(starts, stops, strict=True)]

    def first_images(self) -> IntArray:
        """The first image of each identity, [C]."""
        return np.unique(self.identity, return_index=True)[1]

    def without_camera(self, identity: IntArray, camera: IntArray) -> tuple[Tensor, IntArray, IntArray]:
        """For each of W pairs the mean of the identity's images from other cameras: (total - the camera's) / count.

        Args:
            identity: [W] identity numbers.
            camera: [W]; pairs must be distinct.

        Returns:
            centroids [W, D] float32, the number of images in each [W] (the centroid of none is zero), and the number of
            images that were left out of each [W].
        """
        count = len(identity)
        pairs = np.concatenate((np.stack((identity, camera), 1), np.stack((self.identity, self.camids), 1)))
        _, number = np.unique(pairs, axis=0, return_inverse=True)
        number = number.reshape(-1)
        segment_of = np.full(number.max(initial=-1) + 1, -1, dtype=np.int64)
        segment_of[number[:count]] = np.arange(count)
        left_out, left_out_counts = segment_sums(self.gallery, segment_of[number[count:]], count)
        totals, total_counts = segment_sums(self.gallery, self.identity, len(self.pids))
        counts = total_counts[identity] - left_out_counts
        index = torch.from_numpy(identity).to(totals.device)
        at_once = rows_at_once(self.gallery)
        for start in range(0, count, at_once):  # in place: the totals repeated for every pair could be large
            stop = start + at_once
            left_out[start:stop].neg_().add_(totals[index[start:stop]])
        left_out[torch.from_numpy(counts == 0).to(left_out.device)] = 0  # not the rounding error of a difference
        return divide(left_out, counts), counts, left_out_counts


@dataclass(frozen=True)
class GalleryCentroids:
    """What stands in the gallery of the published protocol."""

    embeddings: Tensor  # [C, D] float32
    pids: IntArray  # [C]
    camera_sets: list[IntArray] | None  # C ascending sets, None without cameras
    images: IntArray  # [C] the first gallery image in each


def published_centroids(
    gallery: Tensor, g_pids: IntArray, g_camids: IntArray, q_pids: IntArray, q_camids: IntArray, keep_camids: bool
) -> GalleryCentroids:
    """Gallery centroids as the published code builds them, with its error, so that published numbers reproduce.

    With ``keep_camids``: for each identity that has queries, in ascending order, and each camera among its queries, in
    ascending order, the mean of its gallery images from other cameras, once per distinct set of cameras used. The
    cameras are those of the sequence *queries then gallery*, read from its start: **a known error** (the camera of
    gallery image i is taken to be that of entry i of the whole sequence), which inflates the scores. Identities
    without queries get no centroid. Without ``keep_camids``: the mean of all gallery images of each identity.

    Args:
        gallery: [N, D] floating, not normalised.
        g_pids, g_camids: [N].
        q_pids, q_camids: [M].
        keep_camids: whether cameras are looked at.
    """
    if not keep_camids:
        by_camera = CameraCentroids.of(gallery, g_pids, g_camids)
        return GalleryCentroids(by_camera.all_images(), by_camera.pids, None, by_camera.first_images())
    by_camera = CameraCentroids.of(gallery, g_pids, np.concatenate((q_camids, g_camids))[: len(g_pids)])
    identity, camera = _distinct_pairs(by_camera.place(q_pids), q_camids)
    centroids, counts, left_out = by_camera.without_camera(identity, camera)
    # The sets of two query cameras are the same only if neither camera is among those of the identity.
    _, first = np.unique(np.where(left_out > 0, np.arange(len(identity)), -1 - identity), return_index=True)
    kept = np.sort(first)
    kept = kept[counts[kept] > 0]
    identity, camera = identity[kept], camera[kept]
    seen = list(zip(by_camera.cameras(identity), camera, strict=True))
    sets = [cameras[cameras != c] for (cameras, _), c in seen]
    images = np.array([first[cameras != c].min() for (cameras, first), c in seen], dtype=np.int64)
    chosen = torch.from_numpy(kept).to(centroids.device)
    return GalleryCentroids(centroids[chosen], by_camera.pids[identity], sets, images)


def _distinct_pairs(identity: IntArray, camera: IntArray) -> tuple[IntArray, IntArray]:
    pairs = np.unique(np.stack((identity, camera), 1)[identity >= 0], axis=0)
    return pairs[:, 0], pairs[:, 1]


def create_centroids(
    embeddings: Tensor, labels: Any, camids: Any, num_query: int, respect_camids: bool = False
) -> tuple[Tensor, IntArray, Any]:
    """Queries followed by the gallery centroids of the published protocol (see :func:`published_centroids`).

    Args:
        embeddings: [M + N, D] floating, the M queries first, not normalised.
        labels, camids: [M + N].
        num_query: M.
        respect_camids: leave the images of a query's camera out of the centroids.

    Returns:
        embeddings [M + C, D] float32, labels [M + C], and cameras: with ``respect_camids`` a list of M + C ascending
        arrays, one camera in each of a query; without, an array that is 0 for the queries and 1 for M + C entries more,
        as the published code leaves it, so that no centroid shares the camera of a query.

    Raises:
        UserError: lengths that do not agree, or num_query outside the embeddings.
    """
    labels = int_array("labels", labels, len(embeddings), "embeddings")
    camids = int_array("camids", camids, len(embeddings), "embeddings")
    if not 0 <= num_query <= len(embeddings):
        raise UserError(f"num_query is {num_query}, but there are {len(embeddings)} embeddings.")
    m = num_query
    built = published_centroids(embeddings[m:], labels[m:], camids[m:], labels[:m], camids[:m], respect_camids)
    embeddings = torch.cat((embeddings[:m].to(torch.float32), built.embeddings))
    labels = np.concatenate((labels[:m], built.pids))
    if built.camera_sets is None:
        return embeddings, labels, np.repeat(np.array([0, 1], dtype=np.int64), (m, len(labels)))
    return embeddings, labels, [camids[i : i + 1] for i in range(m)] + built.camera_sets


@dataclass(frozen=True)
class StrictGallery:
    """What the strict protocol ranks: one centroid per identity, and per query the one that is right.

    The queries' own centroids stand behind the identities', so that one matrix of distances holds all.
    """

    embeddings: Tensor  # [C + W, D] float32: the C identities, ascending, then W centroids without a camera
    pids: IntArray  # [C]
    own: IntArray  # [M], the query's identity in pids, -1 if the gallery has none
    relevant: IntArray  # [M], row of the centroid that is right for the query, -1 if there is none
    images: IntArray  # [C + W] the first gallery image in each, N for an empty one


def strict_centroids(
    gallery: Tensor, g_pids: IntArray, g_camids: IntArray, q_pids: IntArray, q_camids: IntArray, keep_camids: bool
) -> StrictGallery:
    """Centroids of the strict protocol: every identity of the gallery has one, over all its images.

    With ``keep_camids`` the centroid of the query's own identity is the mean of its images from other cameras; a query
    without such images has no relevant centroid. Args as for :func:`published_centroids`.
    """
    by_camera = CameraCentroids.of(gallery, g_pids, g_camids)
    own = by_camera.place(q_pids)
    if not keep_camids:
        return StrictGallery(by_camera.all_images(), by_camera.pids, own, own, by_camera.first_images())
    identity, camera = _distinct_pairs(own, q_camids)
    centroids, counts, _ = by_camera.without_camera(identity, camera)
    pairs = np.concatenate((np.stack((identity, camera), 1), np.stack((own, q_camids), 1)[own >= 0]))
    number = np.unique(pairs, axis=0, return_inverse=True)[1].reshape(-1)[len(identity) :]
    relevant = np.full(len(q_pids), -1, dtype=np.int64)
    relevant[own >= 0] = np.where(counts[number] > 0, len(by_camera.pids) + number, -1)
    seen = zip(by_camera.cameras(identity), camera, strict=True)
    first_images = [first[cameras != c].min(initial=len(gallery)) for (cameras, first), c in seen]
    images = np.concatenate((by_camera.first_images(), np.array(first_images, dtype=np.int64)))
    return StrictGallery(torch.cat((by_camera.all_images(), centroids)), by_camera.pids, own, relevant, images)
