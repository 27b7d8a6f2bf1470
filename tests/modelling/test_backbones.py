"""The networks: recorded state-dict entries and outputs, and the two places where they differ from torchvision."""

import copy
import functools
import json
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.resnet import BasicBlock, Bottleneck

from checkpoints.weights import identify_network
from modelling.backbones import BACKBONES, check_embedding_size, get_backbone
from modelling.backbones.resnet import ResNet
from modelling.backbones.resnet_ibn_a import IBN, ResNetIBNa
from tests.support import GOLDEN, fill_by_recipe, golden
from utils.compat import program_module
from utils.errors import UnknownNameError, UserError

KEYS = json.loads((GOLDEN / "state_dict_keys.json").read_text())
RECORDED = golden("backbones_given")
SHALLOW = (1, 1, 1, 1)
IMAGES = torch.from_numpy(RECORDED["x"])
# Batch statistics over two images amplify rounding with depth: the recording itself is this far from float64.
TRAIN_NOISE = {"resnet18": 1e-5, "resnet34": 3e-5, "resnet50": 5e-4, "resnet50_ibn_a": 5e-4}


def build(name: str, last_stride: int, weights: dict[str, Tensor]) -> ResNet:
    with torch.device("meta"):  # no time spent on initial weights
        net = get_backbone(name).build(last_stride)
    net.load_state_dict({key: value.clone() for key, value in weights.items()}, assign=True)
    return net


@pytest.fixture(scope="module")
def recorded_weight() -> Callable[[str, tuple[int, ...]], Tensor]:
    """Key and size -> weight; kept, as the networks share most entries."""

    @functools.cache
    def weight(key: str, size: tuple[int, ...]) -> Tensor:
        return fill_by_recipe({key: torch.empty(size, dtype=torch.float32 if size else torch.int64)})[key]

    return weight


@pytest.fixture(scope="module", params=BACKBONES)
def recorded(
    request: pytest.FixtureRequest, recorded_weight: Callable[[str, tuple[int, ...]], Tensor]
) -> tuple[str, dict[str, Tensor]]:
    """A name and the weights of its recordings, whose keys begin with "base."."""
    weights = {key.removeprefix("base."): recorded_weight(key, tuple(size)) for key, size in KEYS[request.param]}
    return request.param, weights


@pytest.mark.parametrize("name", BACKBONES)
def test_entries_are_the_recorded_ones_in_order(name: str) -> None:
    with torch.device("meta"):
        entries = get_backbone(name).build(1).state_dict().items()
    assert [[f"base.{key}", list(value.shape)] for key, value in entries] == KEYS[name]


@pytest.mark.parametrize("last_stride", [1, 2])
def test_features_are_the_recorded_ones(recorded: tuple[str, dict[str, Tensor]], last_stride: int) -> None:
    name, weights = recorded
    with torch.no_grad():
        feature_map = build(name, last_stride, weights).eval()(IMAGES)
    assert feature_map.shape == tuple(RECORDED[f"{name}_ls{last_stride}_mapshape"])
    features = feature_map.mean((2, 3))
    expected = RECORDED[f"{name}_ls{last_stride}_feat"]
    scale = np.abs(expected).max()  # up to 1e5: the recipe lets deep networks grow
    np.testing.assert_allclose(features[:, ::16], expected, rtol=1e-5, atol=3e-6 * scale)
    np.testing.assert_allclose(features.norm(dim=1), RECORDED[f"{name}_ls{last_stride}_featnorm"], rtol=1e-5)


def test_features_in_training_mode_are_the_recorded_ones(recorded: tuple[str, dict[str, Tensor]]) -> None:
    name, weights = recorded
    with torch.no_grad():
        features = build(name, 1, weights).train()(IMAGES).mean((2, 3))
    noise = TRAIN_NOISE.get(name, 1e-2)
    np.testing.assert_allclose(features[:, ::16], RECORDED[f"{name}_train_feat"], rtol=0, atol=noise)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_against_torchvision_but_for_the_first_relu(name: str) -> None:
    oracle = getattr(models, name)(weights=None).eval()
    oracle.relu = oracle.avgpool = oracle.fc = nn.Identity()
    net = get_backbone(name).build(2).eval()
    oracle.load_state_dict(net.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(net(IMAGES[:1])[0], oracle(IMAGES[:1]).view(-1, 2, 1))


@pytest.mark.parametrize("net", [ResNet(1, BasicBlock, SHALLOW), ResNetIBNa(1, SHALLOW)], ids=["plain", "ibn"])
def test_only_ibn_has_a_relu_before_pooling(net: ResNet) -> None:
    pooled: list[torch.Tensor] = []
    net.maxpool.register_forward_hook(lambda module, inputs, output: pooled.append(inputs[0]))
    net(IMAGES)
    assert pooled[0].min() == 0 if isinstance(net, ResNetIBNa) else pooled[0].min() < -0.5


def test_ibn_is_in_the_first_three_layers_alone() -> None:
    net = ResNetIBNa(1, SHALLOW)
    kinds = {key.split(".")[0] for key, module in net.named_modules() if isinstance(module, IBN)}
    assert kinds == {"layer1", "layer2", "layer3"}


def test_the_unused_classifier_needs_no_gradient() -> None:
    net = ResNetIBNa(1, SHALLOW)
    assert [key for key, p in net.named_parameters() if not p.requires_grad] == ["fc.weight", "fc.bias"]
    net(IMAGES).sum().backward()
    assert [key for key, p in net.named_parameters() if p.requires_grad and p.grad is None] == []


def test_ibn_against_a_plain_loop() -> None:
    torch.manual_seed(0)
    layer = IBN(6)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    x = 3 + 2 * torch.randn(4, 6, 5, 3, dtype=torch.float64)
    expected = torch.empty_like(x)
    for c in range(6):
        norm = layer.IN if c < 3 else layer.BN
        for b in range(4):
            part = x[b, c] if c < 3 else x[:, c]
            scaled = (x[b, c] - part.mean()) / (part.var(unbiased=False) + 1e-5).sqrt()
            expected[b, c] = scaled * norm.weight[c % 3].double() + norm.bias[c % 3].double()
    torch.testing.assert_close(layer.double()(x), expected)


def test_ibn_normalises_instances_in_float32_under_autocast() -> None:
    torch.manual_seed(0)
    layer = IBN(8)
    x = (300 + torch.randn(2, 8, 4, 4)).bfloat16()
    expected = nn.functional.instance_norm(x[:, :4].float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = layer(x)
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result[:, :4], expected.bfloat16(), rtol=0, atol=0)


NETS = [ResNet(1, Bottleneck, SHALLOW), ResNetIBNa(1, SHALLOW)]


@pytest.mark.parametrize("net", NETS, ids=["plain", "ibn"])
def test_initial_weights(net: ResNet) -> None:
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            deviation = math.sqrt(2 / (module.kernel_size[0] ** 2 * module.out_channels))
            assert module.weight.std().item() == pytest.approx(deviation, rel=0.05)
            assert abs(module.weight.mean().item()) < 0.05 * deviation
        elif isinstance(module, nn.BatchNorm2d | nn.InstanceNorm2d):
            assert module.weight.eq(1).all() and module.bias.eq(0).all()


@pytest.mark.parametrize("net", NETS, ids=["plain", "ibn"])
def test_channels_last_gives_the_same_numbers(net: ResNet) -> None:
    last = copy.deepcopy(net).eval().to(memory_format=torch.channels_last)
    with torch.no_grad():
        result = last(IMAGES.contiguous(memory_format=torch.channels_last))
        torch.testing.assert_close(result, copy.deepcopy(net).eval()(IMAGES), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("net", NETS, ids=["plain", "ibn"])
def test_can_be_exported(net: ResNet) -> None:
    net = copy.deepcopy(net).eval()
    with torch.no_grad():
        program = torch.export.export(net, (IMAGES,))
        exported = program_module(program)
        torch.testing.assert_close(exported(IMAGES), net(IMAGES))


@pytest.mark.parametrize("name", BACKBONES)
def test_checkpoints_of_every_network_are_recognised(name: str) -> None:
    assert identify_network(key.removeprefix("base.") for key, _ in KEYS[name]) == name


def test_other_networks_are_not_recognised() -> None:
    assert identify_network([]) is None
    assert identify_network(f"layer{i}.{j}.conv1.weight" for i in (1, 2, 3, 4) for j in range(5)) is None
    assert identify_network(["layer1.x.conv1.weight", "features.0.weight"]) is None


def test_an_unknown_name_lists_the_valid_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"'resnet20'; valid names: resnet18, .*resnet101_ibn_a"):
        get_backbone("resnet20")


def test_an_embedding_size_that_does_not_fit() -> None:
    check_embedding_size("resnet50", 2048)
    with pytest.raises(UserError, match=r"MODEL\.BACKBONE_EMB_SIZE is 2048, but resnet18 .*set .* 512"):
        check_embedding_size("resnet18", 2048)
