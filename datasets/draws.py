"""Which images a draw takes, and with which random state: functions of (seed, epoch, identity, occurrence) alone.

Draws of an evaluation depend on less still: on identities, names of images and the number of the draw.
"""

import hashlib
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch


class PidDraw(int):
    """A pid that carries its draw to the data set; it compares and hashes like the plain pid.

    The epoch must travel with the index, because worker processes that outlive an epoch hold copies of the data set.

    Args:
        pid: the identity.
        epoch: the epoch that draws it.
        occurrence: how many times the same epoch has drawn it before, on any process.
    """

    epoch: int
    occurrence: int

    # pickle, on the way to a worker process, passes the pid alone and restores the rest by itself.
    def __new__(cls, pid: int, epoch: int = 0, occurrence: int = 0) -> "PidDraw":
        draw = super().__new__(cls, pid)
        draw.epoch = epoch
        draw.occurrence = occurrence
        return draw


def derive_seed(purpose: str, *parts: int) -> int:
    """A seed in 0 .. 2^63-1 that mixes all parts; the same in every process, Python version and machine.

    Args:
        purpose: keeps the streams of different uses apart.
        parts: any integers.
    """
    digest = hashlib.blake2b(f"{purpose}{parts}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def draw_images(count: int, size: int, seed: int, epoch: int, pid: int, occurrence: int) -> list[int]:
    """Choose the images of one draw: slice ``[o*size, (o+1)*size)`` of the permutation for (seed, epoch, pid).

    Args:
        count: images of the identity, n >= 1.
        size: images of a draw, K >= 1.
        seed: seed of the run.
        epoch: epoch.
        pid: identity.
        occurrence: o in 0 .. ceil(n / K) - 1.

    Returns:
        1 to K different positions in 0 .. n-1; fewer than K only in the last occurrence.

    Raises:
        IndexError: the identity has no images left at this occurrence.
    """
    order = random.Random(derive_seed("order", seed, epoch, pid)).sample(range(count), count)
    chosen = order[occurrence * size : (occurrence + 1) * size]
    if not chosen:
        raise IndexError(f"identity {pid} has {count} images, too few for occurrence {occurrence} of {size} each")
    return chosen


def resample_images(count: int, missing: int, seed: int, epoch: int, pid: int, occurrence: int) -> list[int]:
    """Draw ``missing`` positions out of 0 .. count-1 with replacement. Other Args as for :func:`draw_images`."""
    return random.Random(derive_seed("resample", seed, epoch, pid, occurrence)).choices(range(count), k=missing)


def order_substitutes(count: int, position: int, seed: int, epoch: int, pid: int, occurrence: int) -> list[int]:
    """The positions 0 .. count-1 except ``position``, in the order in which they replace it. Args as draw_images."""
    others = [other for other in range(count) if other != position]
    random.Random(derive_seed("substitute", seed, epoch, pid, occurrence, position)).shuffle(others)
    return others


class GalleryDraw(NamedTuple):
    """One division of the images of an evaluation; those in neither part take no part in it."""

    query: Any  # [M] whole numbers, positions of the queries
    gallery: Any  # [N] positions of the gallery images, in the order in which ties are broken


def draw_one_each(purpose: str, images: Sequence[tuple[str, int]], number: int) -> GalleryDraw:
    """Draw one image of each identity into the gallery; the others are queries.

    The image depends on nothing but the arguments and the names of the identity's images, in any order: it is the same
    in every run, on any machine, and whatever other identities there are.

    Args:
        purpose: keeps the draws of different data sets apart.
        images: (name, identity). A name that an identity has twice is one image.
        number: of the draw, from 0.

    Returns:
        Queries in the order of the images, and the gallery by identity, ascending.
    """
    names: defaultdict[int, list[str]] = defaultdict(list)
    for name, pid in images:
        names[pid].append(name)
    further = (number,) if number else ()
    drawn = {
        pid: random.Random(derive_seed(purpose, pid, *further)).choice(sorted(names[pid])) for pid in sorted(names)
    }
    place: dict[int, int] = {}
    query = []
    for i, (name, pid) in enumerate(images):
        if name == drawn[pid]:
            place.setdefault(pid, i)
        else:
            query.append(i)
    return GalleryDraw(query, [place[pid] for pid in drawn])


@contextmanager
def seeded_globals(seed: int) -> Iterator[None]:
    """Seed Python's and torch's CPU generators inside the block, and restore both after it.

    ``torch.manual_seed`` would reseed every accelerator as well; the transforms draw on the CPU only.
    """
    python_state = random.getstate()
    torch_state = torch.default_generator.get_state()
    random.seed(seed)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(python_state)
        torch.default_generator.set_state(torch_state)
