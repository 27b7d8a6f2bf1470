"""A contact sheet: queries with thumbnails of their results, in one HTML file that opens offline."""

import base64
import html
import io
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image

from utils.errors import UserError

AnyPath = str | os.PathLike[str]

MAX_QUERIES, MAX_RESULTS = 100, 20  # shown by default
_SIZE = (128, 160)  # of a thumbnail at most, width and height in pixels
_QUALITY = 80
_CACHED = 4096  # thumbnails kept in memory, since one gallery item often appears in many rows


def write_contact_sheet(
    path: AnyPath,
    query_paths: Sequence[str],
    gallery_paths: Sequence[str],
    indices: Any,
    distances: Any,
    probabilities: Any = None,
    *,
    max_queries: int = MAX_QUERIES,
    max_results: int = MAX_RESULTS,
) -> Path:
    """Write one HTML file with the thumbnails inside, so that it can be moved and sent; they link to the image files.

    What is not an image file (an identity's name, a deleted file) is shown by its name.

    Args:
        path: the HTML file, written in place.
        query_paths: Q image files.
        gallery_paths: N image files or names.
        indices: [Q, K] integer rows of the gallery, nearest first, or -1.
        distances: [Q, K] floating.
        probabilities: [Q, K] floating, shown beside the distances; None if they are not known.
        max_queries: how many queries are shown, from the first on; the page says how many there are.
        max_results: how many results are shown for each query.
    """
    path = Path(path)
    thumbnails = lru_cache(_CACHED)(_thumbnail)
    shown = min(len(query_paths), max_queries)
    total = _counted(len(query_paths), "query", "queries")
    note = [f"{shown} of {total}" if shown < len(query_paths) else total]
    note.append(f"up to {min(max_results, indices.shape[1])} results each, nearest first")
    note.append(f"gallery of {_counted(len(gallery_paths), 'item', 'items')}")
    before, after = _PAGE.split("<!-- rows -->")
    if probabilities is not None:
        before = before.replace("rank and distance.", "rank, distance and the probability that it is of one identity.")
    with path.open("w", encoding="utf-8", errors="replace") as stream:
        stream.write(before.replace("<!-- note -->", html.escape("; ".join(note))))
        for i in range(shown):
            found = indices[i] >= 0
            captions = [f"{distance:.4g}" for distance in distances[i][found][:max_results].tolist()]
            if probabilities is not None:
                likely = probabilities[i][found][:max_results].tolist()
                captions = [f"{caption} ({p:.1%})" for caption, p in zip(captions, likely, strict=True)]
            rows = indices[i][found][:max_results].tolist()
            results = [
                _tile(str(gallery_paths[row]), f"{rank}. {caption}", path.parent, thumbnails)
                for rank, (row, caption) in enumerate(zip(rows, captions, strict=True), start=1)
            ]
            query = _tile(str(query_paths[i]), Path(query_paths[i]).name, path.parent, _thumbnail)
            listed = "".join(f"<li>{tile}</li>" for tile in results) or '<li class="none">nothing near enough</li>'
            stream.write(f'<section><div class="query">{query}</div><ol>{listed}</ol></section>\n')
        stream.write(after)
    return path


def _counted(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"


def _tile(name: str, caption: str, folder: Path, thumbnails: Any) -> str:
    thumbnail = thumbnails(name)
    label = html.escape(Path(name).name or name)
    caption = html.escape(caption)
    if thumbnail is None:
        return f'<span class="tile"><span class="name">{label}</span><small>{caption}</small></span>'
    return (
        f'<a class="tile" href="{html.escape(_link(name, folder))}" title="{html.escape(name)}">'
        f'<img src="{thumbnail}" alt="{label}"><small>{caption}</small></a>'
    )


def _link(name: str, folder: Path) -> str:
    try:
        return quote(os.fsencode(Path(os.path.relpath(name, folder)).as_posix()))
    except ValueError:  # another drive
        return Path(name).resolve().as_uri()


def _thumbnail(name: str) -> str | None:
    """The thumbnail as a data URI, or None if the file cannot be shown."""
    from utils.image import pil_loader

    try:
        if not Path(name).is_file():
            return None
        image = pil_loader(name)
    except (UserError, OSError):  # OSError: the name of an identity may be too long for a file name
        return None
    image.thumbnail(_SIZE, Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Search results</title>
<style>
:root { color-scheme: light dark; --back: #f4f5f7; --card: #fff; --text: #1b1f24; --faint: #59636e; --line: #d8dde3;
  --mark: #0b57d0; }
@media (prefers-color-scheme: dark) { :root { --back: #14171a; --card: #1f2429; --text: #e8eaed; --faint: #a3adb8;
  --line: #3a424a; --mark: #8ab4f8; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 110rem; padding: 1.5rem; background: var(--back); color: var(--text);
  font: 1rem/1.4 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; }
p { color: var(--faint); margin: 0 0 1rem; }
section { display: flex; gap: 1rem; align-items: flex-start; background: var(--card); border: 1px solid var(--line);
  border-radius: .5rem; margin: 0 0 .75rem; padding: .75rem; }
.query { flex: none; padding-right: 1rem; border-right: 1px solid var(--line); }
.query img, .query .name { outline: 3px solid var(--mark); }
ol { display: flex; flex-wrap: wrap; gap: .75rem; list-style: none; margin: 0; padding: 0; }
.tile { display: grid; gap: .25rem; justify-items: center; color: inherit; text-decoration: none; }
.tile img { display: block; max-width: 8rem; max-height: 10rem; }
.query small { overflow-wrap: anywhere; max-width: 8rem; text-align: center; }
.tile small { color: var(--faint); font-variant-numeric: tabular-nums; }
.name { display: grid; place-items: center; width: 6rem; min-height: 6rem; padding: .25rem;
  border: 1px dashed var(--faint); overflow-wrap: anywhere; text-align: center; font-size: .8rem; }
.none { color: var(--faint); }
a.tile:focus-visible, a.tile:hover { outline: 2px solid var(--mark); outline-offset: 2px; }
@media (max-width: 40rem) { section { flex-direction: column; } .query { border: 0; padding: 0; } }
</style>
</head>
<body>
<h1>Search results</h1>
<p><!-- note -->. Under each result: rank and distance. Each image links to its file.</p>
<main>
<!-- rows -->
</main>
</body>
</html>
"""
