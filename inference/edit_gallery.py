"""Delete rows of a gallery by path: ``python inference/edit_gallery.py GALLERY --delete gone.txt 'old/*'``."""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

if __package__ in (None, ""):  # run as a file: the packages are one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config.cli import clean_exit
from utils.console import command_parser, say
from utils.errors import MissingPathError, UserError

_DESCRIPTION = """Delete rows of a gallery by path. Only the files that hold them are written again, and a process that is
killed leaves the gallery as it was or as it was to be."""

_EXAMPLES = """examples:
  python inference/edit_gallery.py logs/gallery --delete /data/gallery/a.jpg /data/gallery/b.jpg
  python inference/edit_gallery.py logs/gallery --delete '/data/gallery/2021/*' --dry-run
  python inference/edit_gallery.py logs/gallery --delete gone.txt"""

_SHOWN = 5  # names that no row has, of those that are listed


def parser() -> argparse.ArgumentParser:
    """The command line; imports nothing heavy, so that --help is fast."""
    options = command_parser("python inference/edit_gallery.py", _DESCRIPTION, _EXAMPLES)
    options.add_argument("gallery", metavar="GALLERY", help="folder that create_embeddings.py wrote to")
    options.add_argument(
        "--delete",
        nargs="+",
        required=True,
        metavar="NAME",
        help="paths of images, or names of identities in a gallery of centroids; patterns, in which * stands for any "
        "characters, slashes as well; or text files ending in .txt, with a path or pattern in each line",
    )
    options.add_argument("--dry-run", "--dry_run", action="store_true", help="only say what would be deleted")
    return options


def names_of(arguments: Iterable[str]) -> list[str]:
    """Paths and patterns, with those that text files list in place of the files.

    Raises:
        UserError: a text file cannot be read, or there are no names.
    """
    names: list[str] = []
    for argument in arguments:
        if not argument.endswith(".txt"):
            names.append(argument)
            continue
        try:
            lines = Path(argument).read_bytes().decode("utf-8", "surrogateescape").splitlines()
        except OSError as error:
            raise MissingPathError(
                f"--delete: {argument} cannot be read ({error.strerror}); expected a text file with a path in each line."
            ) from error
        names += [line for line in lines if line.strip()]
    if not names:
        raise UserError(f"--delete: there is no path in {', '.join(arguments)}.")
    return names


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and delete; an error that the user can fix ends the program with status 2."""
    args = parser().parse_args(argv)
    with clean_exit():
        names = names_of(args.delete)
        from inference.galleries.editing import delete_rows

        found = delete_rows(args.gallery, names, args.dry_run)
        verb = "would be deleted, {} would stay" if args.dry_run else "deleted, {} stay"
        say(f"{args.gallery}: {found.count} of {found.count + found.left} rows {verb.format(found.left)}\n")
        if found.unmatched:
            shown, more = ", ".join(found.unmatched[:_SHOWN]), len(found.unmatched) - _SHOWN
            say(f"not in the gallery: {shown}{f' and {more} more' if more > 0 else ''}\n")


if __name__ == "__main__":
    main()
