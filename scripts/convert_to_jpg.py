#!/usr/bin/env python
"""Convert every image in a folder to an RGB JPEG in another folder.

    python scripts/convert_to_jpg.py --source-dir-path images --target-dir-path images_jpg

A file that cannot be read is reported, and the others are converted; the exit status is then 1. Images that an earlier
run converted are not converted again unless they have changed. An image in the target folder that this script did not
make is never replaced: the one that would take its place counts as failed.
"""

import argparse
import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a file: the packages lie one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.conversion import Parser, remove_leftovers, report_failures, require_folder, run
from utils.errors import UserError


def build_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--source-dir-path", type=Path, required=True, metavar="DIR", help="folder of images")
    parser.add_argument("--target-dir-path", type=Path, required=True, metavar="DIR", help="folder to write to")
    parser.add_workers("--num-threads", default=4)
    return parser


def convert(args: argparse.Namespace) -> int:
    """Convert the folder; returns the exit status.

    Raises:
        MissingPathError: the source folder does not exist.
        UserError: source and target are one folder, the source is empty, or the target cannot be written to.
    """
    from scripts.crops import Crop, make_crops

    source, target = args.source_dir_path, args.target_dir_path
    require_folder(source, "the images of --source-dir-path")
    if source.resolve() == target.resolve():
        raise UserError(f"--source-dir-path and --target-dir-path are both {source}; give another target folder.")
    files = sorted(path for path in source.iterdir() if path.is_file() and not path.name.startswith("."))
    if not files:
        raise UserError(f"{source} holds no files; expected images.")
    chosen: dict[str, Path] = {}
    failures = []
    for path in files:
        first = chosen.setdefault(path.stem, path)
        if first is not path:
            failures.append(f"Image {path}: {target / path.stem}.jpg is already made from {first.name}.")
    remove_leftovers(target)
    crops = [Crop(path, target / f"{stem}.jpg") for stem, path in chosen.items()]
    made = make_crops(crops, None, args.workers, "converting", keep_others=True)
    failures = [text for text in made if text] + failures
    print(f"{target}: {len(files) - len(failures)} of {len(files)} files converted")
    return report_failures(failures, "no JPEG was made from them")


if __name__ == "__main__":
    run(convert, build_parser())
