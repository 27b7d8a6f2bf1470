"""Measures the time, throughput and memory of each epoch, and reports it in one line where no progress bar does."""

import sys
import time
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_info

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

    Args:
        report: also say the epoch in one line once it is saved, with its mean loss as logged, and the time that is left
            if the epochs to come, with their validations, take as long as those of this process so far.
    """

    def __init__(self, report: bool = False) -> None:
        self._report = report
        self._began = 0.0  # of the first epoch in this process
        self._finished = 0  # epochs since then
        self._epoch = 0
        self._figures = ""  # of that epoch, until it is reported
        self._start = 0.0
        self._images = 0
        self._seconds = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the epochs of this process from here."""
        self._began, self._finished, self._figures = time.perf_counter(), 0, ""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report the epoch before, and start the clock."""
        self._say(trainer)
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
        groups = [
            group for optimizer in trainer.optimizers for group in optimizer.param_groups
        ]  # none without training
        rate = f"lr {groups[0]['lr']:.2e}, " if groups else ""  # the model steps its schedules after this
        speed = metrics["images_per_second"]
        self._epoch, self._finished = trainer.current_epoch, self._finished + 1
        self._figures = f"{rate}{self._seconds:.1f} s, {speed:.{0 if speed >= 10 else 1}f} images/s"

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report the last epoch."""
        self._say(trainer)

    def _say(self, trainer: Trainer) -> None:
        """Report the epoch that is over: its loss is logged, and its checkpoint written, after this callback's hook."""
        figures, self._figures = self._figures, ""
        if not (self._report and figures):
            return
        # A number that was waited for when it was logged: reading it again does not hold up the device.
        loss = trainer.callback_metrics.get("epoch_train_loss")
        known = "" if loss is None else f"loss {float(loss):.4g}, "
        done, total = self._epoch + 1, trainer.max_epochs or 0
        minutes = (time.perf_counter() - self._began) / self._finished * (total - done) / 60
        left = f", {minutes:.0f} min left" if minutes >= 1 else ", less than a minute left" if minutes > 0 else ""
        rank_zero_info("epoch %d/%d: %s%s%s", done, total, known, figures, left)


def peak_memory_bytes(device: torch.device) -> int | None:
    """Peak memory: on CUDA, allocated by PyTorch since the last reset; elsewhere, of this process; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # KiB on Linux
