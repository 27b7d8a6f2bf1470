"""Exact search by several processes, as torchrun or SLURM start them: each reads a part of the gallery.

The first process runs the program; the others wait for its searches and answer them with what they find in their parts.
So only the first one needs a model, queries and a folder for results; all of them need the gallery.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from inference.searching.exact import Found
from inference.searching.search import search_gallery
from utils.distributed import Processes, running_processes
from utils.errors import UserError
from utils.launched import find_launcher

_PATIENCE = timedelta(days=1)  # while the first process embeds queries, or builds an index


@contextmanager
def launched_processes() -> Iterator[Processes | None]:
    """The processes that torchrun or SLURM (srun) started for this program, connected; None if there is only one.

    Raises:
        UserError: they cannot be reached.
    """
    address = _address()
    if not address:
        yield None
        return
    try:
        dist.init_process_group("gloo", timeout=_PATIENCE, **address)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the processes of this search cannot reach each other: {error}") from error
    try:
        yield running_processes()
    finally:
        dist.destroy_process_group()


def _address() -> dict[str, Any]:
    """What init_process_group is told; nothing for a single process."""
    name, count = find_launcher() or ("", 1)
    if name == "SLURM":  # a batch script is no srun: there, only the numbers of the whole job are set
        count = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    if count == 1:
        return {}
    if name == "torchrun":
        return {"init_method": "env://"}
    host, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if host is None:
        from pytorch_lightning.plugins.environments import SLURMEnvironment

        host = SLURMEnvironment.resolve_root_node_address(os.environ["SLURM_STEP_NODELIST"])
    port = port or str(15000 + int(os.environ["SLURM_JOB_ID"][-4:]))  # as Lightning does for trainings
    return {"init_method": f"tcp://{host}:{port}", "rank": int(os.environ["SLURM_PROCID"]), "world_size": count}


class Leader:
    """The first process's exact search, which the others take part in; to be used as a context, whose end ends them."""

    def __enter__(self) -> "Leader":
        return self

    def __call__(self, query: Any, gallery: Any, **options: Any) -> Found:
        """As :func:`inference.searching.search.search_gallery`, with the same results bit for bit."""
        _broadcast((query, options))
        return search_together(query, gallery, **options)

    def __exit__(self, *_: object) -> None:
        with suppress(UserError):  # if they have gone already
            _broadcast(None)


def follow(open_gallery: Callable[[], Any]) -> None:
    """Take part in the searches of the first process until it ends them; errors are for that one to tell.

    Args:
        open_gallery: opens the gallery [N, D] of this process.
    """
    opened = cache(open_gallery)
    with suppress(UserError):  # told when the first process searches
        opened()  # at once, as the first process does: the gallery may be edited later
    while (request := _broadcast(None)) is not None:
        query, options = request
        with suppress(UserError):
            search_together(query, opened, **options)


def search_together(query: Any, gallery: Any, **options: Any) -> Found:
    """Search exactly, each process in its own part of the gallery; all of them call this alike, and get all results.

    Args:
        query: [Q, D], the same everywhere.
        gallery: [N, D], the same everywhere, or a function that opens it.
        **options: of :func:`inference.searching.search.search_gallery`, the same everywhere.

    Returns:
        What search_gallery finds in one process, bit for bit.

    Raises:
        UserError: as for search_gallery, on whichever process; or the galleries differ, or a process is gone.
    """
    rank, count = dist.get_rank(), dist.get_world_size()
    error: UserError | None = None
    shape: tuple[int, ...] = ()
    width = 0
    try:
        own: Any = gallery() if callable(gallery) else gallery
        indices, distances = search_gallery(query, own, **options, share=(rank, count))
        shape, width = tuple(own.shape), int((indices >= 0).sum(1).max(initial=0))
    except UserError as reason:
        error = reason
    told = [(error, shape, width)] * count
    with _gone_processes():
        dist.all_gather_object(told, told[rank])
    _raise_first(told)
    topk, ragged = options.get("topk", 100), options.get("max_distance") is not None
    most = 0 if topk == 0 and ragged else min(topk or shape[0], shape[0])  # 0: as many as there are
    width = max(1, -(-most // count), *(width for *_, width in told))
    padded: list[Any] = [np.full((len(indices), width), fill, kind) for fill, kind in ((-1, "i8"), (np.inf, "f4"))]
    values: Any
    for to, values in zip(padded, (indices, distances), strict=True):
        to[:, : values.shape[1]] = values[:, :width]
    with _gone_processes():
        indices, distances = (_side_by_side(values, count) for values in padded)
    # Earlier processes have earlier items, which go first among equal distances, as do earlier ones of a process.
    order = np.argsort(distances, axis=1, kind="stable")
    order = order[:, : most or int((indices >= 0).sum(1).max())]
    return np.take_along_axis(indices, order, 1), np.take_along_axis(distances, order, 1)


def _raise_first(told: list[Any]) -> None:
    """Raise the error of the first process that had one, which has the earliest part of the gallery."""
    for error, *_ in told:
        if error is not None:
            raise error
    for number, (_, shape, _) in enumerate(told):
        if shape != told[0][1]:
            raise UserError(
                f"process {number} finds a gallery of {list(shape)}, but the first process one of {list(told[0][1])}: "
                "all of them must read the same gallery."
            )


def _side_by_side(values: np.ndarray[Any, Any], count: int) -> np.ndarray[Any, Any]:
    """[Q, W] of each process -> [Q, count * W] on every process, in the order of the processes."""
    processes = running_processes()
    assert processes is not None
    rows = processes.gather(torch.from_numpy(values)).numpy()
    return rows.reshape(count, len(values), -1).swapaxes(0, 1).reshape(len(values), -1)


def _broadcast(value: Any) -> Any:
    """The first process's value."""
    values = [value]
    with _gone_processes():
        dist.broadcast_object_list(values, 0)
    return values[0]


@contextmanager
def _gone_processes() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # gloo names the address that it lost
        raise UserError(f"a process of this search is gone: {error}; start all of them again.") from error
