"""Where steps must not wait for the device, losses are looked at now and then, and the first bad step is named."""

from types import SimpleNamespace

import pytest
import torch

from callbacks.loss_guard import STEPS_BETWEEN_CHECKS, LossGuard
from utils.errors import UserError

TRAINER = SimpleNamespace(current_epoch=3, datamodule=SimpleNamespace(train_pids=[10, 20, 30]))
BATCH = (None, torch.tensor([2, 2, 0, 0]), None, torch.tensor([True, True, False, False]))


@pytest.fixture
def module():
    return SimpleNamespace(device=torch.device("cuda"), losses_dict={"query_xent": [], "query_triplet": []})


def step(guard, module, number, value):
    module.losses_dict["query_xent"].append(torch.tensor(value))
    module.losses_dict["query_triplet"].append(torch.tensor(0.5))
    guard.on_train_batch_end(TRAINER, module, {"loss": torch.tensor(value)}, BATCH, number)


BAD = r"The loss is nan at step 4 of epoch 3: query_xent nan, query_triplet 0.5; identities of the batch: 10, 30\."


@pytest.mark.parametrize("moment", ["steps", "validation", "epoch end"])
def test_an_accelerator_is_asked_late_and_the_first_bad_step_is_named(module, moment):
    guard = LossGuard()
    guard.on_train_epoch_start(TRAINER, module)
    for number in range(STEPS_BETWEEN_CHECKS - 1):
        step(guard, module, number, torch.nan if number in (4, 7) else 1.0)  # nothing is raised yet
    with pytest.raises(UserError, match=BAD):
        if moment == "steps":
            step(guard, module, STEPS_BETWEEN_CHECKS - 1, 1.0)
        elif moment == "validation":
            guard.on_validation_start(TRAINER, module)
        else:
            guard.on_train_epoch_end(TRAINER, module)


def test_the_cpu_is_asked_after_each_step(module):
    module.device = torch.device("cpu")
    guard = LossGuard()
    guard.on_train_epoch_start(TRAINER, module)
    for number in range(4):
        step(guard, module, number, 1.0)
    with pytest.raises(UserError, match=BAD):
        step(guard, module, 4, torch.nan)


def test_a_batch_of_unreadable_images_is_called_that(module):
    guard = LossGuard()
    guard.on_train_epoch_start(TRAINER, module)
    for losses in module.losses_dict.values():
        losses.append(torch.tensor(torch.nan))
    unreadable = (*BATCH[:3], torch.zeros(4, dtype=torch.bool))
    guard.on_train_batch_end(TRAINER, module, {"loss": torch.tensor(torch.nan)}, unreadable, 0)
    with pytest.raises(UserError, match=r"No image of the batch at step 0 of epoch 3 .*identities 10, 30"):
        guard.on_validation_start(TRAINER, module)


def test_steps_are_counted_over_looks(module):
    guard = LossGuard()
    guard.on_train_epoch_start(TRAINER, module)
    for number in range(STEPS_BETWEEN_CHECKS + 3):
        step(guard, module, number, 1.0)
    step(guard, module, STEPS_BETWEEN_CHECKS + 3, torch.inf)
    with pytest.raises(UserError, match=f"The loss is inf at step {STEPS_BETWEEN_CHECKS + 3} of"):
        guard.on_validation_start(TRAINER, module)


NAN = torch.tensor([torch.nan])


@pytest.mark.parametrize("outputs", [{"loss": NAN}, NAN, {"loss": NAN.expand(2, 3)}])
def test_a_loss_of_any_shape_is_seen(module, outputs):
    guard = LossGuard()
    guard.on_train_epoch_start(TRAINER, module)
    module.losses_dict["query_xent"].append(NAN)
    guard.on_train_batch_end(TRAINER, module, None, BATCH, 0)  # a step that returns nothing is no step with a loss
    guard.on_train_batch_end(TRAINER, module, outputs, BATCH, 1)
    with pytest.raises(UserError, match=r"The loss is nan at step 0 of epoch 3: query_xent nan; identities"):
        guard.on_validation_start(TRAINER, module)
