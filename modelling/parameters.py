"""What a model's parameters are to its optimisers: class centres, blocks of the backbone, those without decay."""

from collections.abc import Mapping
from importlib import import_module
from types import SimpleNamespace
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from checkpoints.weights import shorten
from losses.center_loss import CenterLoss
from solver.groups import Parts
from utils.errors import UserError

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm)
_HEAD = "-"  # the name of no parameter: what belongs to none of a network's blocks


def find_parts(model: nn.Module, with_distances: bool = True) -> Parts:
    """What the optimisers must know of a model besides the names of its parameters.

    - The class centres are the parameters of ``center_loss`` and of every other CenterLoss but those of extra losses.
    - The distances are those of the first module in the backbone that tells them, see :func:`find_distances`.
    - No decay is for the parameters of norm layers, and for those that a module names in ``no_weight_decay()``.

    Args:
        model: a model with a ``backbone``.
        with_distances: False does not ask the backbone for its blocks.
    """
    centers: set[int] = set()
    no_decay: set[str] = set()
    for path, module in model.named_modules():
        is_center = path == "center_loss" or isinstance(module, CenterLoss)
        if is_center and not path.startswith("extra_losses."):
            centers |= {id(parameter) for parameter in module.parameters()}
        named = module.no_weight_decay() if callable(getattr(module, "no_weight_decay", None)) else ()
        own = [name for name, _ in module.named_parameters(recurse=False)] if isinstance(module, _NORMS) else ()
        no_decay |= {_join(path, name) for name in (*named, *own)}
    names = [name for name, parameter in model.named_parameters() if id(parameter) in centers]
    backbone = getattr(model, "backbone", None)
    distances = find_distances(backbone) if with_distances and isinstance(backbone, nn.Module) else None
    whole = None if distances is None else {f"backbone.{name}": count for name, count in distances.items()}
    return Parts(centers=frozenset(names), distances=whole, no_decay=no_decay)


def find_distances(network: nn.Module) -> dict[str, int] | None:
    """How many blocks there are from each parameter of a network to the head, by name; 1 for those of the last block.

    The order of the blocks is the one of ``layer_groups()`` of the network or of a module in it, which returns the
    depth of each parameter by name: 0 for the stem, then one more for each block. For networks of timm, it is what timm
    makes of their ``group_matcher``, where layers after the last block count as the head. None: no module tells.
    """
    for path, module in network.named_modules():
        if callable(getattr(module, "layer_groups", None)):
            depths = _named_depths(module)
            head = 1 + max(depths.values(), default=0)
        elif callable(getattr(module, "group_matcher", None)):
            named = [*module.named_parameters(), (_HEAD, None)]
            with_head = SimpleNamespace(named_parameters=lambda named=named: named)
            group = import_module("timm.models").group_parameters
            depths = group(with_head, module.group_matcher(coarse=False), reverse=True)
            head = depths.pop(_HEAD)
        else:
            continue
        return {_join(path, name): head - depth for name, depth in depths.items()}
    return None


def _named_depths(module: nn.Module) -> dict[str, int]:
    depths: Any = module.layer_groups()  # type: ignore[operator]
    names = {name for name, _ in module.named_parameters()}
    whole = isinstance(depths, Mapping) and all(isinstance(depth, int) for depth in depths.values())
    if not whole or depths.keys() != names:
        differing = sorted(names ^ depths.keys()) if whole else [type(depths).__name__]
        raise UserError(
            f"layer_groups() of {type(module).__name__} must return the depth of each of its parameters, a whole "
            f"number by name; it differs in {shorten(differing)}."
        )
    return dict(depths)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
