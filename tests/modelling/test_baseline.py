"""The backbone with pooling, and every kind of file that can be given as ImageNet weights."""

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from modelling.backbones import BACKBONES, NetworkOptions, get_backbone
from modelling.backbones.resnet_ibn_a import ResNetIBNa
from modelling.baseline import Baseline, load_imagenet_weights, weights_init_classifier, weights_init_kaiming
from tests.small import small_config
from utils.errors import CheckpointError, MissingPathError, UnknownNameError


def config(only_test: bool = False, **model: Any) -> CfgNode:
    keys = {f"MODEL.{name}": value for name, value in model.items()}
    return small_config(**keys, **{"TEST.ONLY_TEST": only_test})


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """Weights as torchvision saves them, with the classifier."""
    torch.manual_seed(1)
    state = get_backbone("resnet18").build(NetworkOptions(1)).state_dict()
    return {**state, "fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}


def assert_loaded(model: Baseline, weights: dict[str, Tensor]) -> None:
    for key, value in model.base.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(value, weights[key]), key


@pytest.mark.parametrize("last_stride", [1, 2])
def test_returns_the_map_and_its_mean(last_stride: int) -> None:
    model = Baseline(config(LAST_STRIDE=last_stride)).eval()
    feature_map, global_feat = model(torch.randn(3, 3, 64, 32))
    assert feature_map.shape == (3, 512, 4 // last_stride, 2 // last_stride) and global_feat.shape == (3, 512)
    torch.testing.assert_close(global_feat, feature_map.mean((2, 3)))
    assert list(dict(model.named_children())) == ["base", "gap", "reduction"]


def test_any_configuration_with_attributes_will_do() -> None:
    namespace = SimpleNamespace(MODEL=SimpleNamespace(**config().MODEL), TEST=SimpleNamespace(ONLY_TEST=False))
    assert Baseline(namespace).state_dict().keys() == Baseline(config()).state_dict().keys()


def test_an_unknown_name() -> None:
    with pytest.raises(UnknownNameError, match="valid names: resnet18"):
        Baseline(config(NAME="vgg16"))


def prefixed(prefix: str) -> Callable[[dict[str, Tensor]], Any]:
    return lambda weights: {prefix + key: value for key, value in weights.items()}


FILES: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "torchvision": prefixed(""),
    "DataParallel": prefixed("module."),
    "wrapped": lambda weights: {"epoch": 90, "state_dict": prefixed("module.")(weights)},
    "CTL checkpoint": lambda weights: {
        "state_dict": {**prefixed("backbone.base.")(weights), "bn.weight": torch.ones(512)},
        "hyper_parameters": {},
    },
    "a Baseline of its own": prefixed("base."),
    "before torch 0.4.1": lambda weights: {k: v for k, v in weights.items() if "num_batches" not in k},
    "parameters": lambda weights: {k: nn.Parameter(v, requires_grad=False) for k, v in weights.items()},
    "heads": lambda weights: {**weights, "classifier.weight": torch.ones(1), "bottleneck.bias": torch.ones(1)},
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "row"])
@pytest.mark.parametrize("form", FILES)
def test_every_form_of_weights_is_loaded(
    tmp_path: Path, weights: dict[str, Tensor], form: str, zipped: bool, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "resnet18.pth"
    torch.save(FILES[form](weights), path, _use_new_zipfile_serialization=zipped)
    with caplog.at_level(logging.INFO, "modelling.backbones.imagenet"):
        model = Baseline(config(PRETRAINED=True, PRETRAIN_PATH=str(path)))
    assert_loaded(model, weights)
    (record,) = caplog.records
    assert f"from {path} into MODEL.NAME resnet18: 100 of 100 tensors loaded" in record.getMessage()
    assert record.getMessage().endswith("missing: none.")


def test_the_recorded_checkpoint_as_a_start(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    """A checkpoint whose backbone fits is a fine start; one of another network is an error that says what it is."""
    path = tmp_path / "epoch=3.ckpt"
    state = {**prefixed("backbone.base.")(weights), "fc_query.weight": torch.ones(1)}
    torch.save({"state_dict": state, "hyper_parameters": {}}, path)
    assert_loaded(Baseline(config(PRETRAINED=True, PRETRAIN_PATH=str(path))), weights)
    with pytest.raises(CheckpointError) as caught:
        Baseline(config(NAME="resnet34", PRETRAINED=True, PRETRAIN_PATH=str(path)))
    for phrase in ("a CTL checkpoint of resnet18", "MODEL.NAME resnet34", "RESUME_TRAINING", "ONLY_TEST", str(path)):
        assert phrase in str(caught.value)


def test_ibn_weights_keep_the_classifier_as_initialised(tmp_path: Path) -> None:
    net, other = ResNetIBNa(1, (1, 1, 1, 1)), ResNetIBNa(1, (1, 1, 1, 1))
    nn.init.normal_(net.layer2.get_parameter("0.bn1.IN.weight"))
    torch.save({"state_dict": prefixed("module.")(net.state_dict())}, tmp_path / "ibn_a.pth")
    before = other.fc.weight.clone()
    load_imagenet_weights(other, str(tmp_path / "ibn_a.pth"), "resnet50_ibn_a")
    for key, value in other.state_dict().items():
        assert torch.equal(value, before if key == "fc.weight" else net.state_dict()[key]) or key == "fc.bias", key


MISFITS: dict[str, tuple[str, Callable[[dict[str, Tensor]], Any], list[str]]] = {
    "another network": (
        "resnet34",
        prefixed(""),
        [
            "torchvision resnet18 weights",
            "100 of 180 tensors fit, left out: 2 (fc.weight, fc.bias), missing: 80 (layer1.2.conv1.weight, ",
        ],
    ),
    "another block": (
        "resnet50",
        prefixed(""),
        ["torchvision resnet18 weights", "conv1.weight [64, 64, 3, 3] in place of [64, 64, 1, 1]"],
    ),
    "a layer missing": (
        "resnet18",
        lambda weights: {k: v for k, v in weights.items() if not k.startswith("layer3.1.conv2")},
        [
            "99 of 100 tensors fit",
            "missing: 1 (layer3.1.conv2.weight)",
            "share of 0.99 ",
            "and 1 is needed",
            "lower MODEL.PRETRAIN_MIN_SHARE",
        ],
    ),
    "another shape": (
        "resnet18",
        lambda weights: {**weights, "conv1.weight": torch.zeros(64, 1, 7, 7)},
        [
            "99 of 100",
            "left out: 3 (conv1.weight [64, 1, 7, 7] in place of [64, 3, 7, 7], fc.weight",
            "missing: 1 (conv1.weight)",
        ],
    ),
    "more layers": (
        "resnet18",
        lambda weights: {**weights, "layer1.2.conv1.weight": torch.zeros(1)},
        ["100 of 100", "left out: 3 (layer1.2.conv1.weight, fc.weight, fc.bias), missing: none", "share of 0.99 "],
    ),
    "nothing in common": ("resnet18", lambda weights: {"features.0.weight": torch.zeros(1)}, ["none of its entries"]),
    "no weights": ("resnet18", lambda weights: {"epoch": 3}, ["a dictionary without weights", "none of its entries"]),
}


@pytest.mark.parametrize("case", MISFITS)
def test_weights_that_do_not_fit_are_described(tmp_path: Path, weights: dict[str, Tensor], case: str) -> None:
    name, make, phrases = MISFITS[case]
    torch.save(make(weights), tmp_path / "w.pth")
    with pytest.raises(CheckpointError) as caught:
        load_imagenet_weights(get_backbone(name).build(NetworkOptions(1)), str(tmp_path / "w.pth"), name)
    for phrase in [*phrases, "w.pth", f"MODEL.NAME {name}", "MODEL.PRETRAIN_PATH", "MODEL.PRETRAINED False"]:
        assert phrase in str(caught.value)


def test_load_param_of_a_network_and_of_the_whole(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    path = tmp_path / "resnet18.pth"
    torch.save(weights, path)
    whole = Baseline(config())
    whole.load_param(str(path))
    assert_loaded(whole, weights)
    whole = Baseline(config())
    whole.base.load_param(path)
    assert_loaded(whole, weights)
    other = Baseline(config(NAME="resnet34"))
    before = {key: value.clone() for key, value in other.state_dict().items()}
    for load, name in ((other.load_param, "resnet34"), (other.base.load_param, "ResNet")):
        with pytest.raises(CheckpointError, match=rf"resnet18 weights, which {name} cannot start from"):
            load(path)
        with pytest.raises(MissingPathError, match=r"none\.pth"):
            load(tmp_path / "none.pth")
    assert all(torch.equal(value, before[key]) for key, value in other.state_dict().items())


def test_with_a_lower_share_what_fits_is_taken_and_the_rest_stays_as_drawn(
    tmp_path: Path, weights: dict[str, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    """A foreign code base: another stem, a layer of its own, two tensors less."""
    absent = ("layer4.1.conv2.weight", "layer4.1.bn2.weight")
    path = tmp_path / "theirs.pth"
    state = prefixed("encoder.")({key: value for key, value in weights.items() if key not in absent})
    state |= {"encoder.conv1.weight": torch.zeros(64, 1, 7, 7), "encoder.NL.weight": torch.ones(3)}
    torch.save({"network": state, "epoch": 3}, path)
    torch.manual_seed(3)
    drawn = {key: value.clone() for key, value in Baseline(config()).state_dict().items()}
    torch.manual_seed(3)
    cfg = config(PRETRAINED=True, PRETRAIN_PATH=str(path), PRETRAIN_MIN_SHARE=0.9)
    with caplog.at_level(logging.INFO, "modelling.backbones.imagenet"):
        model = Baseline(cfg)
    assert caplog.messages == [
        f"Loaded resnet18 weights whose names begin with encoder. from {path} into MODEL.NAME resnet18: 97 of 100 "
        "tensors loaded (those under network.encoder.), left out: 4 (encoder.conv1.weight [64, 1, 7, 7] in place of "
        "[64, 3, 7, 7], encoder.NL.weight, encoder.fc.weight, ...), missing: 3 (conv1.weight, layer4.1.conv2.weight, "
        "layer4.1.bn2.weight)."
    ]
    for key, value in model.base.state_dict().items():
        is_missing = key in ("conv1.weight", *absent)
        assert torch.equal(value, drawn[f"base.{key}"] if is_missing else weights[key]), key
    cfg.MODEL.PRETRAIN_MIN_SHARE = 0.961
    with pytest.raises(CheckpointError, match=r"share of 0\.96 of the tensors that either has, and 0\.961 is needed"):
        Baseline(cfg)
    cfg.MODEL.PRETRAIN_MIN_SHARE = 0.96  # 97 of 101, rounded down: what the message says is enough
    Baseline(cfg)
    torch.save({"state_dict": {"features.weight": torch.ones(1)}}, path)
    cfg.MODEL.PRETRAIN_MIN_SHARE = 0.0
    with pytest.raises(CheckpointError, match="none of its entries belongs to the network"):
        Baseline(cfg)


def test_weights_in_safetensors(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    from safetensors.torch import save_file

    save_file(weights, tmp_path / "resnet18.safetensors")
    assert_loaded(Baseline(config(PRETRAINED=True, PRETRAIN_PATH=str(tmp_path / "resnet18.safetensors"))), weights)


@pytest.mark.parametrize("name", BACKBONES)
def test_knows_its_name_and_its_channels(name: str) -> None:
    with torch.device("cpu" if name.startswith("osnet") else "meta"):  # autocast knows no meta device
        model = Baseline(config(NAME=name))
        channels = model(torch.zeros(2, 3, 32, 32))[1].shape[1]
    assert (model.model_name, model.in_planes) == (name, channels)


def test_weights_of_layers_are_drawn_anew() -> None:
    torch.manual_seed(0)
    wide, conv, norm = nn.Linear(300, 1200), nn.Conv2d(40, 100, 3), nn.BatchNorm2d(5)
    frozen = nn.BatchNorm1d(3, affine=False)
    untouched = nn.LayerNorm(4)
    model = nn.Sequential(wide, conv, nn.Conv2d(3, 4, 1, bias=False), norm, frozen, untouched, nn.ReLU())
    for parameter in model.parameters():
        nn.init.constant_(parameter, 2.0)
    model.apply(weights_init_kaiming)
    assert wide.weight.std().item() == pytest.approx((2 / 1200) ** 0.5, rel=0.02)
    assert conv.weight.std().item() == pytest.approx((2 / (40 * 9)) ** 0.5, rel=0.02)
    assert abs(wide.weight.mean().item()) < 1e-3
    assert norm.weight.eq(1).all()
    assert all(layer.bias is not None and layer.bias.eq(0).all() for layer in (wide, conv, norm))
    assert untouched.weight.eq(2).all() and untouched.bias.eq(2).all()
    before = conv.weight.clone()
    nn.init.constant_(wide.bias, 2.0)
    model.apply(weights_init_classifier)
    assert wide.weight.std().item() == pytest.approx(0.001, rel=0.02)
    assert wide.bias.eq(0).all()
    assert torch.equal(conv.weight, before)
    weights_init_classifier(nn.Linear(3, 4, bias=False))


@pytest.mark.parametrize("path", ["", "models/none.pth", "."])
def test_a_missing_file_names_the_two_ways_out(path: str) -> None:
    with pytest.raises(
        MissingPathError, match=r"fetch them and set MODEL\.PRETRAIN_PATH .* MODEL\.PRETRAINED False"
    ) as e:
        Baseline(config(PRETRAINED=True, PRETRAIN_PATH=path))
    assert repr(path) in str(e.value)


def test_a_web_page_instead_of_weights(tmp_path: Path) -> None:
    path = tmp_path / "resnet18.pth"
    path.write_text("<!DOCTYPE html><html>404</html>")
    with pytest.raises(CheckpointError, match=r"MODEL\.PRETRAIN_PATH: .* is a web page.*MODEL\.PRETRAINED False"):
        Baseline(config(PRETRAINED=True, PRETRAIN_PATH=str(path)))


@pytest.mark.parametrize(
    ("cfg", "load_weights"),
    [
        (config(PRETRAINED=False, PRETRAIN_PATH="none.pth"), True),
        (config(PRETRAINED=True, PRETRAIN_PATH="none.pth", RESUME_TRAINING=True), True),
        (config(PRETRAINED=True, PRETRAIN_PATH="none.pth", only_test=True), True),
        (config(PRETRAINED=True, PRETRAIN_PATH="none.pth"), False),
    ],
    ids=["not pretrained", "resuming", "only testing", "told not to"],
)
def test_the_file_is_not_needed(cfg: CfgNode, load_weights: bool) -> None:
    Baseline(cfg, load_weights)
