"""Groups of parameters: rates and decay of each, as a plain loop over the names gives them."""

import pytest
import torch
from torch import nn

from config import cfg
from config.validate import CHOICES
from solver.build import build_optimizer
from solver.groups import ONE_GROUP, Factors, Parts, backbone_prefix, group_parameters
from solver.optimizers import OPTIMIZERS, has_fused, make_optimizers
from utils.errors import UserError

NAMES = {
    "backbone.base.token": (1, 1, 2),
    "backbone.base.stem.weight": (2, 2),
    "backbone.base.stem.bias": (2,),
    "backbone.base.blocks.0.norm.weight": (2,),
    "backbone.base.blocks.0.norm.bias": (2,),
    "backbone.base.blocks.1.fc.weight": (2, 2),
    "backbone.base.blocks.1.fc.in_proj_bias": (2,),
    "backbone.base.beside": (2, 2),
    "backbone.pool.p": (1,),
    "bn.weight": (2,),
    "fc_query.weight": (3, 2),
    "center_loss.centers": (3, 2),
    "extra_losses.mine.centers": (3, 2),
}
BLOCKS = {"token": 3, "stem.": 3, "blocks.0.": 2, "blocks.1.": 1}
DISTANCES = {name: far for name in NAMES for part, far in BLOCKS.items() if name.startswith(f"backbone.base.{part}")}
CENTERS = ("center_loss.centers",)
PARTS = Parts(centers=CENTERS, distances=DISTANCES, no_decay={"backbone.base.token"})
RATE, DECAY = 0.5, 0.25


def parameters(names=NAMES):
    return {name: nn.Parameter(torch.zeros(NAMES[name])) for name in names}


def expected(name, factors):
    """Rate and decay of one parameter, case by case."""
    rate, decay = RATE, DECAY
    is_bias = name.endswith("bias")
    if is_bias:
        rate *= factors.bias_lr
        decay *= factors.bias_decay
    if not name.startswith("backbone.base."):
        rate *= factors.head_lr
    elif name in DISTANCES:
        for _ in range(DISTANCES[name]):
            rate *= factors.layer_decay
    if factors.no_decay and (is_bias or len(NAMES[name]) == 1 or name == "backbone.base.token"):
        decay = 0.0
    return pytest.approx(rate), pytest.approx(decay)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    "factors",
    [
        Factors(bias_lr=2),
        Factors(bias_decay=0),
        Factors(head_lr=3),
        Factors(layer_decay=0.5),
        Factors(no_decay=True),
        Factors(bias_lr=2, bias_decay=0.5, head_lr=10, layer_decay=0.75, no_decay=True),
        Factors(bias_lr=2, bias_decay=0.5, head_lr=0.1, layer_decay=0.75),
    ],
    ids=str,
)
def test_rate_and_decay_of_each_parameter_are_those_of_a_plain_loop(factors, optimizer):
    named = parameters()
    settings = {"base_lr": RATE, "weight_decay": DECAY, "center_lr": 9.0}
    network, centers = make_optimizers(named.items(), name=optimizer, factors=factors, parts=PARTS, **settings)
    found = {id(p): (group["lr"], group["weight_decay"]) for group in network.param_groups for p in group["params"]}
    assert {name: found.get(id(parameter)) for name, parameter in named.items()} == {
        name: None if name in CENTERS else expected(name, factors) for name in NAMES
    }
    assert sum(len(group["params"]) for group in network.param_groups) == len(NAMES) - len(CENTERS)
    assert [(group["lr"], group["weight_decay"], group["params"]) for group in centers.param_groups] == [
        (9.0, 0, [named["center_loss.centers"]])
    ]
    pairs = {(group["lr"], group["weight_decay"]) for group in network.param_groups}
    assert len(pairs) == len(network.param_groups)  # no more groups than needed
    order = {id(parameter): number for number, parameter in enumerate(named.values())}
    for group in network.param_groups:
        assert [order[id(p)] for p in group["params"]] == sorted(order[id(p)] for p in group["params"])
    nearest = min(abs(group["lr"] / RATE - 1) for group in network.param_groups)
    assert abs(network.param_groups[0]["lr"] / RATE - 1) == nearest  # what is logged as lr


def test_without_factors_there_is_one_group_in_the_order_of_the_parameters():
    """Also for a model of which more is known: older states of optimisers fit it."""
    named = list(parameters().items())
    (group,) = group_parameters(named, ONE_GROUP, PARTS, base_lr=RATE, weight_decay=DECAY)
    assert list(group) == ["params"]
    assert all(one is other for one, (_, other) in zip(group["params"], named, strict=True))
    network, _ = make_optimizers(named, base_lr=RATE, weight_decay=DECAY, center_lr=1)
    plain = torch.optim.Adam([p for name, p in named if name not in CENTERS], lr=RATE, weight_decay=DECAY)
    for (key, value), (other, plain_value) in zip(
        network.state_dict()["param_groups"][0].items(), plain.state_dict()["param_groups"][0].items(), strict=True
    ):
        assert key == other
        assert value == plain_value or key == "fused"


def test_names_alone_tell_the_centres_of_old_programs_and_owners_those_of_a_model():
    names = ("backbone.recenter.weight", "my_centers", "extra_losses.mine.centers")
    named = {name: nn.Parameter(torch.zeros(1)) for name in names}
    by_name = build_optimizer(named.items(), cfg)[1].param_groups[0]["params"]
    assert [any(p is one for one in by_name) for p in named.values()] == [True, True, False]
    owned = build_optimizer(named.items(), cfg, parts=Parts(centers={"my_centers"}))[1].param_groups[0]["params"]
    assert [any(p is one for one in owned) for p in named.values()] == [False, True, False]


def test_the_keys_of_a_configuration_are_the_factors():
    hparams = cfg.clone()
    hparams.merge_from_list(
        [
            *("SOLVER.BIAS_LR_FACTOR", 2.0, "SOLVER.BIAS_DECAY_FACTOR", 3.0, "SOLVER.HEAD_LR_FACTOR", 5.0),
            *("SOLVER.BASE_LR", 1.0, "SOLVER.WEIGHT_DECAY", 1.0, "SOLVER.OPTIMIZER_NAME", "SGD"),
            *("SOLVER.MOMENTUM", 0.7, "SOLVER.LAYER_DECAY", 0.5),
        ]
    )
    network, _ = build_optimizer(parameters().items(), hparams, parts=PARTS)
    assert isinstance(network, torch.optim.SGD)
    assert {group["momentum"] for group in network.param_groups} == {0.7}
    found = {(group["lr"], group["weight_decay"]) for group in network.param_groups}
    assert found == {(1, 1), (0.125, 1), (0.25, 3), (0.25, 1), (0.5, 3), (0.5, 1), (1, 3), (5, 1)}
    hparams.SOLVER.NO_DECAY = True
    network, _ = build_optimizer(parameters().items(), hparams, parts=PARTS)
    assert {group["weight_decay"] for group in network.param_groups} == {0, 1}


def test_what_nothing_tells_is_refused():
    named = parameters()
    with pytest.raises(UserError, match=r"LAYER_DECAY is 0.5, but .* layer_groups\(\).* SOLVER.LAYER_DECAY 1.0"):
        group_parameters(list(named.items()), Factors(layer_decay=0.5), Parts(), base_lr=1, weight_decay=1)
    with pytest.raises(UserError, match=r"HEAD_LR_FACTOR is 2, but no parameter .* 'backbone.'"):
        group_parameters([("conv.weight", named["bn.weight"])], Factors(head_lr=2), Parts(), base_lr=1, weight_decay=1)


def test_the_backbone_of_another_program_is_all_network():
    assert backbone_prefix(["bn.weight", "backbone.base.conv1.weight", "backbone.pool.p"]) == "backbone.base."
    assert backbone_prefix(["bn.weight", "backbone.scale"]) == "backbone."


def test_the_configuration_allows_the_optimisers_of_the_table():
    assert tuple(OPTIMIZERS) == CHOICES["SOLVER.OPTIMIZER_NAME"]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_adam_and_adamw_are_one_kernel_where_the_device_has_it(name, monkeypatch):
    named = parameters(["bn.weight", "center_loss.centers"]).items()
    settings = {"base_lr": 1.0, "weight_decay": 0.0, "center_lr": 1.0}
    for answer in {False, has_fused(torch.optim.Adam, torch.device("cpu"))}:
        monkeypatch.setattr("solver.optimizers.has_fused", lambda optimizer, device, answer=answer: answer)
        network, centers = make_optimizers(named, name=name, **settings)
        assert bool(network.param_groups[0].get("fused")) is (answer and name != "SGD")
        assert not centers.param_groups[0].get("fused")


@pytest.mark.parametrize(("device", "answer"), [("cpu", True), ("meta", True), ("meta", False)])
def test_the_centres_step_in_one_kernel_on_accelerators_that_have_it(device, answer, monkeypatch):
    """On the CPU they never do: the recorded numbers hold to the bit."""
    monkeypatch.setattr("solver.optimizers.has_fused", lambda optimizer, device: answer)
    named = {name: nn.Parameter(torch.zeros(2, device=device)) for name in ("bn.weight", "center_loss.centers")}
    _, centers = make_optimizers(named.items(), name="SGD", base_lr=1.0, weight_decay=0.0, center_lr=1.0)
    assert bool(centers.param_groups[0].get("fused")) is (answer and device == "meta")


def test_adamw_decays_apart_from_the_gradient():
    rate, decay = 0.1, 0.5
    for name, expected_step in (("AdamW", rate * decay), ("SGD", rate * decay), ("Adam", rate)):
        weight = nn.Parameter(torch.ones(1))
        weight.grad = torch.zeros(1)
        center = nn.Parameter(torch.ones(1))
        settings = {"base_lr": rate, "weight_decay": decay, "center_lr": 1.0, "momentum": 0.0}
        make_optimizers([("w", weight), ("center", center)], name=name, **settings)[0].step()
        assert weight.item() == pytest.approx(1 - expected_step), name
