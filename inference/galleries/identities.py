"""Read the identity or the camera of an image from its path, and average the images of each identity."""

import os
import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from datasets.readers.table import PARQUET_SUFFIXES, read_rows
from utils.centroids import identity_centroids
from utils.errors import UserError

PidFunc = Callable[[str], str]


def parent_name(path: str) -> str:
    """The name of the folder that holds the image."""
    return Path(os.path.abspath(path)).parent.name  # noqa: PTH100 - without following links


def name_before_underscore(path: str) -> str:
    """The file name up to its last underscore: "shop_12" for shop_12_003.jpg.

    Raises:
        UserError: there is no underscore.
    """
    pid, underscore, _ = Path(path).name.rpartition("_")
    if not underscore:
        raise UserError(f"{path}: the file name has no '_', so --pid-from filename finds no identity in it.")
    return pid


def pid_function(kind: str, root: str | os.PathLike[str] = "") -> PidFunc:
    """A function that reads the identity of an image from its path.

    Args:
        kind: "parent" (name of the folder), "filename" (file name up to its last underscore), or a regular expression;
            it is searched for in the path below ``root``, and its first group (the whole match, if it has none) is the
            identity.
        root: folder that the paths begin with, which the expression does not see; "" lets it see whole paths.

    Raises:
        UserError: ``kind`` is not a regular expression; from the returned function: a path holds no identity.
    """
    if kind == "parent":
        return parent_name
    if kind == "filename":
        return name_before_underscore
    return _by_expression(kind, root, "--pid-from", "identity", "parent, filename or an expression")


def camera_function(kind: str, root: str | os.PathLike[str] = "") -> PidFunc:
    """A function that finds the camera of an image by its path.

    Args:
        kind: a table (.csv, .parquet or .pq) with the columns path and camid, whose relative paths start from its own
            folder; or a regular expression, as for :func:`pid_function`.
        root: as there.

    Raises:
        UserError: ``kind`` is neither, or the table cannot be read; from the returned function: an image has no camera.
    """
    if not kind.lower().endswith((".csv", *PARQUET_SUFFIXES)):
        return _by_expression(kind, root, "--camid-from", "camera", "an expression, or a table ending in .csv")
    folder = Path(kind).parent
    camera_of: dict[str, str] = {}
    for place, row in read_rows(Path(kind), ("path", "camid")):
        path, camera = row["path"].strip(), row["camid"].strip()
        known = camera_of.setdefault(os.path.abspath(folder / path), camera)  # noqa: PTH100 - without following links
        if known != camera:
            raise UserError(f"{kind}, {place}: {path} has the camera {camera!r}, but {known!r} in an earlier row.")

    def by_table(path: str) -> str:
        camera = camera_of.get(os.path.abspath(path))  # noqa: PTH100 - without following links
        if not camera:
            raise UserError(f"{path} has no camera in {kind}, in which relative paths start from {str(folder)!r}.")
        return camera

    return by_table


def _by_expression(kind: str, root: str | os.PathLike[str], option: str, what: str, expected: str) -> PidFunc:
    try:
        pattern = re.compile(kind)
    except re.error as error:
        raise UserError(f"{option} {kind!r} is not a regular expression ({error}); expected {expected}.") from error
    folder = os.fspath(root)
    is_below = bool(folder) and Path(folder).is_dir()

    def by_expression(path: str) -> str:
        below = os.path.relpath(path, folder) if is_below else path
        match = pattern.search(Path(below).as_posix())
        name = match[1 if pattern.groups else 0] if match else None
        if not name:
            raise UserError(f"{path}: {option} {kind!r} finds no {what} in {below!r}.")
        return name

    return by_expression


def create_pid_path_index(
    paths: Iterable[str], func: Callable[[str], Hashable] = parent_name
) -> dict[Hashable, list[int]]:
    """The rows of each identity's images, with the identities in order of first appearance.

    Args:
        paths: [N] image paths.
        func: reads the identity from a path; by default it is the name of the folder.
    """
    index: dict[Hashable, list[int]] = {}
    for row, path in enumerate(paths):
        index.setdefault(func(str(path)), []).append(row)
    return index


def calculate_centroids(
    embeddings: Any, pid_path_index: Mapping[Any, Sequence[int]]
) -> tuple[NDArray[np.float32], NDArray[np.str_]]:
    """The mean embedding of each identity.

    Args:
        embeddings: [N, D] floating, array or tensor, on any device.
        pid_path_index: identity -> rows, as :func:`create_pid_path_index` returns it.

    Returns:
        Centroids [C, D] float32 and the C identities as strings, in the order of the index.

    Raises:
        UserError: a row lies outside the embeddings, or an identity has no rows.
    """
    embeddings = torch.as_tensor(embeddings).detach().cpu()
    rows = [row for pid_rows in pid_path_index.values() for row in pid_rows]
    empty = [pid for pid, pid_rows in pid_path_index.items() if not len(pid_rows)]
    if empty or max(rows, default=-1) >= len(embeddings) or min(rows, default=0) < 0:
        wrong = f"identity {empty[0]!r} has none" if empty else f"they lie between {min(rows)} and {max(rows)}"
        raise UserError(f"pid_path_index must give each identity rows of the {len(embeddings)} embeddings; {wrong}.")
    numbers = np.repeat(np.arange(len(pid_path_index)), [len(pid_rows) for pid_rows in pid_path_index.values()])
    centroids, _ = identity_centroids(embeddings[torch.tensor(rows, dtype=torch.int64)], numbers)
    return centroids.numpy(), np.asarray([str(pid) for pid in pid_path_index], dtype=np.str_)
