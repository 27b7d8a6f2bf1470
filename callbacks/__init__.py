"""Lightning callbacks, loggers and plugins of a training run."""

from callbacks.checkpoints import ModelCheckpointBest, ModelCheckpointPeriodic, SafeCheckpointIO, describe_resume
from callbacks.epoch_statistics import EpochStatistics
from callbacks.loss_guard import LossGuard
from callbacks.stopping import StopOnSigterm
from callbacks.tracking import SafeMLFlowLogger, SafeTensorBoardLogger

__all__ = [
    "EpochStatistics",
    "LossGuard",
    "ModelCheckpointBest",
    "ModelCheckpointPeriodic",
    "SafeCheckpointIO",
    "SafeMLFlowLogger",
    "SafeTensorBoardLogger",
    "StopOnSigterm",
    "describe_resume",
]
