"""Search results as files."""

import csv
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from utils.errors import UnknownNameError, UserError
from utils.files import written_whole

AnyPath = str | os.PathLike[str]
Paths = Sequence[str]


def write_results(
    output_dir: AnyPath,
    formats: Sequence[str],
    query_paths: Paths,
    gallery_paths: Paths,
    indices: Any,
    distances: Any,
) -> list[Path]:
    """Write the results of a search in one or several formats; each file appears whole or not at all.

    - ``npy``: results.npy, a dict query path -> {"indices", "paths", "distances"}, arrays of equal length; read it with
      ``numpy.load(..., allow_pickle=True).item()``
    - ``jsonl``: results.jsonl, a line for each query: {"query", "results": [{"rank", "index", "path", "distance"}]}
    - ``csv``: results.csv, a row for each result: query, rank, index, path, distance
    - ``html``: results.html, a contact sheet, see :func:`inference.results.contact_sheet.write_contact_sheet`

    Ranks count from 1, indices are rows of the gallery from 0.

    Args:
        output_dir: created if it does not exist.
        formats: names from the list above.
        query_paths: Q image files.
        gallery_paths: N image files, or names of identities.
        indices: [Q, K] integer rows of the gallery, nearest first; -1 where a query has fewer results.
        distances: [Q, K] floating.

    Returns:
        The files, in the order of ``formats``.

    Raises:
        UnknownNameError: a format is unknown.
        UserError: the lengths do not agree, or the folder cannot be written to.
    """
    unknown = [name for name in formats if name not in _WRITERS]
    if unknown:
        raise UnknownNameError(f"the format is {unknown[0]!r}; valid names: {', '.join(_WRITERS)}.")
    if len(indices) != len(query_paths) or len(distances) != len(query_paths):
        raise UserError(
            f"{len(query_paths)} query paths, but indices of {len(indices)} and distances of {len(distances)} queries."
        )
    if indices.size and int(indices.max()) >= len(gallery_paths):
        raise UserError(f"the results name gallery row {indices.max()}, but there are {len(gallery_paths)} paths.")
    files = []
    for name in dict.fromkeys(formats):
        path = Path(output_dir) / f"results.{name}"
        with written_whole(path, keep_ending=True) as temporary:
            _WRITERS[name](temporary, query_paths, gallery_paths, indices, distances)
        files.append(path)
    return files


def _rows(query_paths: Paths, indices: Any, distances: Any) -> Iterator[tuple[str, Any, Any]]:
    """Each query with its indices and distances, without the padding of their rows."""
    for path, index, distance in zip(query_paths, indices, distances, strict=True):
        found = index >= 0
        yield str(path), index[found], distance[found]


def _write_npy(path: Path, query_paths: Paths, gallery_paths: Paths, indices: Any, distances: Any) -> None:
    import numpy as np

    names = np.asarray(gallery_paths)
    results = {
        query: {"indices": index, "paths": names[index], "distances": distance}
        for query, index, distance in _rows(query_paths, indices, distances)
    }
    with path.open("wb") as stream:
        np.save(stream, np.array(results, dtype=object), allow_pickle=True)


def _write_jsonl(path: Path, query_paths: Paths, gallery_paths: Paths, indices: Any, distances: Any) -> None:
    with path.open("w", encoding="ascii") as stream:
        for query, index, distance in _rows(query_paths, indices, distances):
            found = [
                {"rank": rank, "index": i, "path": str(gallery_paths[i]), "distance": float(_digits(d))}
                for rank, (i, d) in enumerate(zip(index.tolist(), distance.tolist(), strict=True), start=1)
            ]
            stream.write(json.dumps({"query": query, "results": found}) + "\n")


def _write_csv(path: Path, query_paths: Paths, gallery_paths: Paths, indices: Any, distances: Any) -> None:
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("query", "rank", "index", "path", "distance"))
        for query, index, distance in _rows(query_paths, indices, distances):
            for rank, (i, d) in enumerate(zip(index.tolist(), distance.tolist(), strict=True), start=1):
                writer.writerow((query, rank, i, str(gallery_paths[i]), _digits(d)))


def _write_html(path: Path, query_paths: Paths, gallery_paths: Paths, indices: Any, distances: Any) -> None:
    from inference.results.contact_sheet import write_contact_sheet

    write_contact_sheet(path, query_paths, gallery_paths, indices, distances)


def _digits(distance: float) -> str:
    return f"{distance:.9g}"  # as many digits as a float32 needs to be read back unchanged


_Writer = Callable[[Path, Paths, Paths, Any, Any], None]
_WRITERS: dict[str, _Writer] = {"npy": _write_npy, "jsonl": _write_jsonl, "csv": _write_csv, "html": _write_html}
FORMATS = ("npy", "jsonl", "csv")  # for --format; html has an option of its own
