"""The contents of a loaded file: which network its weights belong to, and which of them fit a given network."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

# Parts of ImageNet weights, and of what learns without labels, that are not the backbone.
_HEADS = {"fc", "classifier", "bottleneck", "head", "head_dist", "attn_pool", "mask_token", "masked_embed"}
_STATISTICS = ("running_mean", "running_var")
_COUNTER = "num_batches_tracked"  # files written by torch before 0.4.1 do not have it
# Of two networks that fit equally well, these are not the one that is meant to be used.
_HELPERS = {"student", "encoder_k"}
# Blocks per layer -> network, for blocks of two convolutions and for blocks of three.
_BASIC: dict[tuple[int, ...], str] = {(2, 2, 2, 2): "resnet18", (3, 4, 6, 3): "resnet34"}
_BOTTLENECK: dict[tuple[int, ...], str] = {
    (3, 4, 6, 3): "resnet50",
    (3, 4, 23, 3): "resnet101",
    (3, 8, 36, 3): "resnet152",
}
_OSNET_WIDTHS = {64: "x1_0", 48: "x0_75", 32: "x0_5", 16: "x0_25"}  # channels of the stem


Convert = Callable[[dict[str, Tensor]], tuple[dict[str, Tensor], list[str]]]


@dataclass(frozen=True)
class Fit:
    """Which weights of a file fit a network, by name and shape.

    Attributes:
        weights: name in the network -> tensor; what can be loaded.
        place: what stands before those names in the file, such as "teacher.backbone."; "" for nothing.
        size: number of tensors in the network, without the counters of batches.
        left_out: names in the file, below ``place`` or beside it, of the tensors that do not fit.
        missing: names in the network for which the file has no tensor that fits.
        share: from 0 to 1; tensors that fit, of all those that the network or its counterpart in the file has.
        others: the places of other networks in the file that fit as well.
        interpolated: which of the weights were brought to another size, and how.
        renamed: what the file calls the first tensor whose name differs, if names do not tell the tensors apart but
            their order does; "" where names do.
    """

    weights: dict[str, Tensor]
    place: str
    size: int
    left_out: list[str]
    missing: list[str]
    share: float
    others: list[str]
    interpolated: list[str] = field(default_factory=list)
    renamed: str = ""

    def describe(self, verb: str) -> str:
        """ "318 of 318 tensors loaded, left out: 2 (fc.weight, fc.bias), missing: none", with ``verb`` for "loaded"."""
        also = f"; those under {', '.join(self.others)} fit as well" if self.others else ""
        where = f" (those {f'under {self.place}' if self.place else 'without a prefix'}{also})"
        where = where if self.place or also else ""
        counts = f"{self.size - len(self.missing)} of {self.size} tensors {verb}{where}"
        if self.renamed:
            counts += f" in their order, as the names differ ({self.renamed})"
        if self.interpolated:
            counts += f", interpolated: {shorten(self.interpolated)}"
        return f"{counts}, left out: {shorten(self.left_out)}, missing: {shorten(self.missing)}"


def fit_weights(
    content: Mapping[str, Any],
    own: Mapping[str, Tensor],
    convert: Convert | None = None,
    foreign_names: Mapping[str, str] | None = None,
) -> Fit:
    """Find the weights in a file that fit a network, whatever its dictionaries and the prefixes of its names are.

    Args:
        content: a loaded file: tensors by name, in dictionaries at any depth ("state_dict", "model", "teacher", ...).
        own: the network's tensors by name.
        convert: brings tensors to the names and shapes of the network's, and says which of them it interpolated.
        foreign_names: names that it knows -> the network's own, to find them by.

    Returns:
        The best fit: from the one dictionary, and behind the one prefix ("module.", "backbone.", ...), where most
        tensors have the names and shapes of the network's. If some are missing there, but a dictionary has the whole
        network under other names and its order says which tensor is which, that dictionary.
    """
    fit = _fit_by_name(content, own, convert, foreign_names)
    return (_fit_in_order(content, own) if fit.missing else None) or fit


def _fit_by_name(
    content: Mapping[str, Any],
    own: Mapping[str, Tensor],
    convert: Convert | None,
    foreign_names: Mapping[str, str] | None,
) -> Fit:
    sought = {**own, **{foreign: own[name] for foreign, name in (foreign_names or {}).items()}}
    found = [
        (count, not _is_helper(place, prefix), place, prefix, tensors)
        for place, tensors in _dictionaries(content)
        for prefix, count in _prefixes(tensors, sought).items()
    ]
    best = max(found, key=lambda entry: entry[:2], default=(0, True, "", "", {}))
    count, _, place, prefix, tensors = best
    interpolated: list[str] = []
    if convert is not None:
        below = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        converted, interpolated = convert(below)
        beside = {key: value for key, value in tensors.items() if not key.startswith(prefix)}
        tensors = beside | {prefix + name: value for name, value in converted.items()}
    weights = {name: tensors[prefix + name] for name in own if _fits(tensors, prefix, name, own)}
    counted = [name for name in own if not name.endswith(_COUNTER)]
    inside = {key: key.removeprefix(prefix) for key in tensors if key.startswith(prefix) and not key.endswith(_COUNTER)}
    wrong_shape = [
        f"{key} {list(tensors[key].shape)} in place of {list(own[name].shape)}"
        for key, name in inside.items()
        if name in own and name not in weights
    ]
    strangers = [key for key, name in inside.items() if name not in own and name.split(".")[0] not in _HEADS]
    known = {*strangers, *(key for key, name in inside.items() if name in own)}
    others = [key for key in tensors if key not in known and not key.endswith(_COUNTER)]
    missing = [name for name in counted if name not in weights]
    return Fit(
        weights,
        _join(place, prefix),
        len(counted),
        wrong_shape + strangers + others,
        missing,
        (len(counted) - len(missing)) / max(1, len(counted) + len(strangers)),
        [_join(*entry[2:4]) for entry in found if entry[0] == count and entry is not best],
        interpolated,
    )


def _fit_in_order(content: Mapping[str, Any], own: Mapping[str, Tensor]) -> Fit | None:
    """All of a network's tensors, told by their order; None if order does not tell them.

    The file must have as many, apart from its heads, in the same order, with the same shapes and the same last parts of
    their names ("weight", "running_mean"). Equal shapes next to each other say nothing of their order, though: queries
    and keys of attention, say. They have to be numbered, on both sides.
    """
    counted = [name for name in own if not name.endswith(_COUNTER)]
    for place, tensors in sorted(_dictionaries(content), key=lambda found: _is_helper(found[0], "")):
        everything = [key for key in tensors if not key.endswith(_COUNTER)]
        for keys in ([key for key in everything if not _HEADS & set(key.split("."))], everything):
            signature = [(key.rpartition(".")[2], tensors[key].shape) for key in keys]
            if signature != [(name.rpartition(".")[2], own[name].shape) for name in counted]:
                continue
            if _is_ambiguous(counted, keys, own):
                continue
            renamed = next((f"{key} for {name}" for name, key in zip(counted, keys, strict=True) if key != name), "")
            heads = [key for key in everything if key not in keys]
            weights = {name: tensors[key] for name, key in zip(counted, keys, strict=True)}
            return Fit(weights, place, len(counted), heads, [], 1.0, [], renamed=renamed)
    return None


def _is_ambiguous(names: Sequence[str], others: Sequence[str], own: Mapping[str, Tensor]) -> bool:
    """Whether neighbouring parts of a network could be exchanged, and no numbers in their names say which is first.

    Args:
        names: those of the network's tensors, in its order.
        others: names of the same tensors in a file.
        own: the network's tensors by name.
    """
    rows = [(*(one.rpartition(".")[0] for one in pair), pair[0]) for pair in zip(names, others, strict=True)]
    groups = [list(group) for _, group in groupby(rows, key=lambda row: row[0])]
    parts = [group[0][:2] for group in groups]
    shapes = [[(name.rpartition(".")[2], own[name].shape) for *_, name in group] for group in groups]
    for size in range(1, len(parts) // 2 + 1):
        for start in range(len(parts) - 2 * size + 1):
            middle = start + size
            if shapes[start] == shapes[middle] and shapes[start:middle] == shapes[middle : middle + size]:
                pairs = [(parts[i], parts[i + size]) for i in range(start, middle)]
                if not any(all(map(_is_numbered, one, two)) for one, two in pairs):
                    return True
    return False


def _is_numbered(first: str, second: str) -> bool:
    """Whether two names differ first in a number, which is the smaller one in the first: "layer1.9", "layer1.10"."""
    found = zip(re.findall(r"\d+|\D+", first), re.findall(r"\d+|\D+", second), strict=False)
    one, other = next((pair for pair in found if pair[0] != pair[1]), ("", ""))
    return one.isdigit() and other.isdigit() and int(one) < int(other)


def find_unusable(weights: Mapping[str, Tensor], network: nn.Module) -> str:
    """What keeps tensors from being weights, as a clause such as "conv1.weight holds NaN or infinity"; "" if nothing.

    Args:
        weights: tensors by name.
        network: whose parameters and running statistics they are to become; its other buffers may hold anything.
    """
    statistics = (name for name, _ in network.named_buffers() if name.endswith(_STATISTICS))
    for name in (*(name for name, _ in network.named_parameters()), *statistics):
        if (value := weights.get(name)) is None:
            continue
        if not value.is_floating_point():
            return f"{name} is of type {value.dtype} (quantised weights?), not of floating-point numbers"
        if not torch.isfinite(value.float()).all():
            return f"{name} holds NaN or infinity"
    return ""


def what_differs(found: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """The first difference between weights and those of a model, in a few words, and how many more there are."""
    shapes = [
        f"{key} {list(found[key].shape)} in place of {list(own[key].shape)}"
        for key in own
        if key in found and found[key].shape != own[key].shape
    ]
    there = [f"{key} is only in the file" for key in found if key not in own]
    here = [f"{key} is missing in the file" for key in own if key not in found]
    return shorten([*shapes, *there, *here])


def describe(content: Mapping[str, Any], name: str | None = None) -> str:
    """Describe what a loaded file holds: "a CTL checkpoint of resnet18", "torchvision resnet50 weights", ...

    Args:
        content: a loaded file.
        name: MODEL.NAME of a CTL checkpoint, for a network that is not known by its layers.
    """
    state = state_dict_of(content)
    found = list(_networks(content))
    network, place, prefix = min(found, key=lambda one: _is_helper(*one[1:]), default=(None, "", ""))
    is_whole = "fc_query.weight" in state or "hyper_parameters" in content
    if any(key.startswith("backbone.") for key in state) and is_whole:
        return f"a CTL checkpoint of {network or name or 'an unknown network'}"
    if network is not None:
        return _describe_network(network, place, prefix)
    if "pytorch-lightning_version" in content:
        return "a Lightning checkpoint of another model"
    _, largest = max(_dictionaries(content), key=lambda found: len(found[1]), default=("", {}))
    if largest:
        return f"weights of an unknown network (the first is {next(iter(largest))})"
    return f"a dictionary without weights (keys: {', '.join(map(str, list(content)[:5])) or 'none'})"


def identify_network(tensors: Mapping[str, Tensor]) -> str | None:
    """The MODEL.NAME whose backbone has these tensors ("layer1.0.conv1.weight", ...), or None."""
    if "conv2.0.gate.fc1.weight" in tensors:
        return _identify_osnet(tensors)
    blocks = [re.match(r"layer([1-4])\.(\d+)\.conv1\.weight$", name) for name in tensors]
    found = [(int(match[1]), int(match[2])) for match in blocks if match]
    depths = tuple(1 + max((block for layer, block in found if layer == i), default=-1) for i in (1, 2, 3, 4))
    network = (_BOTTLENECK if "layer1.0.conv3.weight" in tensors else _BASIC).get(depths)
    return f"{network}_ibn_a" if network and "layer1.0.bn1.IN.weight" in tensors else network


def _identify_osnet(tensors: Mapping[str, Tensor]) -> str | None:
    stem = tensors.get("conv1.conv.weight")
    width = None if stem is None or stem.dim() != 4 else _OSNET_WIDTHS.get(len(stem))
    ain = "conv2.0.conv2.0.layers.0.conv1.weight" in tensors
    variant = "ain_" if ain else "ibn_" if "conv2.0.IN.weight" in tensors else ""
    return None if width is None else f"osnet_{variant}{width}"


def state_dict_of(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a whole model: those under "state_dict" or else at the top, without "module." if all have it."""
    inner = content.get("state_dict")
    tensors = _tensors(inner if isinstance(inner, dict) else content)
    if tensors and all(key.startswith("module.") for key in tensors):
        return {key.removeprefix("module."): value for key, value in tensors.items()}
    return tensors


def _tensors(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}


def _dictionaries(content: Mapping[Any, Any], place: str = "") -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Every dictionary in a file that holds tensors: its place ("", "state_dict", "a.b") and these tensors."""
    tensors = _tensors(content)
    if tensors:
        yield place, tensors
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _dictionaries(value, f"{place}.{key}" if place else str(key))


def _join(place: str, prefix: str) -> str:
    return ".".join(part for part in (place, prefix) if part)


def _fits(tensors: Mapping[str, Tensor], prefix: str, name: str, own: Mapping[str, Tensor]) -> bool:
    found = tensors.get(prefix + name)
    return found is not None and found.shape == own[name].shape


def _prefixes(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Counter[str]:
    """Every prefix behind which a tensor fits the network, and how many do."""
    found: Counter[str] = Counter()
    for key in tensors:
        starts = [0, *(match.end() for match in re.finditer(r"\.", key))]
        found.update(key[:i] for i in starts if key[i:] in own and _fits(tensors, key[:i], key[i:], own))
    return found


def _networks(content: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """The networks in a file that MODEL.NAME knows: name, place of the dictionary, prefix."""
    for place, tensors in _dictionaries(content):
        mark = r"(.*?)(layer1\.0\.conv1|conv2\.0\.gate\.fc1)\.weight"
        for match in filter(None, (re.fullmatch(mark, key) for key in tensors)):
            own = {key.removeprefix(match[1]): value for key, value in tensors.items() if key.startswith(match[1])}
            network = identify_network(own)
            if network is not None:
                yield network, place, match[1]


def _is_helper(place: str, prefix: str) -> bool:
    return bool(_HELPERS & set(f"{place}.{prefix}".split(".")))


def _describe_network(network: str, place: str, prefix: str) -> str:
    if place == "model" and prefix.removeprefix("module.") == "backbone.":
        return f"a fast-reid checkpoint of {network}"
    if "encoder_q." in prefix:
        return f"a MoCo checkpoint of {network}"
    if {"teacher", "student"} & set(f"{place}.{prefix}".split(".")):
        return f"a DINO or iBOT checkpoint of {network}"
    if prefix.removeprefix("module.") in ("", "base."):
        source = "torchreid" if network.startswith("osnet") else "IBN-a" if "ibn" in network else "torchvision"
        return f"{source} {network} weights"
    return f"{network} weights whose names begin with {prefix}"


def shorten(names: Sequence[str]) -> str:
    """The number of names and the first three of them; "none"."""
    if not names:
        return "none"
    return f"{len(names)} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
