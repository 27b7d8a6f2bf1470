"""Counts of a data set's subsets, compared with the published ones, and whether the set can be evaluated at all."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from utils.labels import Names

# (path, pid, camid), or a sample, which begins with these three
Labelled = tuple[Any, ...]

# A set with less than this share of the published images is taken for a subset, not for a broken copy.
SUBSET_SHARE = 0.5


class Counts(NamedTuple):
    """Size of a subset."""

    ids: int
    images: int
    cameras: int | None  # None: no cameras, or none published

    def __str__(self) -> str:
        cameras = "" if self.cameras is None else f", {self.cameras} cameras"
        return f"{self.ids} ids, {self.images} images{cameras}"


class Published(NamedTuple):
    """Sizes of the subsets of a data set."""

    train: Counts
    query: Counts
    gallery: Counts


def count(images: Sequence[Sequence[Any]], has_cameras: bool = True) -> Counts:
    """Count identities, images and cameras of samples or annotations: (path, pid, camid, ...)."""
    cameras = len({image[2] for image in images}) if has_cameras else None
    return Counts(len({image[1] for image in images}), len(images), cameras)


def count_subsets(subsets: Iterable[Sequence[Sequence[Any]]], has_cameras: bool = True) -> Published:
    """Count train, query and gallery."""
    return Published(*(count(images, has_cameras) for images in subsets))


def statistics_table(subsets: Mapping[str, Sequence[Labelled]], has_cameras: bool = True) -> str:
    """Format a table of identities, images and cameras.

    Args:
        subsets: samples by name of the subset, in the order of the rows.
        has_cameras: False prints a dash for the number of cameras.

    Returns:
        Lines of equal width, without a line break at the end.
    """
    lines = [f"{'subset':<8} | {'ids':>6} | {'images':>8} | {'cameras':>7}"]
    lines.append("-" * len(lines[0]))
    for name, samples in subsets.items():
        ids, images, cameras = count(samples, has_cameras)
        lines.append(f"{name:<8} | {ids:>6} | {images:>8} | {'-' if cameras is None else cameras:>7}")
    return "\n".join(lines)


def batch_advice(identities: int, world_size: int) -> str:
    """What to do when a batch on each of ``world_size`` processes needs more identities than there are."""
    if identities >= world_size:
        return f"Set SOLVER.IMS_PER_BATCH to at most {identities // world_size}."
    if identities:
        return (
            f"Use at most {identities} processes (GPU_IDS, TRAINER.NUM_NODES): SOLVER.IMS_PER_BATCH times their number "
            f"must not exceed {identities}."
        )
    return "Training needs identities with two or more images: add some."


def describe_subset(found: Published, published: Published) -> str | None:
    """Say that so few of the published images are present that this is a subset, not a broken copy; None if not so."""
    images, expected = (sum(counts.images for counts in side) for side in (found, published))
    if images >= SUBSET_SHARE * expected:
        return None
    return f"{images} of {expected} published images; taken for a subset, counts not checked."


def find_count_problem(found: Published, published: Published) -> str | None:
    """Name the subsets that differ from the published ones, with both counts; None if none does."""
    problems = []
    for name, actual, expected in zip(Published._fields, found, published, strict=True):
        if expected.cameras is None:
            actual = actual._replace(cameras=None)
        if actual != expected:
            problems.append(f"{name} has {actual} (published: {expected})")
    return "; ".join(problems) or None


def camera_name(names: Names, camid: int) -> str:
    """What the data set calls a camera: published sets, which have no names, count theirs from 1."""
    return names.cameras.get(camid, str(camid + 1))


def find_unmatched(query: Sequence[Labelled], gallery: Sequence[Labelled]) -> list[Labelled]:
    """The queries that cannot be scored: no gallery image of their identity is from another camera.

    Args:
        query: samples (path, pid, camid, ...).
        gallery: samples.
    """
    cameras_of: defaultdict[int, set[int]] = defaultdict(set)
    for sample in gallery:
        cameras_of[sample[1]].add(sample[2])
    return [sample for sample in query if not cameras_of[sample[1]] - {sample[2]}]


def find_evaluation_problem(query: Sequence[Labelled], gallery: Sequence[Labelled]) -> str | None:
    """Say why no query can be scored: gallery images of the query's own identity and camera do not count as matches.

    Data without cameras has camid 0 for its queries and 1 for its gallery, so that no image is left out.

    Args:
        query: samples (path, pid, camid, ...), not empty.
        gallery: samples, not empty.

    Returns:
        What is wrong and what follows from it, or None if at least one query has a match.
    """
    if len(find_unmatched(query, gallery)) < len(query):
        return None
    if not {image[1] for image in query} & {image[1] for image in gallery}:
        return (
            "No query has a gallery image of the same identity, so no mAP can be computed; the query and gallery "
            "images must share identities."
        )
    if len({image[2] for image in (*query, *gallery)}) == 1:
        return (
            "All query and gallery images are from one camera. Gallery images from the query's own camera are not "
            "counted as matches, so no query has a match and no mAP can be computed; the test set needs images from a "
            "second camera. Data of your own (DATASETS.NAMES csv or folder) may also leave cameras out."
        )
    return (
        "No query has a gallery image of the same identity from another camera, so no mAP can be computed; the query "
        "and gallery images must share identities across cameras."
    )
