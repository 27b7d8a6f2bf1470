"""What readers pass over: counted while they read, and said in one sentence of ``Splits.notes``."""

import logging
from collections.abc import Iterable, Sequence
from os import PathLike, fspath

# What is passed over, in the singular and in the plural.
NOT_AN_IMAGE = ("file that is not an image by its suffix", "files that are not images by their suffix")
HIDDEN = ("hidden file or folder", "hidden files and folders")
IN_SUBFOLDER = ("image in a subfolder", "images in subfolders")
WITHOUT_IMAGES = ("folder without images", "folders without images")
LOOP = ("link to a folder above it", "links to folders above them")
OTHER_FOLDER = ("folder beside those that are read", "folders beside those that are read")
JUNK = ("image of pid -1, which marks junk", "images of pid -1, which marks junk")
UNLABELLED = ("image without an annotation", "images without an annotation")
WHOLE = (
    "box of an image that has several identities, which is read whole",
    "boxes of images that have several identities, which are read whole",
)
SINGLE = (
    "training image that is the only one of its identity",
    "training images that are the only ones of their identities",
)
LIKE_CAMID = ("column that is not called camid", "columns that are not called camid")

# What a data set's own rules leave out, so that nothing is wrong with it.
_BY_RULE = {SINGLE}


class Note(str):
    """A sentence of ``Splits.notes`` that knows the files it is about.

    Args:
        text: the sentence.
        files: all of them, for the report of ``python -m datasets.validate``.
        by_rule: it is about what the data set's own rules leave out, which is no reason for a warning.
    """

    files: Sequence[str]
    by_rule: bool

    def __new__(cls, text: str, files: Sequence[str] = (), by_rule: bool = False) -> "Note":
        note = super().__new__(cls, text)
        note.files, note.by_rule = files, by_rule
        return note


def say(notes: Iterable[str], log: logging.Logger) -> None:
    """Log each sentence as a warning or, if it is about what the data set's own rules leave out, as information."""
    for note in notes:
        log.log(logging.INFO if getattr(note, "by_rule", False) else logging.WARNING, "%s", note)


class PassedOver:
    """Collects what a reader passes over.

    Args:
        source: what is read: a folder or a file.
    """

    def __init__(self, source: str | PathLike[str]) -> None:
        self.source = fspath(source)
        self._found: dict[tuple[str, str], list[str]] = {}

    def add(self, what: tuple[str, str], *paths: str | PathLike[str]) -> None:
        """Count files, or whatever ``what``, one of the constants above, calls them."""
        if paths:
            self._found.setdefault(what, []).extend(fspath(path) for path in paths)

    def notes(self) -> tuple[str, ...]:
        """One sentence with each count and an example, another one for what the data set's rules leave out."""
        sentences = []
        for by_rule in (False, True):
            found = {what: paths for what, paths in self._found.items() if (what in _BY_RULE) is by_rule}
            parts = [
                f"{len(paths)} {one if len(paths) == 1 else many} ({'' if len(paths) == 1 else 'such as '}{paths[0]})"
                for (one, many), paths in found.items()
            ]
            if parts:
                files = [path for paths in found.values() for path in paths]
                sentences.append(Note(f"Passed over in {self.source}: {', '.join(parts)}.", files, by_rule))
        return tuple(sentences)
