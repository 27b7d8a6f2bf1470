"""The user's own data in a table: a CSV or Parquet file with the columns path, pid, split and, optionally, camid."""

import csv
import io
import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, TypeAlias

from datasets.bases import ReidDataModule, Splits
from datasets.notes import LIKE_CAMID, Note, PassedOver
from datasets.readers.files import check_images
from datasets.readers.numbering import SUBSETS, Entry, build_splits
from utils.addresses import without_passwords
from utils.errors import MissingPathError, UserError
from utils.optional import require
from utils.remote import open_file

COLUMNS = ("path", "pid", "split")
OPTIONAL_COLUMN = "camid"
# What others call that column, without regard to case and to marks between the letters.
_LIKE_CAMID = {"cam", "cams", "camid", "camids", "camera", "cameras", "cameraid"}
Columns: TypeAlias = tuple[Sequence[str], Sequence[str]]  # those that must be there, and those that may
PARQUET_SUFFIXES = (".parquet", ".pq")
# The default of DATASETS.ROOT_DIR.
DEFAULT_ROOT_DIR = "/home/data"


def read_table(path: Path, image_folder: str, passed: PassedOver) -> dict[str, list[Entry]]:
    """Read the images of each subset, in the order of the rows; other columns are ignored.

    Args:
        path: a Parquet file if it ends in .parquet or .pq, otherwise a comma-separated CSV file in UTF-8.
        image_folder: the folder that relative image paths start from.
        passed: collects a column that looks like that of the cameras, but is not called camid.

    Raises:
        MissingPathError: the file does not exist.
        UserError: it cannot be read, lacks a column, or has a malformed row; the message names file and row.
    """
    entries: dict[str, list[Entry]] = {subset: [] for subset in SUBSETS}
    for place, row in read_rows(path, passed=passed):
        image, pid, subset, camera = (row.get(column, "").strip() for column in (*COLUMNS, OPTIONAL_COLUMN))
        for column, value in zip(COLUMNS, (image, pid, subset), strict=True):
            if not value:
                raise UserError(f"{path}, {place}: {column} is empty.")
        if subset not in entries:
            raise UserError(f"{path}, {place}: split is {subset!r}; expected one of {', '.join(SUBSETS)}.")
        entries[subset].append(Entry(os.path.join(image_folder, image), pid, camera))  # noqa: PTH118 (keeps absolute paths)
    return entries


def read_rows(
    path: str | Path,
    required: Sequence[str] = COLUMNS,
    passed: PassedOver | None = None,
    optional: Sequence[str] = (OPTIONAL_COLUMN,),
) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a table and where they stand ("line 2"), as text by column.

    Args:
        path: as for :func:`read_table`, or a URL (see :mod:`utils.remote`).
        required: columns that must be there.
        passed: collects columns that look misnamed.
        optional: columns that may be there.

    Raises:
        MissingPathError: the file does not exist.
        UserError: it cannot be read, lacks a required column, or has one of ours twice; the message names the file.
    """
    name = os.fspath(path)
    read = _read_parquet if name.lower().endswith(PARQUET_SUFFIXES) else _read_csv
    try:
        file = open_file(name)
    except FileNotFoundError:
        raise MissingPathError(f"{path} does not exist; expected a CSV or Parquet file.") from None
    with file:
        yield from read(without_passwords(name), file, (required, optional), passed or PassedOver(path))


def _read_csv(path: str, file: IO[bytes], columns: Columns, passed: PassedOver) -> Iterator[tuple[str, dict[str, str]]]:
    try:
        reader = csv.reader(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""), strict=True)
        header = [name.strip() for name in next(reader, [])]
        _check_columns(path, header, columns, passed)
        for cells in reader:
            if not cells:  # a blank line
                continue
            if len(cells) != len(header):
                raise UserError(
                    f"{path}, line {reader.line_num}: {len(cells)} values for {len(header)} columns; put values "
                    "that contain a comma in double quotes."
                )
            yield f"line {reader.line_num}", dict(zip(header, cells, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as CSV in UTF-8: {error}.") from error


def _read_parquet(
    path: str, file: IO[bytes], columns: Columns, passed: PassedOver
) -> Iterator[tuple[str, dict[str, str]]]:
    pyarrow = require("pyarrow", "parquet", f"{path} is a Parquet file: reading it")
    parquet = require("pyarrow.parquet", "parquet", f"{path} is a Parquet file: reading it")
    try:
        with parquet.ParquetFile(file if file.seekable() else io.BytesIO(file.read())) as table:
            header = table.schema_arrow.names
            _check_columns(path, header, columns, passed)
            wanted = [column for column in dict.fromkeys((*columns[0], *columns[1])) if column in header]
            number = 0
            for batch in table.iter_batches(columns=wanted):
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number}", {column: _to_text(value) for column, value in row.items()}
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{path} cannot be read as a Parquet file: {error}.") from error


def _to_text(value: Any) -> str:
    """A cell as a CSV file would hold it; integers that became floats because of empty cells are integers again."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _check_columns(path: str, header: list[str], columns: Columns, passed: PassedOver) -> None:
    required, optional = columns
    missing = [column for column in required if column not in header]
    if missing:
        also = [column for column in optional if column not in required]
        raise UserError(
            f"{path} has no column {', '.join(missing)}; found {', '.join(header) or 'nothing'}, expected "
            f"{', '.join(required)}{' and optionally ' if also else ''}{', '.join(also)}."
        )
    twice = next((name for name in (*COLUMNS, *required, *optional) if header.count(name) > 1), None)
    if twice:
        raise UserError(f"{path} has two columns named {twice}.")
    if OPTIONAL_COLUMN in optional and OPTIONAL_COLUMN not in header:
        letters = {name: "".join(filter(str.isalpha, name.lower())) for name in header}
        passed.add(LIKE_CAMID, *(name for name in header if letters[name] in _LIKE_CAMID))


class OwnTable(ReidDataModule):
    """DATASETS.NAMES csv: the images that DATASETS.CSV_PATH names.

    Relative paths start from DATASETS.ROOT_DIR or, if that is left at its default or empty, from the table's folder.
    """

    @property
    def title(self) -> str:
        """The file."""
        return str(self.cfg.DATASETS.CSV_PATH)

    def describe_source(self) -> str:
        """The table, and the folder that its relative paths start from."""
        return f"DATASETS.CSV_PATH {self.cfg.DATASETS.CSV_PATH}, relative paths from {self.image_folder() or '.'}"

    def image_folder(self) -> str:
        """The folder that relative paths start from."""
        root = self.cfg.DATASETS.ROOT_DIR
        return str(Path(self.cfg.DATASETS.CSV_PATH).parent) if root in ("", DEFAULT_ROOT_DIR) else root

    def _advise(self) -> str:
        """What to look at if an image is missing."""
        folder, beside = self.image_folder(), str(Path(self.cfg.DATASETS.CSV_PATH).parent)
        if folder == beside:
            return f"Relative paths start from the folder of the table, {beside}, unless DATASETS.ROOT_DIR names one."
        return (
            f"Relative paths start from DATASETS.ROOT_DIR, which is {folder} (by the command line or the configuration "
            f"file); DATASETS.ROOT_DIR '' lets them start from the folder of the table, {beside}."
        )

    def read_splits(self) -> Splits:
        if not self.cfg.DATASETS.CSV_PATH:
            raise UserError("DATASETS.CSV_PATH is empty; DATASETS.NAMES csv reads the CSV or Parquet file it names.")
        path = Path(self.cfg.DATASETS.CSV_PATH)
        passed = PassedOver(path)
        entries = read_table(path, self.image_folder(), passed)
        check_images((image.path for subset in SUBSETS for image in entries[subset]), path, self._advise())
        splits = build_splits(entries, str(path), self.needed_subsets, passed)
        return splits._replace(notes=splits.notes + _repeated_note(path, entries))


def _repeated_note(path: Path, entries: dict[str, list[Entry]]) -> tuple[str, ...]:
    """Say which images are in one split more than once, as a table has them that was joined with itself."""
    times = (Counter(image.path for image in images) for images in entries.values())
    repeated = [image for counts in times for image, number in counts.items() if number > 1]
    if not repeated:
        return ()
    images = "image is" if len(repeated) == 1 else "images are"
    text = f"{path}: {len(repeated)} {images} in one split more than once (such as {repeated[0]}); each row counts."
    return (Note(text, repeated),)
