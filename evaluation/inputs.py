"""What ``python -m evaluation`` reads: .npz files, and folders that create_embeddings.py wrote."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evaluation.distance_blocks import as_embeddings, row_squares
from evaluation.notes import own_images_note
from evaluation.retrieval import RetrievalSet
from evaluation.self_matches import find_self_matches
from utils.errors import MissingPathError, UserError
from utils.files import content_digest, is_folder
from utils.galleries import NEW, array_files, read_about, read_rows, steadily
from utils.labels import JUNK_PIDS, BoolArray, IntArray, Names, check_length, int_array

_ARRAYS = ("embeddings", "pids", "camids", "paths")


@dataclass(frozen=True)
class Input:
    """The arrays of the queries or of the gallery, as they are in a file or folder.

    Example:
        >>> Input("q.npz", {"embeddings": np.ones((1, 2)), "pids": np.array(["ann"])}, {}).origin()
        {'path': 'q.npz', 'sha256': {}}
    """

    path: str
    arrays: dict[str, Any]
    files: dict[str, Path]  # name -> file, of everything that was read
    embedder: dict[str, Any] = field(default_factory=dict)  # what gallery.json says of the network

    def origin(self) -> dict[str, Any]:
        """What metrics.json says of this input."""
        digests = {name: content_digest(path).hex() for name, path in self.files.items()}
        return {"path": self.path, "sha256": digests} | ({"embedder": self.embedder} if self.embedder else {})


def read_input(path: str, ignore_cameras: bool = False) -> Input:
    """Read an .npz file, or a folder of .npy files.

    Args:
        path: the file or folder.
        ignore_cameras: a file need not hold "camids". A folder need not in any case.

    Raises:
        UserError: it does not exist, cannot be read, lacks an array, or holds centroids.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     np.savez(f"{folder}/q.npz", embeddings=np.ones((1, 2)), pids=[7], camids=[0])
        ...     sorted(read_input(f"{folder}/q.npz").arrays)
        ['camids', 'embeddings', 'pids']
    """
    found = (
        steadily(Path(path), lambda: _read_folder(Path(path))) if is_folder(path) else _read_file(path, ignore_cameras)
    )
    for name, array in found.arrays.items():
        if array.dtype.kind == "S":  # text all the same, of one byte a letter
            found.arrays[name] = np.char.decode(array, "utf-8", "surrogateescape")
    return found


def _read_file(path: str, ignore_cameras: bool) -> Input:
    wanted = ("embeddings", "pids") if ignore_cameras else ("embeddings", "pids", "camids")
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise UserError(f"{path} holds a single array; expected an .npz file with {', '.join(wanted)}.")
        with archive:
            missing = [name for name in wanted if name not in archive.files]
            if missing:
                held = ", ".join(archive.files) or "nothing"
                way_out = " If the images have no cameras, give --ignore-cameras." if missing == ["camids"] else ""
                raise UserError(f"{path} lacks {', '.join(missing)}; it holds {held}.{way_out}")
            arrays = {name: archive[name] for name in (*wanted, "paths") if name in archive.files}
    except FileNotFoundError:
        raise MissingPathError(
            f"{path} does not exist; expected an .npz file with {', '.join(wanted)}, or a folder that "
            "create_embeddings.py wrote."
        ) from None
    except UserError:
        raise
    except Exception as error:  # damaged archives raise errors of zipfile, zlib and numpy
        raise UserError(f"{path} is not an .npz file of plain arrays ({type(error).__name__}: {error}).") from error
    return Input(path, arrays, {Path(path).name: Path(path)})


def _read_folder(folder: Path) -> Input:
    about = read_about(folder)
    if about.get("pid_from") is not None:
        raise UserError(
            f"{folder} holds centroids of identities (gallery.json: pid_from {about['pid_from']!r}), which have no "
            "cameras and cannot be left out one by one: embed single images (MODEL.USE_CENTROIDS False); --protocol "
            "strict builds the centroids."
        )
    files = {name: array_files(folder, about, name) for name in _ARRAYS}
    for name in ("embeddings", "pids"):
        if not files[name]:
            held = ", ".join(f"{name}.npy" for name, paths in files.items() if paths) or "neither embeddings nor paths"
            raise MissingPathError(
                f"{folder} lacks {name}.npy; it holds {held}. create_embeddings.py writes embeddings.npy and pids.npy "
                "for images whose identities it is told: --csv TABLE --split SPLIT, or DATASETS.NAMES NAME --split "
                "SPLIT."
            )
    arrays = {name: read_rows(folder, about, name) for name, paths in files.items() if paths}
    if about.get("group") and "paths" in arrays:  # names, which may mean other images in another folder or table
        where = about["root"] if about["group"] == "folder" else about["source"]["data_set"]
        arrays["paths"] = np.array([f"{where}/{name}" for name in arrays["paths"].tolist()])
    listed = {path.name.removesuffix(NEW): path for paths in files.values() for path in paths}
    return Input(str(folder), arrays, listed, about.get("embedder", {}))


def differing(query: Input, gallery: Input) -> list[str]:
    """What the networks behind queries and gallery differ in, such as "weights"; [] if that is unknown.

    Example:
        >>> differing(Input("q", {}, {}, {"weights": "ab", "size": [2, 1]}), Input("g", {}, {}, {"weights": "cd"}))
        ['weights']
    """
    known = query.embedder.keys() & gallery.embedder.keys()
    return sorted(key for key in known if query.embedder[key] != gallery.embedder[key])


def combine(
    query: Input, gallery: Input, device: torch.device, ignore_cameras: bool, self_match: str | None
) -> tuple[RetrievalSet, list[str]]:
    """The set to evaluate, and what was passed over or taken in a way that the user may not expect, in sentences.

    Text is numbered alike in queries and gallery and keeps its names. Images of pid -1 are left out.

    Args:
        query, gallery: what :func:`read_input` returned.
        device: where to put the embeddings.
        ignore_cameras: take the images as having no cameras.
        self_match: without cameras, "keep" leaves the queries' own images in their rankings; None drops them.

    Raises:
        UserError: arrays do not fit together, or a label is no number or text.

    Example:
        >>> query = Input("q.npz", {"embeddings": np.ones((1, 2)), "pids": np.array(["ann"])}, {})
        >>> gallery = Input("g.npz", {"embeddings": np.ones((2, 2)), "pids": np.array(["bob", "ann"])}, {})
        >>> retrieval, notes = combine(query, gallery, torch.device("cpu"), True, None)
        >>> retrieval.g_pids.tolist(), retrieval.names.pid(1)
        ([1, 0], 'bob')
    """
    notes: list[str] = []
    missing = [side.path for side in (query, gallery) if "camids" not in side.arrays]
    has_cameras = not (ignore_cameras or missing)
    if missing and not ignore_cameras:
        notes.append(f"{' and '.join(missing)} without camids: taken as images without cameras (--ignore-cameras).")
    sides_read = (query, gallery)
    pids, pid_names = _labels(sides_read, "pids")
    camids, camera_names = _labels(sides_read, "camids") if has_cameras else (_no_cameras(*pids), {})
    sides = []
    for i, (side, name) in enumerate(((query, "query"), (gallery, "gallery"))):
        columns = [as_embeddings(name, side.arrays["embeddings"]).to(device), pids[i], camids[i], _paths(side)]
        sides.append(_without_junk(side, name, columns, pid_names, notes))
    (q, q_pids, q_camids, q_paths), (g, g_pids, g_camids, g_paths) = sides
    names = Names(pid_names, camera_names)
    retrieval = RetrievalSet(q, g, q_pids, g_pids, q_camids, g_camids, q_paths, g_paths, names, has_cameras)
    if has_cameras and self_match is not None:
        notes.append(f"--self-match {self_match} has no effect: the same-camera filter decides.")
    elif not has_cameras and self_match != "keep":
        retrieval = _without_own_images(retrieval, notes)
    return retrieval, notes


@dataclass(frozen=True)
class LabelledImages:
    """N images with their labels, from one file or folder or several.

    Example:
        >>> LabelledImages(torch.ones(1, 2), np.array([0]), None, None, Names({0: "ann"})).names.pid(0)
        'ann'
    """

    embeddings: torch.Tensor  # [N, D]
    pids: IntArray  # [N]
    camids: IntArray | None  # [N]; None without cameras
    paths: list[str] | None
    names: Names


def join(
    sides: Sequence[Input], device: torch.device, ignore_cameras: bool = False
) -> tuple[LabelledImages, list[str]]:
    """All images of several files or folders, one after the other, and what was passed over, in sentences.

    Text is numbered alike in all of them and keeps its names. Images of pid -1 are left out.

    Args:
        sides: one or more of what :func:`read_input` returned.
        device: where to put the embeddings.
        ignore_cameras: take the images as having no cameras.

    Raises:
        UserError: arrays do not fit together, a label is no number or text, or a value is not finite.

    Example:
        >>> one = Input("q.npz", {"embeddings": np.ones((2, 2)), "pids": np.array(["ann", "-1"])}, {})
        >>> images, notes = join([one], torch.device("cpu"), ignore_cameras=True)
        >>> images.pids.tolist(), images.names.pid(1), notes
        ([1], 'ann', ['1 of 2 images have pid -1, which marks junk, and are left out.'])
    """
    notes: list[str] = []
    without = [side.path for side in sides if "camids" not in side.arrays]
    if without and not ignore_cameras:
        notes.append(f"{' and '.join(without)} without camids: taken as images without cameras (--ignore-cameras).")
    pids, pid_names = _labels(sides, "pids")
    camids, camera_names = ([None] * len(sides), {}) if without or ignore_cameras else _labels(sides, "camids")
    columns = [_checked(*side) for side in zip(sides, pids, camids, strict=True)]
    embeddings, all_pids, all_camids, paths = zip(*columns, strict=True)
    for side, rows in zip(sides, embeddings, strict=True):
        if rows.shape[1] != embeddings[0].shape[1]:
            raise UserError(
                f"{side.path} has {rows.shape[1]} dimensions, but {sides[0].path} has {embeddings[0].shape[1]}: embed "
                "both with one network."
            )
    numbers = np.concatenate(all_pids)
    kept = np.flatnonzero(~_is_junk(numbers, pid_names))
    if len(kept) < len(numbers):
        notes.append(
            f"{len(numbers) - len(kept)} of {len(numbers)} images have pid -1, which marks junk, and are left out."
        )
    if not len(kept):
        raise UserError(f"{sides[0].path}: all images have pid -1, which marks junk: none is left to check.")
    joined = embeddings[0] if len(sides) == 1 else torch.cat(embeddings)
    files = [path for part in paths for path in part]
    images = LabelledImages(
        (joined if len(kept) == len(numbers) else joined[torch.from_numpy(kept)]).to(device),
        numbers[kept],
        None if all_camids[0] is None else np.concatenate(all_camids)[kept],
        [files[i] for i in kept.tolist()] if any(files) else None,
        Names(pid_names, camera_names),
    )
    return images, notes


def _checked(side: Input, pids: Any, camids: Any) -> tuple[torch.Tensor, IntArray, IntArray | None, list[str]]:
    """The columns of one file or folder; images without paths have the path "". Camids may be None."""
    owner = f"{side.path}: embeddings"
    rows = as_embeddings(owner, side.arrays["embeddings"])
    row_squares(owner, rows)  # raises for values that are not finite
    paths = _paths(side)
    if paths is not None:
        check_length(f"{side.path}: paths", len(paths), len(rows), owner)
    return (
        rows,
        int_array(f"{side.path}: pids", pids, len(rows), owner),
        None if camids is None else int_array(f"{side.path}: camids", camids, len(rows), owner),
        paths or [""] * len(rows),
    )


def _paths(side: Input) -> list[str] | None:
    paths = side.arrays.get("paths")
    if paths is None:
        return None
    if paths.ndim != 1 or paths.dtype.kind != "U":
        raise UserError(
            f"{side.path}: paths are {paths.dtype} of shape {list(paths.shape)}; expected text, one for each image."
        )
    return list(paths.tolist())


def _no_cameras(q_pids: Any, g_pids: Any) -> tuple[Any, Any]:
    return np.zeros(np.size(q_pids), dtype=np.int64), np.ones(np.size(g_pids), dtype=np.int64)


def _labels(sides: Sequence[Input], name: str) -> tuple[list[Any], dict[int, str]]:
    """The labels of all sides as numbers, and the names of those that were text."""
    found = [side.arrays[name] for side in sides]
    is_text = [labels.dtype.kind == "U" for labels in found]
    if not any(is_text):
        return found, {}
    if not all(is_text):
        text, numbers = sides[is_text.index(True)], sides[is_text.index(False)]
        raise UserError(
            f"{text.path}: {name} are text ({', '.join(map(repr, text.arrays[name].reshape(-1)[:1].tolist()))}), but "
            f"in {numbers.path} they are {numbers.arrays[name].dtype}: give both as text, or both as whole numbers."
        )
    distinct, number = np.unique(np.concatenate([labels.reshape(-1) for labels in found]), return_inverse=True)
    parts = np.split(number.reshape(-1).astype(np.int64), np.cumsum([labels.size for labels in found])[:-1])
    shaped = [part.reshape(labels.shape) for part, labels in zip(parts, found, strict=True)]
    return shaped, dict(enumerate(distinct.tolist()))


def _without_junk(
    side: Input, name: str, columns: list[Any], pid_names: dict[int, str], notes: list[str]
) -> Sequence[Any]:
    """Embeddings, pids, camids and paths without the images of pid -1, which are no identity."""
    prefix, count = name[0], len(columns[0])
    pids = int_array(f"{prefix}_pids", columns[1], count, name)
    kept = ~_is_junk(pids, pid_names)
    junk = int(count - kept.sum())
    if not junk:
        return columns
    for label, column in ((f"{prefix}_camids", columns[2]), (f"{prefix}_paths", columns[3])):
        if column is not None:
            check_length(label, len(column), count, name)
    what = "queries" if name == "query" else "gallery images"
    if junk == count:
        raise UserError(f"{side.path}: all {count} {what} have pid -1, which marks junk: none is left to evaluate.")
    role = "not evaluated" if name == "query" else "neither matches nor distractors"
    notes.append(f"{side.path}: {junk} of {count} {what} have pid -1, which marks junk, and are left out: {role}.")
    embeddings, _, camids, paths = columns
    paths = paths and [path for path, keep in zip(paths, kept.tolist(), strict=True) if keep]
    return embeddings[torch.from_numpy(kept).to(embeddings.device)], pids[kept], np.asarray(camids)[kept], paths


def _is_junk(pids: IntArray, names: dict[int, str]) -> BoolArray:
    return np.isin(pids, [i for i, text in names.items() if text in JUNK_PIDS] if names else [-1])


def _without_own_images(retrieval: RetrievalSet, notes: list[str]) -> RetrievalSet:
    if retrieval.q_paths is None or retrieval.g_paths is None:
        notes.append(
            "queries and gallery are not compared, since not both have paths: a query that the gallery holds finds "
            "itself."
        )
        return retrieval
    found = find_self_matches(retrieval.q_paths, retrieval.g_paths)
    if not found.count:
        return retrieval
    retrieval = replace(retrieval, self_matches=found)
    notes.append(own_images_note(retrieval, "--self-match keep"))
    return retrieval
