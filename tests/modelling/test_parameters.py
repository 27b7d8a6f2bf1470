"""What the parts of a model are to its optimisers: centres by ownership, layers by depth, what has no decay."""

import sys
from types import ModuleType

import pytest
import timm
from timm.optim import param_groups_layer_decay
from torch import nn

from losses.center_loss import CenterLoss
from losses.extra import REGISTRY as LOSSES
from modelling.backbones import BACKBONES, NetworkOptions
from modelling.parameters import find_distances, find_parts
from tests.modelling.test_computation import make_model
from train_ctl_model import CTLModel
from utils.errors import UserError


def of_optimizers(model):
    """The names of the parameters of each optimiser."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    optimizers, _ = model.configure_optimizers()
    return [[names[id(p)] for group in optimizer.param_groups for p in group["params"]] for optimizer in optimizers]


class Centred(CTLModel):
    """Has parameters with "center" in their names that are no class centres, and further class centres."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.recenter = nn.Linear(2, 2)
        self.second = CenterLoss(3, 2)


def test_centres_are_those_that_a_centre_loss_owns(monkeypatch):
    monkeypatch.setitem(LOSSES.registered, "mine", lambda *sizes: CenterLoss(*sizes))
    network, centers = of_optimizers(make_model(Centred, **{"LOSSES.EXTRA": ["mine"]}))
    assert centers == ["center_loss.centers", "second.centers"]
    assert {"recenter.weight", "recenter.bias", "extra_losses.mine.centers"} <= set(network)


def test_a_centre_loss_of_another_class_owns_its_centres():
    model = make_model()
    model.center_loss = nn.Embedding(6, 16)
    assert of_optimizers(model)[1] == ["center_loss.weight"]


@pytest.mark.parametrize(("name", "blocks"), [("resnet18", 8), ("resnet50", 16), ("resnet50_ibn_a", 16)])
def test_the_layers_of_a_resnet_are_its_blocks(name, blocks):
    network = BACKBONES[name].build(NetworkOptions())
    depths = network.layer_groups()
    assert list(depths) == [name for name, _ in network.named_parameters()]
    stem = {name for name, depth in depths.items() if depth == 0 and not name.startswith("fc.")}  # not called
    assert stem == {"conv1.weight", "bn1.weight", "bn1.bias"}
    expected, depth = {}, 0
    for layer in (network.layer1, network.layer2, network.layer3, network.layer4):
        for block in layer:
            depth += 1
            expected |= {id(parameter): depth for parameter in block.parameters()}
    assert depth == blocks
    for key, parameter in network.named_parameters():
        assert depths[key] == expected.get(id(parameter), 0), key


def test_a_rate_per_block_from_the_configuration():
    model = make_model(backbone=False, **{"SOLVER.LAYER_DECAY": 0.5, "SOLVER.BASE_LR": 1.0, "SOLVER.NO_DECAY": True})
    optimizer = model.configure_optimizers()[0][0]
    found = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    base = model.backbone.base
    for part, rate in ((model.fc_query, 1), (base.layer4[1], 0.5), (base.layer4[0], 0.25), (base.conv1, 0.5**9)):
        assert {found[id(p)]["initial_lr"] for p in part.parameters()} == {rate}
    assert found[id(base.bn1.weight)]["weight_decay"] == found[id(model.bn.weight)]["weight_decay"] == 0
    assert found[id(base.conv1.weight)]["weight_decay"] == model.hparams.SOLVER.WEIGHT_DECAY
    assert optimizer.param_groups[0]["initial_lr"] == 1


class Transformer(nn.Module):
    """The parts of a vision transformer that matter here."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(nn.init.zeros_(nn.Linear(2, 2).weight))
        self.norm = nn.LayerNorm((2, 2))
        self.fc = nn.Linear(2, 2)

    def no_weight_decay(self):
        return {"token"}


class TimmLike(Transformer):
    def group_matcher(self, coarse):
        return {"stem": r"^token", "coarse": coarse}


def in_model(network):
    model = make_model()
    model.backbone = nn.Sequential()
    model.backbone.base = nn.Sequential()
    model.backbone.base.wrapped = network
    return model


def test_norms_and_what_a_network_names_have_no_decay():
    found = find_parts(in_model(Transformer())).no_decay
    path = "backbone.base.wrapped."
    assert {name for name in found if name.startswith(path)} == {
        *(f"{path}token", f"{path}norm.weight", f"{path}norm.bias")
    }
    assert {"bn.weight", "bn.bias"} <= set(found)
    assert "fc_query.weight" not in found


def test_the_blocks_of_a_wrapped_network_of_timm_are_what_timm_makes_of_them(monkeypatch):
    """Its own function is called as it is in timm 1.0; what it finds in no block is at the head."""

    def group_parameters(module, group_matcher, return_values=False, reverse=False):
        assert reverse
        assert group_matcher == {"stem": r"^token", "coarse": False}
        depths = {"token": 0, "norm.weight": 1, "norm.bias": 1}
        return {name: depths.get(name, 2) for name, _ in module.named_parameters()}

    timm, models = ModuleType("timm"), ModuleType("timm.models")
    models.group_parameters = group_parameters
    monkeypatch.setitem(sys.modules, "timm", timm)
    monkeypatch.setitem(sys.modules, "timm.models", models)
    expected = {"token": 2, "norm.weight": 1, "norm.bias": 1, "fc.weight": 0, "fc.bias": 0}
    found = find_parts(in_model(TimmLike())).distances
    assert found == {f"backbone.base.wrapped.{name}": far for name, far in expected.items()}


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "convnext_atto", "swin_tiny_patch4_window7_224", "resnet18"])
def test_rates_by_block_are_those_of_timm(name):
    """Its own function groups a network that has a head; ours has none of its own."""
    full = timm.create_model(name, num_classes=3)
    names = {id(parameter): key for key, parameter in full.named_parameters()}
    groups = param_groups_layer_decay(full, layer_decay=0.5)
    expected = {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}
    found = find_distances(timm.create_model(name, num_classes=0))
    assert {key: 0.5**far for key, far in found.items()} == {key: expected[key] for key in found}


@pytest.mark.parametrize(
    ("depths", "message"),
    [
        ([["token"]], "list"),
        ({"token": 0, "norm.weight": 1, "norm.bias": 1}, r"2 \(fc.bias, fc.weight\)"),
        ({"token": 0, "norm.weight": 1, "norm.bias": 1, "fc.weight": 1, "fc.bias": 1, "other": 1}, r"1 \(other\)"),
        ({"token": 0, "norm.weight": 1, "norm.bias": 1, "fc.weight": 1, "fc.bias": "last"}, "dict"),
    ],
)
def test_depths_of_every_parameter_are_asked_for(depths, message):
    network = Transformer()
    network.layer_groups = lambda: depths
    with pytest.raises(UserError, match=rf"^layer_groups\(\) of Transformer must .*; it differs in .*{message}"):
        find_distances(network)


def test_a_network_that_does_not_tell_its_layers_is_refused():
    assert find_distances(Transformer()) is None
    model = make_model(**{"SOLVER.LAYER_DECAY": 0.5})
    with pytest.raises(UserError, match="does not tell the order of its layers"):
        model.configure_optimizers()
    model.backbone.layer_groups = lambda: dict.fromkeys(dict(model.backbone.named_parameters()), 0)
    assert len(model.configure_optimizers()[0][0].param_groups) == 2


def test_a_network_is_asked_for_its_blocks_only_where_their_rates_differ():
    model = make_model()
    model.backbone.layer_groups = lambda: pytest.fail("asked")
    assert len(model.configure_optimizers()[0][0].param_groups) == 1
