"""Data sets by name. Each is imported on first use, so that a wrong command line is answered without torch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from yacs.config import CfgNode

from utils.errors import UnknownNameError

if TYPE_CHECKING:
    from datasets.bases import ReidDataModule

__all__ = ["ReidDataModule", "init_dataset"]

# name: module and class
DATASETS = {
    "market1501": ("market1501", "Market1501"),
    "dukemtmcreid": ("dukemtmcreid", "DukeMTMCreID"),
    "occluded_duke": ("dukemtmcreid", "OccludedDuke"),
    "msmt17_v1": ("msmt17", "MSMT17V1"),
    "msmt17_v2": ("msmt17", "MSMT17V2"),
    "cuhk03np_labeled": ("cuhk03np", "CUHK03NPLabeled"),
    "cuhk03np_detected": ("cuhk03np", "CUHK03NPDetected"),
    "veri776": ("veri776", "VeRi776"),
    "vehicleid_800": ("vehicleid", "VehicleID800"),
    "vehicleid_1600": ("vehicleid", "VehicleID1600"),
    "vehicleid_2400": ("vehicleid", "VehicleID2400"),
    "df1": ("df1", "DF1"),
    "street2shop": ("street2shop", "Street2Shop"),
    "csv": ("readers.table", "OwnTable"),
    "folder": ("readers.identity_folders", "OwnFolder"),
}


def __getattr__(name: str) -> Any:
    if name == "ReidDataModule":
        return import_module("datasets.bases").ReidDataModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def init_dataset(
    name: str, cfg: CfgNode | None = None, num_workers: int | None = None, **kwargs: Any
) -> "ReidDataModule":
    """Build the data module for the data set ``name``; nothing is read before its ``setup()``.

    Args:
        name: one of the names above; several, joined by "+", train on all and test on the first.
        cfg: the whole configuration; None uses the shared one.
        num_workers: overrides DATALOADER.NUM_WORKERS.
        kwargs: further arguments of :class:`~datasets.bases.ReidDataModule`, such as ``seed``.

    Raises:
        UnknownNameError: no data set of that name (a KeyError and a ValueError); the message lists the names.
        UserError: several names of data sets that show the same identities.
    """
    names = [part.strip() for part in name.split("+")]
    for part in names:
        if part not in DATASETS:
            found = repr(name) if len(names) == 1 else f"{name!r}, which joins {part!r}"
            raise UnknownNameError(f"DATASETS.NAMES is {found}; valid names: {', '.join(sorted(DATASETS))}.")
    from datasets.merged import MergedDataModule

    parts = [find_class(part)(cfg=cfg, num_workers=num_workers, **kwargs) for part in names]
    return parts[0] if len(parts) == 1 else MergedDataModule(parts, cfg=cfg, num_workers=num_workers, **kwargs)


def find_class(name: str) -> "type[ReidDataModule]":
    """The class of a name of DATASETS; its module is imported now."""
    module, kind = DATASETS[name]
    return getattr(import_module(f"datasets.{module}"), kind)
