"""Data sets by name. Each is imported on first use, so that a wrong command line is answered without torch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from yacs.config import CfgNode

if TYPE_CHECKING:
    from datasets.bases import ReidDataModule

__all__ = ["ReidDataModule", "init_dataset", "register_dataset"]

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
_REGISTERED: dict[str, "type[ReidDataModule]"] = {}


def __getattr__(name: str) -> Any:
    if name == "ReidDataModule":
        return import_module("datasets.bases").ReidDataModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def init_dataset(
    name: str, cfg: CfgNode | None = None, num_workers: int | None = None, **kwargs: Any
) -> "ReidDataModule":
    """Build the data module for the data set ``name``; nothing is read before its ``setup()``.

    Args:
        name: one of the names above, or a registered one; several, joined by "+", train on all and test on the first.
        cfg: the whole configuration; None uses the shared one.
        num_workers: overrides DATALOADER.NUM_WORKERS.
        kwargs: further arguments of :class:`~datasets.bases.ReidDataModule`, such as ``seed``.

    Raises:
        UnknownNameError: no data set of that name (a KeyError and a ValueError); the message lists the names.
        UserError: several names of data sets that show the same identities.
    """
    from utils.errors import UnknownNameError  # not above: a copy of datasets.transforms may be in another package

    names = [part.strip() for part in name.split("+")]
    for part in names:
        if part not in DATASETS | _REGISTERED:
            found = repr(name) if len(names) == 1 else f"{name!r}, which joins {part!r}"
            raise UnknownNameError(
                f"DATASETS.NAMES is {found}; valid names: {', '.join(sorted(DATASETS | _REGISTERED))}."
            )
    from datasets.merged import MergedDataModule

    parts = [find_class(part)(cfg=cfg, num_workers=num_workers, **kwargs) for part in names]
    return parts[0] if len(parts) == 1 else MergedDataModule(parts, cfg=cfg, num_workers=num_workers, **kwargs)


def register_dataset(name: str, kind: "type[ReidDataModule]") -> None:
    """Let ``DATASETS.NAMES`` and :func:`init_dataset` find a data set of your own under ``name``, in this process.

    Args:
        name: what DATASETS.NAMES will hold; registering a name again replaces the class.
        kind: the subclass of :class:`~datasets.bases.ReidDataModule`.

    Raises:
        UserError: the name belongs to a data set of this project, is empty, or holds the "+" that joins names.
    """
    from utils.errors import UserError

    if name in DATASETS or "+" in name or not name or name != name.strip():
        raise UserError(
            f"A data set cannot be registered as {name!r}; expected a name without '+' or outer spaces that is none of "
            f"{', '.join(sorted(DATASETS))}."
        )
    _REGISTERED[name] = kind


def find_class(name: str) -> "type[ReidDataModule]":
    """The class of a name of DATASETS or a registered one; its module is imported now."""
    if name in _REGISTERED:
        return _REGISTERED[name]
    module, kind = DATASETS[name]
    return getattr(import_module(f"datasets.{module}"), kind)
