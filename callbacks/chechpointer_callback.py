"""A door, misspelt as in the original: its periodic checkpoints, over :mod:`callbacks.checkpoints`."""

from pathlib import Path

from callbacks import checkpoints
from utils.errors import MissingPathError, UserError

__all__ = ["ModelCheckpointPeriodic"]


class ModelCheckpointPeriodic(checkpoints.ModelCheckpointPeriodic):
    """Writes ``{dirname}/{filename_prefix}_{epoch}.pth``, epochs counted from 0, and keeps the newest files.

    Args:
        dirname: folder of the files.
        filename_prefix: the beginning of their names. Older files of that name in the folder are removed, also those of
            an earlier run.
        save_interval: epochs from one file to the next, 1 or more.
        n_saved: number of files kept, 1 or more.
        create_dir: create the folder if it is missing.

    Raises:
        MissingPathError: the folder is missing and create_dir is False.
        UserError: save_interval or n_saved is less than 1, or the prefix names a folder.
    """

    def __init__(
        self,
        dirname: str | Path,
        filename_prefix: str,
        save_interval: int = 1,
        n_saved: int = 1,
        create_dir: bool = True,
    ) -> None:
        for name, value in (("save_interval", save_interval), ("n_saved", n_saved)):
            if value < 1:
                raise UserError(f"{name} is {value}; expected 1 or more.")
        if filename_prefix != Path(filename_prefix).name:
            raise UserError(f"filename_prefix is {filename_prefix!r}; expected the beginning of a name, no folder.")
        if not create_dir and not Path(dirname).is_dir():
            raise MissingPathError(f"The folder {str(dirname)!r} does not exist: create it, or pass create_dir=True.")
        super().__init__(str(dirname), prefix=filename_prefix, interval=save_interval, number=n_saved)

    @property
    def state_key(self) -> str:
        """As of every ModelCheckpoint, with the names of the files: a Trainer may have several."""
        return f"{super().state_key}{{{self.dirpath}/{self._prefix}}}"
