"""The loggers of a run: TensorBoard always, MLflow unless it is switched off."""

import logging
import os

from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import Logger, TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_info
from yacs.config import CfgNode

from callbacks import SafeMLFlowLogger, SafeTensorBoardLogger
from callbacks.tracking import is_rejected
from utils.addresses import without_passwords
from utils.distributed import is_first_process
from utils.errors import UserError
from utils.files import require_writable
from utils.optional import installation, is_installed

log = logging.getLogger(__name__)

DEFAULT_MLFLOW_URI = "sqlite:///mlflow.db"


def build_loggers(cfg: CfgNode, name: str, version: str | None = None) -> list[Logger]:
    """TensorBoard in LOG_DIR/name/version (None: a new version), and MLflow unless LOGGING.MLFLOW is False.

    One that cannot record the run says so in a line, and the run goes on without it.

    Raises:
        UserError: TensorBoard is not installed; MLflow rejects the address in LOGGING.MLFLOW_URI or
            MLFLOW_TRACKING_URI; the folder cannot be written to, in which a training also leaves its checkpoints; or
            with LOGGING.ON_ERROR "stop", one of the two cannot record the run.
    """
    if not any(map(is_installed, ("tensorboard", "tensorboardX"))):
        raise UserError(f"A run writes event files of TensorBoard, which is not installed: {installation('train')}")
    board = SafeTensorBoardLogger(cfg.LOG_DIR, name=name, version=version, default_hp_metric=False)
    board.version  # noqa: B018 - fixes the folder, or each spawned process would choose its own
    loggers: list[Logger] = [board]
    # Opening a database creates it, so only one process may; the loggers of the others would write nothing anyway.
    if not is_first_process():
        return loggers
    if not cfg.TEST.ONLY_TEST:
        require_writable(board.log_dir, "OUTPUT_DIR")
    _start(board, cfg.LOGGING.ON_ERROR)
    if cfg.LOGGING.MLFLOW:
        uri = cfg.LOGGING.MLFLOW_URI or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_MLFLOW_URI
        mlflow = SafeMLFlowLogger(experiment_name="default", tracking_uri=uri)
        _start(mlflow, cfg.LOGGING.ON_ERROR)
        loggers.append(mlflow)
    return loggers


def _start(tracker: SafeMLFlowLogger | SafeTensorBoardLogger, on_error: str) -> None:
    """Report what keeps a tracker from recording before the training rather than after its first epoch."""
    try:
        if on_error == "stop":
            tracker.start()
        elif isinstance(tracker, SafeMLFlowLogger) and not tracker.is_checked_without_mlflow:
            tracker.connect()
        else:
            tracker.check()
    except Exception as error:  # the packages under MLflow raise exceptions of their own
        if isinstance(tracker, SafeMLFlowLogger) and is_rejected(error):
            text = (
                f"LOGGING.MLFLOW_URI or MLFLOW_TRACKING_URI is {tracker.tracking_uri!r}, which MLflow rejects: give "
                f"the address of a server or database, such as {DEFAULT_MLFLOW_URI}, or set LOGGING.MLFLOW False. "
                f"MLflow says: {' '.join(str(error).split())}"
            )
            raise UserError(without_passwords(text)) from error
        if on_error == "stop":
            raise UserError(
                f"{tracker.describe(error)}, and LOGGING.ON_ERROR is 'stop': fix it, or set LOGGING.ON_ERROR "
                "continue to train without its records."
            ) from error
        tracker.warn(error)


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
        rank_zero_info("%s: %s", type(logger).__name__.removeprefix("Safe"), without_passwords(str(address)))
