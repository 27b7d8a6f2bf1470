"""The one place where tests start processes: commands as a user gives them, and groups that find each other.

Tests that kill a training at a chosen point use tests.e2e.forked, which is built on the groups here.
"""

import atexit
import multiprocessing
import os
import pickle
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import IO, Any

from tests import warm
from tests.support import ROOT
from utils.errors import UserError

_SERVERS: list[Any] = []  # of tests.warm; one that nothing refers to loses its input, and ends

# For a program that imports the project from a folder elsewhere. Without it a program finds what a user's finds.
REPOSITORY_FIRST = {"PYTHONPATH": str(ROOT)}

# Forked from a server that has imported what the processes need, which takes longer than their work.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.workers"])


# ------------------------------------------------------------------------------------------------------------ commands


def run_command(
    *command: Any, cwd: Path = ROOT, env: Mapping[str, str | None] | None = None, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; the caller looks at the status.

    Args:
        *command: program and arguments, taken as text.
        cwd: folder that it runs in.
        env: changes to the environment of the tests, None removes a variable. PYTHONPATH is not passed on: a program
            finds the project by its own place, or by ``cwd`` (``-c`` and ``-m``), or with REPOSITORY_FIRST.
        timeout: seconds until it is killed and the test fails.
    """
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd, env=_environment(env), timeout=timeout, capture_output=True, text=True, check=False,
    )  # fmt: skip


def run_python(
    *arguments: Any,
    cwd: Path = ROOT,
    env: Mapping[str, str | None] | None = None,
    timeout: float = 120,
    fresh: bool = False,
) -> subprocess.CompletedProcess[str]:
    """``python ARGUMENTS``, from an interpreter that has imported torch and the like if that shows the same.

    Args:
        *arguments, cwd, env, timeout: as run_command takes them.
        fresh: start an interpreter that has imported nothing: for what imports do or print. It is also started for
            options of Python's own, and with variables that it reads itself.
    """
    command = [str(part) for part in arguments]
    read_at_start = [name for name in env or () if name.startswith(("PYTHON", "LANG", "LC_", "OMP_", "MKL_"))]
    if fresh or not warm.takes(command) or (read_at_start and env != REPOSITORY_FIRST):
        return run_command(sys.executable, *command, cwd=cwd, env=env, timeout=timeout)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, open(os.devnull) as nothing:  # noqa: PTH123
        streams = (nothing.fileno(), out.fileno(), err.fileno())
        try:
            status = warm.call(
                warm_python(), command, cwd=str(cwd), env=_environment(env), streams=streams, timeout=timeout
            )
        except TimeoutError:
            status = None
        texts = [(stream.seek(0), stream.read().decode())[1] for stream in (out, err)]
    if status is None:
        raise subprocess.TimeoutExpired(command, timeout, *texts)
    return subprocess.CompletedProcess(command, status, *texts)


@cache
def warm_python() -> str:
    """The socket of this process's server of tests.warm, which ends with this process."""
    folder = tempfile.mkdtemp(prefix="warm-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = os.path.join(folder, "python")  # noqa: PTH118
    # It ends when its input does, with this process.
    command = [sys.executable, warm.__file__, path]
    _SERVERS.append(subprocess.Popen(command, env=_environment(None), stdin=subprocess.PIPE))
    while not os.path.exists(path):  # noqa: PTH110
        time.sleep(0.01)
    return path


def run_code(code: str, *arguments: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    """``python -c CODE ARGUMENTS``: for what only a fresh interpreter tells, such as which modules are imported."""
    return run_python("-c", code, *arguments, **options)


def run_module(name: str, *arguments: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    """``python -m NAME ARGUMENTS``, in the root of the repository unless ``cwd`` says otherwise."""
    return run_python("-m", name, *arguments, **options)


def run_script(path: str | Path, *arguments: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    """``python PATH ARGUMENTS``; the path is relative to the repository, or absolute."""
    return run_python(ROOT / path, *arguments, **options)


def start_python(
    *arguments: Any,
    cwd: Path = ROOT,
    env: Mapping[str, str | None] | None = None,
    stdout: int | IO[Any] | None = None,
    stderr: int | IO[Any] | None = None,
) -> subprocess.Popen[str]:
    """Start ``python ARGUMENTS`` and return at once: for programs that the test kills, or that run side by side."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.Popen(command, cwd=cwd, env=_environment(env), stdout=stdout, stderr=stderr, text=True)


def forbid_modules(folder: Path, *names: str) -> dict[str, str]:
    """The ``env`` with which a program ends as soon as it imports one of these modules.

    Args:
        folder: for modules of these names, which the program finds before the installed ones.
        *names: modules that the program must not import.
    """
    for name in names:
        (folder / f"{name}.py").write_text(f"raise SystemExit('{name} was imported')")
    return {"PYTHONPATH": str(folder)}


def _environment(changes: Mapping[str, str | None] | None) -> dict[str, str]:
    wanted = {**os.environ, "PYTHONPATH": None, **(changes or {})}
    return {name: value for name, value in wanted.items() if value is not None}


# -------------------------------------------------------------------------------------------------- groups of processes


def run_processes(worker, count, folder, *arguments, timeout=240):
    """Run ``worker(*arguments)`` in ``count`` processes that find each other as under torchrun: gloo on the CPU.

    Args:
        worker: a function of tests.workers.
        count: number of processes.
        folder: for the results, used once.
        *arguments: passed to each.
        timeout: seconds that all of them have.

    Returns:
        What the workers returned, by rank. A UserError is returned rather than raised.
    """
    folder.mkdir(parents=True)
    port = free_port()
    processes = [
        CONTEXT.Process(
            target=_main, args=(worker, torchrun_variables(rank, count, port), folder, arguments), daemon=True
        )
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    end = time.monotonic() + timeout
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
    hanging = [rank for rank, process in enumerate(processes) if process.is_alive()]
    for process in processes:
        process.kill()
    results = []
    for rank in range(count):
        file = folder / f"{rank}.pkl"
        kind, result = pickle.loads(file.read_bytes()) if file.is_file() else ("nothing", f"hanging: {hanging}")
        assert kind == "result", f"process {rank} of {count}: {result}"
        results.append(result)
    assert not hanging
    return results


def run_forked(function: Callable[..., Any], *arguments: Any, count: int = 1, timeout: float = 60) -> list[int | None]:
    """The exit statuses of ``count`` forks of this very process, with all that it holds; None where one still ran.

    For objects that are to survive a fork, as they do in the workers of a loader.
    """
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=function, args=arguments, daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout)
    return [process.exitcode for process in processes]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def torchrun_variables(rank: int, count: int, port: int) -> dict[str, str]:
    """What torchrun sets for one of ``count`` processes of this machine."""
    values = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "GROUP_RANK": 0}
    values |= {"MASTER_PORT": port}
    return {name: str(value) for name, value in values.items()} | {
        "MASTER_ADDR": "127.0.0.1",
        "TORCHELASTIC_RUN_ID": "test",
        "OMP_NUM_THREADS": "1",
    }


def _main(worker, variables, folder, arguments):
    os.environ |= variables
    try:
        outcome = ("result", worker(*arguments))
    except UserError as error:
        outcome = ("result", error)
    except BaseException:
        outcome = ("error", traceback.format_exc())
    rank = variables["RANK"]
    partial = folder / f"{rank}.part"
    partial.write_bytes(pickle.dumps(outcome))
    partial.rename(folder / f"{rank}.pkl")
