"""Embedding a folder into a gallery on disk, in one go or in several."""

import logging
import os
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inference.embedding.embedder import EmbeddedBatch, Embedder
from inference.embedding.images import find_images
from inference.embedding.progress import Progress
from inference.galleries.gallery import (
    EMBEDDINGS,
    PATHS,
    Gallery,
    Run,
    check_same_embedder,
    digest_of_paths,
    read_gallery,
)
from inference.galleries.identities import pid_function
from utils.errors import UserError

logger = logging.getLogger(__name__)

StrPath = str | os.PathLike[str]


@dataclass(frozen=True)
class Created:
    """What :func:`create_gallery` made."""

    count: int  # rows of the gallery: images or identities
    embedded: int  # images that this call embedded
    skipped: tuple[str, ...] = ()  # images that could not be read


@dataclass(frozen=True)
class ImageSource:
    """Which images go into a gallery, and what its rows are.

    Attributes:
        root: a folder of images, or one image file.
        in_subfolders: take the images in and below the subfolders of ``root``.
        pid_from: None for a row per image; else a row per identity, the mean of its images, and how identities are told
            from paths, see :func:`inference.galleries.identities.pid_function`.
    """

    root: StrPath
    in_subfolders: bool = False
    pid_from: str | None = None


def create_gallery(
    embedder: Embedder,
    source: ImageSource,
    output_dir: StrPath,
    *,
    resume: bool = False,
    append: bool = False,
    on_error: str = "stop",
    print_freq: int | None = None,
    progress: bool = True,
) -> Created:
    """Embed images into ``output_dir``; in memory are a few batches and the paths.

    embeddings.npy and paths.npy (see :mod:`inference.galleries.gallery`) appear when all is done. If the run ends
    before, what was embedded stays in files of other names, for ``resume``.

    Args:
        embedder: of the model.
        source: the images.
        output_dir: made if need be.
        resume: go on with an unfinished run, at its last finished batch; do nothing if the gallery is complete.
        append: keep the gallery in ``output_dir`` and add the images that are not in it, at its end. A file is known by
            its path, however that is written; rows of files that have gone stay.
        on_error: "stop" at an image that cannot be read, or "skip" it and list it in skipped.txt.
        print_freq: batches from one drawing of the progress bar to the next.
        progress: whether there is a progress bar.

    Raises:
        UserError: nothing to embed, an image that cannot be read (the message names it), a gallery or unfinished run
            of another model, or a folder that cannot be written to.
    """
    in_subfolders, pid_from = source.in_subfolders, source.pid_from
    if append and pid_from is not None:
        raise UserError(
            "--append needs a gallery of images: which images the centroids of a gallery hold is not known any more. "
            "Embed all images again, or set MODEL.USE_CENTROIDS False."
        )
    root, folder = os.fspath(source.root), Path(output_dir)
    files = find_images(root, in_subfolders)
    _check_identities(files, root, pid_from)
    about = {"embedder": embedder.identity, "root": root, "in_subfolders": in_subfolders, "pid_from": pid_from}
    _finish_complete(folder, resume or append)
    if resume and not append and (finished := _same_gallery(folder, about, files)):
        logger.info("%s is complete already: nothing to resume.", folder)
        return Created(len(finished.paths), 0)
    run = _open_run(folder, about, files, resume, append)
    if run is None:
        logger.info("No images are new; %s stays as it is.", folder)
        return Created(len(read_gallery(folder).paths), 0)
    try:
        return _go_on(run, embedder, files, on_error, print_freq, progress)
    finally:
        run.close()


def _check_identities(files: list[str], root: str, pid_from: str | None) -> None:
    """An image without identity is to be known of before anything is embedded."""
    if pid_from is not None:
        pid_of = pid_function(pid_from, root)
        for path in files:
            pid_of(path)


def _go_on(
    run: Run, embedder: Embedder, files: list[str], on_error: str, print_freq: int | None, progress: bool
) -> Created:
    remaining = _lacking(files, {*run.done, *run.skipped})
    if run.done or run.skipped:
        logger.info("%d images are embedded already, %d are left.", len(run.done), len(remaining))
    with Progress(len(run.done) + len(remaining), print_freq, progress, done=len(run.done)) as bar:
        embedded = _embed(embedder, run, remaining, on_error, bar)
    if not run.done:
        run.discard()
        raise UserError(f"none of the {len(files)} images could be read; the first is {files[0]}.")
    return Created(run.finish(files), embedded, tuple(run.skipped))


def _finish_complete(folder: Path, wanted: bool) -> None:
    """An earlier run may have been killed while its files got their names: do that first."""
    run = Run.open(folder) if wanted else None
    if run is not None:
        if run.complete:
            run.finish()
        run.close()


def _same_gallery(folder: Path, about: dict[str, Any], files: list[str]) -> Gallery | None:
    """The finished gallery of the folder, if it is what this run would make."""
    try:
        gallery = read_gallery(folder)
    except UserError:
        return None
    same = {key: gallery.about.get(key) for key in about} == about
    return gallery if same and gallery.about.get("files") == digest_of_paths(files) else None


def _open_run(folder: Path, about: dict[str, Any], files: list[str], resume: bool, append: bool) -> Run | None:
    """The run to add to; None if nothing is to be appended."""
    unfinished = Run.open(folder)
    if unfinished is not None:
        if resume:
            return _continued(unfinished, about)
        unfinished.close()
        logger.warning("Discarding an unfinished run of %d images in %s.", len(unfinished.done), folder)
    base = _base_of(folder, about) if append else None
    if base is not None:
        known = {str(path) for path in base.paths}
        if base.about.get("root") == about["root"] and (gone := len(known.difference(files))):
            logger.warning("%d images of the gallery are not in %s; their rows stay.", gone, about["root"])
        if not _lacking(files, known):
            return None
    return Run.start(folder, about, base)


def _lacking(files: list[str], known: set[str]) -> list[str]:
    """Those files that are not known, by whatever spelling of their path."""
    remaining = [path for path in files if path not in known]
    if not remaining or not known:
        return remaining
    absolute = {os.path.abspath(path) for path in known}  # noqa: PTH100 - without following links
    return [path for path in remaining if os.path.abspath(path) not in absolute]  # noqa: PTH100


def _continued(unfinished: Run, about: dict[str, Any]) -> Run:
    what = f"the unfinished run in {unfinished.folder}"
    try:
        for key, value in about.items():
            found = unfinished.about.get(key)
            if key != "embedder" and found != value:
                raise UserError(
                    f"{what} has {key} {found!r}, but here it is {value!r}: continue it with the same options, or run "
                    "without --resume to start over."
                )
        way_out = "continue it with the same, or run without --resume to start over."
        check_same_embedder(about["embedder"], unfinished.about["embedder"], what, way_out)
        unfinished.reopen_rows()
    except UserError:
        unfinished.close()
        raise
    return unfinished


def _base_of(folder: Path, about: dict[str, Any]) -> Gallery | None:
    """The gallery that is to be extended; None if there is none yet."""
    if not any((folder / name).exists() for name in (EMBEDDINGS, PATHS)):
        return None
    gallery = read_gallery(folder)
    if gallery.of_centroids:
        raise UserError(f"{folder} holds centroids of identities; --append needs a gallery of images.")
    found = {**gallery.about.get("embedder", {}), "dimension": gallery.embeddings.shape[1]}
    # The dimension first: where it differs, that says most.
    expected = {"dimension": about["embedder"]["dimension"], **about["embedder"]}
    way_out = "rows of both cannot be compared. Use the same model and options, or another OUTPUT_DIR."
    check_same_embedder(expected, found, f"the gallery in {folder}", way_out)
    return gallery


def _embed(embedder: Embedder, run: Run, paths: list[str], on_error: str, bar: Progress) -> int:
    """Embed images into a run, batch by batch; returns how many."""
    embedded = 0
    with closing(embedder.embed_batches(paths, on_error)) as batches:
        while (batch := _next(batches, run)) is not None:
            for place, error in batch.errors.items():
                logger.warning("skipped %s: %s", paths[place], error)
            run.add(batch.embeddings, [paths[i] for i in batch.kept], [paths[i] for i in batch.errors])
            embedded += len(batch.kept)
            bar.update(len(batch.kept) + len(batch.errors))
    return embedded


def _next(batches: Generator[EmbeddedBatch, None, None], run: Run) -> EmbeddedBatch | None:
    try:
        return next(batches, None)
    except UserError as error:
        raise UserError(
            f"{error} {len(run.done)} images are embedded: --resume continues there, --on-error skip leaves out what "
            "cannot be read."
        ) from error
