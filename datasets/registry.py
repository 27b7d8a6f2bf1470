"""Data sets by name. Each is imported on first use, so that a wrong command line is answered without torch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from yacs.config import CfgNode

from utils.errors import UserError
from utils.registry import Registry

if TYPE_CHECKING:
    from datasets.bases import ReidDataModule

# name: module and class
DATASETS = {
    "market1501": ".market1501:Market1501",
    "dukemtmcreid": ".dukemtmcreid:DukeMTMCreID",
    "occluded_duke": ".dukemtmcreid:OccludedDuke",
    "msmt17_v1": ".msmt17:MSMT17V1",
    "msmt17_v2": ".msmt17:MSMT17V2",
    "cuhk03np_labeled": ".cuhk03np:CUHK03NPLabeled",
    "cuhk03np_detected": ".cuhk03np:CUHK03NPDetected",
    "veri776": ".veri776:VeRi776",
    "vehicleid_800": ".vehicleid:VehicleID800",
    "vehicleid_1600": ".vehicleid:VehicleID1600",
    "vehicleid_2400": ".vehicleid:VehicleID2400",
    "df1": ".df1:DF1",
    "street2shop": ".street2shop:Street2Shop",
    "csv": ".readers.table:OwnTable",
    "folder": ".readers.identity_folders:OwnFolder",
}
REGISTRY: "Registry[type[ReidDataModule]]" = Registry("DATASETS.NAMES", "data set", DATASETS, __package__)


def init_dataset(
    name: str, cfg: CfgNode | None = None, num_workers: int | None = None, **kwargs: Any
) -> "ReidDataModule":
    """Build the data module for the data set ``name``; nothing is read before its ``setup()``.

    Args:
        name: one of the names above, a registered one, or ``package.module:Class``; several, joined by "+", train on
            all and test on the first.
        cfg: the whole configuration; None uses the shared one.
        num_workers: overrides DATALOADER.NUM_WORKERS.
        kwargs: further arguments of :class:`~datasets.bases.ReidDataModule`, such as ``seed``.

    Raises:
        UnknownNameError: no data set of that name (a KeyError and a ValueError); the message lists the names.
        UserError: the module of ``package.module:Class`` cannot be imported or has no such class; several names of data
            sets that show the same identities.
    """
    kinds = [_checked(REGISTRY.find(part.strip(), name), part.strip()) for part in name.split("+")]
    parts = [kind(cfg=cfg, num_workers=num_workers, **kwargs) for kind in kinds]
    if len(parts) == 1:
        return parts[0]
    merged = import_module(".merged", __package__)
    return merged.MergedDataModule(parts, cfg=cfg, num_workers=num_workers, **kwargs)


def family_of(name: str) -> str:
    """What is equal for data sets that show the same identities; the name itself for one that is not this project's."""
    return (kind := REGISTRY.find(name)).family or kind.__name__ if name in DATASETS else name


def _checked(kind: Any, name: str) -> Any:
    """The class, or a function that makes a data module; nothing else, before it is called."""
    base = import_module(".bases", __package__).ReidDataModule
    if not callable(kind) or (isinstance(kind, type) and not issubclass(kind, base)):
        what = kind.__qualname__ if isinstance(kind, type) else f"a {type(kind).__name__}"
        raise UserError(f"DATASETS.NAMES {name} is {what}; expected a subclass of datasets.bases.ReidDataModule.")
    return kind


def register_dataset(name: str, kind: "type[ReidDataModule]") -> None:
    """Let ``DATASETS.NAMES`` and :func:`init_dataset` find a data set of your own under ``name``, in this process.

    A configuration can also name the class itself, without any call: ``DATASETS.NAMES my_package.data:Shop``.

    Args:
        name: what DATASETS.NAMES will hold; registering a name again replaces the class.
        kind: the subclass of :class:`~datasets.bases.ReidDataModule`.

    Raises:
        UserError: the name belongs to a data set of this project, is empty, or holds "+", which joins names, or ":".
    """
    REGISTRY.register(name, kind)


def get_names() -> list[str]:
    """The names of all data sets, registered ones included."""
    return REGISTRY.names()
