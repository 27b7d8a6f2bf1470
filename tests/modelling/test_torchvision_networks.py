"""Networks of torchvision: what they compute, which weights they take, and what is refused."""

import copy
import logging
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import get_model
from torchvision.ops import StochasticDepth

from modelling.backbones import NetworkOptions, get_backbone
from modelling.backbones.imagenet import load_imagenet_weights
from modelling.baseline import Baseline
from tests.launch import run_code
from tests.small import small_config
from utils.errors import UnknownNameError, UserError

SIZE = (64, 32)
IMAGES = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(5))


def build(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"image_size": SIZE, "test_size": SIZE}
    return get_backbone(f"torchvision:{name}").build(NetworkOptions(**sizes | options)).eval()


def cut(model: Any) -> None:
    """Take the classifier off torchvision's own network, so that it gives what the classifier would get."""
    if hasattr(model, "fc"):
        model.fc = nn.Identity()
    elif hasattr(model, "head"):
        model.head = nn.Identity()
    elif isinstance(model.classifier, nn.Linear):
        model.classifier = nn.Identity()
    else:  # ConvNeXt's has a norm, which stays
        model.classifier = nn.Sequential(*(m for m in model.classifier if not isinstance(m, nn.Linear | nn.Dropout)))


WIDTHS = {
    "resnet18": 512,
    "regnet_y_400mf": 440,
    "convnext_tiny": 768,
    "mobilenet_v2": 1280,
    "efficientnet_b0": 1280,
    "densenet121": 1024,
    "swin_t": 768,
}


@pytest.mark.parametrize("name", WIDTHS)
def test_pooled_features_are_torchvisions(name: str) -> None:
    sizes = {key: list(SIZE) for key in ("INPUT.SIZE_TRAIN", "INPUT.SIZE_TEST")}
    named = {"MODEL.NAME": f"torchvision:{name}", "MODEL.BACKBONE_EMB_SIZE": WIDTHS[name]}
    cfg = small_config(**sizes | named)
    baseline = Baseline(cfg).eval()
    own = get_model(name, weights=None).eval()
    missing, unexpected = own.load_state_dict(baseline.base.network.state_dict(), strict=False)
    assert unexpected == [] and all(key.startswith(("fc.", "head.", "classifier.")) for key in missing)
    cut(own)
    with torch.no_grad():
        found, pooled = baseline(IMAGES)
        assert found.shape[:2] == (2, WIDTHS[name]) and found.dim() == 4
        torch.testing.assert_close(pooled, own(IMAGES), rtol=1e-4, atol=1e-5)
    assert not baseline.base.draws
    baseline(IMAGES)[1].square().sum().backward()
    assert all(parameter.grad is not None for parameter in baseline.parameters())


@pytest.mark.parametrize("name", ["convnext_tiny", "swin_t"])
def test_drop_path_rises_to_its_rate(name: str) -> None:
    network = build(name, drop_path=0.3)
    rates = [module.p for module in network.modules() if isinstance(module, StochasticDepth)]
    assert rates == sorted(rates) and (rates[0], rates[-1]) == (0, 0.3) and network.draws


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet18", {"drop_path": 0.1}, "MODEL.DROP_PATH is 0.1, but torchvision:resnet18 has no drop path: set"),
        ("resnet18", {"patch_stride": 12}, "MODEL.PATCH_STRIDE is 12, but torchvision:resnet18 has no patches that"),
        ("vit_b_16", {}, r"torchvision:vit_b_16 has no feature map that is known here; .* see timm:<name>"),
        ("alexnet", {"image_size": (16, 16)}, "torchvision:alexnet cannot compute images of 16 x 16 pixels"),
    ],
)  # fmt: skip
def test_what_a_network_does_not_offer(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build(name, **options)
    assert "\n" not in str(caught.value)


def test_unknown_names() -> None:
    with pytest.raises(
        UnknownNameError, match=r"'torchvision:resnet17', but torchvision \S+ has no network.*resnet1[58]"
    ):
        get_backbone("torchvision:resnet17")
    with pytest.raises(UnknownNameError, match="has no network 'fcn_resnet50'"):  # a network for another task
        get_backbone("torchvision:fcn_resnet50")


def test_a_file_and_the_published_weights(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    state = get_model("resnet18", weights=None).state_dict()
    torch.save({"model": state}, tmp_path / "w.pth")
    network = build("resnet18")
    load_imagenet_weights(network, str(tmp_path / "w.pth"), network.name)
    assert all(torch.equal(value, state[name]) for name, value in network.network.state_dict().items())
    weights = torch_weights()
    monkeypatch.setattr(weights, "get_state_dict", lambda self, progress: {k: v * 0 for k, v in state.items()})
    with caplog.at_level(logging.INFO):
        load_imagenet_weights(network, "", network.name)
    assert not network.network.conv1.weight.any()
    assert "Loaded torchvision's weights ResNet18_Weights.IMAGENET1K_V1 into MODEL.NAME torchvision:resnet18." in (
        caplog.messages
    )


def test_a_mobilenet_with_the_names_of_others(tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Many files of MobileNetV2 number the layers of a block from 0 to 7, where torchvision groups them."""
    own = {
        name: torch.rand(value.shape) if value.is_floating_point() else value
        for name, value in build("mobilenet_v2").network.state_dict().items()
    }
    renamed, layers = {}, (0, 1, 3, 4, 6, 7)
    for name, value in own.items():
        *block, leaf = name.split(".")
        convs = list(dict.fromkeys(key.rpartition(".")[0] for key in own if key.startswith(".".join(block[:3]) + ".")))
        if block[2:3] == ["conv"]:
            name = ".".join([*block[:3], str(layers[convs.index(".".join(block))]), leaf])
        renamed[name] = value
    assert {"features.1.conv.3.weight", "features.18.1.bias", "features.17.conv.7.running_var"} < renamed.keys()
    torch.save(renamed, tmp_path / "w.pt")
    network = build("mobilenet_v2")
    with caplog.at_level(logging.INFO):
        load_imagenet_weights(network, str(tmp_path / "w.pt"), network.name)
    assert all(torch.equal(value, own[name]) for name, value in network.network.state_dict().items())
    assert "into MODEL.NAME torchvision:mobilenet_v2: 260 of 260 tensors loaded in their order" in caplog.messages[-1]


def torch_weights() -> Any:
    from torchvision.models import ResNet18_Weights

    return ResNet18_Weights


def test_without_a_network_there_is_one_line_with_the_way_out(tmp_path: Any) -> None:
    code = """if True:
        import socket
        def refuse(*_, **__):
            raise OSError("no network")
        socket.socket.connect = refuse
        socket.getaddrinfo = refuse
        from modelling.backbones import NetworkOptions, get_backbone
        from modelling.backbones.imagenet import load_imagenet_weights
        name = "torchvision:resnet18"
        load_imagenet_weights(get_backbone(name).build(NetworkOptions()), "", name)
    """
    done = run_code(code, env={"TORCH_HOME": str(tmp_path)})
    assert done.stderr.splitlines()[-1] == (
        "utils.errors.UserError: MODEL.PRETRAIN_PATH is empty, so the weights of torchvision:resnet18 are those that "
        "its package downloads, which failed (URLError: <urlopen error no network>). Set MODEL.PRETRAIN_PATH to a file "
        "of weights, or MODEL.PRETRAINED False to start from random ones."
    )


def test_it_can_be_copied_and_pickled() -> None:
    network = build("convnext_tiny")
    for again in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(again(IMAGES), network(IMAGES)) and again.after_pooling.network is again.network
