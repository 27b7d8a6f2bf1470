"""All distances of the project; losses, metrics and inference import them from here."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.errors import UnknownNameError

DistanceFunc = Callable[..., Tensor]  # of x [M, D] and y [N, D]; the distances [M, N]

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


def get_euclidean(x: Tensor, y: Tensor, **ignored: Any) -> Tensor:
    """*Squared* Euclidean distances ``||x||^2 + ||y||^2 - 2 x.y``; rounding may leave tiny negative values.

    Args:
        x: [M, D] floating, or [B, M, D] for B independent problems.
        y: [N, D] or [B, N, D].
        ignored: further keywords, which have no effect: so that programs can call every distance alike.

    Returns:
        [M, N] or [B, M, N] squared distances; an empty input gives an empty matrix.
    """
    if ignored:
        warnings.warn(f"get_euclidean ignores the keywords {', '.join(ignored)}.", stacklevel=2)
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


def cosine_similarity(x: Tensor, y: Tensor, eps: float = _MIN_DISTANCE) -> Tensor:
    """Cosine similarities in [-1, 1] (up to rounding).

    Args:
        x: [M, D], or [B, M, D]; rows need not have unit length.
        y: [N, D] or [B, N, D].
        eps: lower bound of the length that a row is divided by, so that a row of zeros has similarity 0 to all.

    Returns:
        [M, N] or [B, M, N] similarities: float64 if x or y is, otherwise float32, whatever the autocast state.
    """
    with torch.autocast(x.device.type, enabled=False):
        wide = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
        return F.normalize(x.to(wide), dim=-1, eps=eps) @ F.normalize(y.to(wide), dim=-1, eps=eps).mT


def cosine_dist(x: Tensor, y: Tensor) -> Tensor:
    """:func:`get_cosine` in float32 whatever the inputs, as the losses use it."""
    return get_cosine(x.float(), y.float())


def get_cosine(x: Tensor, y: Tensor, eps: float = _MIN_DISTANCE) -> Tensor:
    """``|1 - similarity|``, in [eps, 2] up to rounding; used by the metrics.

    Args:
        x, y: as for :func:`cosine_similarity`, with the same types of the result.
        eps: lower bound of the distances, and of the lengths as there.
    """
    return (1 - cosine_similarity(x, y, eps)).abs().clamp(min=eps)


_METRICS: dict[str, DistanceFunc] = {"euclidean": get_euclidean, "cosine": get_cosine}
_LOSS_DISTANCES: dict[str, DistanceFunc] = {"euclidean": euclidean_dist, "cosine": cosine_dist}


def get_dist_func(func_name: str = "euclidean") -> DistanceFunc:
    """The distance that rankings use: :func:`get_euclidean`, which is *squared*, or for "cosine" :func:`get_cosine`.

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
