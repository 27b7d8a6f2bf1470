"""Loggers that let training continue when a server fails or a folder cannot be written to.

mlflow is imported when the first records are delivered, after the first epoch. ``check`` finds out before that, in
milliseconds, what would keep the records from being delivered; ``start`` leaves nothing to be found out later.
"""

import logging
import os
import socket
import textwrap
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import methodcaller
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from pytorch_lightning.loggers import Logger, MLFlowLogger, TensorBoardLogger
from pytorch_lightning.loggers.logger import DummyExperiment
from pytorch_lightning.utilities import rank_zero_only

from utils.addresses import without_passwords
from utils.files import try_folder
from utils.optional import installation, is_installed

if TYPE_CHECKING:
    from mlflow.exceptions import MlflowException

logger = logging.getLogger(__name__)

# Request settings for MLflow, unless the environment sets them: its own defaults wait for many minutes.
MLFLOW_REQUESTS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "4", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
# Seconds to pause after a failed delivery, and the most seconds that one delivery of waiting records may take.
PAUSE_SECONDS = 20.0
DELIVERY_SECONDS = 4.0
# Seconds that a check before the training waits for a lock of the database.
LOCK_SECONDS = 2.0
SQLITE = "sqlite:///"
SERVERS = ("http://", "https://")


class SafeMLFlowLogger(Logger):
    """Delivers records in order; while the server does not take them they wait, and training continues.

    Hyperparameters wait for the first metrics: importing mlflow and creating its database would nearly double the time
    to the first batch. The first failure is logged as one warning; at the end of the run, ``undelivered`` counts what
    never got through.

    Args:
        experiment_name: name of the experiment in MLflow.
        tracking_uri: address of a server or database.
        run_name: None lets MLflow make one up.
    """

    def __init__(self, experiment_name: str, tracking_uri: str, run_name: str | None = None) -> None:
        super().__init__()
        for name, value in MLFLOW_REQUESTS.items():
            os.environ.setdefault(name, value)
        self.experiment_name, self.tracking_uri, self._run_name = experiment_name, tracking_uri, run_name
        self._logger: MLFlowLogger | None = None
        self._waiting: deque[Callable[[MLFlowLogger], None]] = deque()
        self._refused = 0  # records that the server answered with an error
        self._warned = False
        self._next_try = 0.0

    #: What becomes of records that are not taken; "" says what that means for a training.
    outlook = ""

    @property
    def is_checked_without_mlflow(self) -> bool:
        """Whether :meth:`check` understands the tracking URI: it names a server or a file of SQLite."""
        return self.tracking_uri.startswith((SQLITE, *SERVERS))

    def check(self) -> None:
        """Raise an error if no record could be delivered now, as far as that can be seen without importing mlflow.

        A database of another version of MLflow, or a server that wants a password, is found only by :meth:`start`.
        """
        if not is_installed("mlflow"):
            raise ModuleNotFoundError(
                f"the package mlflow is not installed: {installation('train')}, or set LOGGING.MLFLOW False"
            )
        if self.tracking_uri.startswith(SQLITE):
            _check_database(self.tracking_uri.removeprefix(SQLITE).partition("?")[0])
        elif self.tracking_uri.startswith(SERVERS) and not getproxies():
            address = urlsplit(self.tracking_uri)
            port = address.port or (443 if address.scheme == "https" else 80)
            seconds = float(os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"])
            socket.create_connection((address.hostname or "", port), seconds).close()

    def start(self) -> None:
        """Connect, and start the run. Raises whatever keeps MLflow from recording it."""
        with _without_routine_lines():
            _ = self.connect().experiment

    def connect(self) -> MLFlowLogger:
        """Lightning's logger, created on the first call. Raises MLflow's own errors about the tracking URI."""
        if self._logger is None:
            self.check()
            if not self.tracking_uri.startswith(SERVERS):
                _open_databases_at_once()
            self._logger = MLFlowLogger(self.experiment_name, self._run_name, self.tracking_uri)
        return self._logger

    @property
    def name(self) -> str:
        """Name of the experiment."""
        return self.experiment_name

    @property
    def version(self) -> str | None:
        """ID of the run in MLflow; None before the first delivery."""
        return None if self._logger is None else self._logger._run_id

    @property
    def experiment(self) -> Any:
        """MLflow's client, or a stand-in that does nothing while the server has no run of ours."""
        # Lightning's own property contacts the server, and Lightning may read it at any time.
        if self._logger is not None and self._logger._initialized:
            return self._logger.experiment
        return DummyExperiment()

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Like MLFlowLogger's, but waits for the first metrics and never raises."""
        self._waiting.append(methodcaller("log_hyperparams", params))

    @rank_zero_only
    def adopt(self, run_ids: Sequence[str]) -> None:
        """Make runs of the same place the children of this one; like log_hyperparams it waits for the first metrics."""

        def tag(mlflow: MLFlowLogger) -> None:
            for run_id in run_ids:
                mlflow.experiment.set_tag(run_id, "mlflow.parentRunId", mlflow.run_id)

        self._waiting.append(tag)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Like MLFlowLogger's, but never raises."""
        self._waiting.append(methodcaller("log_metrics", metrics, step))
        self._deliver()

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        """Try once more to deliver the waiting records, and close the run.

        A training that ends before its first metrics leaves no run: a process that is being stopped may not have the
        time to create the database, and a database cut short would refuse every later run.
        """
        if self._logger is None and status != "success":
            self._waiting.clear()
            return
        self._next_try = 0.0
        self._waiting.append(methodcaller("finalize", status))
        self._deliver()

    def __getstate__(self) -> dict[str, Any]:
        """Start the run first: the copies that ddp_spawn sends to its processes would each start one of their own."""
        self._deliver()
        return self.__dict__

    @property
    def undelivered(self) -> int:
        """Number of records that are still waiting, or were refused."""
        return len(self._waiting) + self._refused

    def _deliver(self) -> None:
        if time.monotonic() < self._next_try:
            return
        try:
            with _without_routine_lines():
                mlflow = self.connect()
                start = time.monotonic()
                while self._waiting and time.monotonic() - start < DELIVERY_SECONDS:
                    self._deliver_first(mlflow)
        except Exception as error:
            self._next_try = time.monotonic() + PAUSE_SECONDS
            self.warn(error)

    def _deliver_first(self, mlflow: MLFlowLogger) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._waiting[0](mlflow)
        except MlflowException as error:
            if not _refused(error):
                raise
            self.warn(error, "Training continues without them.")
            self._refused += 1  # it would be refused every time: the others go on without it
        self._waiting.popleft()

    def describe(self, error: Exception) -> str:
        """What keeps the records from being delivered, as a clause."""
        reason = textwrap.shorten(str(error), 300, placeholder=" [...]").rstrip(".")
        return without_passwords(f"MLflow at {self.tracking_uri} accepts no records ({reason})")

    def warn(self, error: Exception, outlook: str = "Training continues; the records are sent once it does.") -> None:
        """Say, once, that the records have to wait, or another outlook."""
        if not self._warned:
            self._warned = True
            outlook = "Training continues without them." if isinstance(error, ModuleNotFoundError) else outlook
            logger.warning("%s. %s", self.describe(error), self.outlook or outlook)


def _check_database(path: str) -> None:
    """Raise an error unless a file of SQLite can be written, or created in its folder, at this moment."""
    if not path or path.startswith((":memory:", "file:")):
        return
    import sqlite3

    try_folder(Path(path).parent)
    if Path(path).exists():
        connection = sqlite3.connect(path, timeout=LOCK_SECONDS, isolation_level=None)
        try:
            connection.execute("BEGIN IMMEDIATE")  # refused if it is damaged, locked or read-only
            connection.execute("ROLLBACK")
        finally:
            connection.close()


def _open_databases_at_once() -> None:
    """Have MLflow try a database once: it tries ten times in two minutes, while here the records can wait."""
    try:
        from mlflow.store.db import utils
    except ImportError:  # the slim variants of mlflow have no databases
        return
    utils.MAX_RETRY_COUNT = 1


@contextmanager
def _without_routine_lines() -> Iterator[None]:
    """Hold back what MLflow and alembic log of their steps, also where they set up the logging of the process anew."""
    root, former = logging.getLogger(), logging.root.manager.disable
    handlers, level = root.handlers[:], root.level
    logging.disable(max(former, logging.INFO))
    try:
        yield
    finally:
        logging.disable(former)
        root.handlers[:] = handlers
        root.setLevel(level)


def is_rejected(error: Exception) -> bool:
    """Whether an error of :meth:`SafeMLFlowLogger.connect` is about the address itself, whatever is found there."""
    if getattr(error, "error_code", "") == "INVALID_PARAMETER_VALUE":  # MlflowException
        return True
    return any(f"{cls.__module__}.{cls.__name__}" == "sqlalchemy.exc.ArgumentError" for cls in type(error).__mro__)


def _refused(error: "MlflowException") -> bool:
    """Whether the server answered and rejected the record, so that trying again is pointless."""
    status = error.get_http_status_code()
    return 400 <= status < 500 and status not in (408, 429)


class SafeTensorBoardLogger(TensorBoardLogger):
    """Writes event files where possible; warns once if the folder cannot be written to, and training continues."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._warned = False
        _quiet_writer_threads()

    def check(self) -> None:
        """Raise an OSError if the folder cannot be created or written to."""
        try_folder(Path(self.log_dir))

    def start(self) -> None:
        """The same, and open the event file."""
        self.check()
        _ = super().experiment

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
            self.warn(reason)

    def describe(self, error: Exception) -> str:
        """What keeps the event file from being written, as a clause."""
        return f"TensorBoard cannot write to {self.log_dir} ({error})"

    def warn(self, error: Exception) -> None:
        """Say, once, that there will be no event files."""
        if not self._warned:
            self._warned = True
            logger.warning("%s. Training continues.", self.describe(error))


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
