"""Checkpoints of Lightning 1.1 in the layout of Lightning 2. That they resume is tested with the real model in e2e."""

from typing import Any

import pytest
import torch

from checkpoints.lightning_1_1 import upgrade_legacy


def legacy(epoch: int = 4, **changes: Any) -> dict[str, Any]:
    parameter = {"exp_avg": torch.zeros(1)}
    return {
        "epoch": epoch,
        "global_step": 4 * epoch,
        "pytorch-lightning_version": "1.1.4",
        "callbacks": {},
        "state_dict": {},
        "optimizer_states": [
            {
                "state": {0: parameter, 1: parameter, 4: {"exp_avg": torch.ones(1)}},
                "param_groups": [
                    {
                        "names": ["backbone.base.a", "bn.b", "backbone.base.fc.weight", "backbone.base.fc.bias", "z"],
                        "params": [0, 1, 2, 3, 4],
                        "lr": 0.1,
                        "initial_lr": 0.1,
                    }
                ],
            }
        ],
        "lr_schedulers": [],
        **changes,
    }


def test_the_unused_classifier_of_ibn_networks_leaves_the_optimiser() -> None:
    (optimizer,) = upgrade_legacy(legacy())["optimizer_states"]
    (group,) = optimizer["param_groups"]
    assert (group["names"], group["params"]) == (["backbone.base.a", "bn.b", "z"], [0, 1, 2])
    assert list(optimizer["state"]) == [0, 1, 2] and optimizer["state"][2]["exp_avg"] == 1


def test_schedule_and_progress_stand_at_the_saved_epoch() -> None:
    scheduler = {"milestones": {3: 1}, "gamma": 0.1, "base_lrs": [0.1], "last_epoch": 3, "_last_lr": [0.01]}
    checkpoint = legacy(4, lr_schedulers=[scheduler], callbacks={"callbacks.Saver": {"a": 1}})
    upgraded = upgrade_legacy(checkpoint)
    (state,) = upgraded["lr_schedulers"]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    ours = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1.0)
    ours.load_state_dict(state)
    assert (ours.last_epoch, ours.base_lrs) == (4, [0.1])
    assert upgraded["loops"]["fit_loop"]["epoch_progress"]["current"]["completed"] == 4
    assert upgraded["callbacks"] == {}
    assert checkpoint["lr_schedulers"] == [scheduler]  # the input is as it was


@pytest.mark.parametrize("other", [{"loops": {}, "pytorch-lightning_version": "2.1.0"}, {"state_dict": {}}])
def test_other_checkpoints_are_returned_as_they_came(other: dict[str, Any]) -> None:
    assert upgrade_legacy(other) is other


def test_upgrading_twice_is_upgrading_once() -> None:
    once = upgrade_legacy(legacy())
    assert upgrade_legacy(once) is once
    assert once["legacy_pytorch-lightning_version"] == "1.1.4"
