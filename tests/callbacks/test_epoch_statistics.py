"""What each epoch logs of its time, its images and its memory."""

import logging
from types import SimpleNamespace

import psutil
import pytest
import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.demos.boring_classes import BoringModel
from pytorch_lightning.loggers.logger import Logger
from torch.utils.data import DataLoader

from callbacks import EpochStatistics


class Kept(Logger):
    name = version = "kept"

    def __init__(self):
        super().__init__()
        self.records = []

    def log_metrics(self, metrics, step=None):
        if "epoch_seconds" in metrics:
            self.records.append((step, metrics))

    def log_hyperparams(self, params, *args, **kwargs):
        pass


class Clock(Callback):
    """A clock by which a step takes two seconds, and a validation a hundred, which must not count."""

    now = 0.0

    def perf_counter(self):
        return self.now

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.now += 2

    def on_validation_start(self, trainer, pl_module):
        self.now += 100


class Images(BoringModel):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.00035)

    def training_step(self, batch, batch_idx):
        return self.step(batch[0])

    def validation_step(self, batch, batch_idx):
        return None


def train(folder, clock, callback, epochs=2, logger=False, model=None, **options):
    loader = DataLoader([(image,) for image in torch.randn(12, 32)], batch_size=4)
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        num_sanity_val_steps=0,
        logger=logger,
        callbacks=[clock, callback],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(model or Images(), loader, loader, **options)
    return trainer


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("callbacks.epoch_statistics.time", SimpleNamespace(perf_counter=clock.perf_counter))
    return clock


def test_seconds_images_and_memory_of_each_epoch_without_its_validation(tmp_path, clock):
    kept, before = Kept(), psutil.Process().memory_info().rss / 2**20
    train(tmp_path, clock, EpochStatistics(), logger=kept)
    assert [step for step, _ in kept.records] == [0, 1]
    for _, metrics in kept.records:
        assert metrics["epoch_seconds"] == 6
        assert metrics["images_per_second"] == pytest.approx(2)
        assert before / 2 < metrics["peak_memory_mib"] < psutil.virtual_memory().total / 2**20


class Losses(Images):
    """Logs the mean loss of an epoch as ModelBase does: after the hooks of callbacks, and so are its rates set."""

    def on_train_epoch_end(self):
        self.log("epoch_train_loss", 2.13449 - self.current_epoch, logger=False)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] *= 0.1


def reported(caplog):
    return [record.getMessage() for record in caplog.records if record.getMessage().startswith("epoch ")]


def test_a_line_for_each_epoch(tmp_path, clock, caplog):
    """An epoch takes 6 s and its validation 100 s, which counts for what is left."""
    with caplog.at_level(logging.INFO):
        train(tmp_path, clock, EpochStatistics(report=True), epochs=3, model=Losses())
    assert reported(caplog) == [
        "epoch 1/3: loss 2.134, lr 3.50e-04, 6.0 s, 2.0 images/s, 4 min left",
        "epoch 2/3: loss 1.134, lr 3.50e-05, 6.0 s, 2.0 images/s, 2 min left",
        "epoch 3/3: loss 0.1345, lr 3.50e-06, 6.0 s, 2.0 images/s",
    ]


def test_a_model_that_logs_no_loss_has_a_line_without_one(tmp_path, clock, caplog):
    clock.on_validation_start = lambda *args: None
    with caplog.at_level(logging.INFO):
        train(tmp_path, clock, EpochStatistics(report=True))
    assert reported(caplog) == [
        "epoch 1/2: lr 3.50e-04, 6.0 s, 2.0 images/s, less than a minute left",
        "epoch 2/2: lr 3.50e-04, 6.0 s, 2.0 images/s",
    ]


def test_a_second_training_is_timed_on_its_own(tmp_path, clock, caplog):
    callback = EpochStatistics(report=True)
    for _ in range(2):
        with caplog.at_level(logging.INFO):
            train(tmp_path, clock, callback, epochs=3)
        clock.now += 1e6
    lines = reported(caplog)
    assert lines[0].endswith("4 min left")
    assert lines[:3] == lines[3:]


class Untrained(Images):
    """As a program has it that only collects statistics."""

    def configure_optimizers(self):
        return None


def test_a_model_without_an_optimiser_has_a_line_without_a_rate(tmp_path, clock, caplog):
    with caplog.at_level(logging.INFO):
        train(tmp_path, clock, EpochStatistics(report=True), epochs=1, model=Untrained())
    assert reported(caplog) == ["epoch 1/1: 6.0 s, 2.0 images/s"]


def test_what_is_left_is_estimated_from_the_epochs_since_a_run_went_on(tmp_path, clock, caplog):
    trainer = train(tmp_path, clock, EpochStatistics(), epochs=2)
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    clock.now += 1e6
    with caplog.at_level(logging.INFO):
        train(tmp_path, clock, EpochStatistics(report=True), epochs=4, ckpt_path=tmp_path / "two.ckpt")
    assert [line.partition(",")[0] for line in reported(caplog)] == ["epoch 3/4: lr 3.50e-04", "epoch 4/4: lr 3.50e-04"]
    assert reported(caplog)[0].endswith(", 2 min left")


def test_beside_a_progress_bar_nothing_is_said(tmp_path, clock, caplog):
    with caplog.at_level(logging.INFO):
        train(tmp_path, clock, EpochStatistics(), model=Losses())
    assert not reported(caplog)
