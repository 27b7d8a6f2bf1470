"""What a model's parameters are to its optimisers: class centres, layers by their depth, those without decay."""

from collections.abc import Mapping
from importlib import import_module

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from losses.center_loss import CenterLoss
from solver.groups import Parts

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm)


def find_parts(model: nn.Module) -> Parts:
    """What the optimisers must know of a model besides the names of its parameters.

    - The class centres are the parameters of ``center_loss`` and of every other CenterLoss but those of extra losses.
    - The layers are those of the first module in the backbone that tells them, see :func:`find_layers`.
    - No decay is for the parameters of norm layers, and for those that a module names in ``no_weight_decay()``.
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
    layers = find_layers(backbone) if isinstance(backbone, nn.Module) else None
    whole = None if layers is None else {f"backbone.{name}": depth for name, depth in layers.items()}
    return Parts(centers=frozenset(names), layers=whole, no_decay=no_decay)


def find_layers(network: nn.Module) -> dict[str, int] | None:
    """The depth of each parameter of a network, by name: 0 for the stem, then one more for each block.

    They are what ``layer_groups()`` of the network, or of a module in it, returns; for networks of timm, what timm
    makes of their ``group_matcher``. None: no module tells.
    """
    for path, module in network.named_modules():
        found: Mapping[str, int] | None = None
        if callable(getattr(module, "layer_groups", None)):
            found = module.layer_groups()
        elif callable(getattr(module, "group_matcher", None)):
            group = import_module("timm.models").group_parameters
            found = group(module, module.group_matcher(coarse=False), reverse=True)
        if found is not None:
            return {_join(path, name): depth for name, depth in found.items()}
    return None


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
