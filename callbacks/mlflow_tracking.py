"""An MLflow logger that lets training continue when the server fails. The only module that imports mlflow."""

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

# Request settings for MLflow, unless the environment sets them: its own defaults wait for many minutes.
MLFLOW_REQUESTS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "4", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
# Seconds to pause after a failed delivery, and the most seconds that one delivery of waiting records may take.
PAUSE_SECONDS = 20.0
DELIVERY_SECONDS = 4.0


class SafeMLFlowLogger(MLFlowLogger):
    """Delivers records in order; while the server does not take them they wait, and training continues.

    The first failure is logged as one warning; at the end of the run, ``undelivered`` counts what never got through.
    """

    def __init__(self, experiment_name: str, tracking_uri: str) -> None:
        for name, value in MLFLOW_REQUESTS.items():
            os.environ.setdefault(name, value)
        super().__init__(experiment_name=experiment_name, tracking_uri=tracking_uri)
        self._waiting: deque[Callable[[], None]] = deque()
        self._delivering = False
        self._warned = False
        self._next_try = 0.0

    @property
    def experiment(self) -> Any:
        """MLflow's client, or a stand-in that does nothing while the server has no run of ours."""
        # Reading the parent's property contacts the server, and Lightning may read it at any time.
        return super().experiment if self._initialized or self._delivering else DummyExperiment()

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        """Like MLFlowLogger's, but never raises."""
        self._deliver(partial(super().log_hyperparams, params))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Like MLFlowLogger's, but never raises."""
        self._deliver(partial(super().log_metrics, metrics, step))

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        """Try once more to deliver the waiting records, and close the run."""
        self._next_try = 0.0
        self._deliver(partial(super().finalize, status))

    @property
    def undelivered(self) -> int:
        """Number of records that are still waiting."""
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
            self._warn(error)
        finally:
            self._delivering = False

    def _deliver_first(self) -> None:
        try:
            self._waiting[0]()
        except MlflowException as error:
            if not _refused(error):
                raise
            self._warn(error)  # it would be refused every time: the others go on without it
        self._waiting.popleft()

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            reason = " ".join(str(error).split())[:300]
            logger.warning(
                "MLflow at %s accepts no records (%s). Training continues; the records are sent once it does.",
                self._tracking_uri,
                reason,
            )


def _refused(error: MlflowException) -> bool:
    """Whether the server answered and rejected the record, so that trying again is pointless."""
    status = error.get_http_status_code()
    return 400 <= status < 500 and status not in (408, 429)
