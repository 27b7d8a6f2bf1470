"""What SIGTERM does to a run: cluster schedulers send it before they take a machine back."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.plugins.environments import SLURMEnvironment
from pytorch_lightning.utilities import rank_zero_info

# Seconds after which a process ends whatever it is doing: schedulers wait about 30 before they kill it.
GRACE_SECONDS = 15


class StopOnSigterm(Callback):
    """On SIGTERM, ends the process with status 0 after the current batch of training, validation or test.

    Nothing is saved at that moment: a run resumes from the end of the last whole epoch, which is already on disk, and
    continues bit for bit. So no harm is done if a batch, or a process that waits for others, takes too long and is
    ended after GRACE_SECONDS.

    This replaces Lightning's own handler, which makes processes communicate from within the handler.
    """

    def __init__(self) -> None:
        self.received = False
        self._trainer: Trainer | None = None

    @contextmanager
    def watch(self, describe: Callable[[], str]) -> Iterator[None]:
        """Turn whatever ends the block after a SIGTERM into an exit with status 0.

        Errors are expected then: processes that are still computing miss those that have exited.

        Args:
            describe: says how to resume the run; "" if that is impossible.
        """
        try:
            yield
        except BaseException:
            if not self.received:
                raise
            rank_zero_info("SIGTERM: stopped. %s", describe() or "No epoch was finished: start again.")
            raise SystemExit(0) from None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Keep Lightning from answering SLURM's signal with a mid-epoch checkpoint, which does not resume exactly."""
        environment = trainer._accelerator_connector.cluster_environment
        if isinstance(environment, SLURMEnvironment):
            environment.auto_requeue = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signal over from Lightning, which restores the former handler at the end."""
        self._take_over(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Like on_train_start."""
        self._take_over(trainer)

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Exit if SIGTERM has arrived."""
        self._exit_if_received()

    def on_validation_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Exit if SIGTERM has arrived."""
        self._exit_if_received()

    def on_test_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Exit if SIGTERM has arrived."""
        self._exit_if_received()

    def _take_over(self, trainer: Trainer) -> None:
        self._trainer = trainer
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._handle)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.received:
            return
        self.received = True
        launcher = self._trainer.strategy.launcher if self._trainer else None
        if launcher is not None:  # the processes that this one has started
            launcher.kill(signum)
        timer = threading.Timer(GRACE_SECONDS, _end)
        timer.daemon = True
        timer.start()

    def _exit_if_received(self) -> None:
        if self.received:
            raise SystemExit(0)


def _end() -> None:
    sys.stderr.flush()
    os._exit(0)
