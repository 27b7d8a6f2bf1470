"""Identity-balanced sampling: P identities per batch, with K images of each."""

import random
import warnings
from collections.abc import Iterator, Mapping, Sized

from torch.utils.data import Sampler

from datasets.draws import PidDraw, derive_seed
from utils.errors import UserError

# Fewer images cannot form a positive pair.
MIN_IMAGES = 2


class RandomIdentitySampler(Sampler[PidDraw]):
    """Yields identities, ``batch_size`` for each batch; every process yields its own part of the same drawn list.

    An identity with n images occurs ceil(m / K) times in an epoch, where m is n, or n - 1 if n % K == 1. While at least
    batch_size * world_size identities are left, that many are drawn without replacement; each loses one occurrence.
    The list depends only on (seed, epoch); its length varies from epoch to epoch, and ``len()`` follows it.

    It yields :class:`~datasets.draws.PidDraw` objects: plain pids to most code, but a full description of the draw to
    :class:`~datasets.bases.BaseDatasetLabelledPerPid`.

    Args:
        data_source: the images of each identity; only their number is used. The order of the identities matters.
        batch_size: identities of a batch on one process (P), >= 1.
        num_instances: images that an identity contributes to a batch (K), >= 1.
        world_size: number of processes, >= 1.
        rank: global rank of this process, 0 .. world_size-1.
        seed: another seed gives other lists; 0 draws epoch e with ``random.Random(e)``.

    Raises:
        UserError: a number is out of range.

    Example:
        >>> images = {7: ["a.jpg", "b.jpg", "c.jpg", "d.jpg"], 8: ["e.jpg", "f.jpg", "g.jpg", "h.jpg"]}
        >>> sampler = RandomIdentitySampler(images, batch_size=2, num_instances=2)
        >>> pids = list(sampler)
        >>> sorted(pids[:2]), sorted(pids[2:])
        ([7, 8], [7, 8])
    """

    def __init__(
        self,
        data_source: Mapping[int, Sized],
        batch_size: int,
        num_instances: int,
        world_size: int = 1,
        rank: int = 0,
        seed: int = 0,
    ) -> None:
        _check_numbers(batch_size, num_instances, world_size, rank)
        self.data_source = data_source
        self.batch_size = batch_size
        self.num_instances = num_instances
        self.world_size = world_size
        self.rank = rank
        self.seed = seed
        self.epoch = 0
        self._is_drawn = False
        self._occurrences = {
            pid: _count_occurrences(len(images), num_instances)
            for pid, images in data_source.items()
            if len(images) >= MIN_IMAGES
        }
        self._drawn: tuple[tuple[int, int], list[PidDraw]] | None = None
        left_out = len(data_source) - len(self._occurrences)
        if left_out and rank == 0:
            warnings.warn(
                f"{left_out} of {len(data_source)} identities have fewer than {MIN_IMAGES} images and are left out of "
                "training.",
                stacklevel=2,
            )

    @property
    def num_identities(self) -> int:
        """Identities that can be drawn: those with at least two images."""
        return len(self._occurrences)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose list is drawn next; the Trainer calls this before each epoch."""
        self.epoch = epoch
        self._is_drawn = False

    def __len__(self) -> int:
        return len(self._draw_list())

    def __iter__(self) -> Iterator[PidDraw]:
        if self._is_drawn:
            warnings.warn(
                f"The sampler is iterated again in epoch {self.epoch}: the same identities, images and augmentations "
                "as before. In a loop of your own, call loader.sampler.set_epoch(epoch) before each epoch.",
                stacklevel=2,
            )
        self._is_drawn = True
        return iter(self._draw_list())

    def _draw_list(self) -> list[PidDraw]:
        key = (self.seed, self.epoch)
        if self._drawn is None or self._drawn[0] != key:
            drawn = self._draw_epoch()
            # Whole rounds of batch_size * world_size: the parts are equal, and each holds whole batches.
            part = len(drawn) // self.world_size
            self._drawn = key, drawn[self.rank * part : (self.rank + 1) * part]
        return self._drawn[1]

    def _draw_epoch(self) -> list[PidDraw]:
        """The list of all processes together."""
        generator = random.Random(derive_seed("identities", self.seed, self.epoch) if self.seed else self.epoch)
        left = list(self._occurrences)
        taken = dict.fromkeys(left, 0)
        drawn: list[PidDraw] = []
        round_size = self.batch_size * self.world_size
        while len(left) >= round_size:
            positions = generator.sample(range(len(left)), round_size)
            for pid in (left[position] for position in positions):
                drawn.append(PidDraw(pid, self.epoch, taken[pid]))
                taken[pid] += 1
            for position in sorted(positions, reverse=True):
                if taken[left[position]] == self._occurrences[left[position]]:
                    del left[position]
        return drawn


def _count_occurrences(num_images: int, num_instances: int) -> int:
    # A last occurrence with a single image would have no positive pair of its own.
    usable = num_images - 1 if num_images % num_instances == 1 else num_images
    return -(-usable // num_instances)


def _check_numbers(batch_size: int, num_instances: int, world_size: int, rank: int) -> None:
    named = {"batch_size": batch_size, "num_instances": num_instances, "world_size": world_size}
    for name, value in named.items():
        if value < 1:
            raise UserError(f"RandomIdentitySampler: {name} is {value}; expected 1 or more.")
    if not 0 <= rank < world_size:
        raise UserError(f"RandomIdentitySampler: rank is {rank}; expected 0 to {world_size - 1}.")
