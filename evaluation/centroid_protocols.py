"""The galleries of the two centroid protocols: published (with its known error) and strict."""

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
    """Centroids of the identities in a gallery, over all their images or over those from all cameras but one.

    Identities are numbered by their position in ``pids``.

    Example:
        >>> gallery = torch.tensor([[0.0], [2], [5]])
        >>> centroids = CameraCentroids.of(gallery, np.array([7, 7, 9]), np.array([0, 1, 0]))
        >>> centroids.all_images().tolist()
        [[1.0], [5.0]]
    """

    gallery: Tensor  # [N, D]
    identity: IntArray  # [N] position of each image's identity in pids
    camids: IntArray  # [N]
    pids: IntArray  # [C] ascending

    @classmethod
    def of(cls, gallery: Tensor, pids: IntArray, camids: IntArray) -> "CameraCentroids":
        """Number the identities of a gallery [N, D] with the given pids [N] and camids [N]."""
        names, identity = np.unique(pids, return_inverse=True)
        return cls(gallery, identity.reshape(-1).astype(np.int64), camids, names)

    def place(self, pids: IntArray) -> IntArray:
        """The number of each identity, or -1 if the gallery has no image of it."""
        found = np.searchsorted(self.pids, pids).clip(max=max(len(self.pids) - 1, 0))
        return np.where(self.pids[found] == pids, found, -1) if len(self.pids) else np.full(len(pids), -1)

    def all_images(self) -> Tensor:
        """The mean of all images of each identity, [C, D] float32."""
        return divide(*segment_sums(self.gallery, self.identity, len(self.pids)))

    def cameras(self, identity: IntArray) -> list[tuple[IntArray, IntArray]]:
        """For each of W identities, its cameras in ascending order and the first image from each camera."""
        pairs, first = np.unique(np.stack((self.identity, self.camids), 1), axis=0, return_index=True)
        starts = np.searchsorted(pairs[:, 0], identity, side="left")
        stops = np.searchsorted(pairs[:, 0], identity, side="right")
        return [(pairs[i:j, 1], first[i:j]) for i, j in zip(starts, stops, strict=True)]

    def first_images(self) -> IntArray:
        """The first image of each identity, [C]."""
        return np.unique(self.identity, return_index=True)[1]

    def without_camera(self, identity: IntArray, camera: IntArray) -> tuple[Tensor, IntArray, IntArray]:
        """For each of W pairs, the mean of the identity's images from other cameras: (total - the camera's) / count.

        Args:
            identity: [W] identity numbers.
            camera: [W] cameras to leave out; pairs must be distinct.

        Returns:
            centroids [W, D] float32, the number of images in each [W] (a centroid of no images is zero), and the number
            of images left out of each [W].
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
        for start in range(0, count, at_once):  # in place: a copy of the totals for every pair could be large
            stop = start + at_once
            left_out[start:stop].neg_().add_(totals[index[start:stop]])
        left_out[torch.from_numpy(counts == 0).to(left_out.device)] = 0  # exactly, without rounding error
        return divide(left_out, counts), counts, left_out_counts


@dataclass(frozen=True)
class GalleryCentroids:
    """The gallery of the published protocol.

    Example:
        >>> GalleryCentroids(torch.tensor([[1.0, 0]]), np.array([7]), [np.array([0, 2])], np.array([3])).pids.tolist()
        [7]
    """

    embeddings: Tensor  # [C, D] float32
    pids: IntArray  # [C]
    camera_sets: list[IntArray] | None  # C ascending sets; None if cameras are ignored
    images: IntArray  # [C] the first gallery image in each centroid


def published_centroids(
    gallery: Tensor, g_pids: IntArray, g_camids: IntArray, q_pids: IntArray, q_camids: IntArray, keep_camids: bool
) -> GalleryCentroids:
    """Build gallery centroids as the published code does, error included, so that published numbers can be reproduced.

    With ``keep_camids``, go through each identity that has queries and each camera of its queries, both in ascending
    order. The centroid is the mean of the identity's gallery images from other cameras; each distinct set of cameras
    gives one centroid. **A known error** inflates the scores: cameras are read from the start of the sequence *queries
    then gallery*, so gallery image i gets the camera of entry i of the whole sequence. Identities without queries get
    no centroid. Without ``keep_camids``, each identity has one centroid, the mean of all its gallery images.

    Args:
        gallery: [N, D] floating, not normalised.
        g_pids, g_camids: [N] int64.
        q_pids, q_camids: [M] int64.
        keep_camids: take cameras into account.

    Returns:
        The centroids and their labels; C is 0 if no identity qualifies.

    Example:
        >>> gallery, g_pids, g_camids = torch.tensor([[0.0], [2], [5]]), np.array([7, 7, 9]), np.array([0, 1, 0])
        >>> built = published_centroids(gallery, g_pids, g_camids, np.array([7]), np.array([0]), keep_camids=False)
        >>> built.embeddings.tolist(), built.pids.tolist()
        ([[1.0], [5.0]], [7, 9])
    """
    if not keep_camids:
        by_camera = CameraCentroids.of(gallery, g_pids, g_camids)
        return GalleryCentroids(by_camera.all_images(), by_camera.pids, None, by_camera.first_images())
    by_camera = CameraCentroids.of(gallery, g_pids, np.concatenate((q_camids, g_camids))[: len(g_pids)])
    identity, camera = _distinct_pairs(by_camera.place(q_pids), q_camids)
    centroids, counts, left_out = by_camera.without_camera(identity, camera)
    # Two query cameras give the same set only if the identity has no image from either.
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
    """Append the gallery centroids of the published protocol to the queries (see :func:`published_centroids`).

    Args:
        embeddings: [M + N, D] floating, the M queries first, not normalised.
        labels, camids: [M + N] whole numbers.
        num_query: M.
        respect_camids: leave the images from a query's camera out of the centroids.

    Returns:
        embeddings [M + C, D] float32, labels [M + C], and cameras. With ``respect_camids`` the cameras are a list of
        M + C ascending arrays, and a query's array holds one camera. Without it they are an array of M zeros and M + C
        ones, as in the published code: no centroid shares a camera with a query, and the surplus M entries are unused.

    Raises:
        UserError: the lengths do not agree, or num_query is not between 0 and the number of embeddings.

    Example:
        >>> rows = torch.tensor([[1.0], [0], [2], [5]])
        >>> embeddings, labels, _ = create_centroids(rows, [7, 7, 7, 9], [0, 1, 2, 1], num_query=1)
        >>> embeddings.tolist(), labels.tolist()
        ([[1.0], [1.0], [5.0]], [7, 7, 9])
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
    """What the strict protocol ranks: one centroid for each identity, and the relevant one for each query.

    The centroids that leave a camera out follow those of the identities, so that one distance matrix covers both.

    Example:
        >>> of_query = np.array([0])  # the gallery holds identity 7 alone, and the query shows it
        >>> StrictGallery(torch.tensor([[1.0]]), np.array([7]), of_query, of_query, np.array([0])).pids.tolist()
        [7]
    """

    embeddings: Tensor  # [C + W, D] float32: C identities in ascending order, then W that leave a camera out
    pids: IntArray  # [C]
    own: IntArray  # [M] position of the query's identity in pids, -1 if the gallery lacks it
    relevant: IntArray  # [M] row of the query's relevant centroid, -1 if there is none
    images: IntArray  # [C + W] the first gallery image in each centroid, N for an empty one


def strict_centroids(
    gallery: Tensor, g_pids: IntArray, g_camids: IntArray, q_pids: IntArray, q_camids: IntArray, keep_camids: bool
) -> StrictGallery:
    """Build the centroids of the strict protocol: one for every gallery identity, over all its images.

    With ``keep_camids``, the centroid of the query's own identity is the mean of its images from other cameras instead.
    A query whose identity has no such images has no relevant centroid. Args as for :func:`published_centroids`.

    Example:
        >>> gallery, g_pids, g_camids = torch.tensor([[0.0], [2], [5]]), np.array([7, 7, 9]), np.array([0, 1, 0])
        >>> strict = strict_centroids(gallery, g_pids, g_camids, np.array([7]), np.array([0]), keep_camids=True)
        >>> strict.embeddings.tolist(), strict.relevant.tolist()  # the query's centroid leaves camera 0 out
        ([[1.0], [5.0], [2.0]], [2])
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
