#!/usr/bin/env python
"""Crop the products from the photos of Street2Shop, and write the COCO files that training reads.

    python scripts/street2shop_coco2reid.py --train-json-path data/street2shop/meta/all_street_train.json \\
        --root-dir-path data/street2shop

All paths but --root-dir-path are relative to it; --train-json-path may also be relative to the current folder. Photos
that cannot be read are reported and left out; the exit status is then 1. An interrupted run continues where it stopped.
"""

import argparse
import math
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file: the packages lie one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.coco_builder import CocoBuilder
from scripts.conversion import Parser, not_negative, remove_leftovers, report_failures, require_folder, run
from scripts.street2shop_metadata import Category, Sighting, read_categories, read_json
from utils.errors import MissingPathError, UserError

SUBSETS = ("train", "query", "gallery")
HEADER = ("info", "licenses", "categories")


@dataclass(frozen=True, slots=True)
class Entry:
    """One crop: a product in a photo, in one of the three sets."""

    subset: str
    sighting: Sighting
    category: int
    source: str  # "user" or "shop"
    area: int  # pixels of the box; 0 without one
    file_name: str

    @property
    def box(self) -> tuple[int, int, int, int] | None:
        """Left, top, right, bottom in pixels; None for the whole photo."""
        if self.sighting.bbox is None:
            return None
        left, top, width, height = self.sighting.bbox
        return int(left), int(top), int(left + width), int(top + height)


def build_parser() -> Parser:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--train-json-path", type=Path, required=True, metavar="FILE", help="all_street_train.json")
    add("--root-dir-path", type=Path, required=True, metavar="DIR", help="folder of the data set")
    add("--metadata-dir", default="meta", metavar="DIR", help="holds json/*_pairs_*.json (default: %(default)s)")
    add("--images-dir", default="images_jpg", metavar="DIR", help="photos, 9 digits and .jpg (default: %(default)s)")
    add("--save-dir", default="meta", metavar="DIR", help="folder for the COCO files (default: %(default)s)")
    parser.add_size()
    text = "drop boxes with a smaller area, in pixels (default: %(default)s)"
    add("--minimum-bbox-area", type=not_negative, default=1, metavar="AREA", help=text)
    parser.add_workers()
    return parser


def plan(categories: Iterable[Category], minimum_area: float) -> list[Entry]:
    """Plan all crops, in the order in which they are numbered; the time is proportional to the metadata.

    Args:
        categories: the metadata.
        minimum_area: smaller boxes, and those without width or height, are left out.
    """
    entries: list[Entry] = []
    for one in categories:
        products = {pair.product for pair in one.train}
        trained = [shop for shop in one.retrieval if shop.product in products]
        others = [shop for shop in one.retrieval if shop.product not in products]
        lists = {
            "train": [(pair, "user") for pair in one.train] + [(shop, "shop") for shop in trained],
            "query": [(pair, "user") for pair in one.test],
            "gallery": [(shop, "shop") for shop in others],
        }
        for subset in SUBSETS:
            entries += _plan_subset(subset, lists[subset], one.number, minimum_area)
    return entries


def _plan_subset(
    subset: str, sightings: list[tuple[Sighting, str]], category: int, minimum_area: float
) -> Iterable[Entry]:
    by_photo = defaultdict(list)
    for sighting, source in sightings:
        by_photo[sighting.file_name].append((sighting, source))
    for photo in sorted(by_photo):
        for index, (sighting, source) in enumerate(by_photo[photo]):
            area = 0
            if sighting.bbox is not None:
                _, _, width, height = sighting.bbox
                area = math.ceil(width * height)
                if width <= 0 or height <= 0 or area < minimum_area:
                    continue
            name = f"{photo.removesuffix('.jpg')}_{category}_{index}.jpg"
            yield Entry(subset, sighting, category, source, area, name)


def build_indexes(entries: Sequence[Entry], size: tuple[int, int], header: dict[str, Any]) -> dict[str, CocoBuilder]:
    """Build the COCO file of each set, in one pass.

    Args:
        entries: the crops that exist, in the order of :func:`plan`.
        size: width and height of each.
        header: what the files hold besides images and annotations.
    """
    builders = {subset: CocoBuilder(header) for subset in SUBSETS}
    pair_ids: dict[tuple[int, int], int] = {}
    for image_id, entry in enumerate(entries, start=1):
        builder = builders[entry.subset]
        builder.add_image(image_id, entry.file_name, size)
        builder.add_identity(
            len(builder.annotations) + 1,
            image_id,
            entry.category,
            # A product in two categories counts as two identities.
            pair_id=pair_ids.setdefault((entry.category, entry.sighting.product), len(pair_ids)),
            style=entry.category,
            source=entry.source,
            area=entry.area,
        )
    return builders


def read_header(path: Path, root: Path) -> dict[str, Any]:
    """Read info, licences and categories from the COCO file of the street photos, at ``path`` or ``root / path``.

    Raises:
        MissingPathError: it does not exist.
        UserError: it is not such a COCO file.
    """
    found = next((choice for choice in (path, root / path) if choice.is_file()), None)
    if found is None:
        raise MissingPathError(f"{path} does not exist, nor does {root / path}; street2shop2coco.py writes it.")
    content = read_json(found)
    for key in HEADER:
        if not isinstance(content, dict) or key not in content:
            raise UserError(f'{found} has no "{key}"; expected the file that street2shop2coco.py writes.')
    return {key: content[key] for key in HEADER}


def convert(args: argparse.Namespace) -> int:
    """Make the crops and the three COCO files; returns the exit status.

    Raises:
        MissingPathError: the metadata, the COCO file or the folder of photos does not exist.
        UserError: one of the files is malformed, no photo can be read, or the results cannot be written.
    """
    from scripts.crops import Crop, make_crops

    root, size = require_folder(args.root_dir_path, "the data set of --root-dir-path"), tuple(args.target_image_size)
    images = require_folder(root / args.images_dir, "the photos as JPEG (see convert_to_jpg.py)")
    header = read_header(args.train_json_path, root)
    entries = plan(read_categories(root / args.metadata_dir), args.minimum_bbox_area)
    target = root / f"images_reid_cropped_{size[0]}_{size[1]}"
    remove_leftovers(root / args.save_dir, *(target / subset for subset in SUBSETS))
    crops = [Crop(images / one.sighting.file_name, target / one.subset / one.file_name, one.box) for one in entries]
    failures = make_crops(crops, size, args.workers, "cropping")
    if all(failures):
        raise UserError(failures[0] if failures else f"The metadata below {root} names no photo with a usable box.")
    made = [entry for entry, failure in zip(entries, failures, strict=True) if not failure]
    for subset, builder in build_indexes(made, size, header).items():
        builder.write(root / args.save_dir / f"{subset}_coco_reid.json")
        print(builder.summary(subset))
    return report_failures([failure for failure in failures if failure], "the COCO files leave them out")


if __name__ == "__main__":
    run(convert, build_parser())
