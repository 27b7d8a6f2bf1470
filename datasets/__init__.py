"""Data sets by name. What this package offers is imported when it is first asked for."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets.bases import ReidDataModule
    from datasets.registry import get_names, init_dataset, register_dataset

__all__ = ["ReidDataModule", "get_names", "init_dataset", "register_dataset"]

# name -> where it is defined; the last four are the data sets that the original had
_PLACES = {
    "ReidDataModule": ".bases",
    "get_names": ".registry",
    "init_dataset": ".registry",
    "register_dataset": ".registry",
    "Market1501": ".market1501",
    "DukeMTMCreID": ".dukemtmcreid",
    "DF1": ".df1",
    "Street2Shop": ".street2shop",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACES[name], __name__), name)
