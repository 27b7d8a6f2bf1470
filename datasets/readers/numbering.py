"""Numbers the identities and cameras of the user's own data, however they are written."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from datasets.bases import Annotation, Splits
from datasets.notes import JUNK, PassedOver
from utils.errors import UserError
from utils.labels import JUNK_PIDS, Names

SUBSETS = ("train", "query", "gallery")


class Entry(NamedTuple):
    """An image as the user describes it."""

    path: str
    pid: str
    camera: str  # "" where none is given


def build_splits(
    entries: Mapping[str, Sequence[Entry]],
    source: str,
    needed: Collection[str] = SUBSETS,
    passed: PassedOver | None = None,
) -> Splits:
    """Number identities and cameras, and build the splits. Images of identity -1, which marks junk, are left out.

    If all identities are whole numbers, they keep them; otherwise all are numbered from 0 in the order of their names.
    Cameras are numbered from 0 in the order of their numbers, or else of their names. In query and gallery, either all
    images have a camera or none has; training images without one get camid 0.

    Args:
        entries: subset -> images.
        source: name of the data in messages.
        needed: subsets that must not be empty.
        passed: what the reader has passed over so far, for the notes; the junk is added.

    Raises:
        UserError: an empty subset, cameras for only some images, or two names for one number, such as 7 and 007.
    """
    passed = passed or PassedOver(source)
    for subset in SUBSETS:
        passed.add(JUNK, *(image.path for image in entries[subset] if image.pid in JUNK_PIDS))
    entries = {subset: [image for image in entries[subset] if image.pid not in JUNK_PIDS] for subset in SUBSETS}
    for subset in SUBSETS:
        if not entries[subset] and subset in needed:
            text = f"{source} has no {subset} images; expected at least one each of {', '.join(needed)}."
            raise UserError(" ".join((text, *passed.notes())))
    has_cameras = _have_cameras([*entries["query"], *entries["gallery"]] or entries["train"], source)
    images = [image for subset in SUBSETS for image in entries[subset]]
    pids = number_identities({image.pid for image in images}, source)
    cameras = number_cameras({image.camera for image in images if image.camera}, source) if has_cameras else {}

    def annotate(subset: str, default_camid: int) -> list[Annotation]:
        return [
            (image.path, pids[image.pid], cameras.get(image.camera, default_camid) if has_cameras else default_camid)
            for image in entries[subset]
        ]

    subsets = annotate("train", 0), annotate("query", 0), annotate("gallery", 1)
    names = Names(
        {number: name for name, number in pids.items() if name != str(number)},
        {number: name for name, number in cameras.items()},
    )
    return Splits(*subsets, has_cameras, names, passed.notes())


def number_identities(names: Iterable[str], source: str) -> dict[str, int]:
    """Map name to pid: the number itself if all names are whole numbers below 10^18, else the place in sorted order."""
    names = sorted(names)
    numbers = _as_numbers(names, "identities", source)
    return numbers if numbers is not None else {name: place for place, name in enumerate(names)}


def number_cameras(names: Iterable[str], source: str) -> dict[str, int]:
    """Map name to camid: its place in sorted order; names that are all numbers are sorted as numbers."""
    names = sorted(names)
    numbers = _as_numbers(names, "cameras", source)
    if numbers is not None:
        names.sort(key=numbers.__getitem__)
    return {name: place for place, name in enumerate(names)}


def _as_numbers(names: Sequence[str], what: str, source: str) -> dict[str, int] | None:
    if not all(name.isascii() and name.isdecimal() and len(name) <= 18 for name in names):
        return None
    first_of: dict[int, str] = {}
    for name in names:
        other = first_of.setdefault(int(name), name)
        if other != name:
            raise UserError(
                f"{source} has the {what} {other!r} and {name!r}, which are one number; write it in only one way."
            )
    return {name: number for number, name in first_of.items()}


def _have_cameras(images: Sequence[Entry], source: str) -> bool:
    with_camera = next((image for image in images if image.camera), None)
    without = next((image for image in images if not image.camera), None)
    if with_camera and without:
        raise UserError(
            f"{source}: {with_camera.path} has a camera ({with_camera.camera}), but {without.path} has none. Give one "
            "for every query and gallery image, or for none of them."
        )
    return with_camera is not None
