"""Reads what create_embeddings.py leaves in a folder, as far as the search and the evaluation both need it."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import UserError

ABOUT = "gallery.json"
# How every gallery was made before gallery.json told.
_UNTOLD = {"resize": "stretch", "flip": False, "pooling": "avg", "neck_feat": "after"}


def read_about(folder: Path) -> dict[str, Any]:
    """What gallery.json says of a gallery; {} if there is none, as in those of the original and of other programs.

    Raises:
        UserError: the file cannot be read, or is no such description.
    """
    path = folder / ABOUT
    if not path.exists():
        return {}
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        about = error
    if not isinstance(about, dict) or not isinstance(about.get("embedder", {}), dict):
        raise UserError(
            f"{path} is damaged ({about if isinstance(about, Exception) else 'not an object'}), so nothing tells which "
            "model made the gallery: create it again, or remove the file to go on without that check."
        )
    return with_untold(about)


def with_untold(about: dict[str, Any]) -> dict[str, Any]:
    """The description of a gallery, with what one of an older version does not say of its embedder."""
    return about | {"embedder": _UNTOLD | about["embedder"]} if about.get("embedder") else about


def read_array(path: Path, mmap_mode: Any = None) -> Any:
    """The array in a .npy file, in memory or, with ``mmap_mode``, on disk. Raises UserError if there is none."""
    try:
        array = np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("it is an .npz file")
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read as a .npy file of numbers or text ({error}).") from error
    return array
