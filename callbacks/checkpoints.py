"""Checkpoints of a training run: the newest of every epoch, and how files are read and written."""

from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO

from utils.checkpoint import atomic_save, load_ctl_checkpoint, to_plain
from utils.legacy_checkpoint import upgrade_legacy


class ModelCheckpointPeriodic(ModelCheckpoint):
    """After every epoch ``LOGGER_DIR/auto_checkpoints/checkpoint_{epoch}.pth``; the newest one is kept.

    The file is what MODEL.RESUME_TRAINING continues from. The previous one is removed after the new one is complete.

    Args:
        dirpath: folder of the files; beside ``checkpoints`` in the first logger's folder when None.
    """

    FILE_EXTENSION = ".pth"

    def __init__(self, dirpath: str | Path | None = None) -> None:
        super().__init__(
            dirpath=dirpath,
            filename="checkpoint_{epoch}",
            auto_insert_metric_name=False,
            save_top_k=1,
            every_n_epochs=1,
            save_on_train_epoch_end=True,
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Settle the folder before the parent class would choose ``checkpoints``, shared with the best checkpoint."""
        if self.dirpath is None:
            root = (trainer.log_dir if trainer.loggers else None) or trainer.default_root_dir
            self.dirpath = str(Path(trainer.strategy.broadcast(root)) / "auto_checkpoints")
        super().setup(trainer, pl_module, stage)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Leave the files of a run in another folder alone: older Lightning removes the one that was resumed from."""
        if state_dict.get("dirpath") == self.dirpath:
            super().load_state_dict(state_dict)


class SafeCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary name and renames; reads ours and the original's files without running code from them."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write plain containers, numbers, strings and tensors; the whole file or nothing."""
        atomic_save(to_plain(checkpoint), path)

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read onto the CPU; Lightning moves the tensors to where they belong."""
        return upgrade_legacy(load_ctl_checkpoint(path))
