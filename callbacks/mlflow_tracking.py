"""An MLflow logger that a training outlives: a server that dies ends nothing. The only module that imports mlflow."""

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from mlflow.exceptions import MlflowException
from pytorch_lightning.loggers import MLFlowLogger
from pytorch_lightning.loggers.logger import DummyExperiment
from pytorch_lightning.utilities import rank_zero_only

logger = logging.getLogger(__name__)

# How MLflow asks a server, unless the environment says otherwise: its own defaults wait for many minutes.
MLFLOW_REQUESTS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "4", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
# Seconds without a try after a failed one, and seconds that one delivery of records that had to wait may take.
PAUSE_SECONDS = 20.0
DELIVERY_SECONDS = 4.0


class SafeMLFlowLogger(MLFlowLogger):
    """Delivers records in order when the server answers; those it does not take wait, and training goes on.

    The first failure is said in one warning; ``undelivered`` tells at the end of the run whether any was lasting.
    """

    def __init__(self, experiment_name: str, tracking_uri: str) -> None:
        for name, value in MLFLOW_REQUESTS.items():
            os.environ.setdefault(name, value)
        super().__init__(experiment_name=experiment_name, tracking_uri=tracking_uri)
        self._waiting: deque[Callable[[], None]] = deque()
        self._delivering = False
        self._said = False
        self._next_try = 0.0

    @property
    def experiment(self) -> Any:
        """MLflow's client; a stand-in that does nothing as long as the server has no run of ours."""
        # Reading the parent's property contacts the server, and Lightning reads it at moments of its own.
        return super().experiment if self._initialized or self._delivering else DummyExperiment()

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        """As MLFlowLogger; raises nothing."""
        self._deliver(partial(super().log_hyperparams, params))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """As MLFlowLogger; raises nothing."""
        self._deliver(partial(super().log_metrics, metrics, step))

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        """Try once more to deliver what waits, and close the run."""
        self._next_try = 0.0
        self._deliver(partial(super().finalize, status))

    @property
    def undelivered(self) -> int:
        """Records that still wait."""
        return len(self._waiting)

    def _deliver(self, record: Callable[[], None]) -> None:
        self._waiting.append(record)
        start = time.monotonic()
        if start < self._next_try:
            return
        self._delivering = True
        try:
            while self._waiting and time.monotonic() - start < DELIVERY_SECONDS:
                self._deliver_first()
        except Exception as error:
            self._next_try = time.monotonic() + PAUSE_SECONDS
            self._say(error)
        finally:
            self._delivering = False

    def _deliver_first(self) -> None:
        try:
            self._waiting[0]()
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
                self._tracking_uri,
                reason,
            )


def _refused(error: MlflowException) -> bool:
    """Whether the server answered, and said that it does not want this."""
    status = error.get_http_status_code()
    return 400 <= status < 500 and status not in (408, 429)
