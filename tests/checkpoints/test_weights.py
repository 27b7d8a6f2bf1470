"""Recognising a network by the names of its entries."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from checkpoints.reading import load_checkpoint
from checkpoints.weights import describe, find_unusable, fit_weights, identify_network
from modelling.backbones import BACKBONES, NetworkOptions, get_backbone


def test_describes_the_recorded_checkpoint(legacy_path: Path) -> None:
    assert describe(load_checkpoint(legacy_path)) == "a CTL checkpoint of resnet18"


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_is_told_by_its_entries(name: str) -> None:
    with torch.device("meta"):
        state = get_backbone(name).build(NetworkOptions(1)).state_dict()
    assert identify_network(state) == name
    osnet = name.startswith("osnet")
    if not osnet:
        last = max(int(key.split(".")[1]) for key in state if key.startswith("layer3."))
        assert identify_network({k: v for k, v in state.items() if not k.startswith(f"layer3.{last}.")}) is None
    content = {"state_dict": {f"module.{key}": value for key, value in state.items()}}
    source = "torchreid" if osnet else "IBN-a" if "ibn" in name else "torchvision"
    assert describe(content) == f"{source} {name} weights"
    own = {key: value for key, value in state.items() if osnet or not key.startswith("fc.")}
    fit = fit_weights(content, own)
    assert (fit.weights.keys(), fit.missing, fit.share, fit.place) == (own.keys(), [], 1, "state_dict.module.")
    assert fit.left_out == (["module.fc.weight", "module.fc.bias"] if "ibn_a" in name else [])


def test_other_entries_name_no_network() -> None:
    def identify(*names: str, **shapes: tuple[int, ...]) -> str | None:
        return identify_network({name: torch.empty(shapes.get("stem", ())) for name in names})

    assert identify() is None
    assert identify("layer1.0.conv1.bias", "xlayer1.0.conv1.weight", "features.0.weight") is None
    mark, stem = "conv2.0.gate.fc1.weight", "conv1.conv.weight"
    assert identify(mark) is identify(mark, stem) is identify(mark, stem, stem=(63, 3, 7, 7)) is None
    assert identify(mark, stem, stem=(64,)) is None and identify(mark, stem, stem=(64, 3, 7, 7)) == "osnet_x1_0"


def network(**more: int) -> dict[str, Tensor]:
    """A network of four tensors and a counter; more tensors of some length."""
    sizes = {"conv1.weight": 1, "layer1.0.conv1.weight": 2, "layer1.0.bn1.weight": 3, "layer1.0.bn1.bias": 3} | more
    return {**{key: torch.full((n,), float(n)) for key, n in sizes.items()}, "bn1.num_batches_tracked": torch.tensor(0)}


def prefixed(prefix: str, state: dict[str, Tensor] | None = None, add: float = 0) -> dict[str, Tensor]:
    return {prefix + key: value + add for key, value in (state or network()).items()}


FILES: dict[str, tuple[str, Any]] = {
    "plain": ("", prefixed("")),
    "DataParallel": ("module.", prefixed("module.")),
    "model of a wrapper": ("state_dict.model.", {"state_dict": prefixed("model."), "epoch": 3}),
    "base": ("base.", prefixed("base.")),
    "a Baseline of DataParallel": ("module.base.", prefixed("module.base.")),
    "a CTL checkpoint": (
        "state_dict.backbone.base.",
        {"state_dict": {**prefixed("backbone.base."), "bn.weight": torch.ones(9)}},
    ),
    "an encoder": ("model.encoder.", {"model": prefixed("encoder.")}),
    "fast-reid": (
        "model.backbone.",
        {"model": {**prefixed("backbone."), "heads.weight": torch.ones(9)}, "iteration": 1},
    ),
    "MoCo": (
        "state_dict.module.encoder_q.",
        {
            "state_dict": {
                **prefixed("module.encoder_k.", add=1),
                **prefixed("module.encoder_q."),
                "module.queue": torch.ones(9),
            }
        },
    ),
    "DINO": (
        "teacher.backbone.",
        {
            "student": prefixed("module.backbone.", add=1),
            "teacher": prefixed("backbone."),
            "optimizer": {"state": {0: {"exp_avg": torch.ones(1)}}},
        },
    ),
    "nested": ("a.b.c.d.", {"a": {"b": prefixed("c.d.")}}),
}


@pytest.mark.parametrize("form", FILES)
def test_weights_are_found_under_whatever_dictionaries_and_prefixes(form: str) -> None:
    place, content = FILES[form]
    own = network()
    fit = fit_weights(content, own)
    assert {key: value.tolist() for key, value in fit.weights.items()} == {k: v.tolist() for k, v in own.items()}
    assert (fit.place, fit.size, fit.missing, fit.share) == (place, 4, [], 1.0)
    assert fit.describe("loaded").startswith("4 of 4 tensors loaded")


def test_other_networks_that_fit_as_well_are_named() -> None:
    own = network()
    assert fit_weights(FILES["DINO"][1], own).describe("loaded") == (
        "4 of 4 tensors loaded (those under teacher.backbone.; those under student.module.backbone. fit as well), left "
        "out: none, missing: none"
    )
    plain = {**prefixed(""), "ema": prefixed("", add=1), "part": {"conv1.weight": torch.ones(1)}}
    assert fit_weights(plain, own).others == ["ema"]
    assert "4 of 4 tensors loaded (those without a prefix; those under ema fit as well)," in fit_weights(
        plain, own
    ).describe("loaded")


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)
        self.register_buffer("mask", torch.zeros(2))


USABLE: dict[str, dict[str, Tensor]] = {
    "nothing": {},
    "half": {"conv.weight": torch.ones(1).half(), "bn.running_var": torch.ones(1).to(torch.float8_e4m3fn)},
    "counters and other buffers": {"bn.num_batches_tracked": torch.tensor(3), "mask": torch.tensor([-torch.inf])},
    "strangers": {"fc.weight": torch.tensor([torch.nan])},
}
UNUSABLE = {
    "conv.bias is of type torch.int8 (quantised weights?), not of floating-point numbers": {
        "conv.bias": torch.ones(1, dtype=torch.int8)
    },
    "conv.weight holds NaN or infinity": {"conv.weight": torch.tensor([1.0, torch.nan])},
    "bn.running_mean holds NaN or infinity": {"bn.running_mean": torch.tensor([torch.inf])},
    "bn.running_var holds NaN or infinity": {"bn.running_var": torch.tensor([-torch.inf])},
}


@pytest.mark.parametrize("case", USABLE)
def test_usable_weights(case: str) -> None:
    assert find_unusable(USABLE[case], Network()) == ""


@pytest.mark.parametrize("message", UNUSABLE)
def test_unusable_weights(message: str) -> None:
    assert find_unusable(UNUSABLE[message], Network()) == message


def test_what_does_not_fit_is_listed_and_lowers_the_share() -> None:
    own = network(**{"ibn.weight": 1, "ibn.bias": 1, "extra.weight": 2, "extra.bias": 2})
    content = {"model": {**prefixed("m."), "m.conv1.weight": torch.ones(1, 7), "m.stem.0.weight": torch.ones(1)}}
    content["model"] |= {"m.fc.weight": torch.ones(5), "head.weight": torch.ones(5), "head.bias": torch.ones(5)}
    fit = fit_weights(content, own)
    assert sorted(fit.weights) == [
        "bn1.num_batches_tracked",
        *(f"layer1.0.{k}" for k in ("bn1.bias", "bn1.weight", "conv1.weight")),
    ]
    assert fit.left_out == [
        *("m.conv1.weight [1, 7] in place of [1]", "m.stem.0.weight"),  # these count ...
        *("m.fc.weight", "head.weight", "head.bias"),  # ... and these are no part of the backbone
    ]
    assert fit.missing == ["conv1.weight", "ibn.weight", "ibn.bias", "extra.weight", "extra.bias"]
    assert fit.share == 3 / (8 + 1)
    assert fit.describe("loaded") == (
        "3 of 8 tensors loaded (those under model.m.), left out: 5 (m.conv1.weight [1, 7] in place of [1], "
        "m.stem.0.weight, m.fc.weight, ...), missing: 5 (conv1.weight, ibn.weight, ibn.bias, ...)"
    )


@pytest.mark.parametrize("content", [{}, {"epoch": 2}, {"a": torch.ones(1)}, {"conv1.weight": torch.ones(4, 4)}])
def test_nothing_fits(content: dict[str, Any]) -> None:
    fit = fit_weights(content, network())
    assert (fit.weights, fit.share, fit.place, len(fit.missing)) == ({}, 0, "", 4)


def test_a_larger_network_of_the_same_names_is_no_fit_as_a_whole() -> None:
    with torch.device("meta"):
        small, large = (get_backbone(name).build(NetworkOptions(1)).state_dict() for name in ("resnet50", "resnet101"))
    fit = fit_weights(large, small)
    assert (fit.missing, len(fit.left_out)) == ([], 255)  # 17 blocks with 15 tensors each
    assert fit.share == 265 / (265 + 255)


def ordered(*names: str, norm: str = "weight bias running_mean running_var num_batches_tracked") -> dict[str, Tensor]:
    """Convolutions, each followed by a batch norm, from "conv bn width"; each tensor holds a number of its own."""
    found: dict[str, Tensor] = {}
    for name in names:
        conv, bn, *width = name.split()
        size = int(width[0]) if width else 2
        found[f"{conv}.weight"] = torch.full((size, size), float(len(found)))
        found |= {f"{bn}.{leaf}": torch.full((size,), float(len(found) + i)) for i, leaf in enumerate(norm.split())}
    return found


OWN = ordered("stem.0 stem.1 3", "b.0.conv1 b.0.bn1", "b.0.conv2 b.0.bn2", "b.1.conv1 b.1.bn1")
SAME = ("f.0.0 f.0.1 3", "f.1.0 f.1.1", "f.1.2 f.1.3", "f.10.0 f.10.1")


@pytest.mark.parametrize("heads", [{}, {"fc.weight": torch.ones(9), "module.classifier.1.bias": torch.ones(9)}])
def test_order_tells_the_tensors_of_a_file_with_other_names(heads: dict[str, Tensor]) -> None:
    fit = fit_weights({"model": ordered(*SAME) | heads}, OWN)
    counted = {name: value for name, value in OWN.items() if not name.endswith("num_batches_tracked")}
    assert {name: value.tolist() for name, value in fit.weights.items()} == {k: v.tolist() for k, v in counted.items()}
    left = f"{len(heads)} ({', '.join(heads)})" if heads else "none"
    assert (fit.size, fit.missing, fit.share) == (20, [], 1.0)
    assert fit.describe("loaded") == (
        "20 of 20 tensors loaded (those under model) in their order, as the names differ (f.0.0.weight for "
        f"stem.0.weight), left out: {left}, missing: none"
    )


def test_order_is_not_asked_where_names_tell() -> None:
    fit = fit_weights(prefixed("module.", OWN), OWN)
    assert (fit.place, fit.renamed) == ("module.", "")
    swapped = dict(reversed(OWN.items()))
    assert fit_weights(swapped, OWN).weights.keys() == OWN.keys()
    assert fit_weights(swapped, OWN).renamed == ""


def test_of_two_networks_told_by_order_the_teacher_is_taken() -> None:
    other = {name: value + 100 for name, value in ordered(*SAME).items()}
    fit = fit_weights({"student": other, "teacher": ordered(*SAME)}, OWN)
    assert (fit.place, float(fit.weights["stem.0.weight"][0, 0])) == ("teacher", 0.0)


NOT_TOLD: dict[str, dict[str, Tensor]] = {
    "one tensor less": dict(list(ordered(*SAME).items())[:-2]),
    "one more": ordered(*SAME) | {"f.11.weight": torch.ones(2)},
    "another shape": ordered(*SAME) | {"f.1.2.weight": torch.ones(2, 2, 1, 1)},
    "weight and bias swapped": ordered(*SAME, norm="bias weight running_mean running_var num_batches_tracked"),
    "sorted as text, 10 before 2": ordered("f.0.0 f.0.1 3", "f.1.0 f.1.1", "f.10.0 f.10.1", "f.2.0 f.2.1"),
    "words in place of numbers": ordered("f.0.0 f.0.1 3", "f.1.0 f.1.1", "f.skip.0 f.skip.1", "f.2.0 f.2.1"),
}


@pytest.mark.parametrize("case", NOT_TOLD)
def test_order_that_does_not_tell_loads_nothing(case: str) -> None:
    fit = fit_weights(NOT_TOLD[case], OWN)
    assert (fit.weights, fit.renamed, len(fit.missing)) == ({}, "", 20)


def test_neighbours_of_one_shape_must_be_numbered_on_both_sides() -> None:
    def attention(*names: str) -> dict[str, Tensor]:
        return {f"{name}.weight": torch.full((4, 4), float(i)) for i, name in enumerate(names)}

    words, numbers = attention("query", "key", "value"), attention("to.0", "to.1", "to.2")
    assert fit_weights(words, numbers).weights == fit_weights(numbers, words).weights == {}
    assert len(fit_weights(numbers, attention("qkv1", "qkv2", "qkv3")).weights) == 3
    # As in a ResNet: the last convolution of a block and its shortcut have the same shape.
    block = ordered("a.conv1 a.bn1 3", "a.conv3 a.bn3", "a.downsample.0 a.downsample.1")
    assert fit_weights(ordered("f.0 f.1 3", "f.2 f.3", "f.4 f.5"), block).weights == {}


def full(name: str, prefix: str = "") -> dict[str, Tensor]:
    with torch.device("meta"):
        return prefixed(prefix, get_backbone(name).build(NetworkOptions(1)).state_dict())


DESCRIPTIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "a fast-reid checkpoint of resnet50": lambda: {"model": full("resnet50", "backbone."), "optimizer": {}},
    "a fast-reid checkpoint of resnet50_ibn_a": lambda: {"model": full("resnet50_ibn_a", "module.backbone.")},
    "a MoCo checkpoint of resnet50": lambda: {
        "state_dict": {**full("resnet50", "module.encoder_k."), **full("resnet50", "module.encoder_q.")},
        "arch": "resnet50",
    },
    "a DINO or iBOT checkpoint of resnet18": lambda: {
        "student": full("resnet18", "module.backbone."),
        "teacher": full("resnet18", "backbone."),
    },
    "torchvision resnet34 weights": lambda: {"model": full("resnet34"), "epoch": 1},
    "resnet18 weights whose names begin with encoder.": lambda: full("resnet18", "encoder."),
    "weights of an unknown network (the first is conv1.weight)": lambda: {
        "model": network(),
        "x": {"a": torch.ones(1)},
    },
    "a CTL checkpoint of an unknown network": lambda: {
        "state_dict": {"backbone.base.conv1.weight": torch.ones(1), "fc_query.weight": torch.ones(4)}
    },
}


@pytest.mark.parametrize("expected", DESCRIPTIONS)
def test_files_of_others_are_named_as_what_they_are(expected: str) -> None:
    assert describe(DESCRIPTIONS[expected]()) == expected
