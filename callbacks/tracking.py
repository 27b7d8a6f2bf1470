"""A TensorBoard logger that a training outlives: a folder that cannot be written to ends nothing."""

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.loggers.logger import DummyExperiment
from pytorch_lightning.utilities import rank_zero_only

logger = logging.getLogger(__name__)


class SafeTensorBoardLogger(TensorBoardLogger):
    """Writes event files where it can; a folder that cannot be written to is said once, and training goes on."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._said = False
        _quiet_writer_threads()

    @property
    def experiment(self) -> Any:
        """The writer; a stand-in that does nothing where no event file can be opened."""
        with self._going_on():
            return super().experiment
        return DummyExperiment()

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """As TensorBoardLogger, without errors of the disk."""
        with self._going_on():
            super().log_hyperparams(*args, **kwargs)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """As TensorBoardLogger, without errors of the disk."""
        with self._going_on():
            super().log_metrics(metrics, step)

    @rank_zero_only
    def save(self) -> None:
        """As TensorBoardLogger, without errors of the disk."""
        with self._going_on():
            super().save()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """As TensorBoardLogger, without errors of the disk."""
        with self._going_on():
            super().finalize(status)

    @contextmanager
    def _going_on(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            reason = error if isinstance(error, OSError) else error.__cause__  # Lightning wraps what add_scalar raises
            if not isinstance(reason, OSError):
                raise
            self._experiment = None  # the next record tries a new file
            if not self._said:
                self._said = True
                logger.warning("TensorBoard cannot write to %s (%s). Training goes on.", self.log_dir, reason)


def _quiet_writer_threads() -> None:
    """Leave out the traceback of TensorBoard's threads: the next record raises their error, and it is said there."""
    former = threading.excepthook
    if getattr(former, "leaves_out_writers", False):
        return

    def hook(args: threading.ExceptHookArgs) -> None:
        if not (type(args.thread).__name__ == "_AsyncWriterThread" and isinstance(args.exc_value, OSError)):
            former(args)

    hook.leaves_out_writers = True  # type: ignore[attr-defined]
    threading.excepthook = hook
