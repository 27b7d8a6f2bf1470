"""Means of embeddings: the centroids of the training loss, the evaluation and the inference gallery."""

from collections.abc import Hashable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.labels import IntArray, check_length, number_by_appearance

CHUNK_BYTES = 2 << 20  # of float64 copies, few enough to stay in the cache of a CPU


def leave_one_out_centroids(images: Tensor, real: Tensor | None) -> tuple[Tensor, Tensor]:
    """For each image, the mean of the other real images of its identity.

    Args:
        images: [U, K, D] floating, K embeddings of each of U identities.
        real: [U, K] bool, False for entries that do not count; None means that all are real, which is faster.

    Returns:
        centroids [U, K, D], arbitrary where not valid, and valid [U, K] bool: the image itself and at least one other
        are real, and the absolute values of the centroid sum to more than 1e-7.
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
    """Sum the rows of each segment, in float64 if the device supports it.

    Args:
        embeddings: [N, D] floating.
        segments: [N] in [0, num_segments), or negative for rows that belong to no segment.
        num_segments: S.

    Returns:
        sums [S, D], zero for an empty segment, and the number of rows in each segment [S].
    """
    exact = torch.float32 if embeddings.device.type == "mps" else torch.float64  # MPS has no float64
    sums = torch.zeros(num_segments, embeddings.shape[1], dtype=exact, device=embeddings.device)
    rows = np.flatnonzero(segments >= 0)
    at_once = rows_at_once(embeddings)
    for start in range(0, len(rows), at_once):
        chosen = rows[start : start + at_once]
        part = embeddings[torch.from_numpy(chosen).to(embeddings.device)].to(exact)
        sums.index_add_(0, torch.from_numpy(segments[chosen]).to(embeddings.device), part)
    return sums, np.bincount(segments[rows], minlength=num_segments)


def rows_at_once(embeddings: Tensor) -> int:
    """How many rows of [N, D] are copied to float64 at a time."""
    chunk = CHUNK_BYTES if embeddings.device.type == "cpu" else 32 * CHUNK_BYTES
    return max(1, chunk // (8 * max(embeddings.shape[1], 1)))


def identity_centroids(embeddings: Tensor, ids: Iterable[Hashable]) -> tuple[Tensor, list[Any]]:
    """The mean embedding of each identity.

    Args:
        embeddings: [N, D] floating.
        ids: [N] identities: whole numbers or strings.

    Returns:
        centroids [C, D] float32 and the C identities, in order of first appearance; both empty for no rows.

    Raises:
        UserError: there are not as many ids as embeddings.
    """
    names, segments = number_by_appearance(ids)
    check_length("ids", len(segments), len(embeddings), "embeddings")
    sums, counts = segment_sums(embeddings.detach(), segments, len(names))
    return divide(sums, counts), names


def divide(sums: Tensor, counts: IntArray) -> Tensor:
    """Divide sums [S, D], in place, by counts [S]: means [S, D] float32, zero for a segment without rows."""
    divisor = torch.from_numpy(np.maximum(counts, 1)).to(sums.device).unsqueeze(1)
    return sums.div_(divisor).to(torch.float32)
