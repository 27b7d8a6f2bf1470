"""Divide images of your own into train, query and gallery: ``python -m datasets.split IMAGES --by folder --out F``."""

import argparse
import csv
import os
import random
import sys
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from config.cli import clean_exit, whole_number
from utils.console import command_parser
from utils.errors import MissingPathError, UserError
from utils.files import digests_of_equals, written_whole

if TYPE_CHECKING:
    from datasets.notes import PassedOver
    from datasets.readers.numbering import Entry

_DESCRIPTION = """Divide images of your own into train, query and gallery, and write the table that DATASETS.NAMES csv
reads. No identity is both in train and in query or gallery. Where cameras are known, each query has a gallery image of
its identity from another camera."""
_EPILOG = """examples:
  python -m datasets.split crops --by folder --out data.csv
  python -m datasets.split crops.csv --by csv --train 0.7 --query-per-id 1 --seed 3 --out data.csv

IMAGES: with --by folder, a folder with one folder of images for each identity, in whose file names _c<number> is the
camera, unless --camera-from folder says that each camera has a folder below that of the identity; with --by csv, a
table (.csv, .parquet) with the columns path, pid and, optionally, camid. Its relative paths start from its own
folder."""


@dataclass(frozen=True)
class SplitOptions:
    """How images are divided.

    Attributes:
        train: share of the identities that go to training, among those that could be evaluated; above 0, below 1.
        queries: the most queries of an identity, 1 or more.
        seed: of the draw.
    """

    train: float = 0.5
    queries: int = 2
    seed: int = 0


@dataclass
class Division:
    """Images by subset, and sentences about what could not be divided as the others."""

    train: "list[Entry]" = field(default_factory=list)
    query: "list[Entry]" = field(default_factory=list)
    gallery: "list[Entry]" = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser("python -m datasets.split", _DESCRIPTION, _EPILOG)
    parser.add_argument("images", metavar="IMAGES", help="folder or table, see below")
    parser.add_argument("--by", required=True, choices=("folder", "csv"), help="where identities come from")
    parser.add_argument("--out", required=True, metavar="FILE", help="the table to write")
    parser.add_argument(
        "--train", type=_share, default=0.5, metavar="SHARE", help="share of the identities that train; default: 0.5"
    )
    parser.add_argument(
        "--query-per-id", type=whole_number(1), default=2, metavar="N", help="most queries of an identity; default: 2"
    )
    parser.add_argument(
        "--seed", type=whole_number(0), default=0, metavar="N", help="another seed draws another division; default: 0"
    )
    parser.add_argument(
        "--camera-from",
        choices=("name", "folder"),
        default="name",
        help="with --by folder, as DATASETS.CAMERA_FROM; default: name",
    )
    parser.add_argument("--force", action="store_true", help="overwrite --out if it exists")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; an error that the user can fix ends the program with status 2."""
    args = build_parser().parse_args(argv)
    with clean_exit():
        sys.stdout.write(_run(args) + "\n")


def _run(args: argparse.Namespace) -> str:
    from datasets.bases import NO_CAMERAS
    from datasets.counts import statistics_table
    from datasets.notes import PassedOver
    from datasets.readers.identity_folders import deeper_note
    from datasets.readers.numbering import SUBSETS, build_splits

    out, images = Path(args.out), Path(args.images)
    _check_output(out, images, args.force)
    if args.by == "csv" and args.camera_from != "name":
        raise UserError("--camera-from is for --by folder; with --by csv the column camid tells the camera.")
    passed = PassedOver(images)
    entries = read_images(images, args.by, passed, args.camera_from)
    division = divide(entries, SplitOptions(args.train, args.query_per_id, args.seed), str(images))
    subsets = {subset: getattr(division, subset) for subset in SUBSETS}
    # What the table's reader would refuse, such as the identities 7 and 007, is refused before anything is written.
    splits = build_splits(subsets, str(images))
    write_table(out, subsets)
    lines = [statistics_table({subset: getattr(splits, subset) for subset in SUBSETS}, splits.has_cameras), ""]
    lines += [] if splits.has_cameras else [NO_CAMERAS]
    per_query = Counter(Counter(image.pid for image in division.query).values())
    shares = ", ".join(f"{number} with {count}" for count, number in sorted(per_query.items()))
    lines.append(f"queries: {len(division.query)} of {per_query.total()} identities ({shares})")
    if args.by == "folder" and args.camera_from == "name":
        lines += deeper_note(images, entries, 1, "give --camera-from folder")
    return "\n".join([*lines, *division.notes, *passed.notes(), f"written: {out}"])


def _check_output(out: Path, images: Path, force: bool) -> None:
    from datasets.readers.table import PARQUET_SUFFIXES

    if out.suffix.lower() in PARQUET_SUFFIXES:
        raise UserError(f"--out {out}: the table is written as CSV, but DATASETS.CSV_PATH would read it as Parquet.")
    if out.exists() and images.exists() and out.samefile(images):
        raise UserError(f"--out {out} is the table that is read; name another file.")
    if out.exists() and not force:
        raise UserError(f"--out {out} exists; name another file, or overwrite it with --force.")


def read_images(images: Path, by: str, passed: "PassedOver | None" = None, camera_from: str = "name") -> "list[Entry]":
    """The images of a folder or table, sorted by path.

    Args:
        images: the folder or table.
        by: "folder" or "csv".
        passed: collects what is left out.
        camera_from: what names the camera in a folder, as DATASETS.CAMERA_FROM: "name" or "folder".

    Raises:
        UserError: it does not exist, cannot be read or holds no images; an image is named twice or does not exist.
    """
    from datasets.readers.numbering import SUBSETS

    if by == "folder":
        from datasets.readers.identity_folders import read_identity_folders

        if not images.is_dir():
            raise MissingPathError(f"{images} is not a folder; --by folder expects one folder for each identity in it.")
        if all((images / subset).is_dir() for subset in SUBSETS):
            raise UserError(f"{images} is divided already, into {', '.join(SUBSETS)}: DATASETS.NAMES folder reads it.")
        entries = read_identity_folders(images, passed, camera_from)
    else:
        entries = list(_read_table(images, passed))
    if not entries:
        raise UserError(f"{images} holds no images; --help tells what --by {by} expects.")
    first_of: dict[str, Entry] = {}
    for entry in entries:
        path = os.path.abspath(entry.path)  # noqa: PTH100 - without following links
        other = first_of.setdefault(path, entry)
        if other is not entry:
            what = f"identities {other.pid!r} and {entry.pid!r}" if other.pid != entry.pid else "same identity"
            raise UserError(f"{images} names the image {entry.path} twice, with the {what}; name it once.")
        _check_text(entry)
    return sorted(entries)


def _read_table(path: Path, passed: "PassedOver | None") -> "Iterator[Entry]":
    from datasets.readers.files import check_images
    from datasets.readers.numbering import Entry
    from datasets.readers.table import OPTIONAL_COLUMN, read_rows

    entries = []
    for place, row in read_rows(path, ("path", "pid"), passed):
        image, pid, camera = (row.get(column, "").strip() for column in ("path", "pid", OPTIONAL_COLUMN))
        if not image or not pid:
            raise UserError(f"{path}, {place}: {'pid' if image else 'path'} is empty.")
        entries.append(Entry(os.path.join(path.parent, image), pid, camera))  # noqa: PTH118 (keeps absolute paths)
    check_images((entry.path for entry in entries), path)
    return iter(entries)


def _check_text(entry: "Entry") -> None:
    """Refuse what the table cannot give back as it is."""
    try:
        (entry.path + entry.pid + entry.camera).encode()
    except UnicodeEncodeError:
        raise UserError(f"the name {entry.path!r} is not valid UTF-8, as a table has to be; rename it.") from None
    for what, name in (("identity", entry.pid), ("camera", entry.camera)):
        if name != name.strip():
            raise UserError(f"the {what} {name!r} ({entry.path}) begins or ends with white space; rename it.")


def divide(entries: "Sequence[Entry]", options: SplitOptions, source: str = "the data") -> Division:
    """Draw the identities that train, and the queries of the others; the rest is the gallery.

    An identity can be evaluated if it has an image that is not repeated in it, and another one, from another camera
    where cameras are known. Others train if they have two images or more, else they are distractors in the gallery.

    Args:
        entries: images, each once.
        options: shares, numbers and seed. The same images give the same division, in whatever order they come.
        source: what messages call the data.

    Raises:
        UserError: cameras are known for some images only, or fewer than two identities train or are evaluated.
    """
    from utils.labels import JUNK_PIDS

    images_of: defaultdict[str, list[Entry]] = defaultdict(list)
    for entry in sorted(entries):
        images_of[entry.pid].append(entry)
    junk = [image for pid in JUNK_PIDS for image in images_of.pop(pid, ())]
    bare = next((entry for entry in entries if not entry.camera), None)
    seen = next((entry for entry in entries if entry.camera), None)
    if bare and seen:
        raise UserError(
            f"{source}: {seen.path} has a camera ({seen.camera}), but {bare.path} has none. Give one for every image, "
            "or for none of them."
        )
    digests = digests_of_equals(entry.path for entry in entries)
    copies = {pid: _copies(images, digests) for pid, images in images_of.items()}
    able = [pid for pid, images in images_of.items() if _can_be_evaluated(images, copies[pid])]
    unable = [pid for pid in images_of if pid not in set(able)]
    rng = random.Random(options.seed)
    drawn = rng.sample(able, len(able))
    count = int(options.train * len(able) + 0.5)
    _check_counts(source, images_of, unable, count, len(able) - count)
    division = Division(gallery=list(junk))
    for pid in unable:
        (division.train if len(images_of[pid]) > 1 else division.gallery).extend(images_of[pid])
    for pid in drawn[:count]:
        division.train += images_of[pid]
    for pid in sorted(drawn[count:]):
        chosen = choose_queries(images_of[pid], options.queries, copies[pid], rng)
        division.query += chosen
        division.gallery += [image for image in images_of[pid] if image not in chosen]
    for part in (division.train, division.query, division.gallery):
        part.sort()
    division.notes = [*_describe_unable(images_of, unable), *_describe_copies(copies, images_of, digests)]
    if junk:
        division.notes.append(f"{_images(len(junk))} of identity -1: in gallery, neither match nor distractor.")
    return division


def choose_queries(
    images: "Sequence[Entry]", most: int, copies: "Collection[Entry]", rng: random.Random
) -> "list[Entry]":
    """Draw queries from the images of an identity, camera by camera in turn.

    Args:
        images: of one identity that can be evaluated.
        most: how many at most.
        copies: images that are repeated among them: a query would find itself.
        rng: draws.

    Returns:
        At least one; each has an image among the others that is not its own camera's, if it has a camera.
    """
    by_camera: defaultdict[str, list[Entry]] = defaultdict(list)
    for image in images:
        if image not in copies:
            by_camera[image.camera].append(image)
    drawn = [rng.sample(group, len(group)) for _, group in sorted(by_camera.items())]
    rng.shuffle(drawn)
    left = Counter(image.camera for image in images)
    chosen: list[Entry] = []
    for image in (image for turn in zip_longest(*drawn) for image in turn if image is not None):
        if len(chosen) == most:
            break
        left[image.camera] -= 1
        if all(_has_match(query.camera, left) for query in (*chosen, image)):
            chosen.append(image)
        else:
            left[image.camera] += 1
    return chosen


def _has_match(camera: str, gallery: Mapping[str, int]) -> bool:
    """Whether a query has a match, by the number of gallery images from each camera; "" is an unknown camera."""
    return any(number and (not camera or other != camera) for other, number in gallery.items())


def _can_be_evaluated(images: "Sequence[Entry]", copies: "Collection[Entry]") -> bool:
    cameras = Counter(image.camera for image in images)
    return any(image not in copies and _has_match(image.camera, cameras - Counter([image.camera])) for image in images)


def _copies(images: "Sequence[Entry]", digests: Mapping[str, bytes]) -> "set[Entry]":
    """Those images whose file content another one of them has too."""
    counts = Counter(digests[image.path] for image in images if image.path in digests)
    return {image for image in images if counts[digests.get(image.path, b"")] > 1}


def _check_counts(source: str, images_of: Mapping[str, Sequence[object]], unable: list[str], *counts: int) -> None:
    if min(counts) >= 2:
        return
    single = sum(len(images_of[pid]) == 1 for pid in unable)
    raise UserError(
        f"{source} has {len(images_of)} identities, of which {sum(counts)} can be evaluated ({single} have one image "
        f"only, {len(unable) - single} have no second camera or only copies of one image). That gives {counts[0]} to "
        f"training and {counts[1]} to query and gallery; expected 2 or more for each: add images, change --train, or "
        "leave cameras out of the names or the table if they do not matter."
    )


def _describe_unable(images_of: "Mapping[str, Sequence[Entry]]", unable: list[str]) -> list[str]:
    notes = []
    single = [pid for pid in unable if len(images_of[pid]) == 1]
    several = [pid for pid in unable if len(images_of[pid]) > 1]
    for pids, why, place in (
        (several, "no second camera, or only copies of one image", "train"),
        (single, "one image only", "gallery, as distractors"),
    ):
        if pids:
            has = "identity, such as {}, has" if len(pids) == 1 else "identities, such as {}, have"
            notes.append(f"{len(pids)} {has.format(pids[0])} {why}: not evaluated, in {place}.")
    return notes


def _describe_copies(
    copies: "Mapping[str, Collection[Entry]]", images_of: "Mapping[str, Sequence[Entry]]", digests: Mapping[str, bytes]
) -> list[str]:
    notes = []
    inside = [image for pid in copies for image in sorted(copies[pid])]
    if inside:
        twin = next(image for image in inside[1:] if digests[image.path] == digests[inside[0].path])
        notes.append(
            f"{_images(len(inside))} with the content of another of their identity, such as {inside[0].path} = "
            f"{twin.path}: none is a query."
        )
    first_of: dict[bytes, Entry] = {}
    across = []
    for image in (image for images in images_of.values() for image in images if image.path in digests):
        other = first_of.setdefault(digests[image.path], image)
        if other.pid != image.pid:
            across.append(f"{other.path} ({other.pid}) = {image.path} ({image.pid})")
    if across:
        notes.append(
            f"warning: {_images(len(across))} with the content of an image of another identity, such as {across[0]}: "
            "one of the two labels is wrong."
        )
    return notes


def _images(number: int) -> str:
    return f"{number} image{'s' * (number != 1)}"


def write_table(out: Path, subsets: "Mapping[str, Sequence[Entry]]") -> None:
    """Write a table that DATASETS.NAMES csv reads; paths are relative to its folder if they lie below that.

    Raises:
        UserError: the file cannot be written.
    """
    has_cameras = any(image.camera for images in subsets.values() for image in images)
    columns = ("path", "pid", "split", "camid")[: 4 if has_cameras else 3]
    with written_whole(out) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        for subset, images in subsets.items():
            for image in images:
                cells = (_path_in_table(image.path, out.parent), image.pid, subset, image.camera)
                writer.writerow(cells[: len(columns)])


def _path_in_table(path: str, folder: Path) -> str:
    absolute, folder = os.path.abspath(path), Path(os.path.abspath(folder))  # noqa: PTH100 - without following links
    if not Path(absolute).is_relative_to(folder):
        return absolute
    below = os.path.relpath(absolute, folder)
    return below if below == below.strip() else f"./{below}"  # the reader strips white space


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"it is {text!r}; expected a number above 0 and below 1")
    return value


if __name__ == "__main__":
    main()
