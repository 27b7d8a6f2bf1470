"""Embedding a folder into a gallery on disk, in one go or in several."""

import logging
import os
from collections import Counter
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
    EmbeddingRun,
    Gallery,
    check_same_embedder,
    digest_of_paths,
    read_gallery,
)
from inference.galleries.identities import pid_function
from inference.galleries.labels import Label, LabelledImages, check_labels
from utils.errors import UserError

logger = logging.getLogger(__name__)

StrPath = str | os.PathLike[str]
Images = tuple[list[str], list[Label]]  # files, and a label for each or none at all


@dataclass(frozen=True)
class CreatedGallery:
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
        pid_from: None for a row per image. Otherwise each row is an identity, the mean of its images, and this says how
            to read identities from paths, see :func:`inference.galleries.identities.pid_function`.
        labelled: these images instead, each with a row and a label.
    """

    root: StrPath
    in_subfolders: bool = False
    pid_from: str | None = None
    labelled: LabelledImages | None = None

    def images(self) -> tuple[list[str], list[Label]]:
        """The files, and their labels or none."""
        if self.labelled is not None:
            return self.labelled.paths, self.labelled.labels
        return find_images(self.root, self.in_subfolders), []


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
) -> CreatedGallery:
    """Embed images into ``output_dir``, holding only the paths and a few batches in memory.

    embeddings.npy and paths.npy (see :mod:`inference.galleries.gallery`) appear once all images are embedded. If the
    run ends earlier, its work stays in files with other names, for ``resume``.

    Args:
        embedder: the model that embeds.
        source: the images.
        output_dir: created if it does not exist.
        resume: continue an unfinished run after its last finished batch; do nothing if the gallery is complete.
        append: keep the gallery in ``output_dir`` and add the images that are not in it, at its end. A file is
            recognised by its path, however that is written; rows of deleted files stay.
        on_error: "stop" at an image that cannot be read, or "skip" it and list it in skipped.txt.
        print_freq: batches between two updates of the progress bar.
        progress: whether to show a progress bar.

    Raises:
        UserError: there is nothing to embed, an image cannot be read (the message names it), the gallery or unfinished
            run comes from another model, or the folder cannot be written to.
    """
    in_subfolders, pid_from = source.in_subfolders, source.pid_from
    if append and pid_from is not None:
        raise UserError(
            "--append needs a gallery of images: a gallery of centroids does not record the images behind them. "
            "Embed all images again, or set MODEL.USE_CENTROIDS False."
        )
    root, folder = os.fspath(source.root), Path(output_dir)
    images = source.images()
    _check_identities(images[0], root, pid_from)
    about = {"embedder": embedder.identity, "root": root, "in_subfolders": in_subfolders, "pid_from": pid_from}
    about["source"] = None if source.labelled is None else source.labelled.source
    _finish_if_complete(folder, resume or append)
    if resume and not append and (finished := _finished_gallery(folder, about, images)):
        logger.info("%s is complete already: nothing to resume.", folder)
        return CreatedGallery(len(finished.paths), 0)
    run = _open_run(folder, about, images, resume, append)
    if run is None:
        logger.info("There are no new images; %s stays as it is.", folder)
        return CreatedGallery(len(read_gallery(folder).paths), 0)
    try:
        return _embed_remaining(run, embedder, images, on_error, print_freq, progress)
    finally:
        run.close()


def _check_identities(files: list[str], root: str, pid_from: str | None) -> None:
    """Raise for an image without an identity before anything is embedded, and warn of one identity for all."""
    if pid_from is not None:
        pids = list(map(pid_function(pid_from, root), files))
        if len(files) > 1 and len(set(pids)) == 1:
            logger.warning(
                "All %d images have the identity %r (--pid-from %s): the gallery will have one row. Identities in "
                "folders of their own are read with --images-in-subfolders, those in file names with --pid-from.",
                *(len(files), pids[0], pid_from),
            )


def _embed_remaining(
    run: EmbeddingRun, embedder: Embedder, images: Images, on_error: str, print_freq: int | None, progress: bool
) -> CreatedGallery:
    files, labels = images
    remaining = _unknown_files(files, [*run.done, *run.skipped])
    left = [files[i] for i in remaining], [labels[i] for i in remaining] if labels else []
    if run.done or run.skipped:
        logger.info("%d images are already embedded, %d are left.", len(run.done), len(remaining))
    with Progress(len(run.done) + len(remaining), print_freq, progress, done=len(run.done)) as bar:
        embedded = _embed(embedder, run, left, on_error, bar)
    if not run.done:
        run.discard()
        raise UserError(f"none of the {len(files)} images could be read; the first is {files[0]}.")
    return CreatedGallery(run.finish(_listed(images)), embedded, tuple(run.skipped))


def _listed(images: Images) -> list[str]:
    """What tells whether a finished gallery is of the same images with the same labels."""
    files, labels = images
    return [str((path, *label)) for path, label in zip(files, labels, strict=True)] if labels else files


def _finish_if_complete(folder: Path, wanted: bool) -> None:
    """Finish an earlier run that embedded all its images but was killed while its files were being renamed."""
    run = EmbeddingRun.open(folder) if wanted else None
    if run is not None:
        if run.complete:
            run.finish()
        run.close()


def _finished_gallery(folder: Path, about: dict[str, Any], images: Images) -> Gallery | None:
    """The finished gallery in the folder, if this run would make the same one; a line says why it would not."""
    try:
        gallery = read_gallery(folder)
    except UserError as error:
        if (folder / EMBEDDINGS).exists():
            logger.warning("All images are embedded again: %s", error)
        return None
    found = {key: gallery.about.get(key) for key in about}
    if isinstance(found["embedder"], dict):  # what an older version did not record yet does not differ
        found["embedder"] = {key: found["embedder"].get(key, value) for key, value in about["embedder"].items()}
    differing = [key for key, value in about.items() if found[key] != value]
    if gallery.about.get("files") != digest_of_paths(_listed(images)):
        differing.append("list of images (--append adds new ones)")
    if differing:
        logger.warning("All images are embedded again: %s holds a gallery of another %s.", folder, ", ".join(differing))
    return None if differing else gallery


def _open_run(folder: Path, about: dict[str, Any], images: Images, resume: bool, append: bool) -> EmbeddingRun | None:
    """The run to add to; None if there is nothing to append."""
    unfinished = EmbeddingRun.open(folder)
    if unfinished is not None:
        if resume:
            return _continued(unfinished, about, images)
        unfinished.close()
        logger.warning("Discarding an unfinished run of %d images in %s.", len(unfinished.done), folder)
    base = _gallery_to_extend(folder, about, images) if append else None
    if base is not None:
        known = [str(path) for path in base.paths]
        is_same_source = all(base.about.get(key) == about[key] for key in ("root", "source"))
        if is_same_source and (gone := len(set(known).difference(images[0]))):
            where = about["root"] if about["source"] is None else " ".join(about["source"].values())
            logger.warning("%d images of the gallery are not in %s; their rows stay.", gone, where)
        if not _unknown_files(images[0], known):
            return None
    return EmbeddingRun.start(folder, about, base)


def _unknown_files(files: list[str], known: list[str]) -> list[int]:
    """The positions of the files that are not among the known ones, however their paths are written.

    A file with several labels is there several times, in both lists.
    """
    known_times = Counter(known)
    remaining = [i for i, path in enumerate(files) if not _take(known_times, path)]
    if not remaining or not known:
        return remaining
    known_times = Counter(map(os.path.abspath, known_times.elements()))  # without following links
    return [i for i in remaining if not _take(known_times, os.path.abspath(files[i]))]  # noqa: PTH100


def _take(times: Counter[str], path: str) -> bool:
    if not times[path]:
        return False
    times[path] -= 1
    return True


def _continued(unfinished: EmbeddingRun, about: dict[str, Any], images: Images) -> EmbeddingRun:
    what = f"the unfinished run in {unfinished.folder}"
    try:
        for key, value in about.items():
            found = unfinished.about.get(key)
            if key != "embedder" and found != value:
                raise UserError(
                    f"{what} has {key} {found!r}, but here it is {value!r}: continue it with the same options, or run "
                    "without --resume to start over."
                )
        way_out = "continue it with the same model and options, or run without --resume to start over."
        check_same_embedder(about["embedder"], unfinished.about["embedder"], what, way_out)
        check_labels(unfinished.done, unfinished.labels, images, what, "run without --resume to start over.")
        unfinished.reopen_rows()
    except UserError:
        unfinished.close()
        raise
    return unfinished


def _gallery_to_extend(folder: Path, about: dict[str, Any], images: Images) -> Gallery | None:
    """The gallery to extend; None if there is none yet."""
    if not any((folder / name).exists() for name in (EMBEDDINGS, PATHS)):
        return None
    gallery = read_gallery(folder)
    if gallery.holds != "images":
        raise UserError(f"{folder} holds {gallery.holds}; --append needs a gallery of images.")
    found = {**gallery.about.get("embedder", {}), "dimension": gallery.embeddings.shape[1]}
    if not gallery.about.get("embedder"):
        logger.warning("Nothing in %s tells which model made its rows: they must be of the model used here.", folder)
    # The dimension first: a difference there tells the user most.
    expected = {"dimension": about["embedder"]["dimension"], **about["embedder"]}
    way_out = "rows of both cannot be compared. Use the same model and options, or another OUTPUT_DIR."
    check_same_embedder(expected, found, f"the gallery in {folder}", way_out)
    way_out = "append images whose labels agree with those of the gallery, or name another OUTPUT_DIR."
    check_labels([str(path) for path in gallery.paths], gallery.labels, images, f"the gallery in {folder}", way_out)
    return gallery


def _embed(embedder: Embedder, run: EmbeddingRun, images: Images, on_error: str, bar: Progress) -> int:
    """Embed images into a run, batch by batch; returns how many were embedded."""
    paths, labels = images
    embedded = 0
    with closing(embedder.embed_batches(paths, on_error)) as batches:
        while (batch := _next(batches, run)) is not None:
            for position, error in batch.errors.items():
                logger.warning("skipped %s: %s", paths[position], error)
            kept = [labels[i] for i in batch.kept] if labels else []
            run.add(batch.embeddings, [paths[i] for i in batch.kept], [paths[i] for i in batch.errors], kept)
            embedded += len(batch.kept)
            bar.update(len(batch.kept) + len(batch.errors))
    return embedded


def _next(batches: Generator[EmbeddedBatch, None, None], run: EmbeddingRun) -> EmbeddedBatch | None:
    try:
        return next(batches, None)
    except UserError as error:
        raise UserError(
            f"{error} {len(run.done)} images are embedded: --resume continues from there, --on-error skip leaves out "
            "images that cannot be read."
        ) from error
