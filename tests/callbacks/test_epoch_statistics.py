"""What each epoch logs of its time, its images and its memory."""

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
    def training_step(self, batch, batch_idx):
        return self.step(batch[0])

    def validation_step(self, batch, batch_idx):
        return None


def test_seconds_images_and_memory_of_each_epoch_without_its_validation(tmp_path, monkeypatch):
    kept, clock = Kept(), Clock()
    monkeypatch.setattr("callbacks.epoch_statistics.time", SimpleNamespace(perf_counter=clock.perf_counter))
    images = torch.randn(12, 32)
    loader = DataLoader([(image,) for image in images], batch_size=4)
    before = psutil.Process().memory_info().rss / 2**20
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=2,
        num_sanity_val_steps=0,
        logger=kept,
        callbacks=[clock, EpochStatistics()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(Images(), loader, loader)
    assert [step for step, _ in kept.records] == [0, 1]
    for _, metrics in kept.records:
        assert metrics["epoch_seconds"] == 6
        assert metrics["images_per_second"] == pytest.approx(2)
        assert before / 2 < metrics["peak_memory_mib"] < psutil.virtual_memory().total / 2**20
