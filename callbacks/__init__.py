"""Lightning callbacks, loggers and plugins of a training run; the MLflow logger is in callbacks.mlflow_tracking."""

from callbacks.checkpoints import ModelCheckpointBest, ModelCheckpointPeriodic, SafeCheckpointIO, describe_resume
from callbacks.epoch_statistics import EpochStatistics
from callbacks.loss_guard import LossGuard
from callbacks.stopping import StopOnSigterm
from callbacks.tracking import SafeTensorBoardLogger

__all__ = [
    "EpochStatistics",
    "LossGuard",
    "ModelCheckpointBest",
    "ModelCheckpointPeriodic",
    "SafeCheckpointIO",
    "SafeTensorBoardLogger",
    "StopOnSigterm",
    "describe_resume",
]
