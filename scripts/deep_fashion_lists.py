"""Reads the two lists of DeepFashion Consumer-to-Shop: the boxes of the images, and their splits."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from utils.errors import MissingPathError, UserError

SOURCES = {"1": "shop", "2": "user"}
SPLITS = ("train", "val", "test")
MAX_CORNER = 2**31  # pixels; no image is larger
Corners = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class BoxRow:
    """A row of the list of boxes."""

    style: str
    source: str  # "shop" or "user"
    corners: Corners  # x1, y1, x2, y2 in the low-resolution image


@dataclass(frozen=True, slots=True)
class ListedImage:
    """An image that the lists name."""

    path: str  # as the lists name it: img/CLOTHING/<type>/<item>/<file>
    split: str
    pair_id: int
    row: BoxRow
    where: str  # file and line that name it first

    @property
    def name(self) -> str:
        """Name of its crop."""
        *_, item, file = self.path.split("/")
        return f"{item}_{file}"


def read_boxes(path: Path) -> dict[str, BoxRow]:
    """Read the row of each image in Anno/list_bbox_consumer2shop.txt. Raises as :func:`read_images`."""
    boxes = {}
    for where, (name, style, source, *corners) in _rows(path, 7):
        if source not in SOURCES:
            raise UserError(f"{where}: source type {source!r}; expected 1 (shop) or 2 (user).")
        try:
            int(style)
            x1, y1, x2, y2 = map(int, corners)
        except ValueError:
            raise UserError(f"{where}: clothes type and corners must be whole numbers: {style} {corners}.") from None
        if max(map(abs, (x1, y1, x2, y2))) >= MAX_CORNER:
            raise UserError(f"{where}: a corner lies outside any image: {corners}; expected pixels.")
        boxes[_image_path(name, where)] = BoxRow(style, SOURCES[source], (x1, y1, x2, y2))
    return boxes


def read_partition(path: Path) -> dict[str, dict[str, str]]:
    """Read the images of each split, each with the file and line that first name it, in file order.

    Raises as :func:`read_images`.
    """
    splits: dict[str, dict[str, str]] = {}
    for where, (first, second, _, split) in _rows(path, 4):
        if split not in SPLITS:
            raise UserError(f"{where}: split {split!r}; expected one of {', '.join(SPLITS)}.")
        images = splits.setdefault(split, {})
        for name in (first, second):
            images.setdefault(_image_path(name, where), where)
    return splits


def read_images(root: Path) -> list[ListedImage]:
    """Read all images, in the order in which they are numbered; the time grows little faster than the lists.

    Raises:
        MissingPathError: a list does not exist.
        UserError: a list is cut off, a row is malformed, an image has no box, or two crops would have one name; the
            message names file and line.
    """
    box_list = root / "Anno" / "list_bbox_consumer2shop.txt"
    splits, boxes = read_partition(root / "Eval" / "list_eval_partition.txt"), read_boxes(box_list)
    images: list[ListedImage] = []
    pair_count = 0
    for split, wheres in splits.items():
        items = sorted({_item(path) for path in wheres})
        pair_ids = {item: number for number, item in enumerate(items, start=pair_count)}
        pair_count += len(items)
        for path in sorted(wheres, key=lambda path: (_item(path).rpartition("/")[2], path)):
            if path not in boxes:
                raise UserError(f"{wheres[path]}: {path} has no row in {box_list}.")
            images.append(ListedImage(path, split, pair_ids[_item(path)], boxes[path], wheres[path]))
    _refuse_same_names(images)
    return images


def scaled_box(corners: Corners, low: tuple[int, int], high: tuple[int, int], mode: str) -> Corners:
    """The part of the high-resolution image to crop: left, top, right, bottom.

    Args:
        corners: x1, y1, x2, y2 in the low-resolution image.
        low: width and height of the low-resolution image.
        high: width and height of the high-resolution image.
        mode: "corners" scales them; "original" takes the scaled (x2, y2) for width and height, as the first release of
            the method did, so that its crops are larger than the boxes.
    """
    # Divide first: where the rounding error costs a pixel, the recorded crops lack it too.
    x1, y1, x2, y2 = (int(value / low[i % 2] * high[i % 2]) for i, value in enumerate(corners))
    return (x1, y1, x1 + x2, y1 + y2) if mode == "original" else (x1, y1, x2, y2)


def _rows(path: Path, fields: int) -> Iterator[tuple[str, list[str]]]:
    """Yield file and line, and the fields, of every row after the count and the header."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise MissingPathError(f"{path} does not exist.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as text: {error}.") from error
    first = lines[0].strip() if lines else ""
    if not first.isdecimal() or len(first) > 18:
        raise UserError(f"{path}, line 1: expected the number of rows, found {first[:40]!r}.")
    count = 0
    for number, line in enumerate(lines[2:], start=3):
        if not line.strip():
            continue
        values = line.split()
        if len(values) != fields:
            raise UserError(f"{path}, line {number}: expected {fields} fields, found {len(values)}: {line.strip()!r}.")
        count += 1
        yield f"{path}, line {number}", values
    if count != int(first):
        raise UserError(f"{path}, line 1: says {first} rows, found {count}; is the file cut off?")


def _image_path(name: str, where: str) -> str:
    parts = name.split("/")
    if parts[0] != "img" or len(parts) < 3 or not {"", ".", ".."}.isdisjoint(parts):
        raise UserError(f"{where}: image {name!r}; expected img/<clothes>/<type>/<item>/<file>.")
    return name


def _item(path: str) -> str:
    """The folder of an image, which identifies the item."""
    return path.rpartition("/")[0]


def _refuse_same_names(images: list[ListedImage]) -> None:
    paths: dict[str, str] = {}
    for image in images:
        other = paths.setdefault(image.name, image.path)
        if other != image.path:
            raise UserError(f"{image.where}: {image.path} and {other} would both be cropped to {image.name}.")
