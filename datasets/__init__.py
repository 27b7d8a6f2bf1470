"""Data sets by name."""

from typing import Any

from yacs.config import CfgNode

from datasets.bases import ReidDataModule
from datasets.cuhk03np import CUHK03NPDetected, CUHK03NPLabeled
from datasets.df1 import DF1
from datasets.dukemtmcreid import DukeMTMCreID, OccludedDuke
from datasets.market1501 import Market1501
from datasets.merged import MergedDataModule
from datasets.msmt17 import MSMT17V1, MSMT17V2
from datasets.own_folder import OwnFolder
from datasets.own_table import OwnTable
from datasets.street2shop import Street2Shop
from datasets.vehicleid import VehicleID800, VehicleID1600, VehicleID2400
from datasets.veri776 import VeRi776
from utils.errors import UnknownNameError

__all__ = ["ReidDataModule", "init_dataset"]

_DATASETS: dict[str, type[ReidDataModule]] = {
    "market1501": Market1501,
    "dukemtmcreid": DukeMTMCreID,
    "occluded_duke": OccludedDuke,
    "msmt17_v1": MSMT17V1,
    "msmt17_v2": MSMT17V2,
    "cuhk03np_labeled": CUHK03NPLabeled,
    "cuhk03np_detected": CUHK03NPDetected,
    "veri776": VeRi776,
    "vehicleid_800": VehicleID800,
    "vehicleid_1600": VehicleID1600,
    "vehicleid_2400": VehicleID2400,
    "df1": DF1,
    "street2shop": Street2Shop,
    "csv": OwnTable,
    "folder": OwnFolder,
}


def init_dataset(
    name: str, cfg: CfgNode | None = None, num_workers: int | None = None, **kwargs: Any
) -> ReidDataModule:
    """Build the data module of the data set called ``name``; nothing is read before its ``setup()``.

    Args:
        name: one of the names above; several, joined by "+", train on all and test on the first.
        cfg: the whole tree; None takes the shared one.
        num_workers: overrides DATALOADER.NUM_WORKERS.
        kwargs: further arguments of :class:`~datasets.bases.ReidDataModule`, such as ``seed``.

    Raises:
        UnknownNameError: no data set of that name (a KeyError and a ValueError); the message lists the names.
        UserError: several names of data sets that show the same identities.
    """
    names = [part.strip() for part in name.split("+")]
    for part in names:
        if part not in _DATASETS:
            found = repr(name) if len(names) == 1 else f"{name!r}, which joins {part!r}"
            raise UnknownNameError(f"DATASETS.NAMES is {found}; valid names: {', '.join(sorted(_DATASETS))}.")
    parts = [_DATASETS[part](cfg=cfg, num_workers=num_workers, **kwargs) for part in names]
    return parts[0] if len(parts) == 1 else MergedDataModule(parts, cfg=cfg, num_workers=num_workers, **kwargs)
