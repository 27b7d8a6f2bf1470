"""Rates and weight decay that differ between the parameters of a network."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from utils.errors import UserError


@dataclass(frozen=True)
class Factors:
    """What rate and decay of a parameter are multiplied by; the factors of all that it is are multiplied.

    Attributes:
        bias_lr: rate of biases, also those of norm layers.
        bias_decay: weight decay of biases.
        head_lr: rate of everything but the backbone.
        layer_decay: rate of a block of the backbone, once for each step from it to the head: 1 for the last block.
        no_decay: no weight decay on biases, on parameters with one dimension, as those of norm layers, and on those
            that ``Parts.no_decay`` names.
    """

    bias_lr: float = 1.0
    bias_decay: float = 1.0
    head_lr: float = 1.0
    layer_decay: float = 1.0
    no_decay: bool = False


@dataclass(frozen=True)
class Parts:
    """What is known of a model besides the names of its parameters; all names here are whole ones.

    Attributes:
        centers: parameters of the class centres; None takes those whose name contains "center", except for parameters
            of extra losses.
        distances: blocks from each parameter of the backbone to the head, 1 for the last block; None if nobody knows.
        no_decay: parameters that ``Factors.no_decay`` concerns whatever their shape, such as position embeddings.
    """

    centers: Collection[str] | None = None
    distances: Mapping[str, int] | None = None
    no_decay: Collection[str] = ()

    def is_center(self, name: str) -> bool:
        """Whether a parameter belongs to the class centres."""
        if self.centers is None:
            return "center" in name and not name.startswith("extra_losses.")
        return name in self.centers


ONE_GROUP = Factors()
BY_NAME = Parts()


def group_parameters(
    named: Sequence[tuple[str, nn.Parameter]], factors: Factors, parts: Parts, *, base_lr: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Groups of parameters for an optimiser of torch: one for each pair of rate and decay.

    Within a group, parameters keep their order. The group whose rate is nearest to ``base_lr`` comes first: it is the
    rate that a run logs.

    Args:
        named: whole names and parameters.
        factors: what rate and decay are multiplied by.
        parts: what is known of the model.
        base_lr: rate at a factor of 1.
        weight_decay: decay at a factor of 1.

    Raises:
        UserError: a factor concerns the head or the layers, and nothing tells which parameters those are.
    """
    if factors == ONE_GROUP:
        return [{"params": [parameter for _, parameter in named]}]
    backbone = backbone_prefix(name for name, _ in named)
    distances = parts.distances or {}
    if factors.layer_decay != 1 and not distances:
        raise UserError(
            f"SOLVER.LAYER_DECAY is {factors.layer_decay}, but the network does not tell the order of its layers: give "
            "it a method layer_groups() that returns the depth of each parameter, by name, with 0 for the stem; or set "
            "SOLVER.LAYER_DECAY 1.0."
        )
    if factors.head_lr != 1 and not any(name.startswith(backbone) for name, _ in named):
        raise UserError(
            f"SOLVER.HEAD_LR_FACTOR is {factors.head_lr}, but no parameter is part of a backbone: their names begin "
            f"with {backbone!r} in a model of this project. Set it to 1.0."
        )
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in named:
        is_bias = name.endswith("bias")
        rate = factors.bias_lr if is_bias else 1.0
        rate *= factors.layer_decay ** distances.get(name, 0) if name.startswith(backbone) else factors.head_lr
        decay = factors.bias_decay if is_bias else 1.0
        if factors.no_decay and (is_bias or parameter.dim() <= 1 or name in parts.no_decay):
            decay = 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    return [
        {"params": groups[rate, decay], "lr": base_lr * rate, "weight_decay": weight_decay * decay}
        for rate, decay in sorted(groups, key=lambda pair: abs(pair[0] - 1))
    ]


def backbone_prefix(names: Iterable[str]) -> str:
    """What the names of the backbone's parameters begin with.

    The backbone of this project is a network, ``backbone.base``, and what turns its features into an embedding, which
    counts as the head; a backbone of another program's is all network.
    """
    return "backbone.base." if any(name.startswith("backbone.base.") for name in names) else "backbone."
