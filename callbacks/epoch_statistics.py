"""What each epoch cost: time, throughput and memory."""

import time
from typing import Any

import psutil
import torch
from pytorch_lightning import Callback, LightningModule, Trainer


class EpochStatistics(Callback):
    """Logs, with the epoch as the step, for each training epoch without its validation:

    - ``epoch_seconds``: wall-clock seconds,
    - ``images_per_second``: images trained on, over all processes,
    - ``peak_memory_mib``: most memory that this process had by then, in MiB: on CUDA what PyTorch allocated in this
      epoch, elsewhere the largest resident set seen at the end of a step.
    """

    def __init__(self) -> None:
        self._start = 0.0
        self._images = 0
        self._peak = 0
        self._seconds = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)
        self._images, self._peak, self._seconds = 0, 0, 0.0
        self._start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch; time stands at the last one, so that validation is left out."""
        self._images += len(batch[0])
        self._seconds = time.perf_counter() - self._start
        if pl_module.device.type != "cuda":
            self._peak = max(self._peak, psutil.Process().memory_info().rss)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the three figures."""
        if pl_module.device.type == "cuda":
            self._peak = torch.cuda.max_memory_allocated(pl_module.device)
        metrics = {
            "epoch_seconds": self._seconds,
            "images_per_second": self._images * trainer.world_size / max(self._seconds, 1e-9),
            "peak_memory_mib": self._peak / 2**20,
        }
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.current_epoch)
