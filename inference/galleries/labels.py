"""Images of a data set with their identities and cameras, which go into a gallery as pids.npy and camids.npy."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets.bases import ReidDataModule
from utils.errors import UserError
from utils.labels import Names

# Identity and camera, numbers or names; the camera is None where the data set has none.
Label = tuple[int | str, int | str | None]

_NUMBER = re.compile(r"-?[0-9]{1,18}")


@dataclass(frozen=True)
class LabelledImages:
    """Images in the order of their rows.

    Attributes:
        paths: [N] files.
        labels: [N].
        source: what they are, for gallery.json.
        notes: sentences about what was passed over.
    """

    paths: list[str]
    labels: list[Label]
    source: dict[str, str]
    notes: tuple[str, ...] = ()


def read_subset(module: ReidDataModule, subset: str) -> LabelledImages:
    """Read a subset of a data set; identities and cameras have the names that the data set gives them.

    Names are numbers if all of them are, each another one: in query and gallery together, so that galleries of both can
    be compared.

    Args:
        module: the data set, not set up.
        subset: "train", "query" or "gallery".

    Raises:
        UserError: the data set cannot be read, or has no such images.
    """
    module.only_subset = subset
    splits = module.read_splits()
    module.check_published(splits)
    images = getattr(splits, subset)
    if not images:
        raise UserError(f"{module.title} has no {subset} images.")
    is_apart = subset == "train" and not module.one_numbering  # its numbers are not those that have names
    names = Names() if is_apart else splits.names
    pool = splits.train if subset == "train" else splits.query + splits.gallery
    pids = as_numbers({pid: names.pid(pid) for _, pid, _ in pool})
    cameras = as_numbers({camid: names.camera(camid) for _, _, camid in pool}) if splits.has_cameras else {}
    labels = [(pids[pid], cameras.get(camid)) for _, pid, camid in images]
    source = {"data_set": module.title, "subset": subset}
    return LabelledImages([path for path, _, _ in images], labels, source, splits.notes)


def as_numbers(names: Mapping[Any, str]) -> dict[Any, Any]:
    """The names of identities or cameras as numbers, if all of them are numbers, each another one; else as they are."""
    numbers = {key: int(name) for key, name in names.items() if _NUMBER.fullmatch(name)}
    # As names, 7 and 007 are two.
    return numbers if len(set(numbers.values())) == len(names) else dict(names)


def check_labels(
    done: Sequence[str], labels: Sequence[Label], images: tuple[list[str], list[Label]], what: str, way_out: str
) -> None:
    """Raise a UserError if rows that exist and new images must not stand in one gallery.

    Args:
        done: paths of the rows.
        labels: a label for each, or none.
        images: the new paths and their labels, or none.
        what: the gallery, as the message calls it.
        way_out: the end of the message: what the user can do.
    """
    if not done or not (labels or images[1]):
        return
    if not (labels and images[1]):
        states = ("identities of its images", "none")[:: 1 if labels else -1]
        raise UserError(f"{what} has {states[0]}, but here are {states[1]}: {way_out}")
    for old, now, name in zip(labels[0], images[1][0], ("identities", "cameras"), strict=True):
        if type(old) is not type(now):
            raise UserError(f"{what} has {_kind(old)} for {name}, but here are {_kind(now)}: {way_out}")
    given: dict[str, set[Label]] = {}
    for path, label in zip(*images, strict=True):
        given.setdefault(os.path.abspath(path), set()).add(label)  # noqa: PTH100 - without following links
    for path, label in zip(done, labels, strict=True):
        known = given.get(os.path.abspath(path))  # noqa: PTH100
        if known and label not in known:
            wanted = describe_label(min(known, key=str))
            raise UserError(f"{what} has {describe_label(label)} for {path}, but here it is {wanted}: {way_out}")


def describe_label(label: Label) -> str:
    """Identity and camera in words."""
    return f"identity {label[0]}" + ("" if label[1] is None else f", camera {label[1]}")


def _kind(value: object) -> str:
    return "none" if value is None else "numbers" if isinstance(value, int) else "names"
