"""The recall of indexes and stores of a large gallery: measured once, since that reads the whole gallery.

``embeddings.recall.json`` beside ``embeddings.npy`` keeps what was measured, until the gallery changes.
"""

import json
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from inference.searching.indexes import fingerprint
from utils.errors import UserError
from utils.files import write_text

logger = logging.getLogger(__name__)

AnyPath = str | os.PathLike[str]

MEASURED_ONCE = 1_000_000  # rows from which on a recall is kept
ENOUGH_QUERIES = 25  # fewer say too little for the searches to come


def recall_file(gallery_file: AnyPath) -> Path:
    """Where the recalls of a gallery are kept."""
    path = Path(gallery_file)
    return path.with_name(f"{path.stem}.recall.json")


def recall_once(
    measure: Callable[[], tuple[float, int]], gallery: Any, gallery_file: AnyPath | None, search: str
) -> tuple[float, int, bool]:
    """The recall of a way of searching a gallery: measured, or from an earlier search if the gallery is large.

    Args:
        measure: finds the recall and the number of queries that it covers.
        gallery: [N, D].
        gallery_file: its .npy file; None keeps nothing.
        search: names the way, with all that the recall depends on.

    Returns:
        The recall, the number of queries, and whether they are those of an earlier search.
    """
    if gallery_file is None or len(gallery) < MEASURED_ONCE:
        return *measure(), False
    file, about = recall_file(gallery_file), fingerprint(gallery, gallery_file)
    kept: dict[str, Any] = {"gallery": about, "recall": {}}
    with suppress(OSError, ValueError, KeyError, TypeError):  # missing or damaged: measure
        found = json.loads(file.read_text(encoding="utf-8"))
        if found["gallery"] == about:
            kept["recall"] = dict(found["recall"])
            share, queries = kept["recall"][search]
            return float(share), int(queries), True
    share, queries = measure()
    if queries >= ENOUGH_QUERIES:
        kept["recall"][search] = [share, queries]
        try:
            write_text(file, json.dumps(kept, indent=2) + "\n")
        except UserError as error:  # a read-only folder
            logger.warning("The recall will be measured again at the next search: %s", error)
    return share, queries, False
