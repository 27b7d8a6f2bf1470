"""The configuration. ``cfg`` is one shared, mutable tree: programs may merge files and lists into it before use."""

from copy import deepcopy

from . import defaults  # relative: a copy of this folder may be part of another package
from .flatten import flatten_config

cfg = defaults._C
# What the file says, whatever programs merge into ``cfg`` later.
DEFAULT_VALUES = deepcopy(flatten_config(cfg))

__all__ = ["DEFAULT_VALUES", "cfg"]
