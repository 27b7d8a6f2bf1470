"""The contents of a loaded file: which network its weights belong to, and the weights of its backbone."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

BACKBONE_PREFIXES = ("backbone.base.", "base.")  # in a whole model, and in a Baseline of its own
_HEADS = {"fc", "classifier", "bottleneck"}  # parts of ImageNet weights that are not the backbone
# Blocks per layer -> network, for blocks of two convolutions and for blocks of three.
_BASIC: dict[tuple[int, ...], str] = {(2, 2, 2, 2): "resnet18", (3, 4, 6, 3): "resnet34"}
_BOTTLENECK: dict[tuple[int, ...], str] = {
    (3, 4, 6, 3): "resnet50",
    (3, 4, 23, 3): "resnet101",
    (3, 8, 36, 3): "resnet152",
}


def describe(content: Mapping[str, Any]) -> str:
    """Describe what a loaded file holds: "a CTL checkpoint of resnet18", "torchvision resnet50 weights", ..."""
    state = _state_dict_of(content)
    network = identify_network(backbone_of(content))
    is_whole = "fc_query.weight" in state or "hyper_parameters" in content
    if any(key.startswith("backbone.") for key in state) and is_whole:
        return f"a CTL checkpoint of {network or 'an unknown network'}"
    if network is not None:
        return f"{'IBN-a' if 'ibn' in network else 'torchvision'} {network} weights"
    if "pytorch-lightning_version" in content:
        return "a Lightning checkpoint of another model"
    if state:
        return f"weights of an unknown network (the first is {next(iter(state))})"
    return f"a dictionary without weights (keys: {', '.join(map(str, list(content)[:5])) or 'none'})"


def identify_network(keys: Iterable[str]) -> str | None:
    """The MODEL.NAME whose backbone has these keys ("layer1.0.conv1.weight", ...), or None."""
    names = set(keys)
    blocks = [re.match(r"layer([1-4])\.(\d+)\.conv1\.weight$", name) for name in names]
    found = [(int(match[1]), int(match[2])) for match in blocks if match]
    depths = tuple(1 + max((block for layer, block in found if layer == i), default=-1) for i in (1, 2, 3, 4))
    network = (_BOTTLENECK if "layer1.0.conv3.weight" in names else _BASIC).get(depths)
    return f"{network}_ibn_a" if network and "layer1.0.bn1.IN.weight" in names else network


def _state_dict_of(content: Mapping[str, Any]) -> dict[str, Tensor]:
    inner = content.get("state_dict")
    entries = inner if isinstance(inner, dict) else content
    tensors = {str(key): value for key, value in entries.items() if isinstance(value, Tensor)}
    if tensors and all(key.startswith("module.") for key in tensors):
        return {key.removeprefix("module."): value for key, value in tensors.items()}
    return tensors


def backbone_of(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of the backbone in a loaded file, without prefixes or heads; empty if the file holds no tensors."""
    state = _state_dict_of(content)
    for prefix in BACKBONE_PREFIXES:
        inside = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if inside:
            break
    return {key: value for key, value in (inside or state).items() if key.split(".")[0] not in _HEADS}
