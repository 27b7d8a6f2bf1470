"""The lists of a data module that a subclass fills by hand: what follows from them, and whether a run can use them."""

import reprlib
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from numbers import Integral
from typing import Any

import numpy as np
from pytorch_lightning.utilities import rank_zero_warn

from utils.errors import UserError

LISTS = ("train_list", "query_list", "gallery_list")
EXPECTED = "(path, pid, camid, anything), with whole numbers for pid and camid"


def derive(module: Any) -> None:
    """Set num_query, num_classes, has_cameras and train_pids, where the subclass has left them out.

    Raises:
        UserError: the subclass has left out what cannot be derived, or it cannot be used.
    """
    wanted = ("train_dict", *LISTS, "train", "val")
    derive_lists(module)
    unset = [name for name in wanted if getattr(module, name, None) is None]
    if unset:
        raise UserError(
            f"{module.title}.setup has not set {', '.join(unset)}; it must set {', '.join(wanted)}. num_query, "
            "num_classes, has_cameras and train_pids are filled in."
        )
    check_samples(module)
    labels = {row[1] for rows in module.train_dict.values() for row in rows}
    for name, value in {"num_query": len(module.query_list), "num_classes": len(labels), "has_cameras": True}.items():
        if getattr(module, name, None) is None:
            setattr(module, name, value)
    check_numbers(module, labels)
    if getattr(module, "train_pids", None) is None:
        module.train_pids = sorted({row[1] for row in training_rows(module)})


def derive_lists(module: Any) -> None:
    """Take lists that are left out from the two data sets, as far as these tell their samples."""
    trained, evaluated = (getattr(getattr(module, name, None), "samples", None) for name in ("train", "val"))
    num_query = getattr(module, "num_query", None)
    if getattr(module, "train_dict", None) is None and isinstance(trained, Mapping):
        module.train_dict = trained
    if getattr(module, "train_list", None) is None and isinstance(getattr(module, "train_dict", None), Mapping):
        module.train_list = [row for rows in module.train_dict.values() for row in rows]
    if num_query is not None and isinstance(evaluated, Sequence):
        for name, rows in (("query_list", evaluated[:num_query]), ("gallery_list", evaluated[num_query:])):
            if getattr(module, name, None) is None:
                setattr(module, name, list(rows))


def check_samples(module: Any) -> None:
    """Check that the lists hold samples. Raises UserError."""
    title = module.title
    if not isinstance(module.train_dict, Mapping) or not module.train_dict:
        found = "empty" if isinstance(module.train_dict, Mapping) else f"a {type(module.train_dict).__name__}"
        raise UserError(f"{title}.train_dict is {found}; expected {{pid: samples}}.")
    for pid in module.train_dict:
        if not _is_whole(pid):
            raise UserError(f"{title}.train_dict has the key {pid!r}; expected whole numbers.")
    parts = {f"train_dict[{pid}]": rows for pid, rows in module.train_dict.items()}
    parts |= {name: getattr(module, name) for name in LISTS}
    for name, rows in parts.items():
        if not len(rows):
            raise UserError(f"{title}.{name} is empty; expected samples {EXPECTED}.")
        for row in rows:
            is_long = isinstance(row, tuple | list | np.ndarray) and len(row) >= 3
            if not is_long or not (_is_whole(row[1]) and _is_whole(row[2])):
                raise UserError(f"{title}.{name} holds {row!r}; expected samples {EXPECTED}.")


def check_numbers(module: Any, labels: set[int]) -> None:
    """Check num_query and num_classes against the samples. Raises UserError."""
    title = module.title
    mixed = next((pid for pid, rows in module.train_dict.items() if len({row[1] for row in rows}) > 1), None)
    if mixed is not None:
        raise UserError(f"{title}.train_dict[{mixed}] holds samples of several pids; expected those of one.")
    if len(labels) < len(module.train_dict):
        raise UserError(f"{title}.train_dict has two keys whose samples have the same pid; expected one key for each.")
    wrong = sorted(label for label in labels if not 0 <= label < module.num_classes)
    if wrong:
        raise UserError(
            f"{title}.train_dict has samples of pid {wrong[0]}, but num_classes is {module.num_classes}: the pids of "
            f"training samples are class labels, expected 0 to {module.num_classes - 1}. Number them in the order of "
            "the data set's own pids."
        )
    if module.num_query != len(module.query_list):
        raise UserError(
            f"{title}.num_query is {module.num_query}, but query_list has {len(module.query_list)} samples: it must be "
            "their number, since val holds them first."
        )
    samples = getattr(module.val, "samples", None)
    if isinstance(samples, Sequence) and len(samples) >= module.num_query:
        misplaced = [
            (row[0], own[0])
            for row, own in zip(samples, module.query_list, strict=False)
            if isinstance(row, tuple | list) and str(row[0]) != str(own[0])
        ]
        for found, expected in misplaced[:1]:
            raise UserError(
                f"{title}.val begins with {found} where query_list has {expected}: expected the samples of query_list, "
                "in order, then those of gallery_list."
            )
    evaluated = module.num_query + len(module.gallery_list)
    if not hasattr(module.val, "__len__") or len(module.val) == evaluated:
        return
    text = f"{title}.val has {len(module.val)} items; expected the {evaluated} of query_list + gallery_list, in order."
    if len(module.val) <= module.num_query:
        raise UserError(text)
    rank_zero_warn(f"{text} The items beyond the {module.num_query} queries are taken as the gallery.")


def check_draw(name: str, draw: Any, count: int) -> None:
    """Check that a draw has positions of queries and of gallery images among ``count`` images. Raises UserError."""
    parts = list(draw) if isinstance(draw, Sequence) else []
    if len(parts) != 2 or not all(len(part) and all(_is_whole(i) and 0 <= i < count for i in part) for part in parts):
        raise UserError(
            f"{name} gives {reprlib.repr(draw)}; expected the positions of the queries and those of the gallery, at "
            f"least one each, whole numbers from 0 to {count - 1}."
        )
    repeated = [int(i) for i, times in Counter(map(int, chain(*parts))).items() if times > 1]
    if repeated:
        raise UserError(f"{name} names position {repeated[0]} twice; expected each image once at most.")


def training_rows(module: Any) -> Sequence[Any]:
    """The training samples, with the data set's own pids if train_list has them, else with the labels."""
    rows = [row for rows in module.train_dict.values() for row in rows]
    # A train_list that also holds identities that are not trained on says less than train_dict.
    if len({row[1] for row in module.train_list}) == len(module.train_dict):
        return module.train_list
    return rows


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
