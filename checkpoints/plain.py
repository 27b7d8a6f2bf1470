"""Plain copies of checkpoints: nothing but containers, numbers, strings and tensors."""

import os
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor

from checkpoints.torch_file import UnreadableError
from utils.errors import CheckpointError


def to_plain(obj: Any) -> Any:
    """Copy a checkpoint into dicts, lists, tuples, numbers, strings, bytes and tensors, so that it loads anywhere.

    Configuration nodes and other dictionary classes become dicts, sets become lists, numpy numbers Python numbers,
    paths and devices strings, numpy arrays and parameters tensors, and enumeration members their values. A class
    becomes the string "module.Class".

    Raises:
        CheckpointError: the checkpoint holds an object of any other class; the message names it and its position.
    """
    try:
        return plain_copy(obj)
    except UnreadableError as error:
        raise CheckpointError(f"The checkpoint to be saved {error}.") from error


def plain_copy(obj: Any) -> Any:
    """Copy as :func:`to_plain` does, but raise an UnreadableError, whose message the caller completes."""
    copies: dict[int, Any] = {}  # shared objects stay shared

    def copy(value: Any, where: str) -> Any:
        if not isinstance(value, dict | list | tuple | set | frozenset):
            return _plain_leaf(value, where)
        if id(value) not in copies:
            if isinstance(value, dict):
                result: Any = {copy(key, where): copy(item, f"{where}[{key!r}]") for key, item in value.items()}
            else:
                kind = list if isinstance(value, list | set) else tuple
                result = kind(copy(item, f"{where}[{i}]") for i, item in enumerate(value))
            copies[id(value)] = result
        return copies[id(value)]

    try:
        return copy(obj, "")
    except RecursionError:
        raise UnreadableError("holds containers that are nested too deeply or contain themselves") from None


def _plain_leaf(value: Any, where: str) -> Any:
    if type(value) in {str, int, float, bool, bytes, type(None)}:
        return value
    match value:
        case Tensor():
            return value.detach()
        case np.generic():
            return value.item()
        case np.ndarray():
            return torch.from_numpy(value.copy())
        case Enum():
            return _plain_leaf(value.value, where)
        case type():
            return f"{value.__module__}.{value.__qualname__}"
        case os.PathLike() | torch.device() | torch.dtype():
            return str(value)
    for kind in (str, int, float):  # their subclasses
        if isinstance(value, kind):
            return kind(value)
    raise UnreadableError(f"holds a {type(value).__module__}.{type(value).__qualname__} at {where or 'its top'}")
