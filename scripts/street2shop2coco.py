#!/usr/bin/env python
"""Write lists of the photos of Street2Shop, and a COCO file of its street photos with their boxes.

    python scripts/street2shop2coco.py --root-dir-path data/street2shop

The next step is street2shop_coco2reid.py. All other paths are relative to --root-dir-path.
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

if __package__ in (None, ""):  # run as a file: the packages lie one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.coco_builder import INFO, LICENSES, CocoBuilder, category
from scripts.conversion import Parser, parallel, remove_leftovers, require_folder, run
from scripts.street2shop_metadata import CATEGORIES, Category, read_categories, read_sightings
from utils.errors import MissingPathError, UserError
from utils.files import write_text

UNREADABLE = (1, 1)  # the size recorded for a photo that cannot be read


def build_parser() -> Parser:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--root-dir-path", type=Path, required=True, metavar="DIR", help="folder of the data set")
    add("--metadata-dir", default="meta", metavar="DIR", help="holds json/*_pairs_*.json (default: %(default)s)")
    add("--images-dir", default="images_jpg", metavar="DIR", help="photos, 9 digits and .jpg (default: %(default)s)")
    add("--save-dir", default="meta", metavar="DIR", help="folder to write to (default: %(default)s)")
    parser.add_workers()
    return parser


def photo_list(folder: Path, pattern: str) -> list[str]:
    """Names of the photos in all files that match, in sorted order of files. Raises MissingPathError if none does."""
    paths = sorted(folder.glob(pattern))
    if not paths:
        raise MissingPathError(f"{folder} holds no {pattern}; expected the metadata of Street2Shop.")
    return [sighting.file_name for path in paths for sighting in read_sightings(path)]


def write_lines(path: Path, lines: Iterable[str]) -> None:
    write_text(path, "".join(f"{line}\n" for line in lines))


def measure(paths: list[Path], workers: int) -> list[tuple[int, int] | None]:
    """Width and height of each photo; None if it cannot be read, which is reported on stderr."""
    from utils.image import read_image_size

    def size(path: Path) -> tuple[int, int] | str:
        try:
            return read_image_size(path)
        except UserError as error:
            return str(error)

    results = parallel(size, paths, workers, "measuring")
    failures = [result for result in results if isinstance(result, str)]
    for message in failures:
        print(message, file=sys.stderr)
    if failures:
        print(
            f"{len(failures)} photo(s) cannot be read, named above: their size is recorded as 1 x 1.", file=sys.stderr
        )
    return [None if isinstance(result, str) else result for result in results]


def build_index(categories: list[Category], photos: list[str], sizes: list[tuple[int, int] | None]) -> CocoBuilder:
    """Build the COCO file of the street photos.

    Args:
        categories: the metadata.
        photos: names of the photos, one for each image of the file.
        sizes: width and height of each; None for one that cannot be read.
    """
    numbered = [category(number, name) for number, name in enumerate(CATEGORIES)]
    builder = CocoBuilder({"info": INFO, "licenses": LICENSES, "categories": numbered})
    known = {}
    for photo, size in zip(photos, sizes, strict=True):
        number = int(Path(photo).stem)
        known[number] = size or UNREADABLE
        builder.add_image(number, photo, known[number])
    pairs = [(one.number, pair) for one in categories for pair in one.train]
    # The original gives all test pairs the last category. Nothing reads it; doing the same keeps the files equal.
    pairs += [(categories[-1].number, pair) for one in categories for pair in one.test]
    for number, (category_id, pair) in enumerate(pairs):
        bbox = pair.bbox or (0, 0, *known[pair.photo])
        builder.add_box(number, pair.photo, category_id, list(bbox))
    return builder


def convert(args: argparse.Namespace) -> int:
    """Write the lists and the COCO file; returns the exit status.

    Raises:
        MissingPathError: the metadata or the folder of photos does not exist.
        UserError: a metadata file is malformed, or the results cannot be written.
    """
    root = require_folder(args.root_dir_path, "the data set of --root-dir-path")
    metadata, save = root / args.metadata_dir, root / args.save_dir
    images = require_folder(root / args.images_dir, "the photos as JPEG (see convert_to_jpg.py)")
    require_folder(metadata / "json", "the metadata of Street2Shop")
    categories = read_categories(metadata)
    train, test = photo_list(metadata / "json", "train_*.json"), photo_list(metadata / "json", "test_*.json")
    remove_leftovers(save)
    photos = train + test
    builder = build_index(categories, photos, measure([images / photo for photo in photos], args.workers))
    for name, lines in (("train_data", train), ("test_data", test), ("train_all", photos)):
        write_lines(save / f"{name}.txt", lines)
    for one in categories:
        write_lines(save / f"{one.name}_products.txt", sorted({sighting.file_name for sighting in one.retrieval}))
    builder.write(save / "all_street_train.json")
    print(f"{save / 'all_street_train.json'}: {len(builder.images)} images, {len(builder.annotations)} boxes")
    return 0


if __name__ == "__main__":
    run(convert, build_parser())
