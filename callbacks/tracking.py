"""A TensorBoard logger that lets training continue when its folder cannot be written to."""

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
    """Writes event files where possible; warns once if the folder cannot be written to, and training continues."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._warned = False
        _quiet_writer_threads()

    @property
    def experiment(self) -> Any:
        """The writer, or a stand-in that does nothing if no event file can be opened."""
        with self._surviving_disk_errors():
            return super().experiment
        return DummyExperiment()

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Like TensorBoardLogger's, but disk errors do not raise."""
        with self._surviving_disk_errors():
            super().log_hyperparams(*args, **kwargs)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Like TensorBoardLogger's, but disk errors do not raise."""
        with self._surviving_disk_errors():
            super().log_metrics(metrics, step)

    @rank_zero_only
    def save(self) -> None:
        """Like TensorBoardLogger's, but disk errors do not raise."""
        with self._surviving_disk_errors():
            super().save()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Like TensorBoardLogger's, but disk errors do not raise."""
        with self._surviving_disk_errors():
            super().finalize(status)

    @contextmanager
    def _surviving_disk_errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            reason = error if isinstance(error, OSError) else error.__cause__  # Lightning wraps what add_scalar raises
            if not isinstance(reason, OSError):
                raise
            self._experiment = None  # the next record tries a new file
            if not self._warned:
                self._warned = True
                logger.warning("TensorBoard cannot write to %s (%s). Training continues.", self.log_dir, reason)


def _quiet_writer_threads() -> None:
    """Suppress tracebacks of TensorBoard's threads: the next record raises the same error, which is reported then."""
    former = threading.excepthook
    if getattr(former, "is_quiet", False):
        return

    def hook(args: threading.ExceptHookArgs) -> None:
        if not (type(args.thread).__name__ == "_AsyncWriterThread" and isinstance(args.exc_value, OSError)):
            former(args)

    hook.is_quiet = True  # type: ignore[attr-defined]
    threading.excepthook = hook
