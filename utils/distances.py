"""All distances of the project; losses, metrics and inference import them from here."""

from collections.abc import Callable

import torch
from torch import Tensor

from utils.errors import UnknownNameError

DistanceFunc = Callable[[Tensor, Tensor], Tensor]

_MIN_DISTANCE = 1e-12


def normalize(x: Tensor, axis: int = -1) -> Tensor:
    """Scale to unit Euclidean length along ``axis``: ``x / (||x|| + 1e-12)``.

    ``torch.nn.functional.normalize`` differs: it uses the small constant as a lower bound of the norm instead.

    Args:
        x: [..., D, ...] floating.
        axis: the axis that holds the embedding.

    Returns:
        Same shape and dtype; a zero vector stays zero.
    """
    return x / (torch.linalg.vector_norm(x, 2, axis, keepdim=True) + 1e-12)


def get_euclidean(x: Tensor, y: Tensor) -> Tensor:
    """*Squared* Euclidean distances ``||x||^2 + ||y||^2 - 2 x.y``; rounding may leave tiny negative values.

    Args:
        x: [M, D] floating, or [B, M, D] for B independent problems.
        y: [N, D] or [B, N, D].

    Returns:
        [M, N] or [B, M, N] squared distances; an empty input gives an empty matrix.
    """
    x_squares = x.square().sum(-1)
    y_squares = x_squares if y is x else y.square().sum(-1)
    squares = x_squares.unsqueeze(-1) + y_squares.unsqueeze(-2)  # [..., M, N]
    product = torch.addmm if x.dim() == 2 else torch.baddbmm
    return product(squares, x, y.mT, beta=1, alpha=-2)


def euclidean_dist(x: Tensor, y: Tensor) -> Tensor:
    """Euclidean distances, with squares clamped at 1e-12 to keep the gradient of the square root finite.

    Computed in float32, whatever the autocast state. Args and Returns as for :func:`get_euclidean`.
    """
    with torch.autocast(x.device.type, enabled=False):
        wide = x.float()
        return get_euclidean(wide, wide if y is x else y.float()).clamp(min=_MIN_DISTANCE).sqrt()


def cosine_similarity(x: Tensor, y: Tensor) -> Tensor:
    """Cosine similarities in [-1, 1] (up to rounding), in float32 whatever the autocast state.

    Args:
        x: [M, D] floating, or [B, M, D]; rows need not have unit length.
        y: [N, D] or [B, N, D].

    Returns:
        [M, N] or [B, M, N] similarities.
    """
    with torch.autocast(x.device.type, enabled=False):
        return normalize(x.float()) @ normalize(y.float()).mT


def cosine_dist(x: Tensor, y: Tensor) -> Tensor:
    """``|1 - similarity|`` clamped at 1e-12, in [0, 2]; used by the losses. Args as for :func:`cosine_similarity`."""
    return (1 - cosine_similarity(x, y)).abs().clamp(min=_MIN_DISTANCE)


def get_cosine(x: Tensor, y: Tensor) -> Tensor:
    """``1 - similarity``, in [0, 2] up to rounding; used by the metrics. Args as for :func:`cosine_similarity`."""
    return 1 - cosine_similarity(x, y)


_METRICS: dict[str, DistanceFunc] = {"euclidean": get_euclidean, "cosine": get_cosine}
_LOSS_DISTANCES: dict[str, DistanceFunc] = {"euclidean": euclidean_dist, "cosine": cosine_dist}


def get_dist_func(func_name: str = "euclidean") -> DistanceFunc:
    """The distance that rankings use: "euclidean" is the *squared* Euclidean distance, "cosine" is 1 - similarity.

    Raises:
        UnknownNameError: any other name (a KeyError and a ValueError).
    """
    return _lookup(_METRICS, func_name)


def get_loss_dist_func(func_name: str = "euclidean") -> DistanceFunc:
    """The distance that the triplet losses use: "euclidean" (not squared) or "cosine" (absolute value, clamped).

    Raises:
        UnknownNameError: any other name (a KeyError and a ValueError).
    """
    return _lookup(_LOSS_DISTANCES, func_name)


def _lookup(table: dict[str, DistanceFunc], name: str) -> DistanceFunc:
    if name not in table:
        raise UnknownNameError(f"the distance function is {name!r}; valid names: {', '.join(sorted(table))}.")
    return table[name]
