"""From what a network returns to one vector for each image."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from utils.compat import is_autocast_on
from utils.errors import UserError

TOKEN = "token"
_HALVES = (torch.float16, torch.bfloat16)


class GeM(nn.Module):
    """Generalised mean over positions, ``mean(x ** p) ** (1 / p)`` with a learned p (Radenovic et al., PAMI 2019).

    Values below ``eps`` count as ``eps``. p = 1 is the average; the larger p, the nearer to the maximum.

    Args:
        p: the exponent to start from, above 0.
        eps: above 0.
    """

    def __init__(self, p: float = 3.0, eps: float = 1e-6) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.full((1,), p))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, h, w] floating -> [B, D, 1, 1]."""
        # A small number to the power of p is 0 in half precision.
        wide, p = (value.float() if value.dtype in _HALVES else value for value in (x, self.p))
        return wide.clamp(min=self.eps).pow(p).mean((2, 3), keepdim=True).pow(1 / p).to(x.dtype)


class AverageAndMaximum(nn.Module):
    """Half the sum of the average and the maximum over positions."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, h, w] floating -> [B, D, 1, 1]."""
        return (x.mean((2, 3), keepdim=True) + x.amax((2, 3), keepdim=True)) / 2


class Reduction(nn.Linear):
    """A linear layer without bias, computed in the type of its input, whatever the autocast state.

    Weights are drawn from a normal distribution with variance 2 / out_features (He et al., ICCV 2015).
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)
        nn.init.kaiming_normal_(self.weight, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        """[B, D] -> [B, E]."""
        if not is_autocast_on(x.device.type):  # exporters know nothing of autocast
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x)


# MODEL.POOLING -> a module from [B, D, h, w] to [B, D, 1, 1]. A class token is a vector already.
POOLINGS: dict[str, Callable[[], nn.Module]] = {
    "avg": lambda: nn.AdaptiveAvgPool2d(1),
    "max": lambda: nn.AdaptiveMaxPool2d(1),
    "gem": GeM,
    "avgmax": AverageAndMaximum,
    TOKEN: nn.Identity,
}


def pool(output: Tensor, name: str, pooling: nn.Module, prefix_tokens: int = 0) -> Tensor:
    """Reduce the output of a network to one vector for each image.

    Args:
        output: a feature map [B, D, h, w]; tokens [B, N, D], the class token first; or vectors [B, D], which pass.
        name: MODEL.POOLING, one of POOLINGS.
        pooling: the module of that name.
        prefix_tokens: how many of the first tokens belong to no position.

    Returns:
        [B, D].

    Raises:
        UserError: the output has another shape, or no class token where one is asked for.
    """
    if output.dim() == 2:
        return output
    if output.dim() not in (3, 4) or (name == TOKEN and (output.dim() == 4 or not prefix_tokens)):
        wanted = "tokens with a class token" if name == TOKEN else "a map, tokens or vectors"
        raise UserError(f"MODEL.POOLING is {name!r}, which needs {wanted}; the network gives {list(output.shape)}.")
    if name == TOKEN:
        return output[:, 0]
    if output.dim() == 3:
        output = output[:, prefix_tokens:].mT.unsqueeze(-1)  # [B, D, N, 1], a map of one column
    return pooling(output).flatten(1)
