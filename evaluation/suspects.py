"""``python -m evaluation suspects``: rank the labels that embeddings contradict, as text, as a table and as a page."""

import argparse
import sys
from typing import TYPE_CHECKING, Any

from utils.console import command_parser, say

if TYPE_CHECKING:
    from evaluation.inputs import LabelledImages
    from evaluation.label_errors import Suspect

_DESCRIPTION = """Rank the labels that the embeddings contradict, the surest first:
    split   an identity that looks like two
    merge   two identities that look like one
    move    an image that is nearer to another identity than to its own

The score tells how rare this is: 0 is what chance brings to every set without errors, 2 to one in a hundred. It is
cautious: where there are many errors, most of them stand below 0, but at the head of the list all the same."""

_EXAMPLES = """examples:
  python -m evaluation suspects --embeddings embedded/train --output suspects
  python -m evaluation suspects --embeddings embedded/query embedded/gallery --top 50"""

_COLUMNS = (
    *("rank", "kind", "score", "identity", "other_identity", "images", "rows", "paths", "cameras"),
    *("compared_row", "compared_path"),
)
_SURE = 1.0  # a score that one row in ten sets without errors has


def build_parser() -> argparse.ArgumentParser:
    """Build the command line from the standard library alone, so that --help is fast.

    Example:
        >>> build_parser().parse_args(["--embeddings", "train.npz"]).top
        20
    """
    parser = command_parser("python -m evaluation suspects", _DESCRIPTION, _EXAMPLES)
    parser.add_argument(
        "--embeddings",
        required=True,
        nargs="+",
        metavar="FILE|DIR",
        help=".npz files, or folders that create_embeddings.py wrote; several are checked as one set",
    )
    parser.add_argument("--ignore-cameras", action="store_true", help="take the images as having no cameras")
    parser.add_argument("--top", type=_count, default=20, metavar="N", help="suspects to print, default: 20")
    parser.add_argument(
        "--limit", type=_count, default=1000, metavar="N", help="suspects in suspects.csv, default: 1000"
    )
    parser.add_argument(
        "--output", metavar="DIR", help="folder for suspects.csv and, if there are paths, suspects.html"
    )
    parser.add_argument("--device", default="cpu", help="torch device, default: cpu")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def run(args: argparse.Namespace) -> None:
    """Print the first suspects, and write the table and the page if there is a folder for them.

    Args:
        args: what the parser of :func:`build_parser` returned.

    Raises:
        UserError: the input cannot be read or does not fit together, or cannot be checked; the folder cannot be
            written to.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> import numpy as np
        >>> with TemporaryDirectory() as folder:
        ...     np.savez(f"{folder}/all.npz", embeddings=np.eye(4)[[0, 0, 1, 1]], pids=[7, 7, 8, 8])
        ...     arguments = ["--embeddings", f"{folder}/all.npz", "--ignore-cameras"]
        ...     run(build_parser().parse_args(arguments))  # doctest: +ELLIPSIS
        4 images of 2 identities: no suspect has a score of 1 or more; a set without errors has 0.1 ...
    """
    from evaluation.label_errors import find_label_errors
    from evaluation.suspect_page import write_suspect_page
    from utils.errors import UserError
    from utils.files import require_writable, write_text

    images, notes = _read(args)
    folder = require_writable(args.output, "--output") if args.output else None
    try:
        found = find_label_errors(images.embeddings, images.pids, images.camids, limit=max(args.limit, args.top))
    except UserError as error:
        raise UserError(f"{' and '.join(args.embeddings)}: {error}") from error
    lines = [*(f"note: {note}" for note in notes), *_summary(found, images), *_table(found[: args.top], images)]
    say("\n".join(lines) + "\n")
    if folder is None:
        return
    written = [write_text(folder / "suspects.csv", _csv(found[: args.limit], images))]
    if images.paths is not None:
        written.append(write_suspect_page(folder / "suspects.html", found[: args.limit], images))
    say("".join(f"written: {path}\n" for path in written))


def _read(args: argparse.Namespace) -> "tuple[LabelledImages, list[str]]":
    from evaluation.inputs import differing, join, read_input
    from utils.devices import find_device
    from utils.errors import UserError

    sides = [read_input(path, args.ignore_cameras) for path in args.embeddings]
    try:
        device = find_device(args.device)
    except UserError as error:
        raise UserError(f"--device: {error}") from error
    for side in sides[1:]:
        if different := differing(sides[0], side):
            sys.stderr.write(
                f"warning: {side.path} and {sides[0].path} differ in {', '.join(different)} of the network; distances "
                "between them may mean little.\n"
            )
    return join(sides, device, args.ignore_cameras)


def _summary(found: "list[Suspect]", images: "LabelledImages") -> list[str]:
    sure = sum(one.score >= _SURE for one in found)
    told = f"{sure} suspects have" if sure > 1 else f"{sure or 'no'} suspect has"
    return [
        f"{len(images.pids)} images of {len(set(images.pids.tolist()))} identities: {told} a score of {_SURE:g} or "
        f"more; a set without errors has {10**-_SURE:g} on average. Go down the list for as long as it proves right."
    ]


def _table(found: "list[Suspect]", images: "LabelledImages") -> list[str]:
    rows = [("rank", "score", "kind", "identity", "other", "images")]
    for rank, one in enumerate(found, start=1):
        other = "" if one.other is None else images.names.pid(one.other)
        shown = _name(one.images[0], images) + (f" and {len(one.images) - 1} more" if len(one.images) > 1 else "")
        rows.append((str(rank), f"{one.score:.1f}", one.kind, images.names.pid(one.identity), other, shown))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _name(row: Any, images: "LabelledImages") -> str:
    return images.paths[row] if images.paths is not None else f"row {row}"


def _csv(found: "list[Suspect]", images: "LabelledImages") -> str:
    import csv
    import io

    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(_COLUMNS)
    for rank, one in enumerate(found, start=1):
        rows = one.images.tolist()
        cameras = [] if images.camids is None else [images.names.camera(images.camids[row]) for row in rows]
        paths = [] if images.paths is None else [images.paths[row] for row in rows]
        near = int(one.against[0])
        other = "" if one.other is None else images.names.pid(one.other)
        row = [rank, one.kind, f"{one.score:.3f}", images.names.pid(one.identity), other, len(rows)]
        row += [" ".join(map(str, rows)), "|".join(paths), "|".join(cameras), near]
        writer.writerow([*row, "" if images.paths is None else images.paths[near]])
    return table.getvalue()
