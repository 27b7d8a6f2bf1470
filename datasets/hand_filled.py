"""A door: the original's base classes of data sets, whose subclasses fill their lists by hand in ``setup(self)``."""

from datasets.bases import ReidDataModule, Splits
from datasets.filled_lists import training_rows
from datasets.overrides import as_lightning_calls
from datasets.readers.coco import CocoDataModule
from utils.errors import UserError

__all__ = ["COCODatasetBase", "ReidBaseDataModule"]


class ReidBaseDataModule(ReidDataModule):
    """A data module whose subclass fills its lists by hand in ``setup(self)``, which runs once.

    It must set ``train_dict`` {pid: samples}, ``train_list``, ``query_list``, ``gallery_list``, ``train``
    (BaseDatasetLabelledPerPid, or a class of its own) and ``val`` (BaseDatasetLabelled, or a class of its own; queries
    first). A sample is (path, pid, camid, anything), and the pids in train_dict are 0..num_classes-1. ``num_query``,
    ``num_classes``, ``has_cameras`` (True) and ``train_pids`` are filled in where they are left out.
    ``super().setup()`` does nothing. A stage, if the method takes one, is its default, or else "fit".

    Args: as for :class:`~datasets.bases.ReidDataModule`; any other keywords are taken.
    """

    one_numbering = False  # nobody says whether test identities are numbered like those of training
    fills_by_hand = True

    @as_lightning_calls
    def setup(self, stage: str | None = None) -> None:
        """Read the data set; further calls do nothing.

        Raises:
            UserError: no subclass says how, or what it filled in cannot be used.
        """
        if self._running:  # super().setup() of a subclass
            return
        if type(self).read_splits is ReidBaseDataModule.read_splits:
            raise UserError(f"{self.title} has no setup: write one that fills train_dict, train_list, and so on.")
        super().setup(stage)

    def read_splits(self) -> Splits:
        """The subsets as ``setup`` has filled them, for ``python -m datasets.validate`` and joint data sets."""
        self.setup()
        train, query, gallery = (
            [(str(row[0]), int(row[1]), int(row[2])) for row in rows]
            for rows in (training_rows(self), self.query_list, self.gallery_list)
        )
        return Splits(train, query, gallery, self.has_cameras)


class COCODatasetBase(ReidBaseDataModule, CocoDataModule):
    """The same for COCO files; without a ``setup`` it reads what CocoDataModule reads."""

    @as_lightning_calls
    def setup(self, stage: str | None = None) -> None:
        """Read the data set; further calls do nothing. Raises UserError as the base class."""
        if not self._running:
            ReidDataModule.setup(self, stage)

    def read_splits(self) -> Splits:
        """As the base class, or from the COCO files."""
        if type(self).setup is COCODatasetBase.setup:
            return CocoDataModule.read_splits(self)
        return super().read_splits()
