"""What can be wrong with a data set: findings from its labels, and from its files once they have been read."""

import math
import statistics
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from datasets.bases import Splits
from datasets.checking.scan import PictureFacts
from datasets.counts import (
    Labelled,
    Published,
    batch_advice,
    count,
    count_unmatched,
    find_count_problem,
    find_evaluation_problem,
    is_subset,
)
from datasets.samplers import RandomIdentitySampler

# A side below this part of the network's input: the picture is little more than its enlargement.
_TINY = 8
# Height to width this many times that of the median picture, or less than its inverse.
_ODD = 3.0
_EPOCHS_COUNTED = 5


class Finding(NamedTuple):
    """One thing that was found.

    An error makes the scores of a training worthless, a fatal one the training impossible; anything else is a warning,
    and may be meant. ``details`` names what it is about.
    """

    is_error: bool
    text: str
    details: Sequence[str] = ()
    is_fatal: bool = False


def check_labels(
    train_pids: Iterable[int], query: Sequence[Labelled], gallery: Sequence[Labelled], one_numbering: bool
) -> list[Finding]:
    """Findings that need no file: queries that cannot be scored, and identities that are trained and tested on.

    Args:
        train_pids: identities of the training set, numbered as those of the test set.
        query: not empty.
        gallery: not empty.
        one_numbering: whether a pid means the same identity in all of them; else those are not compared.
    """
    findings = []
    unmatched = count_unmatched(query, gallery)
    if unmatched == len(query):
        findings.append(Finding(True, str(find_evaluation_problem(query, gallery)), is_fatal=True))
    elif unmatched:
        findings.append(
            Finding(
                False,
                f"{unmatched} of {len(query)} queries have no gallery image of their identity from another camera; "
                "they are left out of every score.",
            )
        )
    shared = set(train_pids) & {image[1] for image in (*query, *gallery)} if one_numbering else ()
    if shared:
        text = f"{_count(len(shared), 'training identity is', 'training identities are')} in query or gallery as well; "
        findings.append(Finding(True, text + "scores will be too high.", [f"identity {pid}" for pid in sorted(shared)]))
    return findings


def check_counts(splits: Splits, published: Published | None) -> list[Finding]:
    """Whether a published data set is whole; one of which less than half is there is taken for a subset of it."""
    if published is None:
        return []
    found = Published(*(count(images, splits.has_cameras) for images in splits[:3]))
    problem = None if is_subset(found, published) else find_count_problem(found, published)
    return [Finding(False, f"The counts are not the published ones: {problem}.")] if problem else []


def check_batches(
    train_pids: Iterable[int], identities: int, instances: int, world_size: int
) -> tuple[list[int], list[Finding]]:
    """How many batches an epoch has.

    Args:
        train_pids: identity of each training image.
        identities: P, of a batch on one process.
        instances: K, images of each.
        world_size: processes.

    Returns:
        The batches of each process in the first epochs, and what is wrong.
    """
    findings = []
    counts = Counter(train_pids)
    single = sorted(pid for pid, count in counts.items() if count == 1)
    if single:
        text = f"{_count(len(single), 'training identity has', 'training identities have')} one image only and "
        findings.append(Finding(False, text + "will not be trained on.", [f"identity {pid}" for pid in single]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the sampler's own words on the same
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
    facts: Mapping[str, PictureFacts],
    sizes: Mapping[str, Sequence[int]],
) -> list[Finding]:
    """Findings from the files: unreadable, tiny and oddly shaped pictures, and the same file twice.

    Args:
        splits: train, query and gallery.
        facts: of every path.
        sizes: height and width that the network sees, for each split.
    """
    findings = []
    paths = {name: list(dict.fromkeys(image[0] for image in images)) for name, images in splits.items()}
    every = list(dict.fromkeys(path for part in paths.values() for path in part))
    broken = [facts[path].error for path in every if facts[path].error]
    if broken:
        findings.append(Finding(True, f"{_count(len(broken), 'picture')} of {len(every)} cannot be read.", broken))
    findings += _check_tiny(paths, facts, sizes)
    findings += _check_shapes(every, facts)
    return findings + _check_duplicates(splits, facts)


def _check_tiny(
    paths: Mapping[str, Sequence[str]], facts: Mapping[str, PictureFacts], sizes: Mapping[str, Sequence[int]]
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
    text = f"{_count(len(tiny), 'picture is', 'pictures are')} tiny: a side is below 1/{_TINY} of what the network sees"
    return [Finding(False, f"{text} (INPUT.SIZE_TRAIN, INPUT.SIZE_TEST).", tiny)]


def _check_shapes(paths: Sequence[str], facts: Mapping[str, PictureFacts]) -> list[Finding]:
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
    text = f"{_count(len(odd), 'picture has', 'pictures have')} a ratio of height to width that is {_ODD:g} times "
    return [Finding(False, f"{text}more or less than the usual {usual:.2f}; resizing will distort them.", odd)]


def _check_duplicates(splits: Mapping[str, Sequence[Labelled]], facts: Mapping[str, PictureFacts]) -> list[Finding]:
    """The same bytes in more than one place. What they have in common is told by the worst of their pairs."""
    groups: defaultdict[bytes, list[tuple[str, Labelled]]] = defaultdict(list)
    for name, images in splits.items():
        for image in images:
            if not facts[image[0]].error:
                groups[facts[image[0]].digest].append((name, image))
    found: defaultdict[str, list[str]] = defaultdict(list)
    for group in groups.values():
        if len(group) > 1:
            found[_kind_of(group)].append(" = ".join(f"{name}: {image[0]}" for name, image in group))
    texts = {
        "leak": (True, "trained on and in query or gallery as well; scores will be too high."),
        "conflict": (True, "in query and gallery under different identities or cameras; scores will be wrong."),
        "same": (False, "in query and gallery with the same identity and camera; they do not count as matches."),
        "labels": (False, "in one split under different identities."),
        "copies": (False, "in one split more than once."),
    }
    return [
        Finding(is_error, f"{_count(len(found[kind]), 'picture is', 'pictures are')} {text}", found[kind])
        for kind, (is_error, text) in texts.items()
        if found[kind]
    ]


def _kind_of(group: Sequence[tuple[str, Labelled]]) -> str:
    names = {name for name, _ in group}
    if "train" in names and len(names) > 1:
        return "leak"
    labels = {tuple(image[1:3]) for _, image in group}
    if len(names) > 1:
        return "conflict" if len(labels) > 1 else "same"
    return "labels" if len({pid for pid, _ in labels}) > 1 else "copies"


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


def images_per_camera(images: Sequence[Labelled]) -> dict[str, int]:
    """How many images each camera has; cameras count from 1."""
    counts = Counter(image[2] for image in images)
    return {str(camid + 1): counts[camid] for camid in sorted(counts)}


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
