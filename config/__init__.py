"""The configuration. ``cfg`` is one shared, mutable tree: programs may merge files and lists into it before use."""

from config import defaults

cfg = defaults._C

__all__ = ["cfg"]
