"""A map of embeddings: two coordinates for each of some images, such that near images are near."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evaluation.retrieval import FloatArray, RetrievalSet
from utils.distances import normalize
from utils.labels import IntArray

MOST_POINTS = 1500
_OF_ONE_IDENTITY = 40  # images, so that distractors, which may share a pid, do not fill the map
_FEWEST_FOR_UMAP = 50  # its graph needs neighbours


@dataclass(frozen=True)
class EmbeddingMap:
    """Where images lie.

    Example:
        >>> images = RetrievalSet([[1.0, 0]], [[0.9, 0], [0, 1]], [7], [7, 8], [0], [1, 1])
        >>> draw_map(images).images.tolist(), draw_map(images).method
        ([0, 1, 2], 'PCA')
    """

    images: IntArray  # [P] queries 0 to M - 1, gallery images from M on, ascending
    points: FloatArray  # [P, 2] in [0, 1]
    method: str  # "PCA" or "UMAP"
    explained: tuple[float, float]  # the share of the variance along each axis of a PCA; NaN for UMAP


def draw_map(retrieval: RetrievalSet, feat_norm: bool = False, most: int = MOST_POINTS, seed: int = 0) -> EmbeddingMap:
    """Lay out images of identities drawn at random, by UMAP where umap-learn is installed, otherwise by PCA.

    PCA projects on the two directions of greatest variance (Pearson 1901). UMAP keeps neighbourhoods (McInnes, Healy
    and Melville 2018); it is used from 50 images on. Whole identities are drawn, up to 40 images of each, so that it
    can be seen how well they keep together.

    Args:
        retrieval: queries and gallery images.
        feat_norm: scale embeddings to unit length first.
        most: number of images at most.
        seed: of the draw, and of UMAP.

    Example:
        >>> images = RetrievalSet([[0.0, 0]], [[1, 0], [4, 0]], [7], [7, 8], [0], [1, 1])
        >>> draw_map(images).points[:, 0].round(3).tolist()
        [0.0, 0.25, 1.0]
    """
    images = _drawn(np.concatenate((retrieval.q_pids, retrieval.g_pids)), most, seed)
    rows = _embeddings(retrieval, images)
    if feat_norm:
        rows = normalize(rows)
    x = rows.double().cpu().numpy()
    umap = _umap() if len(x) >= _FEWEST_FOR_UMAP else None
    if umap is not None:
        points = np.asarray(umap.UMAP(random_state=seed, n_jobs=1).fit_transform(x), dtype=np.float64)
        return EmbeddingMap(images, _fitted(points), "UMAP", (np.nan, np.nan))
    points, explained = _principal(x)
    return EmbeddingMap(images, _fitted(points), "PCA", explained)


def _drawn(pids: IntArray, most: int, seed: int) -> IntArray:
    """Images of identities in a random order, some of each, until there are enough."""
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(pids))
    _, identity = np.unique(pids[shuffled], return_inverse=True)
    order = np.argsort(rng.permutation(int(identity.max()) + 1)[identity.reshape(-1)], kind="stable")
    grouped = identity.reshape(-1)[order]
    first = np.maximum.accumulate(np.where(np.diff(grouped, prepend=-1) != 0, np.arange(len(order)), 0))
    kept = order[np.arange(len(order)) - first < _OF_ONE_IDENTITY]
    return np.sort(shuffled[kept[:most]])


def _embeddings(retrieval: RetrievalSet, images: IntArray) -> Tensor:
    queries = images[images < retrieval.num_query]
    gallery = images[len(queries) :] - retrieval.num_query
    parts = []
    for rows, chosen in ((retrieval.query, queries), (retrieval.gallery, gallery)):
        parts.append(rows[torch.from_numpy(chosen).to(rows.device)].float().cpu())
    return torch.cat(parts)


def _umap() -> Any:
    """The module of umap-learn, or None."""
    try:
        import umap
    except ImportError:
        return None
    return umap


def _principal(x: FloatArray) -> tuple[FloatArray, tuple[float, float]]:
    """The two principal components [P, 2], whose largest value is positive, and their share of the variance."""
    centred = x - x.mean(axis=0)
    is_wide = x.shape[1] > x.shape[0]  # then there are fewer rows: their products have the same eigenvalues
    values, vectors = np.linalg.eigh(centred @ centred.T if is_wide else centred.T @ centred)
    values, vectors = values[::-1][:2].clip(min=0), vectors[:, ::-1][:, :2]
    points = np.zeros((len(x), 2))
    points[:, : len(values)] = vectors * np.sqrt(values) if is_wide else centred @ vectors
    largest = np.abs(points).argmax(axis=0)
    points *= np.where(points[largest, [0, 1]] < 0, -1.0, 1.0)
    shares = np.append(values / max(np.square(centred).sum(), np.finfo(np.float64).tiny), 0.0)
    return points, (float(shares[0]), float(shares[1]))


def _fitted(points: FloatArray) -> FloatArray:
    """Moved and scaled into the unit square, alike along both axes."""
    low, high = points.min(axis=0), points.max(axis=0)
    extent = float((high - low).max())
    return (points - (low + high) / 2) / (extent or 1.0) + 0.5
