"""Labels that the embeddings contradict: identities that hold two people, pairs of them that are one, wrong images."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluation.centroid_protocols import CameraCentroids
from evaluation.distance_blocks import DistanceBlocks, as_embeddings, block_height, row_squares
from utils.centroids import divide, rows_at_once, segment_sums
from utils.distances import normalize
from utils.errors import UserError
from utils.labels import BoolArray, IntArray, int_array

FloatArray = NDArray[np.float64]

KINDS = ("split", "merge", "move")
_SHOWN = 4  # images of the other side of a suspicion
_PART = 2  # images that a person needs to be told apart from another one of the same label
_SAMPLE = 512  # images of an identity among which two people are sought
_PRIOR = 4  # images' worth of the mean spread that the spread of an identity is drawn to
_PRIOR_CAMERA = 10  # identities of which a camera must have many more for its mean to be taken for its own
_TAIL = (0.75, 0.9)  # quantiles that the tail of a statistic is fitted to; more errors than the rest would bend it
_SMALLEST_SCALE = 1e-4  # of squared distances between unit vectors: less than this is rounding


@dataclass(frozen=True)
class Suspect:
    """One label, or pair of labels, that the embeddings contradict.

    Example:
        >>> Suspect("merge", 3.2, np.array([4, 5]), np.array([9]), identity=7, other=8).other
        8
    """

    kind: str  # what would mend it: "split" an identity, "merge" two, or "move" an image to another identity
    score: float  # minus the decimal logarithm of how many as striking ones a set without errors would have
    images: IntArray  # rows of the image to move, of the smaller person to split off, or of the smaller identity
    against: IntArray  # rows of images to compare them with: of the identity resembled, or of the rest of the identity
    identity: int  # pid
    other: int | None  # pid of the identity resembled; None for "split"


def find_label_errors(
    embeddings: Any, pids: Any, camids: Any = None, *, limit: int = 1000, block_bytes: int | None = None
) -> list[Suspect]:
    """Rank identities and images by how strongly the embeddings contradict their labels.

    Embeddings are scaled to unit length, and freed of what all images of a camera share. Each kind has its statistic,
    in squared distances d between means, less what the spread s of n images adds to them by chance, s / n:

    - split: d between two parts of an identity, cut along its first principal component where they are tightest, which
      nearly is what two-means finds (Ding and He, ICML 2004);
    - merge: -d between an identity and the nearest other one;
    - move: d between an image and the images of its identity from other cameras (from all, if there are no others:
      copies from one camera should not vouch for each other), less d between it and the nearest other identity, as in
      the silhouette (Rousseeuw, 1987).

    What makes the kinds comparable is how rare a value is: an exponential tail is fitted to the upper quarter of each
    statistic (peaks over threshold, Pickands, 1975) without the last tenth, where the errors are. The score is minus
    the decimal logarithm of the number of such values, among all images and identities, that this tail lets expect in a
    set without errors: 0 is what chance brings to every set, 2 to one in a hundred. Images between two identities that
    are one are left to "merge".

    Args:
        embeddings: [N, D] floating.
        pids: [N] whole numbers.
        camids: [N] whole numbers; None for images without cameras.
        limit: largest number of suspects, 1 or more.
        block_bytes: memory for distances; None is 64 MiB.

    Returns:
        The suspects, highest score first.

    Raises:
        UserError: there is one identity, or one image of each; a value is not finite; lengths do not agree.

    Example:
        >>> rows = np.repeat(np.eye(3), 3, 0)  # three people with three images each, the last one labelled wrong
        >>> first = find_label_errors(rows, [7, 7, 7, 8, 8, 8, 9, 9, 8])[0]
        >>> first.kind, first.images.tolist(), first.identity, first.other
        ('move', [8], 8, 9)
    """
    rows = as_embeddings("embeddings", embeddings)
    people = _People.of(
        rows,
        int_array("pids", pids, len(rows), "embeddings"),
        np.zeros(len(rows), np.int64) if camids is None else int_array("camids", camids, len(rows), "embeddings"),
    )
    merges, folded = _merges(people, limit, block_bytes)
    found = [*_splits(people), *merges, *_moves(people, folded, limit, block_bytes)]
    found.sort(key=lambda one: (-one[0], KINDS.index(one[1]), one[2:4]))
    return [_suspect(people, *one) for one in found[:limit]]


# Score, kind, and then: for a split the identity and -1; for a merge the two identities; for a move image and identity.
_Finding = tuple[float, str, int, int]


@dataclass(frozen=True)
class _People:
    """Images grouped by identity; identities are numbered by their position in ``names``."""

    images: Tensor  # [N, D] float32
    identity: IntArray  # [N]
    camids: IntArray  # [N]
    names: IntArray  # [C] pids
    counts: IntArray  # [C]
    sums: Tensor  # [C, D]
    spread: FloatArray  # [C] mean squared distance of an image to the mean of its identity
    order: IntArray  # [N] rows by identity
    first: IntArray  # [C + 1] where each begins in ``order``

    @classmethod
    def of(cls, embeddings: Tensor, pids: IntArray, camids: IntArray) -> "_People":
        names, identity = np.unique(pids, return_inverse=True)
        identity = identity.reshape(-1).astype(np.int64)
        counts = np.bincount(identity)
        if len(names) < 2:
            raise UserError(
                f"all {len(pids)} images have one identity: labels can only be checked against each other, which "
                "takes 2 identities or more."
            )
        if counts.max() < 2:
            raise UserError(
                f"each of the {len(names)} identities has one image: labels are checked by how much the images of an "
                "identity differ, which takes 2 or more of some."
            )
        row_squares("embeddings", embeddings)  # raises for values that are not finite
        images = _without_cameras(embeddings, identity, camids)
        sums, _ = segment_sums(images, identity, len(names))
        squares = np.bincount(identity, images.square().sum(1).cpu().double().numpy())
        scatter = (squares - (sums.square().sum(1).cpu().double().numpy() / counts)).clip(min=0)
        mean_spread = scatter.sum() / (counts - 1).sum()
        spread = (scatter + _PRIOR * mean_spread) / (counts - 1 + _PRIOR)
        order = np.argsort(identity, kind="stable")
        return cls(images, identity, camids, names, counts, sums, spread, order, np.r_[0, counts.cumsum()])

    @property
    def noise(self) -> FloatArray:
        """What chance adds to the squared distance to the mean of each identity, [C]."""
        return self.spread / self.counts

    @property
    def candidates(self) -> int:
        """How many images and identities are looked at: each image, each identity, and each with its nearest."""
        return len(self.identity) + 2 * len(self.names)

    def rows(self, number: int) -> IntArray:
        """The images of an identity."""
        return self.order[self.first[number] : self.first[number + 1]]

    def vectors(self, rows: IntArray) -> FloatArray:
        """The embeddings of some images, [K, D] float64."""
        values: FloatArray = self.images[self.on_device(rows)].cpu().double().numpy()
        return values

    def centroids(self) -> Tensor:
        """[C, D] float32."""
        return divide(self.sums.clone(), self.counts)

    def on_device(self, values: Any) -> Tensor:
        """An array as a tensor beside the images, float32 if it is floating."""
        tensor = torch.from_numpy(values).to(self.images.device)
        return tensor.float() if tensor.is_floating_point() else tensor


def _without_cameras(embeddings: Tensor, identity: IntArray, camids: IntArray) -> Tensor:
    """Unit vectors [N, D] less what is common to their camera; a camera of few identities may owe it to these."""
    cameras, number = np.unique(camids, return_inverse=True)
    number = number.reshape(-1).astype(np.int64)
    images = torch.empty(embeddings.shape, dtype=torch.float32, device=embeddings.device)
    step = rows_at_once(images)
    for start in range(0, len(images), step):
        images[start : start + step] = normalize(embeddings[start : start + step].float())
    if len(cameras) == 1:
        return images
    sums, counts = segment_sums(images, number, len(cameras))
    seen = np.bincount(np.unique(np.stack((number, identity), 1), axis=0)[:, 0])
    share = torch.from_numpy(seen / (seen + _PRIOR_CAMERA)).to(images).unsqueeze(1)
    overall = (sums.sum(0) / len(images)).to(images)
    shift = (divide(sums, counts) - overall) * share
    for start in range(0, len(images), step):
        images[start : start + step] -= shift[torch.from_numpy(number[start : start + step]).to(images.device)]
    return images


def _scores(values: FloatArray, candidates: int) -> FloatArray:
    """How striking each value is among all of its kind, [K] -> [K], in a list of so many candidates of all kinds."""
    low, high = (1 - level for level in _TAIL)
    begin, end = np.quantile(values, _TAIL)
    scale = max((end - begin) / np.log(low / high), _SMALLEST_SCALE)
    scores: FloatArray = (values - begin) / scale / np.log(10) - np.log10(candidates * low)
    return scores


def _nearest_other(
    people: _People, queries: Tensor, own: IntArray, block_bytes: int | None
) -> Iterator[tuple[slice, IntArray, FloatArray]]:
    """Of blocks of queries [M, D], the nearest identity but their own [M], and d to its mean, less noise."""
    blocks = DistanceBlocks(queries, people.centroids())
    noise = people.on_device(people.noise)
    height = block_height(len(queries), len(people.names), block_bytes)
    for start in range(0, len(queries), height):
        part = slice(start, min(start + height, len(queries)))
        block = blocks(part.start, part.stop)
        block -= noise
        block[torch.arange(len(block), device=block.device), people.on_device(own[part])] = torch.inf
        distance, other = block.min(1)
        yield part, other.cpu().numpy(), distance.cpu().double().numpy()


def _merges(
    people: _People, limit: int, block_bytes: int | None
) -> tuple[list[_Finding], dict[tuple[int, int], float]]:
    """Pairs of identities, and the scores of all pairs."""
    count = len(people.names)
    other, gap = np.empty(count, np.int64), np.empty(count)
    for part, found, distance in _nearest_other(people, people.centroids(), np.arange(count), block_bytes):
        other[part], gap[part] = found, distance - people.noise[part]
    pairs: dict[tuple[int, int], float] = {}
    for number, score in enumerate(_scores(-gap, people.candidates).tolist()):
        pair = (min(number, int(other[number])), max(number, int(other[number])))
        pairs[pair] = max(score, pairs.get(pair, -np.inf))
    first = sorted(pairs, key=lambda pair: (-pairs[pair], pair))[:limit]
    return [(pairs[pair], "merge", *pair) for pair in first], pairs


def _moves(
    people: _People, folded: dict[tuple[int, int], float], limit: int, block_bytes: int | None
) -> Iterator[_Finding]:
    """Images; those between two identities that ``folded`` takes for one with a higher score are left out."""
    own = _own_distance(people)
    other = np.empty(len(own), np.int64)
    for part, found, distance in _nearest_other(people, people.images, people.identity, block_bytes):
        other[part] = found
        own[part] -= distance
    rows = np.flatnonzero(np.isfinite(own))
    scores = _scores(own[rows], people.candidates)
    kept = 0
    for i in np.argsort(-scores, kind="stable").tolist():
        row, score = int(rows[i]), float(scores[i])
        pair = sorted((int(people.identity[row]), int(other[row])))
        if folded.get((pair[0], pair[1]), -np.inf) >= max(score, 0):
            continue
        yield score, "move", row, int(other[row])
        kept += 1
        if kept == limit:
            return


def _own_distance(people: _People) -> FloatArray:
    """d between each image and the others of its identity, [N]; NaN if there are none."""
    pairs, number = np.unique(np.stack((people.identity, people.camids), 1), axis=0, return_inverse=True)
    number = number.reshape(-1)
    groups = CameraCentroids(people.images, people.identity, people.camids, people.names)
    elsewhere, counts, _ = groups.without_camera(pairs[:, 0], pairs[:, 1])
    own = np.empty(len(number))
    step = rows_at_once(people.images)
    for start in range(0, len(own), step):
        part = slice(start, start + step)
        here, pair = people.identity[part], people.on_device(number[part])
        images, left = people.images[part], counts[number[part]]
        alone = left == 0
        rest = divide(people.sums[people.on_device(here)] - images, people.counts[here] - 1)
        means = torch.where(people.on_device(alone).unsqueeze(1), rest, elsewhere[pair])
        size = np.where(alone, people.counts[here] - 1, left)
        distance = (images - means).square().sum(1).cpu().double().numpy()
        own[part] = np.where(size > 0, distance - people.spread[here] / size.clip(min=1), np.nan)
    return own


def _splits(people: _People) -> Iterator[_Finding]:
    """Identities with enough images for two people."""
    numbers = np.flatnonzero(people.counts >= 2 * _PART)
    if not len(numbers):
        return
    gaps = np.empty(len(numbers))
    for i, number in enumerate(numbers.tolist()):
        sample = people.vectors(_evenly(people.rows(number)))
        gaps[i] = _gap(sample, _two_parts(sample))
    for number, score in zip(numbers.tolist(), _scores(gaps, people.candidates).tolist(), strict=True):
        yield score, "split", number, -1


def _evenly(rows: IntArray) -> IntArray:
    """At most _SAMPLE of the rows, evenly spaced: larger identities take too long, and need no more."""
    return rows[np.linspace(0, len(rows) - 1, min(len(rows), _SAMPLE)).astype(np.int64)]


def _two_parts(images: FloatArray) -> BoolArray:
    """Which of K >= 4 images [K, D] belong to the first of two parts of 2 or more, [K]."""
    centred = images - images.mean(0)
    component = np.linalg.eigh(centred @ centred.T)[1][:, -1]
    order = np.argsort(component, kind="stable")
    total = component[order].cumsum()  # of the images left of a cut; those right of it have the opposite sum
    size = np.arange(1, len(order))
    between = total[:-1] ** 2 * (1 / size + 1 / (len(order) - size))
    cut = int(between[_PART - 1 : len(order) - _PART].argmax()) + _PART
    first = np.zeros(len(order), dtype=np.bool_)
    first[order[:cut]] = True
    return first


def _gap(images: FloatArray, first: BoolArray) -> float:
    """d between the means of two parts, less noise."""
    parts = images[first], images[~first]
    means = [part.mean(0) for part in parts]
    noise = [np.square(p - mean).sum() / (len(p) - 1) / len(p) for p, mean in zip(parts, means, strict=True)]
    return float(np.square(means[0] - means[1]).sum() - sum(noise))


def _suspect(people: _People, score: float, kind: str, subject: int, other: int) -> Suspect:
    """A finding with its images, and with those to compare them with, nearest first."""
    number = int(people.identity[subject]) if kind == "move" else subject
    if kind == "move":
        images, rest = np.array([subject]), people.rows(other)
    elif kind == "merge":
        number, other = sorted((number, other), key=lambda one: (people.counts[one], one))
        images, rest = people.rows(number), people.rows(other)
    else:
        rows = people.rows(number)
        place = _evenly(np.arange(len(rows)))
        sample = people.vectors(rows[place])
        first = _two_parts(sample)
        means = np.stack([sample[~first].mean(0), sample[first].mean(0)])
        towards = people.images[people.on_device(rows)] @ people.on_device(means[1] - means[0])
        is_first = towards.cpu().numpy() > (np.square(means[1]).sum() - np.square(means[0]).sum()) / 2
        is_first[place] = first
        images, rest = sorted((rows[is_first], rows[~is_first]), key=len)
    rest = _evenly(rest)
    distance = np.square(people.vectors(rest) - people.vectors(_evenly(images)).mean(0)).sum(1)
    against = rest[np.argsort(distance, kind="stable")[:_SHOWN]]
    pid = None if kind == "split" else int(people.names[other])
    return Suspect(kind, score, images, against, int(people.names[number]), pid)
