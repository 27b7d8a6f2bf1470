"""Measures the time, throughput and memory of each epoch."""

import sys
import time
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]


class EpochStatistics(Callback):
    """Logs three figures for each training epoch, not counting its validation; the epoch is the step:

    - ``epoch_seconds``: wall-clock seconds,
    - ``images_per_second``: images trained on, over all processes,
    - ``peak_memory_mib``: peak memory in MiB: on CUDA, what PyTorch allocated in this epoch; elsewhere, the largest
      resident set of this process so far (left out on systems that do not report it, such as Windows).
    """

    def __init__(self) -> None:
        self._start = 0.0
        self._images = 0
        self._seconds = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)
        self._images, self._seconds = 0, 0.0
        self._start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch and note the time; the last batch sets the epoch's time, so validation does not count."""
        self._images += len(batch[0])
        self._seconds = time.perf_counter() - self._start

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the three figures."""
        metrics = {
            "epoch_seconds": self._seconds,
            "images_per_second": self._images * trainer.world_size / max(self._seconds, 1e-9),
        }
        peak = peak_memory_bytes(pl_module.device)
        if peak is not None:
            metrics["peak_memory_mib"] = peak / 2**20
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.current_epoch)


def peak_memory_bytes(device: torch.device) -> int | None:
    """Peak memory: on CUDA, allocated by PyTorch since the last reset; elsewhere, of this process; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # KiB on Linux
