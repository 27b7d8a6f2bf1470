"""Every centroid of the project: the training loss, the evaluation protocols and the inference gallery."""

import torch
from torch import Tensor


def leave_one_out_centroids(images: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """For each image of an identity the mean of the identity's other real images.

    Args:
        images: [U, K, D] floating, K embeddings of each of U identities.
        real: [U, K] bool, False for entries that do not count.

    Returns:
        centroids [U, K, D], arbitrary where they do not exist, and valid [U, K] bool: the image itself is real, another
        one is, and the absolute values of the centroid sum to more than 1e-7.
    """
    weighted = images * real.unsqueeze(-1)  # [U, K, D]
    others = real.sum(1, keepdim=True) - real.int()  # [U, K]
    centroids = (weighted.sum(1, keepdim=True) - weighted) / others.clamp(min=1).unsqueeze(-1)
    valid = real & (others > 0) & (centroids.detach().abs().sum(-1) > 1e-7)
    return centroids, valid
