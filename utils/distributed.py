"""Several processes on one task: where this one stands, and how rows and errors pass between them.

Everything here is plain ``torch.distributed`` on the group of all processes, with gloo or nccl. All processes must call
the same functions in the same order.
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

T = TypeVar("T")

_FIRST_PROCESS = "CENTROIDS_REID_FIRST_PROCESS"  # environment variable: its number with the operating system
CHUNK_BYTES = 32 << 20  # of gathered rows that lie on the accelerator at once


@dataclass(frozen=True)
class Processes:
    """The processes that work on one task, as one of them sees them."""

    rank: int  # number of this process, 0 to count - 1
    count: int
    gather: Callable[[Tensor], Tensor]  # own rows -> those of all processes in the order of their ranks, on the CPU

    def share(self, items: int) -> tuple[int, int]:
        """This process' part of ``items`` things in a row: from, to. The parts differ by one at most."""
        return self.rank * items // self.count, (self.rank + 1) * items // self.count


def running_processes() -> Processes | None:
    """The group of all processes; None where there is but one."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return None
    return Processes(dist.get_rank(), dist.get_world_size(), gather_rows)


def is_first_process() -> bool:
    """Whether this is the run's first process, the one that writes; known before the processes have met."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank() == 0
    if "RANK" in os.environ:  # torchrun
        return int(os.environ["RANK"]) == 0
    # Lightning's own processes have LOCAL_RANK and NODE_RANK, those of SLURM a number in the whole job.
    return all(int(os.environ.get(name) or 0) == 0 for name in ("LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))


def find_launcher() -> tuple[str, int] | None:
    """The program that started the processes of this run and how many it started; None if Lightning starts them."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return "torchrun", int(os.environ["WORLD_SIZE"])
    if "SLURM_NTASKS" in os.environ and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        return "SLURM", int(os.environ["SLURM_NTASKS"])
    return None


def end_with_first_process(grace_seconds: float) -> None:
    """Let the processes that Lightning starts end with the one that starts them, however that comes to its end.

    Left alone they would wait for it, up to the time-out of their connection, and keep their devices. All call this,
    the first one before the others are started. torchrun and SLURM look after their processes themselves.

    Args:
        grace_seconds: time that is left for an orderly end.
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
    """The rows of all processes, in the order of their ranks, on the CPU of every process.

    One process after the other sends its rows in chunks, so that the accelerator holds one chunk at most.

    Args:
        rows: [n, ...] on the CPU; n may differ from process to process and may be 0, the rest of the shape must not.

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
    """The rows of all processes in the order of a data set, each sample once.

    Args:
        numbers: [n] int64, the positions in the data set of this process' rows. A sample that several processes have
            is taken from the first of them.
        total: length of the data set.
        *arrays: [n, ...] on the CPU.

    Returns:
        For each array [total, ...].

    Raises:
        UserError: a sample that no process has.
    """
    places = gather_rows(numbers).numpy()
    found, first = np.unique(places, return_index=True)
    if not np.array_equal(found, np.arange(total)):
        missing = np.setdiff1d(np.arange(total), found)
        raise UserError(
            f"{len(missing)} of {total} samples of the validation set were embedded by none of the processes"
            + (f", the first is number {missing[0]}." if len(missing) else "; others have numbers beyond its end.")
            + " The loader must give each sample's position in the data set, and all samples must be shared out."
        )
    gathered = [gather_rows(array) for array in arrays]
    if len(places) == total and bool((first == np.arange(total)).all()):
        return gathered  # in order already: no copy
    return [rows[torch.from_numpy(first)] for rows in gathered]


def broadcast_from_first(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors by those of the first process, in place; they must lie where the group communicates."""
    for tensor in tensors:
        dist.broadcast(tensor.detach(), 0)


def of_first_process(compute: Callable[[], T]) -> T:
    """What ``compute`` returns on the first process, on every process; the others do not call it.

    Raises:
        UserError: the one that the first process met, on every process.
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


def gather_with_gradient(rows: Tensor) -> tuple[Tensor, int]:
    """The rows of all processes in the order of their ranks, as a function of the own ones.

    Backward, the gradients that all processes have for this process' rows are added up. Where the parameters' gradients
    are then averaged over W processes, as DDP does, the losses L_r of the processes act as one loss ``sum_r L_r / W``.

    Args:
        rows: [n, ...]; n may differ from process to process.

    Returns:
        [sum of n, ...] on the device of the rows, and the place of the first own row.
    """
    counts = _gather_counts(len(rows))
    return _GatherWithGradient.apply(rows, counts), sum(counts[: dist.get_rank()])


class _GatherWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: Sequence[int]) -> Tensor:
        ctx.start, ctx.count = sum(counts[: dist.get_rank()]), len(rows)
        padded = rows.new_zeros(max(counts), *rows.shape[1:])  # processes exchange equal shapes
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
    """Where tensors must lie that processes exchange: nccl knows only CUDA devices."""
    if "nccl" in dist.get_backend():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
