"""Test-time flip: an embedding that is the mean of those of an image and of its mirror image (TEST.FLIP)."""

from collections.abc import Callable

from torch import Tensor


def embed_views(embed: Callable[[Tensor], Tensor], images: Tensor, flip: bool) -> Tensor:
    """The embeddings of images, or the means with those of their mirror images.

    Args:
        embed: from images to embeddings, not scaled to unit length.
        images: [B, 3, H, W] floating.
        flip: whether to take those means.

    Returns:
        [B, D].
    """
    embeddings = embed(images)
    return (embeddings + embed(images.flip(-1))) / 2 if flip else embeddings
