"""What docs/BACKBONES.md says about adding a network, tried with the code that stands there."""

import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from config.switches import PACKAGES
from inference.embedding.embedder import Embedder
from modelling import backbones
from modelling.backbones import Backbone, get_backbone, register_backbone
from modelling.baseline import Baseline
from tests.docs.test_commands import BLOCKS
from tests.small import small_config
from train_ctl_model import CTLModel
from utils.errors import UserError

PAGE = BLOCKS["docs/BACKBONES.md"]
IMAGES = torch.randn(2, 3, 32, 16, generator=torch.Generator().manual_seed(0))


def code(*words):
    """The one block of the page that holds all the words."""
    (block,) = [block for block in PAGE if all(word in block.text for word in words)]
    return block.text


@pytest.fixture
def small_net(monkeypatch):
    """The class of the page; what a test registers is forgotten after it."""
    monkeypatch.setattr(backbones.REGISTRY, "registered", {})
    namespace = {}
    exec(code("class SmallNet"), namespace)
    return namespace["SmallNet"]


@pytest.fixture
def theirs(monkeypatch):
    """The family of the page, over a package of one network."""
    package = ModuleType("their_package")
    package.create = TheirModule
    monkeypatch.setitem(sys.modules, "their_package", package)
    namespace = {"Backbone": Backbone}
    exec("from functools import partial\n" + code("class TheirNetwork"), namespace)
    families = eval("{" + code('"theirs": lambda') + "}", namespace)
    monkeypatch.setitem(backbones.FAMILIES, *families.popitem())
    return package


class TheirModule(nn.Module):
    def __init__(self, name):
        super().__init__()
        self.name, self.conv, self.head = name, nn.Conv2d(3, 5, 16, 16), nn.Linear(5, 2)

    def forward_features(self, images):
        return self.conv(images)


def config(name, **more):
    return small_config(**{"MODEL.NAME": name, "MODEL.BACKBONE_EMB_SIZE": 0}, **more)


def test_the_network_gives_what_its_docstring_says(small_net):
    assert small_net()(IMAGES).shape == (2, 256, 2, 1)
    assert small_net(last_stride=2)(IMAGES).shape == (2, 256, 1, 1)


def test_a_registered_network_embeds(small_net):
    register_backbone("small", small_net)
    model = CTLModel(config("small"), num_classes=3, num_query=1).eval()
    with torch.no_grad():
        expected = model(IMAGES)
    assert expected.shape == (2, 256)
    found = torch.from_numpy(Embedder(model, "cpu").embed(IMAGES))
    torch.testing.assert_close(found, expected)


def test_a_file_of_weights_is_loaded_by_the_names_of_the_network(small_net, tmp_path):
    register_backbone("small", small_net)
    weights = small_net().state_dict()
    torch.save({"module." + name: value for name, value in weights.items()}, tmp_path / "weights.pth")
    pretrained = {"MODEL.PRETRAINED": True, "MODEL.PRETRAIN_PATH": str(tmp_path / "weights.pth")}
    loaded = Baseline(config("small", **pretrained)).base.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in weights.items())


def test_a_network_of_another_package(theirs):
    backbone = Baseline(config("theirs:conv"))
    assert (backbone.base.network.name, backbone.in_planes) == ("conv", 5)
    assert backbone(IMAGES)[1].shape == (2, 5)
    assert [name for name, parameter in backbone.named_parameters() if not parameter.requires_grad] == [
        "base.network.head.weight", "base.network.head.bias",
    ]  # fmt: skip


def test_a_network_that_gives_something_else_is_refused(theirs, monkeypatch):
    monkeypatch.setattr(TheirModule, "forward_features", lambda self, images: [self.conv(images)])
    with pytest.raises(UserError, match=r"MODEL.NAME theirs:conv turns an image \[1, 3, 32, 16\] into a list"):
        Baseline(config("theirs:conv"))


def test_without_the_package_its_extra_is_named(theirs, monkeypatch):
    monkeypatch.setitem(sys.modules, "their_package", None)
    with pytest.raises(UserError, match=r"^MODEL.NAME theirs:conv needs the package their_package.*\[their_extra\]"):
        get_backbone("theirs:conv").build(backbones.NetworkOptions())


def test_the_prefixes_that_switches_know_are_those_of_the_families():
    assert {f"{name}:" for name in backbones.FAMILIES} == set(PACKAGES)
