"""What can be wrong with a data set: findings from its labels, and from its files once they have been scanned."""

import math
import statistics
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from datasets.bases import Splits
from datasets.checking.scan import ImageFacts
from datasets.counts import (
    Labelled,
    Published,
    batch_advice,
    camera_name,
    count_subsets,
    describe_subset,
    find_count_problem,
    find_evaluation_problem,
    find_unmatched,
)
from datasets.samplers import RandomIdentitySampler
from utils.labels import Names

# An image is tiny if a side is below 1/_TINY of the network's input: resizing would mostly enlarge it.
_TINY = 8
# An image is odd if its ratio of height to width is more than _ODD times the median ratio, or less than 1/_ODD of it.
_ODD = 3.0
_EPOCHS_COUNTED = 5


class Finding(NamedTuple):
    """One problem that was found.

    An error makes the scores of a training worthless, a fatal error makes training impossible; anything else is a
    warning, and may be intended. ``details`` lists the identities or files concerned.
    """

    is_error: bool
    text: str
    details: Sequence[str] = ()
    is_fatal: bool = False


def check_labels(
    train_pids: Iterable[int],
    query: Sequence[Labelled],
    gallery: Sequence[Labelled],
    one_numbering: bool,
    names: Names | None = None,
) -> list[Finding]:
    """Check what needs no files: queries that cannot be scored, and identities in both training and test.

    Args:
        train_pids: identities of the training set, numbered as those of the test set.
        query: not empty.
        gallery: not empty.
        one_numbering: whether a pid means the same identity in training and test; if not, they are not compared.
        names: what the data set calls its identities.
    """
    findings = []
    names = names or Names()
    unmatched = find_unmatched(query, gallery)
    if len(unmatched) == len(query):
        findings.append(Finding(True, str(find_evaluation_problem(query, gallery)), is_fatal=True))
    elif unmatched:
        in_gallery = {image[1] for image in gallery}
        # Where none of them is in the gallery at all, cameras are not the reason; without cameras that is always so.
        where = " from another camera" if any(image[1] in in_gallery for image in unmatched) else ""
        text = (
            f"{len(unmatched)} of {len(query)} queries have no gallery image of their identity{where}; they are left "
        )
        details = [f"{image[0]} (identity {names.pid(image[1])})" for image in unmatched]
        findings.append(Finding(False, text + "out of every score.", details))
    shared = set(train_pids) & {image[1] for image in (*query, *gallery)} if one_numbering else ()
    if shared:
        text = f"{_count(len(shared), 'training identity is', 'training identities are')} in query or gallery as well; "
        details = [f"identity {names.pid(pid)}" for pid in sorted(shared)]
        findings.append(Finding(True, text + "scores will be too high.", details))
    return findings


def check_notes(notes: Iterable[str]) -> list[Finding]:
    """What the reader of the data set has noted, with the files concerned."""
    return [Finding(False, str(note), getattr(note, "files", ())) for note in notes]


def check_counts(splits: Splits, published: Published | None) -> list[Finding]:
    """Check that a published data set is complete; one with less than half of its images passes as a subset."""
    if published is None:
        return []
    found = count_subsets(splits[:3], splits.has_cameras)
    problem = None if describe_subset(found, published) else find_count_problem(found, published)
    return [Finding(False, f"The counts differ from the published ones: {problem}.")] if problem else []


def check_batches(
    train_pids: Iterable[int], identities: int, instances: int, world_size: int, names: Names | None = None
) -> tuple[list[int], list[Finding]]:
    """Count the batches of an epoch.

    Args:
        train_pids: identity of each training image.
        identities: P, identities of a batch on one process.
        instances: K, images of each identity.
        world_size: processes.
        names: what the data set calls its identities.

    Returns:
        The number of batches on each process in each of the first epochs, and the findings.
    """
    findings = []
    counts = Counter(train_pids)
    single = sorted(pid for pid, count in counts.items() if count == 1)
    if single:
        text = f"{_count(len(single), 'training identity has', 'training identities have')} one image only and "
        details = [f"identity {(names or Names()).pid(pid)}" for pid in single]
        findings.append(Finding(False, text + "will not be trained on.", details))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the sampler warns of the same
        images = {pid: range(counts[pid]) for pid in sorted(counts)}
        sampler = RandomIdentitySampler(images, identities, instances, world_size)
    if sampler.num_identities < identities * world_size:
        findings.append(
            Finding(
                True,
                f"Too few identities for one batch: SOLVER.IMS_PER_BATCH is {identities} for each of {world_size} "
                f"process(es), but {sampler.num_identities} have two or more images. "
                + batch_advice(sampler.num_identities, world_size),
                is_fatal=True,
            )
        )
        return [], findings
    batches = []
    for epoch in range(_EPOCHS_COUNTED):
        sampler.set_epoch(epoch)
        batches.append(len(sampler) // identities)
    return batches, findings


def check_files(
    splits: Mapping[str, Sequence[Labelled]],
    facts: Mapping[str, ImageFacts],
    sizes: Mapping[str, Sequence[int]],
    has_cameras: bool = True,
) -> list[Finding]:
    """Check the files: unreadable, tiny and oddly shaped images, and copies of the same file.

    Args:
        splits: train, query and gallery.
        facts: of every path.
        sizes: height and width that the network sees, for each split.
        has_cameras: whether camids tell cameras.
    """
    findings = []
    paths = {name: list(dict.fromkeys(image[0] for image in images)) for name, images in splits.items()}
    every = list(dict.fromkeys(path for part in paths.values() for path in part))
    broken = [facts[path].error for path in every if facts[path].error]
    if broken:
        findings.append(Finding(True, f"{_count(len(broken), 'image')} of {len(every)} cannot be read.", broken))
    findings += _check_tiny(paths, facts, sizes)
    findings += _check_shapes(every, facts)
    return findings + _check_duplicates(splits, facts, has_cameras)


def _check_tiny(
    paths: Mapping[str, Sequence[str]], facts: Mapping[str, ImageFacts], sizes: Mapping[str, Sequence[int]]
) -> list[Finding]:
    tiny = [
        f"{path} ({facts[path].width} x {facts[path].height})"
        for name, part in paths.items()
        for path in part
        if not facts[path].error
        and (facts[path].height * _TINY < sizes[name][0] or facts[path].width * _TINY < sizes[name][1])
    ]
    if not tiny:
        return []
    text = f"{_count(len(tiny), 'image is', 'images are')} tiny: a side is below 1/{_TINY} of what the network sees"
    return [Finding(False, f"{text} (INPUT.SIZE_TRAIN, INPUT.SIZE_TEST).", tiny)]


def _check_shapes(paths: Sequence[str], facts: Mapping[str, ImageFacts]) -> list[Finding]:
    aspects = {path: facts[path].height / facts[path].width for path in paths if not facts[path].error}
    if not aspects:
        return []
    usual = statistics.median(aspects.values())
    odd = [
        f"{path} ({facts[path].width} x {facts[path].height})"
        for path, aspect in aspects.items()
        if abs(math.log(aspect / usual)) > math.log(_ODD)
    ]
    if not odd:
        return []
    text = f"{_count(len(odd), 'image has', 'images have')} a ratio of height to width that is {_ODD:g} times "
    return [Finding(False, f"{text}more or less than the usual {usual:.2f}; resizing will distort them.", odd)]


def _check_duplicates(
    splits: Mapping[str, Sequence[Labelled]], facts: Mapping[str, ImageFacts], has_cameras: bool
) -> list[Finding]:
    """Find files with the same bytes; the worst pair of a group decides which finding it belongs to."""
    groups: defaultdict[bytes, list[tuple[str, Labelled]]] = defaultdict(list)
    for name, images in splits.items():
        for image in images:
            if not facts[image[0]].error:
                groups[facts[image[0]].digest].append((name, image))
    found: defaultdict[str, list[str]] = defaultdict(list)
    for group in groups.values():
        if len(group) > 1:
            found[_kind_of(group, has_cameras)].append(" = ".join(f"{name}: {image[0]}" for name, image in group))
    texts = {
        "leak": (True, "both in the training set and in query or gallery; scores will be too high."),
        "identities": (True, "in query and gallery under different identities; scores will be wrong."),
        "cameras": (True, "in query and gallery under different cameras; scores will be wrong."),
        "self": (
            False,
            "in query and gallery; without cameras each query's own image is left out of its ranking "
            "(TEST.SELF_MATCH drop).",
        ),
        "same": (False, "in query and gallery with the same identity and camera; they do not count as matches."),
        "labels": (False, "in one split under different identities."),
        "copies": (False, "in one split more than once."),
    }
    return [
        Finding(is_error, f"{_count(len(found[kind]), 'image is', 'images are')} {text}", found[kind])
        for kind, (is_error, text) in texts.items()
        if found[kind]
    ]


def _kind_of(group: Sequence[tuple[str, Labelled]], has_cameras: bool) -> str:
    names = {name for name, _ in group}
    if "train" in names and len(names) > 1:
        return "leak"
    pids, cameras = ({image[column] for _, image in group} for column in (1, 2))
    if len(names) == 1:
        return "labels" if len(pids) > 1 else "copies"
    if len(pids) > 1:
        return "identities"
    if not has_cameras:
        return "self"
    return "cameras" if len(cameras) > 1 else "same"


def images_per_identity(images: Sequence[Labelled]) -> dict[str, int]:
    """How many identities have 1, 2, 3, 4, 5-8, 9-16, ... images; up to the largest, empty bins included."""
    counts = Counter(Counter(image[1] for image in images).values())
    bins: dict[str, int] = {}
    low, high = 1, 1
    while low <= max(counts, default=0):
        label = str(low) if low == high else f"{low}-{high}"
        bins[label] = sum(counts[size] for size in range(low, high + 1))
        low, high = high + 1, high + 1 if high < 4 else 2 * high
    return bins


def images_per_camera(images: Sequence[Labelled], names: Names | None = None) -> dict[str, int]:
    """How many images each camera has, by its name or, where it has none, counted from 1."""
    counts = Counter(image[2] for image in images)
    return {camera_name(names or Names(), camid): counts[camid] for camid in sorted(counts)}


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
