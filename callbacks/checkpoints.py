"""Checkpoints of a training run: the best one, the newest one, and how files are read and written."""

from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO

from checkpoints.lightning_1_1 import upgrade_legacy
from checkpoints.plain import to_plain
from checkpoints.reading import load_checkpoint, load_ctl_checkpoint
from checkpoints.run_files import AUTO_FOLDER, PREFIX, list_checkpoints, remove_temporaries
from checkpoints.writing import atomic_save
from utils.errors import UserError


class ModelCheckpointBest(ModelCheckpoint):
    """Writes ``LOGGER_DIR/checkpoints/epoch={epoch}.ckpt`` after each validation, and keeps the best one.

    The file is saved at the end of the epoch rather than right after validation, so that it includes the schedule's
    step. An epoch that is repeated after an interruption overwrites its file.

    Args:
        monitor: name of the metric.
        mode: "max" or "min".
        every_n_epochs: epochs from one validation to the next.
    """

    def __init__(self, monitor: str, mode: str, every_n_epochs: int) -> None:
        super().__init__(
            filename="{epoch}",
            monitor=monitor,
            mode=mode,
            every_n_epochs=every_n_epochs,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )


class ModelCheckpointPeriodic(ModelCheckpoint):
    """Writes ``LOGGER_DIR/auto_checkpoints/checkpoint_{epoch}.pth`` after every epoch, and keeps the newest one.

    MODEL.RESUME_TRAINING continues from this file. Older files are removed once the new one is complete.

    Args:
        dirpath: folder of the files; beside ``checkpoints`` in the first logger's folder when None.
        keep: a file that is never removed: the one that the user chose to resume from.
        prefix: the files are named ``{prefix}_{epoch}.pth``.
        interval: epochs from one file to the next.
        number: how many of the newest files are kept.
    """

    FILE_EXTENSION = ".pth"

    def __init__(
        self,
        dirpath: str | Path | None = None,
        keep: str | Path = "",
        prefix: str = PREFIX,
        interval: int = 1,
        number: int = 1,
    ) -> None:
        super().__init__(
            dirpath=dirpath,
            filename=f"{prefix}_{{epoch}}",
            auto_insert_metric_name=False,
            save_top_k=1 if number == 1 else -1,  # the parent class can only keep one or all
            every_n_epochs=interval,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )
        self._keep = Path(keep).resolve()
        self._prefix, self._number = prefix, number

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Choose the folder before the parent class falls back to ``checkpoints``, which holds the best checkpoint."""
        if self.dirpath is None:
            root = (trainer.log_dir if trainer.loggers else None) or trainer.default_root_dir
            self.dirpath = str(Path(trainer.strategy.broadcast(root)) / AUTO_FOLDER)
        folder = Path(self.dirpath)
        if trainer.is_global_zero and stage == "fit" and folder.name == AUTO_FOLDER:
            remove_temporaries(folder.parent)
        super().setup(trainer, pl_module, stage)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, then remove files that are too old, also those that a killed process could not remove."""
        super().on_train_epoch_end(trainer, pl_module)
        newest = Path(self.best_model_path)
        if trainer.is_global_zero and newest.is_file():
            files = self.saved_files()
            for path in files[files.index(newest) + self._number :]:
                if path.resolve() != self._keep:
                    path.unlink()

    def saved_files(self) -> list[Path]:
        """The files in its folder, newest epoch first."""
        return list_checkpoints(self.dirpath, self._prefix) if self.dirpath else []

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Leave the files of a run in another folder alone: older versions of Lightning remove the one resumed from."""
        if state_dict.get("dirpath") == self.dirpath:
            super().load_state_dict(state_dict)


def describe_resume(trainer: Trainer) -> str:
    """Say in one sentence how to resume an interrupted run; "" if no epoch was finished."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpointPeriodic):
            for path in callback.saved_files():
                options = f"MODEL.RESUME_TRAINING True MODEL.PRETRAIN_PATH {path} (or auto)"
                return f"The last whole epoch is in {path}; {options} continues after it."
    return ""


class SafeCheckpointIO(TorchCheckpointIO):
    """Writes a temporary file and renames it; reads our files and the original's without running code from them."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write plain containers, numbers, strings and tensors; the whole file or nothing.

        Raises:
            UserError: the disk is full or the folder cannot be written to; older checkpoints stay intact.
        """
        try:
            atomic_save(to_plain(checkpoint), path)
        except OSError as error:
            raise UserError(
                f"Checkpoint {path} cannot be written ({error.strerror or error}): free space on that disk, or make "
                "the folder writable."
            ) from error

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read onto the CPU; Lightning moves the tensors to their devices."""
        content = load_checkpoint(path)
        if "fc_query.weight" in content:  # weights alone: what the processes of ddp_spawn hand back after training
            return content
        return upgrade_legacy(load_ctl_checkpoint(path))
