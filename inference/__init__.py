"""A trained model put to use: ``from inference import Embedder``. What is not asked for is not imported."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inference.embedding.embedder import Embedder

__all__ = ["Embedder"]


def __getattr__(name: str) -> Any:
    if name == "Embedder":  # torch is imported here, not by programs that only build their command line
        from inference.embedding.embedder import Embedder

        return Embedder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
