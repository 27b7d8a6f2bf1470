"""Reads the tables that an evaluation writes for each query, and pairs those of two evaluations."""

import csv
import json
import os
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.bootstrap import per_query
from evaluation.retrieval import PROTOCOLS, FloatArray
from utils.errors import MissingPathError, UserError
from utils.labels import IntArray

TABLE, METRICS = "per_query.csv", "metrics.json"
_COLUMNS = ("protocol", "query", "path", "pid", "AP", "first_match_rank", "INP")


@dataclass(frozen=True)
class QueryTable:
    """The queries of one protocol, M of them, with their numbers; those of a query without a match are NaN.

    Example:
        >>> one = np.ones(1)
        >>> QueryTable(["0"], ["a.jpg"], ["7"], one, one, one).metrics("centroid")["mAP"].tolist()
        [1.0]
    """

    query: list[str]  # number of the query, as the table has it
    path: list[str]
    pid: list[str]
    ap: FloatArray
    first: FloatArray
    inp: FloatArray

    def metrics(self, protocol: str) -> dict[str, FloatArray]:
        """Metric -> [M], see :func:`evaluation.bootstrap.per_query`."""
        return per_query(protocol, self.ap, self.first, self.inp)


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation wrote.

    Example:
        >>> Evaluation(Path("per_query.csv"), {}, {}).protocols
        {}
    """

    file: Path
    about: dict[str, Any]  # metrics.json; {} if there is none beside the table
    protocols: dict[str, QueryTable]


def read_evaluation(path: str | os.PathLike[str]) -> Evaluation:
    """Read per_query.csv, and metrics.json beside it.

    Args:
        path: the table, the folder that holds it, or the OUTPUT_DIR of a run, which has such a folder, "evaluation".

    Raises:
        UserError: there is no such table, or it cannot be read; the message names the file, and the line if it is one.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     _ = Path(folder, TABLE).write_text(f"{','.join(_COLUMNS)}\\ninstance,0,a.jpg,7,0.5,2,0.5\\n")
        ...     read_evaluation(folder).protocols["instance"].ap.tolist()
        [0.5]
    """
    file = _find(Path(path))
    by_protocol: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    for line, row in _read_rows(file):
        if None in row.values() or None in row:
            raise UserError(f"{file}, line {line} has too many or too few values for the columns of the first line.")
        if row["protocol"] not in PROTOCOLS:
            raise UserError(
                f"{file}, line {line}: protocol is {row['protocol']!r}; expected one of {', '.join(PROTOCOLS)}."
            )
        by_protocol.setdefault(row["protocol"], []).append((line, row))
    tables = {protocol: _table(file, lines) for protocol, lines in by_protocol.items()}
    return Evaluation(file, _read_about(file.with_name(METRICS)), tables)


def _find(file: Path) -> Path:
    try:
        if file.is_dir():
            places = [file / TABLE, file / "evaluation" / TABLE]
            file = next((place for place in places if place.is_file()), places[0])
        exists = file.is_file()
    except (OSError, ValueError) as error:  # a name that no file can have, or a folder that may not be entered
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(
            f"{str(file)!r} cannot be looked up ({reason}); expected {TABLE}, or a folder of it."
        ) from error
    if not exists:
        raise MissingPathError(
            f"{file} does not exist; expected {TABLE}, or a folder that holds it: a test of a run writes it to "
            "OUTPUT_DIR/evaluation, python -m evaluation to --output."
        )
    return file


def _read_rows(file: Path) -> list[tuple[int, dict[str, Any]]]:
    """The rows, each with the number of its last line."""
    try:
        # Names of files need not be text.
        with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            rows = [(reader.line_num, row) for row in reader]
            columns = reader.fieldnames or []
    except (OSError, csv.Error) as error:
        raise UserError(
            f"{file} cannot be read as a table ({error}); expected the {TABLE} of an evaluation."
        ) from error
    missing = [name for name in _COLUMNS if name not in columns]
    if missing and columns:
        raise UserError(
            f"{file} lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}; expected the {TABLE} of "
            "an evaluation."
        )
    if not rows:
        raise UserError(f"{file} has no rows; expected one for each query, as an evaluation writes them to {TABLE}.")
    return rows


def _table(file: Path, lines: Sequence[tuple[int, dict[str, Any]]]) -> QueryTable:
    query, path, pid = ([row[name] for _, row in lines] for name in ("query", "path", "pid"))
    limits = {"AP": (0.0, 1.0), "first_match_rank": (1.0, 2.0**53), "INP": (0.0, 1.0)}
    columns = []
    for name, (low, high) in limits.items():
        column = np.full(len(lines), np.nan)
        for i, (line, row) in enumerate(lines):
            if row["AP"] == "":
                continue
            with suppress(ValueError):
                column[i] = float(row[name])
            whole = name == "first_match_rank"
            if not low <= column[i] <= high or (whole and column[i] % 1):
                expected = "a rank, a whole number from 1" if whole else f"a number from {low:g} to {high:g}"
                raise UserError(f"{file}, line {line}: {name} is {row[name]!r}; expected {expected}.")
        columns.append(column)
    return QueryTable(query, path, pid, *columns)


def _read_about(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        about = json.loads(file.read_text(encoding="utf-8-sig"))
        json.dumps(about, allow_nan=False)  # NaN and 1e999 are read, but could not be written again
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} is damaged ({error}); remove it to compare the tables alone.") from error
    return about if isinstance(about, dict) else {}


def pair_queries(a: QueryTable, b: QueryTable, files: tuple[Path, Path]) -> tuple[str, IntArray]:
    """Find each query of one table in another one.

    Queries are the same if their files are. Where no path is in both tables, the folder that all of a table's queries
    share does not count, since data lies elsewhere on another machine. The rows of one path are paired in their order.
    If a table has no paths, the number of the query counts.

    Args:
        a, b: the tables, of the same protocol.
        files: where they come from, for messages.

    Returns:
        What told the queries, "path" or "number", and the row in ``b`` of each row of ``a``, [M].

    Raises:
        UserError: one table has queries that the other has not, or holds one twice, or a query has another identity.

    Example:
        >>> one = np.ones(2)
        >>> a = QueryTable(["0", "1"], ["/data/1.jpg", "/data/2.jpg"], ["7", "8"], one, one, one)
        >>> b = QueryTable(["0", "1"], ["2.jpg", "1.jpg"], ["8", "7"], one, one, one)
        >>> by, row = pair_queries(a, b, (Path("a"), Path("b")))
        >>> by, row.tolist()
        ('path', [1, 0])
    """
    by, names = ("path", [a.path, b.path]) if any(a.path) and any(b.path) else ("number", [a.query, b.query])
    for file, own_names, table in zip(files, names, (a, b), strict=True):
        _refuse_copies(file, by, own_names, table.query)
    if by == "path" and not set(a.path) & set(b.path):
        names = [_without_shared_folder(paths) for paths in names]
    keys = [_numbered(own_names) for own_names in names]
    place = {key: row for row, key in enumerate(keys[1])}
    own = set(keys[0])
    only = [key for key in keys[0] if key not in place], [key for key in keys[1] if key not in own]
    if any(only):
        parts = [
            f"{len(found)} only in {file}" + (f" (such as {_named(*found[0])})" if found else "")
            for found, file in zip(only, files, strict=True)
        ]
        raise UserError(
            f"The two evaluations have other queries: by their {by}, {len(own) - len(only[0])} are in both, "
            f"{' and '.join(parts)}. Compare evaluations of the same queries."
        )
    rows = np.array([place[key] for key in keys[0]], dtype=np.int64)
    other = [i for i, row in enumerate(rows.tolist()) if a.pid[i] != b.pid[row]]
    if other:
        i = other[0]
        raise UserError(
            f"{len(other)} of {len(rows)} queries have another identity in {files[1]} than in {files[0]}: {by} "
            f"{_named(*keys[0][i])} is {b.pid[rows[i]]}, not {a.pid[i]}. Compare evaluations of the same queries and "
            "labels."
        )
    return by, rows


def _refuse_copies(file: Path, by: str, names: Sequence[str], numbers: Sequence[str]) -> None:
    counts = Counter(zip(names, numbers, strict=True))
    copied = [(name, number) for (name, number), count in counts.items() if count > 1]
    if copied:
        name, number = copied[0]
        text = f"{by} {name}" + (f" with number {number}" if by == "path" else "")
        raise UserError(
            f"{file} holds {len(copied)} of {len(counts)} queries of a protocol more than once (such as {text}); "
            "expected one row for each: evaluate again."
        )


def _numbered(names: Sequence[str]) -> list[tuple[str, int]]:
    """Each name with its number among the equal ones, from 1."""
    seen: Counter[str] = Counter()
    keys = []
    for name in names:
        seen[name] += 1
        keys.append((name, seen[name]))
    return keys


def _named(name: str, number: int) -> str:
    return name if number == 1 else f"{name}, row {number} of that name"


def _without_shared_folder(paths: Sequence[str]) -> list[str]:
    """The paths below the folder that holds them all."""
    parts = [path.replace("\\", "/").split("/") for path in paths]
    shared = 0
    while all(len(own) > shared + 1 for own in parts) and len({own[shared] for own in parts}) == 1:
        shared += 1
    return ["/".join(own[shared:]) for own in parts]
