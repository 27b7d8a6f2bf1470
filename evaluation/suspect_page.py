"""An HTML page of the labels that embeddings contradict, with the images that tell why."""

import html
import os
from collections.abc import Sequence
from pathlib import Path

from evaluation.inputs import LabelledImages
from evaluation.label_errors import Suspect
from evaluation.page_parts import facts, page, thumbnail
from utils.errors import UserError
from utils.files import write_bytes
from utils.labels import IntArray

_MOST = 200  # suspects on a page: with eight images each it has about five megabytes
_SHOWN = 4  # images of one side of a suspicion
_TITLES = {"split": "Two identities?", "merge": "One identity?", "move": "Another identity?"}


def write_suspect_page(
    path: str | os.PathLike[str], suspects: Sequence[Suspect], images: LabelledImages, most: int = _MOST
) -> Path:
    """Write a page that shows the first suspects; it needs neither network nor server.

    Args:
        path: the HTML file.
        suspects: the surest first.
        images: the images, with paths, that the suspects' rows count.
        most: largest number of suspects on the page, which holds their images.

    Returns:
        The path of the page. An image that cannot be read is named in its place.

    Raises:
        UserError: the file cannot be written.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> import numpy as np, torch
        >>> from utils.labels import Names
        >>> images = LabelledImages(torch.eye(2), np.array([7, 8]), None, ["a.jpg", "b.jpg"], Names())
        >>> suspect = Suspect("merge", 2.5, np.array([0]), np.array([1]), 7, 8)
        >>> with TemporaryDirectory() as folder:
        ...     "a.jpg" in write_suspect_page(f"{folder}/suspects.html", [suspect], images).read_text()
        True
    """
    shown = suspects[:most]
    header = (
        f"<p>{len(shown)} of {len(suspects)} suspects are shown, the surest first. The score tells how rare such a row "
        "is: 0 is what chance brings to every set without errors, 2 to one in a hundred. On the left are the images in "
        "question, on the right those to compare them with.</p>"
    )
    text = page("Suspect labels", header, "\n".join(_card(one, images) for one in shown), _STYLE)
    return write_bytes(path, text.encode("utf-8", "replace"))  # names of files may be no text


def _card(one: Suspect, images: LabelledImages) -> str:
    identity = images.names.pid(one.identity)
    other = "the rest of it" if one.other is None else f"identity {images.names.pid(one.other)}"
    about = [("score", f"{one.score:.1f}"), ("do", one.kind), ("identity", identity), ("compare", other)]
    own = f"identity {identity}" if one.kind != "split" else f"part of identity {identity}"
    groups = [_group(own, one.images, images), _group(other, one.against, images)]
    if one.kind == "move":
        rest = [row for row in (images.pids == one.identity).nonzero()[0].tolist() if row not in one.images]
        groups.append(_group(f"the rest of identity {identity}", rest, images))
    return f'<article><h2>{_TITLES[one.kind]}</h2>{facts(about)}<div class="groups">{"".join(groups)}</div></article>'


def _group(title: str, rows: "IntArray | list[int]", images: LabelledImages) -> str:
    assert images.paths is not None
    more = f" (first {_SHOWN} of {len(rows)})" if len(rows) > _SHOWN else ""
    cells = []
    for row in list(rows)[:_SHOWN]:
        name = html.escape(images.paths[row])
        seen = (
            ""
            if images.camids is None
            else f" <small>cam {html.escape(images.names.camera(images.camids[row]))}</small>"
        )
        try:
            shown = f'<img src="{thumbnail(images.paths[row])}" alt="{name}" title="{name}">'
        except UserError:
            shown = f'<p title="{name}">{name}: not to be read</p>'
        cells.append(f"<div>{shown}{seen}</div>")
    return f'<section><h3>{html.escape(title)}{more}</h3><div class="images">{"".join(cells)}</div></section>'


_STYLE = """
.groups { display: flex; flex-wrap: wrap; gap: 1rem 2.5rem; }
.images { display: flex; flex-wrap: wrap; gap: .5rem; }
.images img { display: block; border-radius: .25rem; }
h3 { font-size: .85rem; margin: 0 0 .4rem; color: var(--faint); font-weight: 500; }
"""
