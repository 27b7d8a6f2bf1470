"""The project as one package: ``from centroids_reid import Embedder``. What it offers is imported when first asked for.

All modules are below this name: ``centroids_reid.datasets.bases`` is the repository's ``datasets/bases.py``.
"""

from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not Path(__file__).with_name("config").is_dir():  # in the repository the modules are beside this folder
    from centroids_reid import in_repository

    in_repository.add_names()

if TYPE_CHECKING:
    from config import cfg
    from evaluation.metrics import evaluate_embeddings
    from inference.embedding.embedder import Embedder
    from losses.centroid_triplet_loss import CentroidTripletLoss
    from train_ctl_model import CTLModel

    __version__: str

__all__ = ["CTLModel", "CentroidTripletLoss", "Embedder", "cfg", "evaluate_embeddings"]

# name -> where it is defined
_PLACES = {
    "CTLModel": ".train_ctl_model",
    "CentroidTripletLoss": ".losses.centroid_triplet_loss",
    "Embedder": ".inference.embedding.embedder",
    "cfg": ".config",
    "evaluate_embeddings": ".evaluation.metrics",
}


if not TYPE_CHECKING:  # or else a type checker would believe in every name

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            return version("centroids-reid")
        if name not in _PLACES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")
        return getattr(import_module(_PLACES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
