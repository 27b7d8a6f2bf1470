"""Lightning callbacks and plugins of a training run."""

from callbacks.checkpoints import ModelCheckpointPeriodic, SafeCheckpointIO
from callbacks.epoch_statistics import EpochStatistics

__all__ = ["EpochStatistics", "ModelCheckpointPeriodic", "SafeCheckpointIO"]
