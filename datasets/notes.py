"""What readers pass over: counted while they read, and said in one sentence of ``Splits.notes``."""

from collections.abc import Sequence
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
SINGLE = (
    "training image that is the only one of its identity",
    "training images that are the only ones of their identities",
)
LIKE_CAMID = ("column that is not called camid", "columns that are not called camid")


class Note(str):
    """A sentence of ``Splits.notes`` that knows the files it is about.

    Args:
        text: the sentence.
        files: all of them, for the report of ``python -m datasets.validate``.
    """

    files: Sequence[str]

    def __new__(cls, text: str, files: Sequence[str] = ()) -> "Note":
        note = super().__new__(cls, text)
        note.files = files
        return note


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
        """One sentence with each count and an example; nothing if nothing was passed over."""
        if not self._found:
            return ()
        parts = [
            f"{len(paths)} {one if len(paths) == 1 else many} ({'' if len(paths) == 1 else 'such as '}{paths[0]})"
            for (one, many), paths in self._found.items()
        ]
        files = [path for paths in self._found.values() for path in paths]
        return (Note(f"Passed over in {self.source}: {', '.join(parts)}.", files),)
