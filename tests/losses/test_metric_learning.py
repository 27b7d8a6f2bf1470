"""Losses of pytorch-metric-learning by name, against the package's own classes and two formulas."""

import sys

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning import losses as metric_losses
from torch import nn

from losses.extra import ExtraLosses
from losses.metric_learning import NAMED
from tests.launch import run_code
from tests.support import assert_close
from utils.errors import UnknownNameError, UserError

NUM_CLASSES, WIDTH = 5, 6
GENERATOR = torch.Generator().manual_seed(0)
FEATURES = 3 * torch.randn(12, WIDTH, generator=GENERATOR)
LABELS = torch.arange(12) // 4 * 2  # 0, 2 and 4


def extra(name, **arguments):
    torch.manual_seed(1)
    return ExtraLosses([name], [], NUM_CLASSES, WIDTH, [arguments])


def values_of(losses, features=FEATURES):
    """The loss, and the gradients of the features and of the loss's own parameters."""
    features = features.clone().requires_grad_()
    (loss,) = losses(features, LABELS).values()
    loss.backward()
    return [loss, features.grad, *(parameter.grad for parameter in losses.parameters())]


@pytest.fixture
def package():
    return metric_losses


@pytest.mark.parametrize("name", NAMED)
def test_each_is_the_class_of_the_package(package, name):
    ours = extra(name)
    sizes = {"num_classes": NUM_CLASSES, "embedding_size": WIDTH} if list(ours.parameters()) else {}
    torch.manual_seed(1)
    theirs = getattr(package, NAMED[name])(**sizes)
    features = FEATURES.clone().requires_grad_()
    loss = theirs(features, LABELS)
    loss.backward()
    expected = [loss, features.grad, *(parameter.grad for parameter in theirs.parameters())]
    found = values_of(ours)
    assert len(found) == len(expected)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_arguments_and_weights_of_its_own(package):
    losses = extra("subcenter_arcface", sub_centers=2, scale=8.0)
    assert {name: tuple(value.shape) for name, value in losses.state_dict().items()} == {
        "subcenter_arcface.loss.W": (WIDTH, 2 * NUM_CLASSES)
    }
    assert losses.subcenter_arcface.loss.scale == 8.0
    # What a base class takes; and a class that takes the number of identities, but does not need it.
    assert extra("contrastive", embedding_reg_weight=3).contrastive.loss.embedding_reg_weight == 3
    assert extra("pml:MarginLoss", num_classes=NUM_CLASSES).MarginLoss.loss.beta.shape == (NUM_CLASSES,)
    assert extra("pml:MarginLoss").MarginLoss.loss.beta.shape == (1,)


def test_arcface_by_its_formula(package):
    """Deng et al. 2019: cross-entropy of s cos(angle), where the angle to the own class is larger by the margin."""
    losses = extra("arcface", margin=18.0, scale=10.0)
    cosines = F.normalize(FEATURES) @ F.normalize(losses.arcface.loss.W.detach(), dim=0)  # [R, classes]
    angles = cosines.acos()
    angles[torch.arange(12), LABELS] += torch.pi / 10
    assert angles.max() < torch.pi
    assert_close(values_of(losses)[0], F.cross_entropy(10 * angles.cos(), LABELS))


def test_circle_by_its_formula(package):
    """Sun et al. 2020, equations 4 and 8, with their m and gamma for re-identification."""
    m, gamma = 0.25, 128
    similarities = F.normalize(FEATURES) @ F.normalize(FEATURES).T
    losses = []
    for anchor in range(12):
        positive = similarities[anchor][(LABELS[anchor] == LABELS) & (torch.arange(12) != anchor)]
        negative = similarities[anchor][LABELS[anchor] != LABELS]
        pull = -gamma * (1 + m - positive).relu() * (positive - (1 - m))
        push = gamma * (negative + m).relu() * (negative - m)
        losses.append(F.softplus(pull.logsumexp(0) + push.logsumexp(0)))
    assert_close(values_of(extra("circle", m=m, gamma=gamma))[0], torch.stack(losses).mean())


def test_a_distance_is_named(package):
    found = values_of(extra("contrastive", distance="CosineSimilarity", pos_margin=1.0, neg_margin=0.0))
    assert not torch.equal(found[0], values_of(extra("contrastive"))[0])
    message = (
        "LOSSES.EXTRA_ARGS: distance of contrastive: pytorch-metric-learning has no distances.Cos; valid names: .*"
    )
    with pytest.raises(UnknownNameError, match=f"{message}CosineSimilarity"):
        extra("contrastive", distance="Cos")


@pytest.mark.parametrize("name", ["arcface", "proxy_anchor", "circle"])
def test_it_is_computed_in_float32_under_autocast(package, name):
    losses = extra(name)
    narrow = FEATURES.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = values_of(losses, narrow)
    expected = values_of(extra(name), narrow.float())
    assert all(parameter.dtype == torch.float32 for parameter in losses.parameters())
    assert torch.equal(found[0], expected[0])


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("circle", {"gama": 80}, r"^LOSSES.EXTRA_ARGS: circle has no argument 'gama'; valid ones: .*gamma, m, .*\.$"),
        ("arcface", {"num_classes": 3}, "arcface has no argument 'num_classes'; valid ones: .*margin, .*scale, "),
        ("circle", {"mat_based_loss": True}, "circle has no argument 'mat_based_loss'"),
        (
            "circle",
            {"m": "big"},
            r"circle\(num_classes, embedding_size, m='big'\) should build a loss, but failed",
        ),
        ("circle", {"distance": "LpDistance"}, "failed with AssertionError: CircleLoss requires .* CosineSimilarity"),
        ("pml:Circle", {}, "pml:Circle: pytorch-metric-learning has no losses.Circle; valid names: .*CircleLoss, "),
        ("pml:VICRegLoss", {}, r"pml:VICRegLoss: VICRegLoss\(num_classes, embedding_size\) should build .* ValueError"),
        ("pml:SelfSupervisedLoss", {}, "failed with TypeError: .*'loss'"),
    ],
)
def test_what_cannot_work_is_told_before_the_training(package, name, arguments, message):
    with pytest.raises(UserError, match=message):
        extra(name, **arguments)


def test_trying_a_loss_draws_nothing(package):
    torch.manual_seed(1)
    expected = torch.rand(3)
    extra("pml:TripletMarginLoss", triplets_per_anchor=1)  # at random
    assert torch.equal(torch.rand(3), expected)


class RememberingLoss(nn.Module):
    """Counts how often it was computed, as losses of the package do that keep what they have seen."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, features, labels):
        self.calls += 1
        return self.calls * features.square().mean()


def test_trying_a_loss_leaves_it_as_it_is(monkeypatch):
    monkeypatch.setattr(metric_losses, "RememberingLoss", RememberingLoss, raising=False)
    features = FEATURES.clone().requires_grad_()
    loss = RememberingLoss()(features, LABELS)
    assert torch.equal(values_of(extra("pml:RememberingLoss"))[0], loss)


def test_without_the_package_the_extra_is_named(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "pytorch_metric_learning"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning", None)
    message = r"^LOSSES.EXTRA {} needs the package pytorch_metric_learning, which cannot be imported \(.*\): "
    for name in ("circle", "pml:CircleLoss"):
        with pytest.raises(UserError, match=message.format(name) + r"pip install 'centroids-reid\[losses\]'$"):
            extra(name)
    assert not list(ExtraLosses([], [], NUM_CLASSES, WIDTH).parameters())


def test_the_package_is_not_imported_unless_it_is_used():
    code = "import sys, train_ctl_model, losses.metric_learning; print('pytorch_metric_learning' in sys.modules)"
    done = run_code(code)
    assert done.stdout == "False\n", done.stderr
