"""Which part of a validation set each process embeds."""

from collections.abc import Iterator, Sized
from typing import cast

from torch.utils.data import Dataset
from torch.utils.data.distributed import DistributedSampler


class EvaluationShard(DistributedSampler[int]):
    """A contiguous part of a data set in whole batches: every sample on one process, none repeated, none dropped.

    The parts of all processes, joined in order of rank, are the data set in its order. They consist of the batches that
    a single process would form, because the last bit of an embedding may depend on the other images of its batch. Their
    numbers of batches differ by at most one; with fewer batches than processes, some have none.

    It is a DistributedSampler so that the Trainer does not replace it.

    Args:
        dataset: the data set; only its length is used.
        batch_size: images of a batch, >= 1.
        num_replicas: number of processes, >= 1.
        rank: number of this process, 0 to num_replicas - 1.

    Example:
        >>> [list(EvaluationShard(range(5), batch_size=2, num_replicas=2, rank=rank)) for rank in (0, 1)]
        [[0, 1], [2, 3, 4]]
    """

    def __init__(self, dataset: Sized, batch_size: int, num_replicas: int, rank: int) -> None:
        super().__init__(cast(Dataset[int], dataset), num_replicas, rank, shuffle=False)
        batches = -(-len(dataset) // batch_size)
        first, stop = (part * batches // num_replicas * batch_size for part in (rank, rank + 1))
        self.positions = range(first, min(stop, len(dataset)))

    def __iter__(self) -> Iterator[int]:
        return iter(self.positions)

    def __len__(self) -> int:
        return len(self.positions)
