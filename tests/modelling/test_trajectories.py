"""Whole fits through the real Trainer against recordings of the original."""

import json

import numpy as np
import pytest
import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.loggers.logger import Logger
from torch import nn
from torch.utils.data import DataLoader, Dataset

from tests.small import small_config
from tests.support import assert_close, golden
from train_base_model import BaseModel
from train_ctl_model import CTLModel

RECORDINGS = {
    "trajectory_ctl_s0": CTLModel,
    "trajectory_ctl_cosine_s0": CTLModel,
    "trajectory_base_s0": BaseModel,
}


class Projection(nn.Module):
    """The backbone of the recordings: one linear layer, no feature map."""

    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(24, 32)

    def forward(self, x):
        return None, self.proj(x)


class RecordedBatches(Dataset):
    """The batches of one epoch after another; asked for the n-th time, gives those of epoch n."""

    def __init__(self, data, batches_per_epoch):
        self.fields = [torch.from_numpy(data[f"train_{name}"]) for name in ("x", "labels", "camids", "isreal")]
        self.batches_per_epoch = batches_per_epoch
        self.served = 0

    def __len__(self):
        return self.batches_per_epoch

    def __getitem__(self, index):
        batch = tuple(field[self.served] for field in self.fields)
        self.served += 1
        return batch


class MetricRecorder(Logger):
    """Keeps what a logger is given."""

    def __init__(self):
        super().__init__()
        self.records = []

    name = version = "recorder"

    def log_metrics(self, metrics, step=None):
        self.records.append((step, dict(metrics)))

    def log_hyperparams(self, params, *args, **kwargs):
        pass


class StepRecorder(Callback):
    """The columns of the recording, one row per step."""

    def __init__(self, columns):
        self.columns = columns
        self.rows = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        network, centers = (optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers)
        self.row = {"epoch": trainer.current_epoch, "batch": batch_idx, "lr": network, "center_lr": centers}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        losses = {name: values[-1] for name, values in pl_module.losses_dict.items()}
        row = self.row | {"loss": outputs["loss"]} | losses | outputs["other"]
        self.rows.append([float(row[name]) for name in self.columns])


def fit_recording(name, **options):
    """Repeat a recorded fit and the test after it: the recording, rows of the steps, final weights, logged metrics."""
    data = golden(name)
    recorded = json.loads(str(data["opts_json"]))
    schedule = {"SOLVER.MAX_EPOCHS": 6, "SOLVER.LR_STEPS": (3, 5), "SOLVER.BASE_LR": 0.01, "SOLVER.EVAL_PERIOD": 2}
    network = {"MODEL.BACKBONE_EMB_SIZE": 32}
    cfg = small_config(**network, **schedule, **dict(zip(recorded[::2], recorded[1::2], strict=True)))
    model = RECORDINGS[name](cfg, num_query=int(data["num_query"]), num_classes=10)
    model.backbone = Projection()
    model.load_state_dict({k.removeprefix("init/"): torch.from_numpy(v) for k, v in data.items() if "init/" in k})

    test = [torch.from_numpy(data[f"test_{name}"]) for name in ("x", "labels", "camids")]
    test_loader = DataLoader([(*row, i) for i, row in enumerate(zip(*test, strict=True))], batch_size=128)
    steps, metrics = StepRecorder(data["step_columns"].tolist()), MetricRecorder()
    trainer = Trainer(
        max_epochs=6,
        check_val_every_n_epoch=2,
        num_sanity_val_steps=0,
        devices=1,
        logger=metrics,
        callbacks=[steps],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"accelerator": "cpu"} | options,
    )
    trainer.fit(model, DataLoader(RecordedBatches(data, 3), batch_size=None), test_loader)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    model.hparams.MODEL.USE_CENTROIDS = not model.hparams.MODEL.USE_CENTROIDS
    trainer.test(model, test_loader, verbose=False)
    return data, steps.rows, weights, metrics.records


@pytest.fixture(scope="module", params=RECORDINGS)
def fit(request):
    return fit_recording(request.param)


def test_losses_and_rates_of_each_step(fit):
    data, rows, _, _ = fit
    assert_close(rows, data["steps"])


def test_final_weights(fit):
    data, _, weights, _ = fit
    for name, value in weights.items():
        assert_close(value, data[f"final/{name}"], "weights")


def test_logged_epochs(fit):
    """All recorded values but lr, which lagged one epoch behind, and the base model's empty centroid loss."""
    data, rows, _, records = fit
    recorded = json.loads(str(data["log_json"]))
    assert len(recorded) == len(records)
    recorded_train = [(step, r) for step, r in recorded if "epoch_train_loss" in r]
    train = [(step, r) for step, r in records if "epoch_train_loss" in r]
    rates = {int(row[0]): row[2] for row in rows}
    for (step, ours), (recorded_step, theirs) in zip(train, recorded_train, strict=True):
        assert step == recorded_step
        assert ours["lr"] == pytest.approx(rates[step])
        expected = {k: v for k, v in theirs.items() if k != "lr" and not np.isnan(v)}
        assert ours.keys() - {"lr"} == expected.keys()
        assert_close([ours[k] for k in expected], list(expected.values()))


def test_logged_validations_and_the_test_pass_with_centroids(fit):
    """The numbers are as recorded; those of the test, which the original logged as the validation's, have a prefix."""
    data, _, _, records = fit
    recorded = [(step, r) for step, r in json.loads(str(data["log_json"])) if "mAP" in r]
    ours = [(step, r) for step, r in records if any(name.endswith("mAP") for name in r)]
    assert len(ours) == 4
    prefixes = ["", "", "", "test_centroids/"]
    for (step, metrics), (recorded_step, expected), prefix in zip(ours, recorded, prefixes, strict=True):
        assert step == recorded_step
        assert_close([metrics[prefix + name] for name in expected], list(expected.values()))
        assert all(name.startswith(prefix) for name in metrics)
    assert all("mINP" in metrics and "strict_mAP" not in metrics for _, metrics in ours[:3])
    assert {"test_centroids/strict_mAP", "test_centroids/strict_Top-1"} <= ours[3][1].keys()
