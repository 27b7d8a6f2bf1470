"""Embedding images into a gallery on disk, in one go or in several, by one process or by many."""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from inference.embedding.embedder import Embedder
from inference.galleries.centroids import CentroidWriter
from inference.galleries.filling import RunProgress, fill
from inference.galleries.gallery import read_gallery, read_skipped
from inference.galleries.parts import RUN
from inference.galleries.planning import (
    Wanted,
    find_finished,
    is_same_source,
    open_unfinished,
    start_run,
)
from inference.galleries.runs import LOCK, EmbeddingRun, has_finished, writing
from inference.galleries.sources import Source
from inference.galleries.storing import ROWS_PER_FILE, GalleryWriter, editing
from inference.galleries.team import ALONE, Team
from utils.errors import UserError
from utils.galleries import read_about
from utils.locks import lock

logger = logging.getLogger(__name__)

StrPath = str | os.PathLike[str]


@dataclass(frozen=True)
class CreatedGallery:
    """What :func:`create_gallery` made."""

    count: int  # rows of the gallery: images or identities
    embedded: int  # images that this call embedded, with those of the processes that were started with it
    skipped: tuple[str, ...] = ()  # images that could not be read
    by_another: bool = False  # whether another process made the gallery of what all have embedded


@dataclass(frozen=True)
class GalleryOptions:
    """How :func:`create_gallery` makes a gallery.

    Attributes:
        resume: continue an unfinished run after its last finished chunk, or take part in it if other processes work on
            it; do nothing if the gallery is complete.
        append: keep the gallery in the folder and add the images that are not in it, at its end. A file is recognised
            by its path, however that is written; rows of deleted files stay.
        replace: as ``append``, but images that are in the gallery are embedded again, and their embeddings take the
            places of those that are there.
        on_error: "stop" at an image that cannot be read, or "skip" it and list it in skipped.txt; of a chunk that
            cannot be read to its end, what comes before counts, and skipped.txt lists its name.
        pid_from: None for a row per image. Otherwise each row is an identity, the mean of its images, and this says how
            to read identities from paths, see :func:`inference.galleries.identities.pid_function`.
        print_freq: batches between two updates of the progress bar.
        progress: whether to show a progress bar.
        dtype: "float32" or "float16", for the rows on the disk.
        rows_per_file: with more rows than this, the gallery has several files.
        team: the processes that were started together to make this gallery.
    """

    resume: bool = False
    append: bool = False
    replace: bool = False
    on_error: str = "stop"
    pid_from: str | None = None
    print_freq: int | None = None
    progress: bool = True
    dtype: str = "float32"
    rows_per_file: int = ROWS_PER_FILE
    team: Team = ALONE


def create_gallery(
    embedder: Embedder, source: Source, output_dir: StrPath, options: GalleryOptions | None = None
) -> CreatedGallery:
    """Embed images into ``output_dir``, holding only the paths and a few batches in memory.

    embeddings.npy and paths.npy (see :mod:`inference.galleries.gallery`) appear once all images are embedded. If the
    run ends earlier, the chunks that it finished stay in files with other names, for ``resume``. Any number of
    processes, on any machines that share the folder, can make one gallery: each takes chunks that no other works on.

    Args:
        embedder: the model that embeds; in all processes the same.
        source: the images; in all processes the same.
        output_dir: created if it does not exist.
        options: see there.

    Raises:
        UserError: there is nothing to embed, an image cannot be read (the message names it), the gallery or unfinished
            run comes from another model, another run writes to the folder, or the folder cannot be written to.
    """
    options = options or GalleryOptions()
    if options.on_error not in ("stop", "skip"):
        raise UserError(f"on_error is {options.on_error!r}; valid: stop, skip.")
    about = {"embedder": embedder.identity, **source.about, "pid_from": options.pid_from}
    appends = options.append or options.replace
    launch, dtype = options.team.launch, options.dtype
    wanted = Wanted(Path(output_dir), about, source, options.resume, appends, launch, options.replace, dtype)
    with writing(wanted.folder):
        wanted.folder.mkdir(parents=True, exist_ok=True)
    with _locked(wanted.folder):
        run = _plan(wanted, options)
    if isinstance(run, CreatedGallery):
        return run
    try:
        with RunProgress(run, options.progress and options.team.is_first, options.print_freq) as bar:
            if bar.done and options.team.is_first:
                left = "" if bar.left is None else f", {bar.left} are left"
                logger.info("%d images are already embedded%s.", bar.done, left)
            fill(run, embedder, options.on_error, bar)
        with _locked(wanted.folder):
            if run.is_there():
                return _finish(run, options)
        return CreatedGallery(len(read_gallery(wanted.folder).paths), 0, by_another=True)
    finally:
        run.close()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with ExitStack() as stack:
        with writing(folder):
            stack.enter_context(lock(folder / LOCK))
        yield


def _plan(wanted: Wanted, options: GalleryOptions) -> EmbeddingRun | CreatedGallery:
    """The run to work on; or the gallery, if there is nothing to embed."""
    folder = wanted.folder
    with writing(folder), editing(folder):
        pass  # completes a change of the gallery that was interrupted
    run = open_unfinished(wanted)
    if run is not None and run.source is None:  # it only remains to make its gallery
        created = _finish(run, options)
        if run.entry.get("replace") and wanted.replace and run.entry["about"] == wanted.whole_about:
            return created
        run = None
    if run is None and has_finished(folder, wanted.launch, wanted.whole_about):
        return CreatedGallery(len(read_gallery(folder).paths), 0, by_another=True)
    if run is None and wanted.resume and not wanted.append and (finished := find_finished(wanted)):
        logger.info("%s is complete already: nothing to resume.", folder)
        return CreatedGallery(len(finished.paths), 0)
    run = run or start_run(wanted)
    if run is None:
        logger.info("There are no new images; %s stays as it is.", folder)
        return CreatedGallery(len(read_gallery(folder).paths), 0)
    return run.join()


def _finish(run: EmbeddingRun, options: GalleryOptions) -> CreatedGallery:
    """Make the gallery of the chunks of a run, all of which are finished."""
    base, new = run.entry["base"], run.count_rows()
    embedded, images = new - run.entry["before"], (base or 0) + new
    skipped = [path for part in run.parts() for path in part.skipped]
    if not images:
        run.discard()
        raise UserError(f"none of the {len(skipped)} images could be read; the first is {skipped[0]}.")
    run.announce()
    with _writer(run, options) as writer:
        listed = _skipped_before(run)
        for part in run.parts():
            writer.add(part.rows, part.paths, part.labels)
            _take_out(listed, part.paths)
        # With the gallery, the run is over: nothing is added twice.
        count = writer.finish(skipped=list(listed | dict.fromkeys(skipped)), ends=(RUN,))
    run.discard()
    return CreatedGallery(count, embedded, tuple(skipped))


def _skipped_before(run: EmbeddingRun) -> dict[str, None]:
    """What skipped.txt lists of earlier runs, if the gallery is extended by images from elsewhere."""
    if run.entry["base"] is None or is_same_source(read_about(run.folder), run.entry["about"]):
        return {}  # an append tries again what the gallery lacks
    return dict.fromkeys(read_skipped(run.folder))


def _take_out(listed: dict[str, None], paths: Sequence[str]) -> None:
    """Take images that could be read out of a list of those that could not, and files that held them."""
    for path in paths if listed else ():
        while path:
            listed.pop(path, None)
            path = path.rpartition("/")[0]


def _writer(run: EmbeddingRun, options: GalleryOptions) -> GalleryWriter | CentroidWriter:
    given = (run.folder, run.entry["about"], options.dtype, options.rows_per_file)
    extends = run.entry["base"] is not None
    if run.entry["about"]["pid_from"] is not None:
        return CentroidWriter(*given, extends)
    if not extends:
        return GalleryWriter(*given)
    replaced = [path for part in run.parts() for path in part.paths] if run.entry.get("replace") else None
    return GalleryWriter.extending(*given, replace=replaced)
