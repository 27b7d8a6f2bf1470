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
Numbers = dict[str, Any]  # "distance" and perhaps "probability" -> [Q, K]


def write_results(
    output_dir: AnyPath,
    formats: Sequence[str],
    query_paths: Paths,
    gallery_paths: Paths,
    indices: Any,
    distances: Any,
    probabilities: Any = None,
) -> list[Path]:
    """Write the results of a search in one or several formats; each file appears whole or not at all.

    - ``npy``: results.npy, a dict query path -> {"indices", "paths", "distances"}, arrays of equal length; read it with
      ``numpy.load(..., allow_pickle=True).item()``
    - ``jsonl``: results.jsonl, a line for each query: {"query", "results": [{"rank", "index", "path", "distance"}]}
    - ``csv``: results.csv, a row for each result: query, rank, index, path, distance
    - ``html``: results.html, a contact sheet, see :func:`inference.results.contact_sheet.write_contact_sheet`

    With probabilities, npy has an array "probabilities" as well, and a result of jsonl and csv a "probability".

    Ranks count from 1, indices are rows of the gallery from 0.

    Args:
        output_dir: created if it does not exist.
        formats: names from the list above.
        query_paths: Q image files.
        gallery_paths: N image files, or names of identities.
        indices: [Q, K] integer rows of the gallery, nearest first; -1 where a query has fewer results.
        distances: [Q, K] floating.
        probabilities: [Q, K] floating, that a result is of the query's identity; None if they are not known.

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
    numbers = {"distance": distances} | ({} if probabilities is None else {"probability": probabilities})
    files = []
    for name in dict.fromkeys(formats):
        path = Path(output_dir) / f"results.{name}"
        with written_whole(path, keep_ending=True) as temporary:
            _WRITERS[name](temporary, query_paths, gallery_paths, indices, numbers)
        files.append(path)
    return files


def _rows(query_paths: Paths, indices: Any, numbers: Numbers) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Each query with its indices and numbers, without the padding of their rows."""
    for path, index, *row in zip(query_paths, indices, *numbers.values(), strict=True):
        found = index >= 0
        yield str(path), index[found], {name: values[found] for name, values in zip(numbers, row, strict=True)}


def _write_npy(path: Path, query_paths: Paths, gallery_paths: Paths, indices: Any, numbers: Numbers) -> None:
    import numpy as np

    names: Any = gallery_paths if hasattr(gallery_paths, "dtype") else np.asarray(gallery_paths)  # perhaps on disk
    plural = {"distance": "distances", "probability": "probabilities"}
    results = {
        query: {"indices": index, "paths": names[index], **{plural[name]: x for name, x in row.items()}}
        for query, index, row in _rows(query_paths, indices, numbers)
    }
    with path.open("wb") as stream:
        np.save(stream, np.array(results, dtype=object), allow_pickle=True)


def _write_jsonl(path: Path, query_paths: Paths, gallery_paths: Paths, indices: Any, numbers: Numbers) -> None:
    with path.open("w", encoding="ascii") as stream:
        for query, index, row in _rows(query_paths, indices, numbers):
            columns = (index.tolist(), *(values.tolist() for values in row.values()))
            found = [
                {"rank": rank, "index": i, "path": str(gallery_paths[i])}
                | {name: float(_digits(value)) for name, value in zip(row, values, strict=True)}
                for rank, (i, *values) in enumerate(zip(*columns, strict=True), start=1)
            ]
            stream.write(json.dumps({"query": query, "results": found}) + "\n")


def _write_csv(path: Path, query_paths: Paths, gallery_paths: Paths, indices: Any, numbers: Numbers) -> None:
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("query", "rank", "index", "path", *numbers))
        for query, index, row in _rows(query_paths, indices, numbers):
            columns = (index.tolist(), *(values.tolist() for values in row.values()))
            for rank, (i, *values) in enumerate(zip(*columns, strict=True), start=1):
                writer.writerow((query, rank, i, str(gallery_paths[i]), *map(_digits, values)))


def _write_html(path: Path, query_paths: Paths, gallery_paths: Paths, indices: Any, numbers: Numbers) -> None:
    from inference.results.contact_sheet import write_contact_sheet

    found = numbers["distance"], numbers.get("probability")
    write_contact_sheet(path, query_paths, gallery_paths, indices, *found)


def _digits(number: float) -> str:
    return f"{number:.9g}"  # as many digits as a float32 needs to be read back unchanged


_Writer = Callable[[Path, Paths, Paths, Any, Numbers], None]
_WRITERS: dict[str, _Writer] = {"npy": _write_npy, "jsonl": _write_jsonl, "csv": _write_csv, "html": _write_html}
FORMATS = ("npy", "jsonl", "csv")  # for --format; html has an option of its own
