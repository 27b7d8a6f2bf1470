#!/usr/bin/env python
"""Crop the clothes from the high-resolution images of DeepFashion Consumer-to-Shop, and write the COCO files.

    python scripts/deep_fashion2reid.py --root-dir-path data/df1

The folder holds Anno/ and Eval/ with the lists, img/ with the images that the boxes refer to, and img_highres/ with
those to crop; none of them is changed. Images that are missing or cannot be read are reported and left out; the exit
status is then 1. An interrupted run continues where it stopped.
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
from scripts.deep_fashion_lists import SPLITS, ListedImage, read_images, scaled_box
from utils.errors import UserError

Size = tuple[int, int]
EVALUATION = ("query", "gallery")


@dataclass(frozen=True)
class Measured:
    """An image whose files have been found: the one to crop, its size, and the size that its box refers to."""

    image: ListedImage
    path: Path
    high: Size
    low: Size


def build_parser() -> Parser:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--root-dir-path", type=Path, required=True, metavar="DIR", help="folder of the data set")
    parser.add_size()
    text = (
        "corners crops to the boxes; original takes their scaled right and bottom for width and height, as in the "
        "crops behind the published numbers (default: %(default)s)"
    )
    add("--bbox-mode", choices=("original", "corners"), default="original", help=text)
    parser.add_workers()
    return parser


def measure(root: Path, image: ListedImage) -> Measured | str:
    """Measure the files of an image, or say why they cannot be read, with the file and line that list the image."""
    from utils.image import read_image_size

    path = high_resolution_path(root, image)
    try:  # boxes refer to the pixels as they are stored
        high, low = (read_image_size(file, exif_orientation=False) for file in (path, root / image.path))
        return Measured(image, path, high, low)
    except UserError as error:
        return f"{image.where}: {error}"


def high_resolution_path(root: Path, image: ListedImage) -> Path:
    """The path of the image to crop; the release calls the folder Summer_Wear by another name, Summer_Suit."""
    inside = image.path.removeprefix("img/")
    path = root / "img_highres" / inside
    if inside.startswith("CLOTHING/Summer_Wear/") and not path.exists():
        misnamed = root / "img_highres" / inside.replace("Summer_Wear", "Summer_Suit", 1)
        return misnamed if misnamed.exists() else path
    return path


def build_indexes(images: Sequence[tuple[ListedImage, Size]]) -> dict[str, CocoBuilder]:
    """Build the COCO files of the three splits, and of query and gallery, in one pass over the images.

    Queries are the users' test images; the gallery is the other test images and the shops' images in val.

    Args:
        images: each with the width and height before cropping, in the order of :func:`read_images`.
    """
    builders = {name: CocoBuilder() for name in (*SPLITS, *EVALUATION)}
    numbered = list(enumerate(images))
    for number, (image, size) in numbered:
        _add(builders[image.split], number, image, size, image.pair_id)
    evaluated = [
        entry
        for split in ("test", "val")
        for entry in numbered
        if entry[1][0].split == split and evaluation_set(entry[1][0])
    ]
    pair_ids = {pair_id: i for i, pair_id in enumerate(sorted({entry[1][0].pair_id for entry in evaluated}))}
    for number, (image, size) in evaluated:
        _add(builders[evaluation_set(image)], number, image, size, pair_ids[image.pair_id])
    return builders


def evaluation_set(image: ListedImage) -> str:
    """The set that an image is evaluated in: query, gallery, or "" for none."""
    if image.split == "test":
        return "query" if image.row.source == "user" else "gallery"
    return "gallery" if image.split == "val" and image.row.source == "shop" else ""


def _add(builder: CocoBuilder, number: int, image: ListedImage, size: Size, pair_id: int) -> None:
    row = image.row
    builder.add_image(number, image.name, size)
    builder.add_identity(number, number, int(row.style), pair_id=pair_id, style=row.style, source=row.source)


def crop_images(
    found: Sequence[Measured], target: Path, size: Size, mode: str, workers: int
) -> tuple[list[Measured], list[str]]:
    """Crop the images into the folders of their splits, and copy the crops to query and gallery.

    Returns:
        The images whose crops exist, and why the others could not be made.
    """
    from scripts.crops import Crop, make_crops

    crops = [
        Crop(
            one.path,
            target / one.image.split / one.image.name,
            scaled_box(one.image.row.corners, one.low, one.high, mode),
        )
        for one in found
    ]
    failures = make_crops(crops, size, workers, "cropping")
    made = [one for one, failure in zip(found, failures, strict=True) if not failure]
    copied = [one.image for one in made if evaluation_set(one.image)]
    parallel(partial(copy, target), copied, workers, "copying")
    named = [f"{one.image.where}: {failure}" for one, failure in zip(found, failures, strict=True) if failure]
    return made, named


def copy(target: Path, image: ListedImage) -> None:
    """Copy a crop to the query or gallery folder, unless it is already there."""
    from utils.files import write_bytes

    data = (target / image.split / image.name).read_bytes()
    path = target / evaluation_set(image) / image.name
    if not path.is_file() or path.read_bytes() != data:
        write_bytes(path, data)


def convert(args: argparse.Namespace) -> int:
    """Make the crops and the five COCO files; returns the exit status.

    Raises:
        MissingPathError: one of the folders or lists does not exist.
        UserError: a list is malformed, no image can be read, or the results cannot be written.
    """
    root, size = require_folder(args.root_dir_path, "the data set of --root-dir-path"), tuple(args.target_image_size)
    require_folder(root / "img", "the low-resolution images that the boxes refer to")
    require_folder(root / "img_highres", "the high-resolution images")
    images = read_images(root)
    target = root / f"{size[0]}_{size[1]}_cropped_images"
    remove_leftovers(root, *(target / folder for folder in (*SPLITS, *EVALUATION)))
    results = parallel(partial(measure, root), images, args.workers, "measuring")
    found = [result for result in results if not isinstance(result, str)]
    failures = [result for result in results if isinstance(result, str)]
    made, more = crop_images(found, target, size, args.bbox_mode, args.workers)
    failures += more
    if not made:
        raise UserError(failures[0] if failures else f"{root}/Eval/list_eval_partition.txt lists no images.")
    for name, builder in build_indexes([(one.image, one.high) for one in made]).items():
        builder.write(root / f"{name}_reid_cropped_{size[0]}_{size[1]}.json")
        print(builder.summary(name))
    return report_failures(failures, "the COCO files leave them out")


if __name__ == "__main__":
    run(convert, build_parser())
