"""The metadata of Street2Shop: which photo shows which product, category by category."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.errors import MissingPathError, UserError

CATEGORIES = (
    *("bags", "belts", "dresses", "eyewear", "footwear", "hats"),
    *("leggings", "outerwear", "pants", "skirts", "tops"),
)
_MAX_SIDE = 2**31  # pixels; no image is larger, and products of two stay finite
_SIDES = ("left", "top", "width", "height")


@dataclass(frozen=True, slots=True)
class Sighting:
    """One photo that shows one product."""

    photo: int
    product: int
    bbox: tuple[float, float, float, float] | None  # left, top, width, height; None: the whole photo

    @property
    def file_name(self) -> str:
        return f"{self.photo:09d}.jpg"


@dataclass(frozen=True)
class Category:
    """The three lists of one category; its number counts from 0."""

    number: int
    name: str
    train: list[Sighting]  # street photos with a box
    test: list[Sighting]
    retrieval: list[Sighting]  # shop photos


def read_categories(metadata: Path) -> list[Category]:
    """Read the 11 categories, in order.

    Raises:
        MissingPathError: one of the files does not exist.
        UserError: one is malformed; the message names the file, and the line or the entry.
    """
    folder = metadata / "json"
    return [
        Category(
            number,
            name,
            read_sightings(folder / f"train_pairs_{name}.json"),
            read_sightings(folder / f"test_pairs_{name}.json"),
            read_sightings(folder / f"retrieval_{name}.json"),
        )
        for number, name in enumerate(CATEGORIES)
    ]


def read_sightings(path: Path) -> list[Sighting]:
    """Read the entries of one file, in order. Raises as :func:`read_categories`."""
    entries = read_json(path)
    if not isinstance(entries, list):
        raise UserError(f"{path}: expected a list of photos, found a {type(entries).__name__}.")
    return [_sighting(entry, f"{path}: entry {number}") for number, entry in enumerate(entries, start=1)]


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises MissingPathError or UserError, which names the line."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise MissingPathError(f"{path} does not exist.") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not JSON ({error.msg}); is the file cut off?") from error
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}.") from error


def _sighting(entry: Any, where: str) -> Sighting:
    if not isinstance(entry, dict):
        raise UserError(f"{where}: expected an object, found {entry!r}.")
    photo, product = (_whole_number(entry, key, where) for key in ("photo", "product"))
    bbox = entry.get("bbox")
    if bbox is None:
        return Sighting(photo, product, None)
    if not isinstance(bbox, dict) or not all(_is_number(bbox.get(side)) for side in _SIDES):
        raise UserError(f"{where}: bbox is {bbox!r}; expected numbers of pixels for {', '.join(_SIDES)}.")
    left, top, width, height = (bbox[side] for side in _SIDES)
    return Sighting(photo, product, (left, top, width, height))


def _whole_number(entry: dict[str, Any], key: str, where: str) -> int:
    value = entry.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise UserError(f'{where}: "{key}" is {value!r}; expected a whole number.')
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < _MAX_SIDE
