"""Losses of the user's own, by name."""

import pytest
import torch
from torch import nn

from losses.extra import REGISTRY, ExtraLosses, register_loss
from utils.errors import UnknownNameError, UserError


class Spread(nn.Module):
    def __init__(self, num_classes, embedding_size):
        super().__init__()
        self.scale = nn.Parameter(torch.full((embedding_size,), float(num_classes)))

    def forward(self, features, labels):
        return (features * self.scale).sum() + labels.sum()


@pytest.fixture(autouse=True)
def _only_here(monkeypatch):
    monkeypatch.setattr(REGISTRY, "registered", {})
    register_loss("spread", Spread)
    register_loss("length", lambda num_classes, embedding_size: lambda features, labels: features.norm(dim=1).sum())


FEATURES, LABELS = torch.tensor([[3.0, 4.0], [0.0, 1.0]]), torch.tensor([1, 2])


def test_each_is_weighted_and_named():
    losses = ExtraLosses(["spread", "length"], [0.5, 2.0], num_classes=10, embedding_size=2)
    assert not losses.was_used
    found = losses(FEATURES, LABELS)
    assert {name: value.item() for name, value in found.items()} == {"spread": 0.5 * (10 * 8 + 3), "length": 12.0}
    assert losses.was_used
    assert [name for name, _ in losses.named_parameters()] == ["spread.scale"]


def test_without_weights_each_counts_once():
    assert ExtraLosses(["length"], [], 10, 2)(FEATURES, LABELS)["length"].item() == 6.0


def test_a_path_is_logged_under_its_last_part_and_only_once():
    path = f"{__name__}:Spread"
    assert list(ExtraLosses([path], [], 10, 2).weights) == ["Spread"]
    register_loss("Spread", Spread)
    with pytest.raises(UserError, match="two losses would be logged as 'Spread'"):
        ExtraLosses([path, "Spread"], [], 10, 2)


def test_an_unknown_one_lists_the_registered():
    message = r"LOSSES.EXTRA is 'round'; valid names: arcface, circle, .*, supcon, spread, length; or package"
    with pytest.raises(UnknownNameError, match=message):
        ExtraLosses(["round"], [], 10, 2)


def test_arguments_reach_the_loss():
    def build(num_classes, embedding_size, power=1, scale=1):
        return lambda features, labels: scale * features.pow(power).sum()

    register_loss("power", build)
    arguments = [{}, {"power": 2, "scale": 10}]
    found = ExtraLosses(["length", "power"], [], 10, 2, arguments)(FEATURES, LABELS)
    assert {name: value.item() for name, value in found.items()} == {"length": 6.0, "power": 260.0}
    with pytest.raises(UserError, match=r"power\(num_classes, embedding_size, pow=2\) should build a loss, .*argument"):
        ExtraLosses(["power"], [], 10, 2, [{"pow": 2}])


def test_what_a_user_error_says_is_passed_on():
    def build(num_classes, embedding_size):
        raise UserError("The loss mine needs the file targets.npy.")

    register_loss("mine", build)
    with pytest.raises(UserError, match=r"^The loss mine needs the file targets.npy\.$"):
        ExtraLosses(["mine"], [], 10, 2)


def test_names_of_the_package_are_taken():
    with pytest.raises(UserError, match="A loss cannot be registered as 'circle'; expected a name .* none of arcface"):
        register_loss("circle", Spread)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda num_classes: None,
            r"mine: mine\(num_classes, embedding_size\) should build a loss.*TypeError: .*takes 1",
        ),
        (lambda *sizes: 1 / 0, "but failed with ZeroDivisionError: division by zero"),
        (lambda *sizes: torch.zeros(2), "LOSSES.EXTRA mine built a Tensor; expected a function or module"),
        (lambda *sizes: None, "LOSSES.EXTRA mine built a NoneType; expected a function or module"),
    ],
)
def test_what_builds_no_loss(build, message):
    register_loss("mine", build)
    with pytest.raises(UserError, match=message):
        ExtraLosses(["mine"], [], 10, 2)


@pytest.mark.parametrize(
    ("compute", "found"),
    [
        (lambda features, labels: features.sum(1), r"a tensor of shape \[2\]"),
        (lambda features, labels: 3.0, "3.0"),
        (lambda features, labels: None, "None"),
    ],
)
def test_a_loss_is_a_scalar(compute, found):
    register_loss("mine", lambda *sizes: compute)
    with pytest.raises(UserError, match=f"The loss mine of LOSSES.EXTRA is {found}; expected a scalar"):
        ExtraLosses(["mine"], [], 10, 2)(FEATURES, LABELS)
    register_loss("mine", lambda *sizes: lambda features, labels: features[:1, :1])
    assert ExtraLosses(["mine"], [2.0], 10, 2)(FEATURES, LABELS)["mine"].shape == ()


@pytest.mark.parametrize("name", ["forward", "weights", "was_used", "a.b", "a b", "state_dict"])
def test_names_that_a_loss_cannot_have(name):
    register_loss(name, Spread)
    with pytest.raises(UserError, match=f"a loss cannot be called '{name}'"):
        ExtraLosses([name], [], 10, 2)
