"""Identities and cameras as arrays, checked once on entry to the evaluation."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from utils.errors import UserError

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

# Market-1501's identity of junk, detections that are neither matches nor distractors, as text, or as a table's float.
JUNK_PIDS = ("-1", "-1.0")


@dataclass(frozen=True)
class Names:
    """What the user calls the identities and cameras that are numbers here; a number without a name stands for itself.

    Attributes:
        pids: pid -> name.
        cameras: camid -> name.
    """

    pids: Mapping[int, str] = field(default_factory=dict)
    cameras: Mapping[int, str] = field(default_factory=dict)

    def pid(self, number: int) -> str:
        """The name of an identity."""
        return self.pids.get(int(number), str(number))

    def camera(self, number: int) -> str:
        """The name of a camera."""
        return self.cameras.get(int(number), str(number))


def int_array(name: str, values: Any, length: int | None = None, owner: str = "") -> IntArray:
    """Convert ``values`` to a one-dimensional int64 array.

    Args:
        name: what error messages call the values.
        values: tensor, array or sequence of whole numbers.
        length: the expected length; None accepts any.
        owner: what has that many rows, for the message.

    Raises:
        UserError: a value is not a whole number that fits into 64 bits, or the values are not one-dimensional or have
            another length.
    """
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().numpy()
    array = np.asarray(values)
    if array.ndim != 1:
        raise UserError(f"{name} must be one-dimensional, got the shape {list(array.shape)}.")
    if length is not None:
        check_length(name, len(array), length, owner)
    if array.dtype.kind == "b" or not np.can_cast(array.dtype, np.int64):
        for i, value in enumerate(array.tolist()):
            if not _is_whole(value):
                raise UserError(
                    f"{name}[{i}] is {value!r}; expected a whole number. Number identities and cameras, alike in "
                    "query and gallery, with numbers that fit into 64 bits."
                )
    return array.astype(np.int64)


def check_length(name: str, actual: int, expected: int, owner: str) -> None:
    """Raise a UserError if the lengths differ; the message names the first index without a partner."""
    if actual != expected:
        raise UserError(
            f"{name} has {actual} entries but {owner} has {expected}: index {min(actual, expected)} has no partner."
        )


def _is_whole(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and -(2**63) <= value < 2**63 and value == int(value)  # NaN fails every comparison


def number_by_appearance(ids: Iterable[Hashable]) -> tuple[list[Any], IntArray]:
    """Number the distinct ids 0, 1, ... in order of first appearance.

    Args:
        ids: [N] hashable values, or an array of numbers or strings.

    Returns:
        The distinct ids, and the number of each entry [N] int64; both empty for no ids.
    """
    values = ids.tolist() if isinstance(ids, np.ndarray | torch.Tensor) else list(ids)
    numbers: dict[Hashable, int] = {}
    numbered = [numbers.setdefault(value, len(numbers)) for value in values]
    return list(numbers), np.asarray(numbered, dtype=np.int64)


class Cameras:
    """The cameras of gallery items, each of which has one camera or a set of cameras.

    Args:
        name: what error messages call the cameras.
        values: [N] whole numbers, or N sets, lists or arrays of whole numbers.
        length: N.
        as_sets: whether each item has a set; None decides by the first item.

    Raises:
        UserError: the length is not N, or an entry is not a whole number.
    """

    def __init__(self, name: str, values: Any, length: int, as_sets: bool | None = None) -> None:
        if as_sets is None:
            as_sets = _holds_sets(values)
        check_length(name, len(values), length, "gallery")
        if as_sets:
            sizes = np.array([np.size(_members(item)) for item in values], dtype=np.int64)
            flat = [np.asarray(_members(item)).reshape(-1) for item in values if np.size(_members(item))]
            self._item = np.repeat(np.arange(length, dtype=np.int64), sizes)
            self._camera = int_array(name, np.concatenate(flat) if flat else np.empty(0, np.int64))
        else:
            self._item = np.arange(length, dtype=np.int64)
            self._camera = int_array(name, values, length, "gallery")
        self.single = not as_sets
        self._known = np.unique(self._camera)
        self._keys = np.unique(self._item * max(len(self._known), 1) + np.searchsorted(self._known, self._camera))

    def contain(self, items: IntArray, cameras: IntArray) -> BoolArray:
        """[K] bool, whether cameras[i] is a camera of items[i]."""
        if self.single:
            return self._camera[items] == cameras
        return self._contain_in_sets(items, cameras)

    def _contain_in_sets(self, items: IntArray, cameras: IntArray) -> BoolArray:
        if not len(self._keys):
            return np.zeros(len(items), dtype=np.bool_)
        number = np.searchsorted(self._known, cameras).clip(max=len(self._known) - 1)
        keys = items * len(self._known) + number
        place = np.searchsorted(self._keys, keys).clip(max=len(self._keys) - 1)
        return (self._keys[place] == keys) & (self._known[number] == cameras)

    def of(self, item: int) -> list[int]:
        """The cameras of one item, in ascending order."""
        start, stop = np.searchsorted(self._item, (item, item + 1))
        return np.unique(self._camera[start:stop]).tolist()


def _members(item: Any) -> Any:
    return sorted(item) if isinstance(item, set | frozenset) else item


def _holds_sets(values: Sequence[Any]) -> bool:
    if isinstance(values, np.ndarray) and values.dtype != object:
        return values.ndim > 1
    if isinstance(values, torch.Tensor):
        return values.dim() > 1
    return len(values) > 0 and (isinstance(values[0], set | frozenset) or np.ndim(values[0]) > 0)
