"""Which run a process works on: a new one, an unfinished one that it continues or joins, or none at all."""

import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from inference.galleries.centroids import read_sums
from inference.galleries.gallery import EMBEDDINGS, Gallery, check_same_embedder, read_gallery
from inference.galleries.identities import pid_function
from inference.galleries.labels import Label, check_labels
from inference.galleries.parts import part_numbers, read_part
from inference.galleries.runs import EmbeddingRun, digest_of
from inference.galleries.shards import TarShards
from inference.galleries.sources import Chunk, FileList, Item, Source
from inference.galleries.storing import GalleryWriter
from utils.errors import MissingPathError, UserError
from utils.galleries import with_untold

logger = logging.getLogger(__name__)

START_OVER = "or run without --resume to start over."


@dataclass(frozen=True)
class Wanted:
    """What a process is to make.

    Attributes:
        folder: of the gallery.
        about: what gallery.json will say of embedder, source and identities.
        source: the images.
        resume, append: see :class:`inference.galleries.creation.GalleryOptions`.
        launch: of the processes that were started together; None for a process alone.
        replace: with ``append``, embed images again that are in the gallery.
        dtype: of its rows.
    """

    folder: Path
    about: dict[str, Any]
    source: Source
    resume: bool
    append: bool
    launch: str | None
    replace: bool = False
    dtype: str = "float32"

    @property
    def whole_about(self) -> dict[str, Any]:
        """``about``, with a digest of the list of images."""
        return self.about | {"files": self.source.digest()}

    def is_of_launch(self, run: EmbeddingRun) -> bool:
        """Whether a process that was started together with this one began the run."""
        return self.launch is not None and run.entry["launch"] == self.launch


def open_unfinished(wanted: Wanted) -> EmbeddingRun | None:
    """The unfinished run in the folder, if this process is to continue or join it; any other is discarded.

    A run without unfinished chunks that is to be discarded although its gallery was asked for is returned as well.

    Raises:
        UserError: other processes work on it, or its images, model or options are others.
    """
    run = EmbeddingRun.open(wanted.folder)
    if run is None:
        return None
    others_work = run.others_work()
    if not others_work and not run.unfinished() and (wanted.resume or wanted.append or wanted.is_of_launch(run)):
        return run
    if wanted.is_of_launch(run) or wanted.resume:
        return _continued(run, wanted, others_work)
    if others_work:
        raise UserError(
            f"another run is writing to {wanted.folder}: wait for its end, take part in it with --resume, or name "
            "another OUTPUT_DIR."
        )
    logger.warning("Discarding an unfinished run of %d images in %s.", run.count_images(), wanted.folder)
    run.discard()
    return None


def is_same_source(about: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether the images of two galleries come from the same place."""
    return all(about.get(key) == other.get(key) for key in ("root", "source"))


def start_run(wanted: Wanted) -> EmbeddingRun | None:
    """A new run; None if there is nothing to append.

    Raises:
        UserError: the gallery in the folder cannot be extended, or an image has no identity.
    """
    about, source, base = wanted.about, wanted.source, None
    if wanted.append:
        base = _gallery_to_extend(wanted)
    if base is not None:
        known = images_of(base)
        if (
            isinstance(source, FileList)
            and is_same_source(base.about, about)
            and (gone := len(set(known).difference(source.paths)))
        ):
            where = about["root"] if about["source"] is None else " ".join(about["source"].values())
            logger.warning("%d images of the gallery are not in %s; their rows stay.", gone, where)
        source = source if wanted.replace else without(source, known)
        if not source.chunks():
            return None
    check_identities(source, about["pid_from"])
    entry = {"about": wanted.whole_about, "base": None if base is None else len(known), "launch": wanted.launch}
    entry["replace"] = wanted.replace and base is not None
    return EmbeddingRun.start(wanted.folder, entry, source)


# --------------------------------------------------------------------------------------------------- unfinished runs


def _continued(run: EmbeddingRun, wanted: Wanted, others_work: bool) -> EmbeddingRun:
    what, found = f"the unfinished run in {run.folder}", with_untold(run.entry["about"])
    for key, value in wanted.about.items():
        if key != "embedder" and found.get(key) != value:
            raise UserError(
                f"{what} has {key} {found.get(key)!r}, but here it is {value!r}: continue it with the same options, "
                f"{START_OVER}"
            )
    replaces = run.entry.get("replace", False)
    if replaces != (wanted.replace and run.entry["base"] is not None):
        raise UserError(f"{what} was begun with{'' if replaces else 'out'} --replace: continue it so, {START_OVER}")
    way_out = f"continue it with the same model and options, {START_OVER}"
    check_same_embedder(wanted.about["embedder"], found["embedder"], what, way_out)
    known: list[str] = []
    if run.entry["base"] is not None and not replaces:
        known += images_of(read_gallery(run.folder))
    for number in run.entry["kept"]:
        known += _images_of_part(run.folder, number)
    source = without(wanted.source, known) if known else wanted.source
    if digest_of(source) == run.entry["digest"]:
        continued = EmbeddingRun(run.folder, run.entry, source)
        if not (others_work or wanted.is_of_launch(run)):
            continued.rewrite(launch=wanted.launch, before=continued.count_rows())
        return continued
    if others_work or wanted.is_of_launch(run) or not isinstance(source, FileList):
        raise UserError(
            f"{what} is of another list of images than that of {wanted.about['root']!r} as this process sees it: all "
            f"processes need the same one. Continue the run with that list, {START_OVER}"
        )
    return _with_another_list(run, wanted, what)


def _with_another_list(run: EmbeddingRun, wanted: Wanted, what: str) -> EmbeddingRun:
    """Keep the finished chunks, whatever their images, and cut the other images into new ones, which come after."""
    done: list[str] = []
    labels: list[Label] = []
    skipped: list[str] = []
    for number in run.finished():
        part = read_part(run.folder, number)
        assert part is not None
        done += part.paths
        labels += part.labels
        skipped += part.skipped
    source = wanted.source
    assert isinstance(source, FileList)
    check_identities(source, wanted.about["pid_from"])
    check_labels(done, labels, (list(source.paths), list(source.labels)), what, START_OVER.removeprefix("or "))
    replaces = run.entry.get("replace", False)
    base = images_of(read_gallery(run.folder)) if run.entry["base"] is not None and not replaces else []
    first = part_numbers(run.entry)[-1] + 1 if part_numbers(run.entry) else 0
    entry = {"about": wanted.whole_about, "base": run.entry["base"], "launch": wanted.launch}
    entry |= {"kept": run.finished(), "first": first, "replace": replaces}
    return EmbeddingRun.start(run.folder, entry, without(source, [*base, *done, *skipped]))


def _images_of_part(folder: Path, number: int) -> list[str]:
    part = read_part(folder, number)
    return [] if part is None else [*part.paths, *part.skipped]


# ------------------------------------------------------------------------------------------------- finished galleries


def find_finished(wanted: Wanted) -> Gallery | None:
    """The finished gallery in the folder, if this run would make the same one; a line says why it would not."""
    try:
        gallery = read_gallery(wanted.folder)
    except UserError as error:
        if not isinstance(error, MissingPathError) or (wanted.folder / EMBEDDINGS).exists():
            logger.warning("All images are embedded again: %s", error)
        return None
    about = wanted.about
    found = {key: gallery.about.get(key) for key in about}
    if isinstance(found["embedder"], dict):  # what an older version did not record yet does not differ
        found["embedder"] = {key: found["embedder"].get(key, value) for key, value in about["embedder"].items()}
    differing = [key for key, value in about.items() if found[key] != value]
    if gallery.about.get("files") != wanted.source.digest():
        differing.append("list of images (--append adds new ones)")
    if differing:
        where, what = wanted.folder, ", ".join(differing)
        logger.warning("All images are embedded again: %s holds a gallery of another %s.", where, what)
    return None if differing else gallery


def images_of(gallery: Gallery) -> list[str]:
    """The images whose embeddings are in a gallery."""
    return [str(path) for path in (gallery.images if gallery.of_centroids else gallery.paths)]


def _gallery_to_extend(wanted: Wanted) -> Gallery | None:
    """The gallery to extend; None if there is none yet."""
    folder, embedder = wanted.folder, wanted.about["embedder"]
    try:
        gallery = read_gallery(folder)
    except MissingPathError:
        if (folder / EMBEDDINGS).exists():
            raise
        return None
    was, now = gallery.about.get("pid_from"), wanted.about["pid_from"]
    if was != now:
        of, option = ("images", "False") if was is None else ("identities", f"True and --pid-from {was}")
        raise UserError(
            f"the gallery in {folder} has a row for each of its {of}: --append needs MODEL.USE_CENTROIDS {option}, or "
            "another OUTPUT_DIR."
        )
    if gallery.of_centroids and wanted.replace:
        raise UserError(
            f"{folder} holds centroids of identities; --replace needs a gallery of images. Delete the identity "
            "(inference/edit_gallery.py) and append its images."
        )
    if gallery.holds == "groups of images":
        raise UserError(f"{folder} holds groups of images; --append needs a gallery of images.")
    GalleryWriter(folder, {}, wanted.dtype).check_dtype(gallery)
    if gallery.of_centroids:
        read_sums(folder, len(gallery.paths))
    found = {**gallery.about.get("embedder", {}), "dimension": gallery.embeddings.shape[1]}
    if not gallery.about.get("embedder"):
        logger.warning("Nothing in %s tells which model made its rows: they must be of the model used here.", folder)
    # The dimension first: a difference there tells the user most.
    expected = {"dimension": embedder["dimension"], **embedder}
    way_out = "rows of both cannot be compared. Use the same model and options, or another OUTPUT_DIR."
    check_same_embedder(expected, found, f"the gallery in {folder}", way_out)
    if isinstance(wanted.source, TarShards) and not gallery.of_centroids:
        wanted.source.check_kind(next(iter(gallery.labels_of(slice(1))), None), f"the gallery in {folder}")
    if isinstance(wanted.source, FileList) and not gallery.of_centroids:
        way_out = "append images whose labels agree with those of the gallery, or name another OUTPUT_DIR."
        images = list(wanted.source.paths), list(wanted.source.labels)
        check_labels(images_of(gallery), gallery.labels, images, f"the gallery in {folder}", way_out)
    return gallery


def check_identities(source: Source, pid_from: str | None) -> None:
    """Raise for a listed image without an identity before anything is embedded, and warn of one identity for all."""
    if pid_from is None or not isinstance(source, FileList) or source.labels:
        return
    pids = list(map(pid_function(pid_from, source.about["root"]), source.paths))
    if len(pids) > 1 and len(set(pids)) == 1:
        logger.warning(
            "All %d images have the identity %r (--pid-from %s): the gallery will have one row. Identities in "
            "folders of their own are read with --images-in-subfolders, those in file names with --pid-from.",
            *(len(pids), pids[0], pid_from),
        )


# ------------------------------------------------------------------------------------------------------- known images


@dataclass(frozen=True)
class _Without:
    """A source of unknown images without those that are known by their path, however it is written."""

    source: Source
    known: frozenset[str]

    @property
    def about(self) -> dict[str, Any]:
        return self.source.about

    def chunks(self) -> Sequence[Chunk]:
        return [chunk._replace(count=None) for chunk in self.source.chunks()]

    def read(self, chunk: Chunk) -> Iterator[Item]:
        return (item for item in self.source.read(chunk) if os.path.abspath(item.path) not in self.known)  # noqa: PTH100

    def digest(self) -> str:
        return f"{self.source.digest()} without {len(self.known)}"


def without(source: Source, known: Sequence[str]) -> Source:
    """A source without the images that are among the known ones, however their paths are written.

    A file with several labels is there several times, in a list of files and among the known ones.
    """
    if not isinstance(source, FileList):
        return _Without(source, frozenset(map(os.path.abspath, known)))
    rows = _unknown_files(source.paths, known)
    labels = [source.labels[row] for row in rows] if source.labels else ()
    return replace(source, paths=[source.paths[row] for row in rows], labels=labels)


def _unknown_files(files: Sequence[str], known: Sequence[str]) -> list[int]:
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
