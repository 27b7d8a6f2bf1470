"""Loggers that a training outlives: a server that dies, or a folder that cannot be written to, ends nothing.

mlflow is imported when the first records are delivered, which is after the first epoch.
"""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pytorch_lightning.loggers import Logger, MLFlowLogger, TensorBoardLogger
from pytorch_lightning.loggers.logger import DummyExperiment
from pytorch_lightning.utilities import rank_zero_only

if TYPE_CHECKING:
    from mlflow.exceptions import MlflowException

logger = logging.getLogger(__name__)

# How MLflow asks a server, unless the environment says otherwise: its own defaults wait for many minutes.
MLFLOW_REQUESTS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "4", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
# Seconds without a try after a failed one, and seconds that one delivery of records that had to wait may take.
PAUSE_SECONDS = 20.0
DELIVERY_SECONDS = 4.0


class SafeMLFlowLogger(Logger):
    """Delivers records in order when the server answers; those it does not take wait, and training goes on.

    Hyperparameters wait for the first metrics: importing mlflow and creating its database take as long as everything
    else that comes before the first batch. The first failure is said in one warning; ``undelivered`` tells at the end
    of the run whether any was lasting.

    Args:
        experiment_name: of MLflow.
        tracking_uri: server or database.
    """

    def __init__(self, experiment_name: str, tracking_uri: str) -> None:
        super().__init__()
        for name, value in MLFLOW_REQUESTS.items():
            os.environ.setdefault(name, value)
        self.experiment_name, self.tracking_uri = experiment_name, tracking_uri
        self._logger: MLFlowLogger | None = None
        self._waiting: deque[Callable[[MLFlowLogger], None]] = deque()
        self._said = False
        self._next_try = 0.0

    def connect(self) -> MLFlowLogger:
        """Lightning's logger, made at the first call. Raises what MLflow raises about the tracking URI."""
        if self._logger is None:
            self._logger = MLFlowLogger(experiment_name=self.experiment_name, tracking_uri=self.tracking_uri)
        return self._logger

    @property
    def name(self) -> str:
        """Name of the experiment."""
        return self.experiment_name

    @property
    def version(self) -> str | None:
        """MLflow's id of the run; None before the first delivery."""
        return None if self._logger is None else self._logger._run_id

    @property
    def experiment(self) -> Any:
        """MLflow's client; a stand-in that does nothing as long as the server has no run of ours."""
        # Lightning reads it at moments of its own, and reading it from its logger would contact the server.
        started = self._logger is not None and self._logger._initialized
        return self._logger.experiment if self._logger is not None and started else DummyExperiment()

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """As MLFlowLogger, with the first metrics; raises nothing."""
        self._waiting.append(lambda mlflow: mlflow.log_hyperparams(params))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """As MLFlowLogger; raises nothing."""
        self._waiting.append(lambda mlflow: mlflow.log_metrics(metrics, step))
        self._deliver()

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        """Try once more to deliver what waits, and close the run."""
        self._next_try = 0.0
        self._waiting.append(lambda mlflow: mlflow.finalize(status))
        self._deliver()

    @property
    def undelivered(self) -> int:
        """Records that still wait."""
        return len(self._waiting)

    def _deliver(self) -> None:
        if time.monotonic() < self._next_try:
            return
        try:
            mlflow = self.connect()
            start = time.monotonic()
            while self._waiting and time.monotonic() - start < DELIVERY_SECONDS:
                self._deliver_first(mlflow)
        except Exception as error:
            self._next_try = time.monotonic() + PAUSE_SECONDS
            self._say(error)

    def _deliver_first(self, mlflow: MLFlowLogger) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._waiting[0](mlflow)
        except MlflowException as error:
            if not _refused(error):
                raise
            self._say(error)  # it would be refused for ever: the others go on without it
        self._waiting.popleft()

    def _say(self, error: Exception) -> None:
        if not self._said:
            self._said = True
            reason = " ".join(str(error).split())[:300]
            logger.warning(
                "MLflow at %s takes no records (%s). Training goes on, and they are kept for when it does.",
                self.tracking_uri,
                reason,
            )


def _refused(error: "MlflowException") -> bool:
    """Whether the server answered, and said that it does not want this."""
    status = error.get_http_status_code()
    return 400 <= status < 500 and status not in (408, 429)


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
