"""The configuration. ``cfg`` is one shared, mutable tree: programs may merge files and lists into it before use."""

from . import defaults  # relative: a copy of this folder may be part of another package

cfg = defaults._C

__all__ = ["cfg"]
