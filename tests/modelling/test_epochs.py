"""Whose settings the optimisers of a continued run have: those of the configuration, or those of the checkpoint."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau, StepLR

from modelling.epochs import SETTINGS, EpochKeeper, check_states
from solver.build import build_optimizer, build_scheduler
from solver.groups import Factors
from utils.errors import UserError

OLD = {"name": "Adam", "base_lr": 0.1, "weight_decay": 0.01, "center_lr": 0.5}
NEW = {"name": "Adam", "base_lr": 0.3, "weight_decay": 0.02, "center_lr": 0.7}
PARAMETERS = ("backbone.weight", "center_loss.centers")


def trained(optimizers):
    """One step of each, so that they have a state."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.ones(2)
        optimizer.step()
    return optimizers


def built(settings):
    return build_optimizer([(name, nn.Parameter(torch.zeros(2))) for name in PARAMETERS], **settings)


def continued(before, after, schedules_before=(), schedules_after=()):
    """Restore ``before`` into ``after``, as Lightning does between the two hooks."""
    configs = [SimpleNamespace(scheduler=schedule) for schedule in schedules_after]
    trainer = SimpleNamespace(optimizers=after, lr_scheduler_configs=configs, current_epoch=0)
    model = SimpleNamespace(compile_backbone=lambda: None, device=torch.device("cpu"))
    keeper = EpochKeeper()
    keeper.on_fit_start(trainer, model)
    for source, target in zip([*before, *schedules_before], [*after, *schedules_after], strict=True):
        target.load_state_dict(source.state_dict())
    keeper.on_train_start(trainer, model)


def settings_of(optimizer):
    return {name: optimizer.param_groups[0][name] for name in SETTINGS if name in optimizer.param_groups[0]}


def test_our_optimisers_have_the_settings_of_the_configuration_and_the_moments_of_the_checkpoint():
    before, after = trained(built(OLD)), built(NEW)
    schedule = build_scheduler(after[0], lambda epoch: 0.5)
    fresh = [settings_of(optimizer) for optimizer in after]
    continued(before, after, [build_scheduler(before[0], lambda epoch: 0.5)], [schedule])
    assert [settings_of(optimizer) for optimizer in after] == fresh
    assert (fresh[0]["initial_lr"], fresh[0]["lr"], fresh[0]["weight_decay"]) == (0.3, 0.15, 0.02)
    assert fresh[1]["lr"] == 0.7
    assert schedule.base_lrs == [0.3]
    (state,) = after[0].state.values()
    assert state["step"] == 1
    assert state["exp_avg"].tolist() == pytest.approx([0.1, 0.1])


@pytest.mark.parametrize(
    ("make", "old", "new"),
    [
        (Adam, {"betas": (0.5, 0.9), "eps": 1e-3}, {"betas": (0.8, 0.99), "eps": 1e-5}),
        (SGD, {"momentum": 0.5}, {"momentum": 0.9}),
    ],
    ids=["Adam", "SGD"],
)
def test_other_settings_of_an_optimiser_with_our_schedule_are_new_too(make, old, new):
    before, after = ([make([nn.Parameter(torch.zeros(2))], lr=0.1, **settings)] for settings in (old, new))
    schedules = [[build_scheduler(optimizer, lambda epoch: 1.0)] for (optimizer,) in (before, after)]
    continued(before, after, *schedules)
    assert {name: after[0].param_groups[0][name] for name in new} == new


@pytest.mark.parametrize(
    "schedule",
    [lambda o: StepLR(o, 1), lambda o: LambdaLR(o, lambda n: 0.5**n), lambda o: ReduceLROnPlateau(o)],
    ids=["steps", "lambda", "plateau"],
)
@pytest.mark.parametrize("number", [0, 1], ids=["network", "centres"])
def test_the_rates_of_other_schedules_are_those_of_the_checkpoint(schedule, number):
    before, after = trained(built(OLD)), built(NEW)
    schedules = [schedule(optimizers[number]) for optimizers in (before, after)]
    before[number].param_groups[0]["lr"] = 0.0123  # where the schedule was
    restored = settings_of(before[number])
    continued(before, after, schedules[:1], schedules[1:])
    assert settings_of(after[number]) == restored


@pytest.mark.parametrize("make", [lambda p, lr: SGD(p, lr=lr, momentum=0.5), lambda p, lr: Adam(p, lr=lr)])
def test_another_optimiser_is_left_as_it_was_restored(make):
    (before, after) = ([make([nn.Parameter(torch.zeros(2))], lr)] for lr in (0.1, 0.3))
    continued(before, after)
    assert after[0].param_groups[0]["lr"] == 0.1


def test_an_old_state_without_fused_is_restored_without_it():
    """How the kernels compute belongs to the restored state, which fits them."""
    before, after = trained(built(OLD)), built(NEW)
    before[0].param_groups[0]["fused"] = None
    continued(before, after, [build_scheduler(before[0], lambda e: 1)], [build_scheduler(after[0], lambda e: 1)])
    assert after[0].param_groups[0]["fused"] is None


@pytest.mark.parametrize(("old", "new", "decay"), [("Adam", "AdamW", 0.3 * 0.02), ("AdamW", "Adam", 0.3)])
def test_adam_and_adamw_go_on_from_the_moments_of_each_other_with_their_own_decay(old, new, decay):
    before, after = trained(built(OLD | {"name": old})), built(NEW | {"name": new})
    schedules = [[build_scheduler(optimizers[0], lambda epoch: 1.0)] for optimizers in (before, after)]
    continued(before, after, *schedules)
    (parameter,) = after[0].param_groups[0]["params"]
    state = after[0].state[parameter]
    assert state["exp_avg"].tolist() == pytest.approx([0.1, 0.1])
    with torch.no_grad():
        parameter += 1
    state["exp_avg"].zero_()
    state["exp_avg_sq"].zero_()
    state["step"].zero_()  # the first step of Adam is as long as the rate
    parameter.grad = torch.zeros(2)
    after[0].step()
    assert parameter.tolist() == pytest.approx([1 - decay] * 2)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"name": "SGD"},
            "the checkpoint has SGD with 1 group(s) of 1 parameters, this configuration makes Adam or AdamW with",
        ),
        (
            {"factors": Factors(head_lr=2.0)},
            "has Adam or AdamW with 2 group(s) of 1, 2 parameters, this configuration makes Adam or AdamW",
        ),
    ],
)
def test_optimisers_that_do_not_fit_the_checkpoint_are_refused(other, message):
    names = ["backbone.a", "bn.a", "bn.b", "center"][:: 1 if "factors" in other else 3]

    def make(settings):
        return build_optimizer([(name, nn.Parameter(torch.zeros(2))) for name in names], **settings)

    states = [optimizer.state_dict() for optimizer in make(OLD | other)]
    with pytest.raises(UserError) as refusal:
        check_states(states, make(NEW))
    assert message in str(refusal.value)
    check_states(states, make(NEW | other))
    check_states([], make(NEW))
