"""Optimisers and the learning-rate schedule; ``build_optimizer`` and ``build_scheduler`` can be imported from here."""

from typing import Any

_BUILDERS = ("build_optimizer", "build_scheduler")


def __getattr__(name: str) -> Any:
    """Load :mod:`solver.build` when one of its functions is asked for, not with every import of this package."""
    if name in _BUILDERS:
        from solver import build

        return getattr(build, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
