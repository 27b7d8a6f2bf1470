"""The loggers of a run: TensorBoard always, MLflow unless it is switched off."""

import logging
import os

from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import Logger, TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_info
from yacs.config import CfgNode

from callbacks import SafeMLFlowLogger, SafeTensorBoardLogger
from utils.distributed import is_first_process
from utils.errors import UserError

log = logging.getLogger(__name__)

DEFAULT_MLFLOW_URI = "sqlite:///mlflow.db"
# Kinds of places that MLflow accepts: contacted only after the first epoch.
LATE_PLACES = ("sqlite:///", "http://", "https://")


def quiet_libraries() -> None:
    """Silence the routine messages of other libraries; their warnings still appear."""
    for chatty in ("alembic", "mlflow"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def build_loggers(cfg: CfgNode, name: str, version: str | None = None) -> list[Logger]:
    """TensorBoard in LOG_DIR/name/version (None: a new version), and MLflow unless LOGGING.MLFLOW is False.

    Raises:
        UserError: MLflow rejects the address in LOGGING.MLFLOW_URI or MLFLOW_TRACKING_URI.
    """
    loggers: list[Logger] = [SafeTensorBoardLogger(cfg.LOG_DIR, name=name, version=version, default_hp_metric=False)]
    loggers[0].version  # noqa: B018 - fixes the folder, or each spawned process would choose its own
    # Opening a database creates it, so only one process may; the loggers of the others would write nothing anyway.
    if cfg.LOGGING.MLFLOW and is_first_process():
        loggers.append(_mlflow_logger(cfg.LOGGING.MLFLOW_URI))
    return loggers


def _mlflow_logger(uri: str) -> Logger:
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_MLFLOW_URI
    made = SafeMLFlowLogger(experiment_name="default", tracking_uri=uri)
    if not uri.startswith(LATE_PLACES):
        _connect_now(made)
    return made


def _connect_now(mlflow: SafeMLFlowLogger) -> None:
    """Report a place that MLflow may reject before the training rather than after its first epoch."""
    try:
        mlflow.connect()
    except Exception as error:  # the packages under MLflow raise exceptions of their own
        raise UserError(
            f"LOGGING.MLFLOW_URI or MLFLOW_TRACKING_URI is {mlflow.tracking_uri!r}, which MLflow rejects: give the "
            f"address of a server or database, such as {DEFAULT_MLFLOW_URI}, or set LOGGING.MLFLOW False. "
            f"MLflow says: {' '.join(str(error).split())}"
        ) from error


def log_places(trainer: Trainer) -> None:
    """Log where the best checkpoint and the records of a run are, and how many records were not delivered."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.best_model_path:
            rank_zero_info("checkpoint: %s", callback.best_model_path)
    for logger in trainer.loggers:
        undelivered = getattr(logger, "undelivered", 0)
        if undelivered:
            log.warning("%d records were not delivered to MLflow.", undelivered)
        address = logger.log_dir if isinstance(logger, TensorBoardLogger) else getattr(logger, "tracking_uri", "")
        rank_zero_info("%s: %s", type(logger).__name__.removeprefix("Safe"), address)
