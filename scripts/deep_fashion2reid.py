#!/usr/bin/env python
"""Cut the clothes out of the high-resolution pictures of DeepFashion Consumer-to-Shop, and write the COCO files.

    python scripts/deep_fashion2reid.py --root-dir-path data/df1

The folder holds Anno/ and Eval/ with the lists, img/ with the pictures that the boxes refer to, and img_highres/ with
those that are cut; none of them is changed. Pictures that are missing or cannot be read are named and left out; the
exit status is then 1. A run that was interrupted goes on where it was.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

if __package__ in (None, ""):  # run as a file: the packages lie one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.coco_builder import CocoBuilder
from scripts.conversion import Parser, parallel, remove_leftovers, report_failures, require_folder, run
from scripts.deep_fashion_lists import SPLITS, Picture, read_pictures, scaled_box
from utils.errors import UserError

Size = tuple[int, int]
EVALUATION = ("query", "gallery")


@dataclass(frozen=True)
class Measured:
    """A picture whose files have been found: the one to cut, its size, and the size that its box refers to."""

    picture: Picture
    path: Path
    high: Size
    low: Size


def build_parser() -> Parser:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--root-dir-path", type=Path, required=True, metavar="DIR", help="folder of the data set")
    parser.add_size()
    text = (
        "corners cuts the boxes; original takes their scaled right and bottom for width and height, as the crops that "
        "the published numbers were measured on were made (default: %(default)s)"
    )
    add("--bbox-mode", choices=("original", "corners"), default="original", help=text)
    parser.add_workers()
    return parser


def measure(root: Path, picture: Picture) -> Measured | str:
    """The picture with its files' sizes, or why they cannot be read, with file and line of the list that names it."""
    from utils.image import read_image_size

    path = high_resolution_path(root, picture)
    try:
        return Measured(picture, path, read_image_size(path), read_image_size(root / picture.path))
    except UserError as error:
        return f"{picture.where}: {error}"


def high_resolution_path(root: Path, picture: Picture) -> Path:
    """Where the picture to cut lies; the release calls the folder Summer_Wear Summer_Suit."""
    inside = picture.path.removeprefix("img/")
    path = root / "img_highres" / inside
    if inside.startswith("CLOTHING/Summer_Wear/") and not path.exists():
        misnamed = root / "img_highres" / inside.replace("Summer_Wear", "Summer_Suit", 1)
        return misnamed if misnamed.exists() else path
    return path


def build_indexes(pictures: Sequence[tuple[Picture, Size]]) -> dict[str, CocoBuilder]:
    """The COCO files of the three splits, and of query and gallery, in one pass over the pictures.

    Query are the test pictures of users; gallery are the other test pictures, and those of shops in val.

    Args:
        pictures: each with the width and height before cropping, in the order of :func:`read_pictures`.
    """
    builders = {name: CocoBuilder() for name in (*SPLITS, *EVALUATION)}
    numbered = list(enumerate(pictures))
    for number, (picture, size) in numbered:
        _add(builders[picture.split], number, picture, size, picture.pair_id)
    evaluated = [
        entry
        for split in ("test", "val")
        for entry in numbered
        if entry[1][0].split == split and evaluation_set(entry[1][0])
    ]
    pair_ids = {pair_id: i for i, pair_id in enumerate(sorted({entry[1][0].pair_id for entry in evaluated}))}
    for number, (picture, size) in evaluated:
        _add(builders[evaluation_set(picture)], number, picture, size, pair_ids[picture.pair_id])
    return builders


def evaluation_set(picture: Picture) -> str:
    """The set that a picture is evaluated in: query, gallery, or none (empty)."""
    if picture.split == "test":
        return "query" if picture.row.source == "user" else "gallery"
    return "gallery" if picture.split == "val" and picture.row.source == "shop" else ""


def _add(builder: CocoBuilder, number: int, picture: Picture, size: Size, pair_id: int) -> None:
    row = picture.row
    builder.add_image(number, picture.name, size)
    builder.add_identity(number, number, int(row.style), pair_id=pair_id, style=row.style, source=row.source)


def make_pictures(
    found: Sequence[Measured], target: Path, size: Size, mode: str, workers: int
) -> tuple[list[Measured], list[str]]:
    """Crop the pictures into the folders of their splits, and copy the crops to query and gallery.

    Returns:
        The pictures whose crops exist, and why the others' do not.
    """
    from scripts.crops import Crop, make_crops

    crops = [
        Crop(
            one.path,
            target / one.picture.split / one.picture.name,
            scaled_box(one.picture.row.corners, one.low, one.high, mode),
        )
        for one in found
    ]
    failures = make_crops(crops, size, workers, "cropping")
    made = [one for one, failure in zip(found, failures, strict=True) if not failure]
    copied = [one.picture for one in made if evaluation_set(one.picture)]
    parallel(partial(copy, target), copied, workers, "copying")
    named = [f"{one.picture.where}: {failure}" for one, failure in zip(found, failures, strict=True) if failure]
    return made, named


def copy(target: Path, picture: Picture) -> None:
    """Copy a crop to the folder of query or gallery, unless it is there."""
    from utils.files import write_bytes

    data = (target / picture.split / picture.name).read_bytes()
    path = target / evaluation_set(picture) / picture.name
    if not path.is_file() or path.read_bytes() != data:
        write_bytes(path, data)


def convert(args: argparse.Namespace) -> int:
    """Make the crops and the five COCO files; returns the exit status.

    Raises:
        MissingPathError: one of the folders or lists does not exist.
        UserError: a list is malformed, no picture can be read, or the results cannot be written.
    """
    root, size = require_folder(args.root_dir_path, "the data set of --root-dir-path"), tuple(args.target_image_size)
    require_folder(root / "img", "the low-resolution pictures that the boxes refer to")
    require_folder(root / "img_highres", "the high-resolution pictures")
    pictures = read_pictures(root)
    target = root / f"{size[0]}_{size[1]}_cropped_images"
    remove_leftovers(root, *(target / folder for folder in (*SPLITS, *EVALUATION)))
    results = parallel(partial(measure, root), pictures, args.workers, "measuring")
    found = [result for result in results if not isinstance(result, str)]
    failures = [result for result in results if isinstance(result, str)]
    made, more = make_pictures(found, target, size, args.bbox_mode, args.workers)
    failures += more
    if not made:
        raise UserError(failures[0] if failures else f"{root}/Eval/list_eval_partition.txt lists no pictures.")
    for name, builder in build_indexes([(one.picture, one.high) for one in made]).items():
        builder.write(root / f"{name}_reid_cropped_{size[0]}_{size[1]}.json")
        print(builder.summary(name))
    return report_failures(failures, "the COCO files leave them out")


if __name__ == "__main__":
    run(convert, build_parser())
