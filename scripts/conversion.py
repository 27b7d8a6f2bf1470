"""What the conversion scripts share: their command line, parallel work with a progress bar, and failure reports."""

import argparse
import math
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import NoReturn, TypeVar

from config.cli import clean_exit
from utils.devices import count_cpus
from utils.errors import MissingPathError

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_WORKERS = 128  # threads; more would only wait for each other, and the system may refuse to start them
MAX_SIDE = 65_500  # pixels; the limit of libjpeg
_LEFTOVER = re.compile(r"\.[0-9a-f]{32}\.tmp")  # the temporary names of utils.files


class Parser(argparse.ArgumentParser):
    """Reports an error in one line."""

    def __init__(self, description: str | None) -> None:
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(description=description, formatter_class=formatter, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (--help lists the options)\n")

    def add_workers(self, option: str = "--num-workers", default: int | None = None) -> None:
        """Add the option for the number of images to process at once."""
        shown = "one per core" if default is None else "%(default)s"
        default = default or count_cpus()
        text = f"images processed at once, at most {MAX_WORKERS} (default: {shown})"
        self.add_argument(option, type=positive, default=default, metavar="N", dest="workers", help=text)

    def add_size(self) -> None:
        """Add the option for the size of the crops."""
        text = "pixels of each crop (default: 320 320)"
        self.add_argument(
            "--target-image-size", type=side, nargs=2, default=(320, 320), metavar=("WIDTH", "HEIGHT"), help=text
        )


def positive(text: str) -> int:
    """Parse a whole number, 1 or more, for argparse."""
    if not text.isdecimal() or len(text) > 9 or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number from 1 to 999999999")
    return int(text)


def side(text: str) -> int:
    """Parse the width or height of a JPEG file in pixels, for argparse."""
    if positive(text) > MAX_SIDE:
        raise argparse.ArgumentTypeError(f"{text!r} is more than the {MAX_SIDE} pixels that a JPEG file can have")
    return int(text)


def not_negative(text: str) -> float:
    """Parse a finite number, 0 or more, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 0 or more")
    return value


def run(convert: Callable[[argparse.Namespace], int], parser: Parser) -> None:
    """Parse the command line, convert, and end the program.

    The exit status is what ``convert`` returns, 2 after bad input, or 130 after Ctrl-C.
    """
    args = parser.parse_args()
    with clean_exit():
        sys.exit(convert(args))


def parallel(function: Callable[[Item], Result], items: Sequence[Item], workers: int, label: str) -> list[Result]:
    """Call ``function`` on the items in threads: Pillow releases the interpreter while it decodes and scales.

    Args:
        function: what to call.
        items: its arguments.
        workers: number of threads; the call uses at least 1 and at most MAX_WORKERS.
        label: text before the progress bar on stderr.

    Returns:
        The results, in the order of the items.
    """
    from tqdm import tqdm

    with ThreadPool(max(1, min(workers, len(items), MAX_WORKERS))) as pool:
        results = pool.imap(function, items, chunksize=8)
        return list(tqdm(results, total=len(items), desc=label, unit="image", mininterval=0.5, dynamic_ncols=True))


def report_failures(messages: Iterable[str], consequence: str) -> int:
    """Print each failure to stderr, then their number and the consequence. Returns the exit status: 1 if any."""
    messages = list(messages)
    for message in messages:
        print(message, file=sys.stderr)
    if messages:
        print(f"{len(messages)} image(s) failed, named above: {consequence}.", file=sys.stderr)
    return 1 if messages else 0


def require_folder(path: Path, what: str) -> Path:
    """Return the path. Raises MissingPathError if it is not a folder; ``what`` says what it should hold."""
    if not path.is_dir():
        raise MissingPathError(f"Folder {path} does not exist; expected {what}.")
    return path


def remove_leftovers(*folders: Path) -> None:
    """Remove the half-written files that a killed run left in these folders; complete files stay."""
    for folder in folders:
        for path in folder.glob(".*.tmp"):
            if _LEFTOVER.fullmatch(path.name):
                path.unlink(missing_ok=True)
