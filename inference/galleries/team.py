"""Which processes make a gallery together: those of torchrun or SLURM, or children of this one, one for each device.

They form no process group: each claims chunks in the folder of the gallery, which they share.
"""

import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

from utils.devices import count_cpus
from utils.errors import UserError
from utils.launched import find_launcher, is_launched_first

logger = logging.getLogger(__name__)

LAUNCH = "CENTROIDS_REID_LAUNCH"  # environment variable by which a process tells its children who belongs together
_PARENT = "CENTROIDS_REID_PARENT"  # its process id
_ERRORS = "CENTROIDS_REID_ERRORS"  # a folder for their errors
_LOOK_SECONDS = 0.1


@dataclass(frozen=True)
class Team:
    """The processes that were started together, as one of them sees it.

    Attributes:
        launch: the same in all of them, and in no others; None for a process alone.
        place: number of this process on its machine, from 0.
        count: processes on its machine.
        is_first: whether it speaks for all.
        launcher: "torchrun", "SLURM", or "" for a parent of this project.
    """

    launch: str | None = None
    place: int = 0
    count: int = 1
    is_first: bool = True
    launcher: str = ""


ALONE = Team()


def find_team() -> Team:
    """What the environment says of the processes that were started with this one."""
    found, first = os.environ, is_launched_first()
    if LAUNCH in found:
        return Team(found[LAUNCH], int(found["LOCAL_RANK"]), int(found["LOCAL_WORLD_SIZE"]), first)
    launcher = find_launcher()
    if launcher is None or ("SLURM_STEP_ID" not in found and launcher[0] == "SLURM"):  # a batch script, without srun
        return ALONE
    if launcher[0] == "torchrun":
        return Team(
            _torchrun_launch(found), int(found["LOCAL_RANK"]), int(found["LOCAL_WORLD_SIZE"]), first, "torchrun"
        )
    launch = f"SLURM job {found['SLURM_JOB_ID']}, step {found['SLURM_STEP_ID']}"
    here = re.split("[,(]", found.get("SLURM_STEP_TASKS_PER_NODE", "1"))[0]  # such as 4(x2),3
    return Team(launch, int(found.get("SLURM_LOCALID", 0)), int(here), first, "SLURM")


def _torchrun_launch(found: Mapping[str, str]) -> str:
    """A name that the processes of all machines agree on, in the store of torchrun, and keep over its restarts."""
    address, port, name = found["MASTER_ADDR"], int(found["MASTER_PORT"]), ""
    if found.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        from torch.distributed import TCPStore

        store = TCPStore(address, port, is_master=False, timeout=timedelta(minutes=5))
        name = store.compare_set("centroids_reid/launch", "", uuid.uuid4().hex).decode()
    return f"torchrun {found['TORCHELASTIC_RUN_ID']}, {address}:{port} {name}"


@contextmanager
def said_by_first(team: Team, least: int) -> Iterator[None]:
    """Let processes other than the first log only what is of this level or above."""
    root = logging.getLogger()
    before = root.level
    if not team.is_first:
        root.setLevel(max(before, least))
    try:
        yield
    finally:
        root.setLevel(before)


def divide_cores(team: Team, on_cpu: bool) -> None:
    """Give each process that computes on the CPU its share of the machine's cores, unless OMP_NUM_THREADS says more."""
    import torch

    chosen = os.environ.get("OMP_NUM_THREADS")
    if on_cpu and team.count > 1 and (chosen is None or (team.launcher == "torchrun" and chosen == "1")):
        torch.set_num_threads(max(1, count_cpus() // team.count))


# ----------------------------------------------------------------------------------------------------------- children


def run_children(command: Sequence[str], devices: Sequence[str]) -> None:
    """Run a command once for each device, and wait for all.

    A process that dies is named; the others take over its work. One that ends with an error which the user can mend
    (status 2) ends all, as does an interrupt.

    Args:
        command: of each process; find_team tells it which device is its own.
        devices: their names, for messages.

    Raises:
        UserError: of one of the processes.
        SystemExit: no process has come to a good end; the status is theirs.
        KeyboardInterrupt: as usual.
    """
    launch = uuid.uuid4().hex
    children: dict[int, subprocess.Popen[bytes]] = {}
    statuses: dict[int, int] = {}
    before = signal.signal(signal.SIGTERM, _interrupt)
    with TemporaryDirectory() as errors:
        try:
            for place in range(len(devices)):
                own: dict[str, object] = {"RANK": place, "LOCAL_RANK": place, LAUNCH: launch, _PARENT: os.getpid()}
                own |= {"WORLD_SIZE": len(devices), "LOCAL_WORLD_SIZE": len(devices), _ERRORS: errors}
                environment = {**os.environ, **{name: str(value) for name, value in own.items()}}
                # In a group of their own, so that Ctrl-C reaches only this process, which ends them.
                children[place] = subprocess.Popen(command, env=environment, process_group=0)
            while len(statuses) < len(children) and 2 not in statuses.values():
                time.sleep(_LOOK_SECONDS)
                for place, child in children.items():
                    if place not in statuses and (status := child.poll()) is not None:
                        statuses[place] = status
                        if status not in (0, 2):
                            logger.warning("The process on %s ended with %s.", devices[place], _describe(status))
        finally:
            signal.signal(signal.SIGTERM, before)
            _end(children.values())
        for place, status in statuses.items():
            if status == 2 and Path(errors, str(place)).exists():
                raise UserError(Path(errors, str(place)).read_text("utf-8", "surrogateescape"))
    _report(list(statuses.values()))


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _end(children: Collection[subprocess.Popen[bytes]]) -> None:
    for child in children:
        if child.poll() is None:
            child.terminate()
    for child in children:
        child.wait()


def _describe(status: int) -> str:
    if status >= 0:
        return f"status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


def _report(statuses: list[int]) -> None:
    if 2 in statuses:
        raise SystemExit(2)  # it has said why
    if 0 not in statuses:
        status = statuses[0]
        sys.stderr.write(
            "error: all processes have died. What they have finished is kept: --resume continues from there.\n"
        )
        raise SystemExit(status if status > 0 else 128 - status)


def follow_parent() -> None:
    """In a child of :func:`run_children`: end when the parent does, however that ends."""
    if _PARENT in os.environ:
        threading.Thread(target=_end_after, args=(int(os.environ[_PARENT]),), daemon=True).start()


def _end_after(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


@contextmanager
def errors_to_parent() -> Iterator[None]:
    """In a child of :func:`run_children`: leave it to the parent to report an error, which all children may have."""
    try:
        yield
    except UserError as error:
        if _ERRORS not in os.environ:
            raise
        Path(os.environ[_ERRORS], os.environ["RANK"]).write_text(str(error), "utf-8", "surrogateescape")
        raise SystemExit(2) from None
