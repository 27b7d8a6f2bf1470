"""Use a trained model: ``from inference import Embedder``. Importing the package alone does not import torch."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inference.embedding.embedder import Embedder

__all__ = ["Embedder"]


def __getattr__(name: str) -> Any:
    if name == "Embedder":  # imported only here: programs that just read their command line need no torch
        from inference.embedding.embedder import Embedder

        return Embedder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
