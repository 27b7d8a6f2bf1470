"""The networks: recorded state-dict entries and outputs, and the two places where they differ from torchvision."""

import copy
import functools
import json
import math
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.resnet import BasicBlock, Bottleneck

from checkpoints.weights import identify_network
from modelling.backbones import (
    BACKBONES,
    REGISTRY,
    NetworkOptions,
    check_embedding_size,
    get_backbone,
    register_backbone,
    resnet_ibn_a,
)
from modelling.backbones.resnet import ResNet
from modelling.backbones.resnet_ibn_a import IBN, Bottleneck_IBN, ResNet_IBN, ResNetIBNa
from modelling.baseline import Baseline
from tests.small import small_config
from tests.support import GOLDEN, fill_by_recipe, golden
from utils.compat import program_module
from utils.errors import UnknownNameError, UserError

KEYS = json.loads((GOLDEN / "state_dict_keys.json").read_text())
RECORDED = golden("backbones_given")
RECORDED_NETWORKS = [name for name in BACKBONES if name in KEYS]
SHALLOW = (1, 1, 1, 1)
IMAGES = torch.from_numpy(RECORDED["x"])
# Batch statistics over two images amplify rounding with depth: the recording itself is this far from float64.
TRAIN_NOISE = {"resnet18": 1e-5, "resnet34": 3e-5, "resnet50": 5e-4, "resnet50_ibn_a": 5e-4}


def build(name: str, last_stride: int, weights: dict[str, Tensor]) -> ResNet:
    with torch.device("meta"):  # no time spent on initial weights
        net = get_backbone(name).build(NetworkOptions(last_stride))
    net.load_state_dict({key: value.clone() for key, value in weights.items()}, assign=True)
    return net


@pytest.fixture(scope="module")
def recorded_weight() -> Callable[[str, tuple[int, ...]], Tensor]:
    """Key and size -> weight; kept, as the networks share most entries."""

    @functools.cache
    def weight(key: str, size: tuple[int, ...]) -> Tensor:
        return fill_by_recipe({key: torch.empty(size, dtype=torch.float32 if size else torch.int64)})[key]

    return weight


@pytest.fixture(scope="module", params=RECORDED_NETWORKS)
def recorded(
    request: pytest.FixtureRequest, recorded_weight: Callable[[str, tuple[int, ...]], Tensor]
) -> tuple[str, dict[str, Tensor]]:
    """A name and the weights of its recordings, whose keys begin with "base."."""
    weights = {key.removeprefix("base."): recorded_weight(key, tuple(size)) for key, size in KEYS[request.param]}
    return request.param, weights


@pytest.mark.parametrize("name", RECORDED_NETWORKS)
def test_entries_are_the_recorded_ones_in_order(name: str) -> None:
    with torch.device("meta"):
        entries = get_backbone(name).build(NetworkOptions(1)).state_dict().items()
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
    net = get_backbone(name).build(NetworkOptions(2)).eval()
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


def test_only_the_deepest_network_was_not_recorded() -> None:
    """resnet152_ibn_a has the blocks of resnet152 and, in them, the entries of the other networks with IBN-a."""
    assert set(BACKBONES) - set(RECORDED_NETWORKS) == {"resnet152_ibn_a"}
    with torch.device("meta"):
        state = get_backbone("resnet152_ibn_a").build(NetworkOptions(1)).state_dict()
    shapes = {f"base.{key}": list(value.shape) for key, value in state.items()}

    def blocks(keys: Iterable[str]) -> set[str]:
        return {key.removesuffix(".conv1.weight") for key in keys if key.endswith(".conv1.weight")}

    assert blocks(shapes) == blocks(key for key, _ in KEYS["resnet152"])
    # layer2 has 8 blocks rather than 4, layer3 36 rather than 23: all of the shallower network is in the deeper one.
    assert all(shapes[key] == shape for key, shape in KEYS["resnet101_ibn_a"])
    assert identify_network(state) == "resnet152_ibn_a"


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


@pytest.mark.parametrize("name", RECORDED_NETWORKS)
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


# --------------------------------------------------------------------------------------- what programs build themselves


def state_from_seed(build: Callable[[], nn.Module]) -> dict[str, Tensor]:
    torch.manual_seed(7)
    return build().state_dict()


def assert_same(state: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(state) == list(expected)
    for key, value in state.items():
        assert torch.equal(value, expected[key]), key


def test_without_arguments_it_is_resnet50_with_the_usual_stride() -> None:
    net = ResNet()
    assert_same(state_from_seed(ResNet), state_from_seed(lambda: get_backbone("resnet50").build(NetworkOptions(2))))
    assert (net.layer4[0].conv2.stride, net.layer3[0].conv2.stride) == ((2, 2), (2, 2))


def test_random_init_starts_over() -> None:
    net, new = ResNetIBNa(1, SHALLOW), ResNetIBNa(1, SHALLOW).state_dict()
    for value in net.state_dict().values():
        value.fill_(3)  # weights, and what training left in the running statistics
    torch.manual_seed(7)
    net.random_init()
    drawn = {f"{name}.weight" for name, module in net.named_modules() if isinstance(module, nn.Conv2d)}
    for key, value in net.state_dict().items():
        if key in drawn:
            assert 0.9 < value.std() / new[key].std() < 1.1, key
        else:
            assert torch.equal(value, torch.full_like(value, 3) if key.startswith("fc.") else new[key]), key
    first = net.conv1.weight.clone()
    torch.manual_seed(7)
    net.random_init()
    assert torch.equal(net.conv1.weight, first)


@pytest.mark.parametrize("ibn", [True, False])
def test_a_bottleneck_with_and_without_ibn(ibn: bool) -> None:
    downsample = nn.Sequential(nn.Conv2d(16, 32, 1, 2, bias=False), nn.BatchNorm2d(32))
    block = Bottleneck_IBN(16, 8, ibn, 2, downsample)
    assert isinstance(block.bn1, IBN if ibn else nn.BatchNorm2d)
    plain = Bottleneck(16, 8, 2, downsample)
    assert isinstance(block, Bottleneck) and block.expansion == 4
    plain.bn1 = copy.deepcopy(block.bn1)
    plain.load_state_dict(block.state_dict())
    x = torch.randn(2, 16, 6, 4)
    assert block(x).shape == (2, 32, 3, 2)
    assert torch.equal(block(x), plain(x))
    assert not isinstance(Bottleneck_IBN(16, 4).bn1, IBN)


def test_blocks_of_ones_own_are_told_where_ibn_belongs() -> None:
    flags: list[tuple[int, bool]] = []

    class Block(Bottleneck_IBN):
        def __init__(self, inplanes: int, planes: int, ibn: bool = False, **rest: Any) -> None:
            super().__init__(inplanes, planes, ibn, **rest)
            flags.append((planes, ibn))

    net = ResNet_IBN(2, Block, SHALLOW, num_classes=7)
    assert flags == [(64, True), (128, True), (256, True), (512, False)]
    assert net.fc.weight.shape == (7, 2048)
    assert net(IMAGES).shape == (2, 2048, 2, 1)
    flags.clear()
    assert ResNet(1, Block, SHALLOW)(IMAGES).shape == (2, 2048, 4, 2)
    assert not any(ibn for _, ibn in flags)


@pytest.mark.parametrize(
    ("name", "layers"),
    [("resnet50_ibn_a", (3, 4, 6, 3)), ("resnet101_ibn_a", (3, 4, 23, 3)), ("resnet152_ibn_a", (3, 8, 36, 3))],
)
def test_functions_build_the_networks_of_their_names(
    name: str, layers: tuple[int, ...], caplog: pytest.LogCaptureFixture
) -> None:
    build = getattr(resnet_ibn_a, name)
    with torch.device("meta"):
        net, named = build(2, num_classes=10), get_backbone(name).build(NetworkOptions(2))
    assert not caplog.records
    assert isinstance(net, ResNet_IBN) and isinstance(named, ResNetIBNa)
    assert tuple(len(stage) for stage in (net.layer1, net.layer2, net.layer3, net.layer4)) == layers
    assert net.fc.out_features == 10
    assert {k: v.shape for k, v in net.state_dict().items() if "fc" not in k} == {
        k: v.shape for k, v in named.state_dict().items() if "fc" not in k
    }
    with torch.device("meta"):
        build(last_stride=1, pretrained=True)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    for phrase in ("nothing is downloaded", name, "random weights", ".load_param(path)", "MODEL.PRETRAIN_PATH"):
        assert phrase in record.getMessage()


def test_pooling_and_classifier_can_be_assigned() -> None:
    for net in (ResNet(1, Bottleneck, SHALLOW), ResNet_IBN(1, Bottleneck_IBN, SHALLOW)):
        expected = net.eval()(IMAGES)
        net.avgpool, net.fc = nn.AdaptiveAvgPool2d(1), nn.Sequential(nn.Flatten(), nn.Linear(2048, 3))
        assert torch.equal(net(IMAGES), expected)
        assert net.fc(net.avgpool(expected)).shape == (2, 3)


# -------------------------------------------------------------------------------------------------- the user's own


WIDTH = 24  # no network


class Tiny(nn.Sequential):
    def __init__(self, *strides: Any) -> None:
        super().__init__(nn.Conv2d(3, WIDTH, 3, stride=8))
        self.strides = strides


@pytest.mark.parametrize(
    ("build", "strides"),
    [
        (lambda: Tiny(), ()),
        (lambda pretrained=False: Tiny(pretrained), (False,)),
        (lambda last_stride=7: Tiny(last_stride), (1,)),
        (lambda pretrained=False, last_stride=7: Tiny(pretrained, last_stride), (False, 1)),
        (lambda pretrained=False, *, last_stride: Tiny(pretrained, last_stride), (False, 1)),
        (lambda stride, pretrained=False: Tiny(stride, pretrained), (1, False)),
        (lambda **options: Tiny(*options), ()),
    ],
)
def test_a_builder_gets_the_stride_if_it_wants_one(
    build: Callable[..., nn.Module], strides: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(REGISTRY, "registered", {})
    register_backbone("tiny", build)
    assert get_backbone("tiny").build(NetworkOptions(1)).strides == strides


def test_what_builds_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(REGISTRY, "registered", {})
    words: Any = lambda: "words"  # noqa: E731
    register_backbone("tiny", words)
    with pytest.raises(UserError, match="built a str; expected a torch.nn.Module"):
        get_backbone("tiny").build(NetworkOptions(1))
    with pytest.raises(UserError, match="The network tiny is to be built by 24; expected a function or class"):
        register_backbone("tiny", WIDTH)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=f"MODEL.NAME is '{__name__}:WIDTH', a int; expected a function or class"):
        get_backbone(f"{__name__}:WIDTH")
    assert isinstance(get_backbone(f"{__name__}:Tiny").build(NetworkOptions(1)), Tiny)


@pytest.mark.parametrize("size", [32, 0])
def test_the_map_of_a_registered_network_is_looked_at(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(REGISTRY, "registered", {})
    register_backbone("tiny", Tiny, size)
    for told, right in ((32, False), (24, True)):
        cfg = small_config(**{"MODEL.NAME": "tiny", "MODEL.BACKBONE_EMB_SIZE": told})
        with nullcontext() if right else pytest.raises(UserError, match="tiny gives embeddings of size 24: set"):
            baseline = Baseline(cfg)
            assert all(module.training for module in baseline.modules())  # although it was looked at in eval mode
            assert baseline(torch.rand(2, 3, 32, 16))[1].shape == (2, 24)
