"""Resuming a checkpoint of Lightning 1.1 on this Lightning: epoch, optimisers, schedule and callbacks."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from modelling.backbones import get_backbone
from utils.checkpoint import load_ctl_checkpoint
from utils.legacy_checkpoint import upgrade_legacy


class LegacyIO(TorchCheckpointIO):
    def __init__(self, state_keys: dict[str, str], changes: dict[str, Any]) -> None:
        super().__init__()
        self.state_keys, self.changes = state_keys, changes

    def load_checkpoint(self, path: Any, *_: Any, **__: Any) -> dict[str, Any]:
        checkpoint = {**load_ctl_checkpoint(path), **self.changes}
        return upgrade_legacy(checkpoint, self.state_keys)


class Tiny(pl.LightningModule):
    """The members of the recorded model, with a step that trains the head alone."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.backbone = torch.nn.Module()
        self.backbone.base = get_backbone("resnet18").build(1)
        self.center_loss = torch.nn.ParameterDict({"centers": torch.zeros(10, 512)})
        self.bn = torch.nn.BatchNorm1d(512)
        self.bn.bias.requires_grad_(False)
        self.fc_query = torch.nn.Linear(512, 10, bias=False)
        self.seen: list[tuple[int, int, float]] = []
        self.at_start: dict[str, Any] = {}

    def on_train_start(self) -> None:
        adam, sgd = self.trainer.optimizers
        steps = {float(state["step"]) for state in adam.state.values()}
        self.at_start = {"global_step": self.global_step, "adam": steps, "centers": sgd.param_groups[0]["lr"]}

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        adam, sgd = self.optimizers()  # type: ignore[attr-defined]
        self.seen.append((self.current_epoch, batch_idx, adam.param_groups[0]["lr"]))
        loss = self.fc_query(self.bn(batch)).sum() + self.center_loss["centers"].sum()
        self.manual_backward(loss)
        for optimizer in (adam, sgd):
            optimizer.step()
            optimizer.zero_grad()

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.log("mAP", 0.3)

    def on_train_epoch_end(self) -> None:
        self.lr_schedulers().step()  # type: ignore[union-attr]

    def configure_optimizers(self) -> Any:
        named = [(name, p) for name, p in self.named_parameters() if p.requires_grad]
        adam = torch.optim.Adam([p for name, p in named if "center" not in name], lr=1e-4, weight_decay=5e-4)
        sgd = torch.optim.SGD([self.center_loss["centers"]], lr=0.5)
        return [adam, sgd], [torch.optim.lr_scheduler.MultiStepLR(adam, [3, 4, 5])]

    def train_dataloader(self) -> DataLoader:
        return DataLoader(torch.ones(8, 512), batch_size=2)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader:
        return DataLoader(torch.ones(2, 512), batch_size=2)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore")
def test_fit_continues_where_the_original_stopped(
    legacy_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    saver = ModelCheckpoint(dirpath=tmp_path / "checkpoints", monitor="mAP", mode="max")
    recorded = load_ctl_checkpoint(legacy_path)
    (callback,) = recorded["callbacks"].values()
    io = LegacyIO(
        {"ModelCheckpoint": saver.state_key},
        {
            "callbacks": {"pytorch_lightning.callbacks.ModelCheckpoint": {**callback, "dirpath": saver.dirpath}},
            "lr_schedulers": [{**recorded["lr_schedulers"][0], "milestones": {3: 1, 4: 1, 5: 1}}],
        },
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=6,
        check_val_every_n_epoch=2,
        callbacks=[saver],
        plugins=[io],
        logger=False,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = Tiny()
    trainer.fit(model, ckpt_path=str(legacy_path))

    assert model.at_start == {"global_step": 16, "adam": {16.0}, "centers": 0.5}
    # Epochs 0 to 3 are done; the rate of epoch 4 has met the steps at 3 and 4, that of epoch 5 the one at 5 too.
    assert [seen[:2] for seen in model.seen] == [(epoch, batch) for epoch in (4, 5) for batch in range(4)]
    assert [seen[2] for seen in model.seen] == pytest.approx([1e-6] * 4 + [1e-7] * 4)
    # The recorded best score, 0.5112, was known: 0.3 in epoch 5 did not beat it.
    assert saver.best_model_path == "logs/market1501/checkpoints/epoch=3.ckpt"
    assert float(saver.best_model_score) == pytest.approx(0.5112, abs=1e-4)  # type: ignore[arg-type]


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


@pytest.mark.parametrize("behind", [0, 1, 3])
@pytest.mark.parametrize("kind", ["multistep", "cosine"])
def test_schedules_are_caught_up_as_if_they_had_been_stepped(kind: str, behind: int) -> None:
    epoch = 5
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = {
        "multistep": lambda: torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4, 4]),
        "cosine": lambda: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=8, eta_min=0.01),
    }[kind]()
    states = []
    for _ in range(epoch):
        states.append((scheduler.state_dict(), optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    states.append((scheduler.state_dict(), optimizer.param_groups[0]["lr"]))
    state, rate = states[epoch - behind]
    checkpoint = legacy(epoch, lr_schedulers=[dict(state)])
    checkpoint["optimizer_states"][0]["param_groups"][0].update(lr=rate)
    upgraded = upgrade_legacy(checkpoint)
    assert upgraded["lr_schedulers"][0]["last_epoch"] == epoch
    assert upgraded["lr_schedulers"][0]["_last_lr"] == pytest.approx(states[-1][0]["_last_lr"])
    assert upgraded["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(states[-1][1])
    assert checkpoint["optimizer_states"][0]["param_groups"][0]["lr"] == rate  # the input is as it was


def test_states_of_callbacks_that_are_gone_are_dropped() -> None:
    upgraded = upgrade_legacy(legacy(callbacks={"callbacks.Gone": {"a": 1}, "x.Kept": {"b": 2}}), {"Kept": "Kept{}"})
    assert upgraded["callbacks"] == {"Kept{}": {"b": 2}}


@pytest.mark.parametrize("other", [{"loops": {}, "pytorch-lightning_version": "2.1.0"}, {"state_dict": {}}])
def test_other_checkpoints_are_returned_as_they_came(other: dict[str, Any]) -> None:
    assert upgrade_legacy(other) is other


def test_upgrading_twice_is_upgrading_once() -> None:
    once = upgrade_legacy(legacy())
    assert upgrade_legacy(once) is once
    assert once["legacy_pytorch-lightning_version"] == "1.1.4"
