"""Data sets by name."""

from typing import Any

from yacs.config import CfgNode

from datasets.bases import ReidDataModule
from datasets.df1 import DF1
from datasets.dukemtmcreid import DukeMTMCreID
from datasets.market1501 import Market1501
from datasets.street2shop import Street2Shop
from utils.errors import UnknownNameError

__all__ = ["ReidDataModule", "init_dataset"]

_DATASETS: dict[str, type[ReidDataModule]] = {
    "market1501": Market1501,
    "dukemtmcreid": DukeMTMCreID,
    "df1": DF1,
    "street2shop": Street2Shop,
}


def init_dataset(
    name: str, cfg: CfgNode | None = None, num_workers: int | None = None, **kwargs: Any
) -> ReidDataModule:
    """Build the data module of the data set called ``name``; nothing is read before its ``setup()``.

    Args:
        name: market1501, dukemtmcreid, df1 or street2shop.
        cfg: the whole tree; None takes the shared one.
        num_workers: overrides DATALOADER.NUM_WORKERS.
        kwargs: further arguments of :class:`~datasets.bases.ReidDataModule`, such as ``seed``.

    Raises:
        UnknownNameError: no data set of that name (a KeyError and a ValueError); the message lists the names.
    """
    if name not in _DATASETS:
        raise UnknownNameError(f"DATASETS.NAMES is {name!r}; valid names: {', '.join(sorted(_DATASETS))}.")
    return _DATASETS[name](cfg=cfg, num_workers=num_workers, **kwargs)
