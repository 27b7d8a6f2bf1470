"""Every centroid of the project: the training loss, the evaluation protocols and the inference gallery."""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.errors import UserError
from utils.labels import IntArray, check_length, int_array, number_by_appearance

_CHUNK_BYTES = 2 << 20  # of float64 copies; on a CPU they stay in the cache


def leave_one_out_centroids(images: Tensor, real: Tensor | None) -> tuple[Tensor, Tensor]:
    """For each image of an identity the mean of the identity's other real images.

    Args:
        images: [U, K, D] floating, K embeddings of each of U identities.
        real: [U, K] bool, False for entries that do not count; None for all of them, which takes less time.

    Returns:
        centroids [U, K, D], arbitrary where they do not exist, and valid [U, K] bool: the image itself is real, another
        one is, and the absolute values of the centroid sum to more than 1e-7.
    """
    if real is None:
        centroids = (images.sum(1, keepdim=True) - images) / max(images.shape[1] - 1, 1)
        return centroids, (centroids.detach().abs().sum(-1) > 1e-7) & (images.shape[1] > 1)
    weighted = images * real.unsqueeze(-1)  # [U, K, D]
    others = real.sum(1, keepdim=True) - real.int()  # [U, K]
    centroids = (weighted.sum(1, keepdim=True) - weighted) / others.clamp(min=1).unsqueeze(-1)
    valid = real & (others > 0) & (centroids.detach().abs().sum(-1) > 1e-7)
    return centroids, valid


def segment_sums(embeddings: Tensor, segments: IntArray, num_segments: int) -> tuple[Tensor, IntArray]:
    """Sum the rows of each segment, in float64 where the device has it.

    Args:
        embeddings: [N, D] floating.
        segments: [N] in [0, num_segments), or negative for rows that belong to none.
        num_segments: S.

    Returns:
        sums [S, D], zero for an empty segment, and how many rows each has [S].
    """
    exact = torch.float32 if embeddings.device.type == "mps" else torch.float64  # MPS has no float64
    sums = torch.zeros(num_segments, embeddings.shape[1], dtype=exact, device=embeddings.device)
    rows = np.flatnonzero(segments >= 0)
    at_once = _rows_at_once(embeddings)
    for start in range(0, len(rows), at_once):
        chosen = rows[start : start + at_once]
        part = embeddings[torch.from_numpy(chosen).to(embeddings.device)].to(exact)
        sums.index_add_(0, torch.from_numpy(segments[chosen]).to(embeddings.device), part)
    return sums, np.bincount(segments[rows], minlength=num_segments)


def _rows_at_once(embeddings: Tensor) -> int:
    chunk = _CHUNK_BYTES if embeddings.device.type == "cpu" else 32 * _CHUNK_BYTES
    return max(1, chunk // (8 * max(embeddings.shape[1], 1)))


def identity_centroids(embeddings: Tensor, ids: Iterable[Hashable]) -> tuple[Tensor, list[Any]]:
    """The mean embedding of each identity.

    Args:
        embeddings: [N, D] floating.
        ids: [N] identities: whole numbers or strings.

    Returns:
        centroids [C, D] float32 and the C identities, in the order in which they first appear; empty for no rows.

    Raises:
        UserError: as many ids as embeddings are expected.
    """
    names, segments = number_by_appearance(ids)
    check_length("ids", len(segments), len(embeddings), "embeddings")
    sums, counts = segment_sums(embeddings.detach(), segments, len(names))
    return _divide(sums, counts), names


def _divide(sums: Tensor, counts: IntArray) -> Tensor:
    divisor = torch.from_numpy(np.maximum(counts, 1)).to(sums.device).unsqueeze(1)
    return sums.div_(divisor).to(torch.float32)


@dataclass(frozen=True)
class Views:
    """Which (identity, camera) pairs a set of images holds, and centroids of an identity's images from other cameras.

    Identities are numbered by their place among ``pids``, ascending.
    """

    gallery: Tensor  # [N, D]
    identity: IntArray  # [N], place of each image's identity in pids
    camids: IntArray  # [N]
    pids: IntArray  # [C] ascending

    @classmethod
    def of(cls, gallery: Tensor, pids: IntArray, camids: IntArray) -> "Views":
        """Number the identities of images with the given pids [N] and camids [N]."""
        names, identity = np.unique(pids, return_inverse=True)
        return cls(gallery, identity.reshape(-1).astype(np.int64), camids, names)

    def place(self, pids: IntArray) -> IntArray:
        """The number of each identity, -1 for one without images."""
        found = np.searchsorted(self.pids, pids).clip(max=max(len(self.pids) - 1, 0))
        return np.where(self.pids[found] == pids, found, -1) if len(self.pids) else np.full(len(pids), -1)

    def all_images(self) -> Tensor:
        """The mean of all images of each identity, [C, D] float32."""
        return _divide(*segment_sums(self.gallery, self.identity, len(self.pids)))

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
        at_once = _rows_at_once(self.gallery)
        for start in range(0, count, at_once):  # in place: the totals repeated for every pair could be large
            stop = start + at_once
            left_out[start:stop].neg_().add_(totals[index[start:stop]])
        left_out[torch.from_numpy(counts == 0).to(left_out.device)] = 0  # not the rounding error of a difference
        return _divide(left_out, counts), counts, left_out_counts


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
        views = Views.of(gallery, g_pids, g_camids)
        return GalleryCentroids(views.all_images(), views.pids, None, views.first_images())
    views = Views.of(gallery, g_pids, np.concatenate((q_camids, g_camids))[: len(g_pids)])
    identity, camera = _distinct_pairs(views.place(q_pids), q_camids)
    centroids, counts, left_out = views.without_camera(identity, camera)
    # The sets of two query cameras are the same only if neither camera is among those of the identity.
    _, first = np.unique(np.where(left_out > 0, np.arange(len(identity)), -1 - identity), return_index=True)
    kept = np.sort(first)
    kept = kept[counts[kept] > 0]
    identity, camera = identity[kept], camera[kept]
    seen = list(zip(views.cameras(identity), camera, strict=True))
    sets = [cameras[cameras != c] for (cameras, _), c in seen]
    images = np.array([first[cameras != c].min() for (cameras, first), c in seen], dtype=np.int64)
    chosen = torch.from_numpy(kept).to(centroids.device)
    return GalleryCentroids(centroids[chosen], views.pids[identity], sets, images)


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
    views = Views.of(gallery, g_pids, g_camids)
    own = views.place(q_pids)
    if not keep_camids:
        return StrictGallery(views.all_images(), views.pids, own, own, views.first_images())
    identity, camera = _distinct_pairs(own, q_camids)
    centroids, counts, _ = views.without_camera(identity, camera)
    pairs = np.concatenate((np.stack((identity, camera), 1), np.stack((own, q_camids), 1)[own >= 0]))
    number = np.unique(pairs, axis=0, return_inverse=True)[1].reshape(-1)[len(identity) :]
    relevant = np.full(len(q_pids), -1, dtype=np.int64)
    relevant[own >= 0] = np.where(counts[number] > 0, len(views.pids) + number, -1)
    seen = zip(views.cameras(identity), camera, strict=True)
    first_images = [first[cameras != c].min(initial=len(gallery)) for (cameras, first), c in seen]
    images = np.concatenate((views.first_images(), np.array(first_images, dtype=np.int64)))
    return StrictGallery(torch.cat((views.all_images(), centroids)), views.pids, own, relevant, images)
