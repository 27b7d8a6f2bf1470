"""Several processes on one task: which one this is, and how they exchange rows and errors.

Everything here uses ``torch.distributed`` on the group of all processes, with gloo or nccl. All processes must call the
same functions in the same order.
"""

import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from utils.errors import UserError
from utils.launched import find_launcher, is_launched_first

T = TypeVar("T")

_FIRST_PROCESS = "CENTROIDS_REID_FIRST_PROCESS"  # environment variable with its process id
CHUNK_BYTES = 32 << 20  # of gathered rows that are on the accelerator at a time


@dataclass(frozen=True)
class Processes:
    """The processes that work on one task, as seen by one of them."""

    rank: int  # number of this process, 0 to count - 1
    count: int
    gather: Callable[[Tensor], Tensor]  # own rows -> rows of all processes in the order of their ranks, on the CPU

    def share(self, items: int) -> tuple[int, int]:
        """This process's range of ``items`` consecutive items: start, stop. Sizes differ by one at most."""
        return self.rank * items // self.count, (self.rank + 1) * items // self.count


def running_processes() -> Processes | None:
    """The group of all processes; None if there is only one."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return None
    return Processes(dist.get_rank(), dist.get_world_size(), gather_rows)


def is_first_process() -> bool:
    """Whether this is the run's first process, the one that writes; works before the process group exists."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank() == 0
    return is_launched_first()


def end_with_first_process(grace_seconds: float) -> None:
    """Make the processes that Lightning starts end when the first process does, however it ends.

    Otherwise they would wait for it until their connection times out, and occupy their devices. All processes call
    this, the first one before it starts the others. torchrun and SLURM manage their processes themselves.

    Args:
        grace_seconds: time that the processes get to end in an orderly way.
    """
    if find_launcher() is not None:
        return
    if os.environ.get("LOCAL_RANK", "0") == "0":
        os.environ[_FIRST_PROCESS] = str(os.getpid())
    elif _FIRST_PROCESS in os.environ:
        first = int(os.environ[_FIRST_PROCESS])
        threading.Thread(target=_end_after, args=(first, grace_seconds), daemon=True).start()


def _end_after(parent: int, grace_seconds: float) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    time.sleep(grace_seconds)
    os._exit(1)


def gather_rows(rows: Tensor) -> Tensor:
    """Gather the rows of all processes, in the order of their ranks, on the CPU of every process.

    The processes take turns to send their rows in chunks, so that the accelerator holds one chunk at most.

    Args:
        rows: [n, ...] on the CPU; n may differ between processes and may be 0, but the rest of the shape must be equal.

    Returns:
        [sum of n, ...] on the CPU.
    """
    device = _device()
    counts = _gather_counts(len(rows))
    gathered = torch.empty(sum(counts), *rows.shape[1:], dtype=rows.dtype)
    at_once = max(1, CHUNK_BYTES // max(1, gathered[:1].nbytes))
    start = 0
    for source, count in enumerate(counts):
        part = gathered[start : start + count]
        start += count
        if source == dist.get_rank():
            part.copy_(rows)
        for chunk in part.split(at_once) if count else ():
            moved = chunk.to(device)
            dist.broadcast(moved, source)
            if moved is not chunk:
                chunk.copy_(moved)
    return gathered


def gather_in_order(numbers: Tensor, total: int, *arrays: Tensor) -> list[Tensor]:
    """Gather the rows of all processes in the order of a data set, each sample once.

    Args:
        numbers: [n] int64, the positions of this process's rows in the data set. If several processes have a sample,
            the first of them provides it.
        total: length of the data set.
        *arrays: [n, ...] on the CPU.

    Returns:
        [total, ...] for each array.

    Raises:
        UserError: no process has a sample, or a position is outside the data set.
    """
    places = gather_rows(numbers).numpy()
    found, first = np.unique(places, return_index=True)
    if not np.array_equal(found, np.arange(total)):
        missing = np.setdiff1d(np.arange(total), found)
        raise UserError(
            f"{len(missing)} of {total} samples of the validation set were not embedded by any process"
            + (f"; the first is number {missing[0]}." if len(missing) else ", but some have numbers beyond its end.")
            + " The loader must yield each sample's position in the data set, and the processes must share all samples."
        )
    gathered = [gather_rows(array) for array in arrays]
    if len(places) == total and bool((first == np.arange(total)).all()):
        return gathered  # already in order, no copy needed
    return [rows[torch.from_numpy(first)] for rows in gathered]


def broadcast_from_first(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors in place with those of the first process; they must be on the group's own device."""
    for tensor in tensors:
        dist.broadcast(tensor.detach(), 0)


def of_first_process(compute: Callable[[], T]) -> T:
    """Call ``compute`` on the first process alone, and return its result on every process.

    Raises:
        UserError: ``compute`` raised it on the first process; every process raises the same.
    """
    outcome: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            outcome[0] = compute()
        except UserError as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome, 0)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def mean_over_processes(values: dict[str, Tensor]) -> dict[str, float]:
    """The mean of each value over those processes that have it; of a single process, its own.

    Args:
        values: name -> scalar; processes may have different names, in any order.
    """
    if running_processes() is None:
        numbers = torch.stack(list(values.values())).tolist() if values else []
        return dict(zip(values, numbers, strict=True))
    named: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(named, list(values))
    names = list(dict.fromkeys(name for part in named for name in part))  # the same order everywhere
    if not names:
        return {}
    nothing = torch.zeros((), device=next(iter(values.values())).device if values else _device())
    table = torch.stack([torch.stack([values.get(n, nothing), nothing + (n in values)]) for n in names]).to(_device())
    dist.all_reduce(table)
    return dict(zip(names, (table[:, 0] / table[:, 1]).tolist(), strict=True))


def gather_with_gradient(rows: Tensor) -> tuple[Tensor, int]:
    """Gather the rows of all processes in the order of their ranks, so that gradients flow back to all of them.

    The backward pass sums the gradients of all processes for this process's rows. If the gradients of the parameters
    are then averaged over W processes, as in DDP, the losses L_r of the processes act as one loss ``sum_r L_r / W``.

    Args:
        rows: [n, ...]; n may differ between processes.

    Returns:
        [sum of n, ...] on the device of the rows, and the index of this process's first row.
    """
    counts = _gather_counts(len(rows))
    return _GatherWithGradient.apply(rows, counts), sum(counts[: dist.get_rank()])


class _GatherWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: Sequence[int]) -> Tensor:
        ctx.start, ctx.count = sum(counts[: dist.get_rank()]), len(rows)
        padded = rows.new_zeros(max(counts), *rows.shape[1:])  # all_gather needs equal shapes
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total[ctx.start : ctx.start + ctx.count], None


def _gather_counts(own: int) -> list[int]:
    counts = [torch.zeros(1, dtype=torch.int64, device=_device()) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, torch.full_like(counts[0], own))
    return torch.cat(counts).tolist()


def _device() -> torch.device:
    """The device that exchanged tensors must be on: nccl supports only CUDA devices."""
    if "nccl" in dist.get_backend():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
