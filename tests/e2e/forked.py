"""Training runs that a test can kill at a chosen point, forked from the server of tests.launch to start at once.

They are what the scripts are: the same code, the same exit statuses. run_processes cannot take their place: it waits
for what its workers return, and here the way in which a process ends, and what it leaves behind, is what is tested.
"""

import os
import resource
import signal
import threading
from pathlib import Path
from typing import Any

from tests.launch import CONTEXT, free_port, torchrun_variables

NAME = "run"


def start(options: list[Any], log: Path, point: str = "", processes: int = 1) -> list[Any]:
    """Start a training with these options, its output going to ``log``; several processes as torchrun starts them.

    Args:
        options: KEY, VALUE, ... as load_config takes them.
        log: file that the output is appended to.
        point: moment at which the last process meets its fate, see POINTS; SIGTERM goes to all.
        processes: how many.
    """
    port = free_port()
    started = []
    for rank in range(processes):
        environment = torchrun_variables(rank, processes, port) if processes > 1 else {}
        fate = point if rank == processes - 1 or point.startswith("SIGTERM") else ""
        arguments = (options, str(log), environment, fate)
        process = CONTEXT.Process(target=train, args=arguments)
        process.start()
        started.append(process)
    return started


def finish(started: list[Any], timeout: float = 120) -> list[int | None]:
    """Wait for processes; when one was killed the others are too, as a cluster does. Returns the exit statuses."""
    for process in reversed(started):
        process.join(timeout)
        if process.exitcode == -signal.SIGKILL:
            kill(started)
    return [process.exitcode for process in started]


def kill(started: list[Any]) -> None:
    """kill -9, and wait until they are gone."""
    for process in started:
        process.kill()
        process.join()


def run(options: list[Any], log: Path, point: str = "", processes: int = 1) -> list[int | None]:
    """start and finish."""
    return finish(start(options, log, point, processes))


def train(options: list[Any], log: str, environment: dict[str, str], point: str) -> None:
    """What a started process does."""
    with open(log, "ab", buffering=0) as stream:  # noqa: PTH123
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    os.environ.update(environment)

    from config.load import load_config
    from engine.run import run_script
    from train_ctl_model import CTLModel

    if point:
        kind, _, number = point.partition(":")
        POINTS[kind](int(number))
    run_script(CTLModel, load_config("", options), NAME)


def _at_call(owner: Any, name: str, number: int, act: Any) -> None:
    """Call ``act`` at the start of the given call of a method, counted from 1."""
    original, calls = getattr(owner, name), [0]

    def counting(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == number:
            act()
        return original(*args, **kwargs)

    setattr(owner, name, counting)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _in_step(number: int) -> None:
    """Between the backward pass and the optimisers of a step."""
    from pytorch_lightning.core.optimizer import LightningOptimizer

    _at_call(LightningOptimizer, "step", number, _die)


def _in_validation(number: int) -> None:
    from modelling.bases import ModelBase

    _at_call(ModelBase, "validation_step", number, _die)


def _in_write(number: int) -> None:
    """In the middle of writing a checkpoint: some of its bytes are on disk."""
    import torch

    from callbacks import checkpoints

    save = torch.save

    def cut_off(obj: Any, stream: Any) -> None:
        _at_call(stream, "write", 10, _die)
        save(obj, stream)

    _at_call(checkpoints, "atomic_save", number, lambda: setattr(torch, "save", cut_off))


def _before_removal(number: int) -> None:
    """When the newer checkpoint is complete and the older one is still there."""
    from callbacks import ModelCheckpointPeriodic

    _at_call(ModelCheckpointPeriodic, "_remove_checkpoint", number, _die)


def _full_disk(number: int) -> None:
    """From a checkpoint on no file may grow beyond a megabyte: writing fails as it does on a full disk."""
    from callbacks import checkpoints

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, resource.RLIM_INFINITY))

    _at_call(checkpoints, "atomic_save", number, limit)


def _terminated(number: int) -> None:
    """SIGTERM at a step, from outside the main thread's own code."""
    from modelling.bases import ModelBase

    def send() -> None:
        threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGTERM)).start()

    _at_call(ModelBase, "optimize", number, send)


POINTS = {
    "step": _in_step,
    "validation": _in_validation,
    "write": _in_write,
    "removal": _before_removal,
    "full disk": _full_disk,
    "SIGTERM": _terminated,
}
