"""A Python that has imported the large packages already, from which tests start programs in a fraction of the time.

``python tests/warm.py SOCKET`` waits for calls and forks for each. The fork becomes ``python ARGUMENTS``: a process of
its own with the folder, environment and streams of the caller, which imports all of the project anew. What it does not
show is what importing a package of PACKAGES does or prints: for that, tests start a fresh interpreter.
"""

import atexit
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

PACKAGES = (
    "numpy",
    "torch",
    "torchvision.transforms.v2",
    "pytorch_lightning",
    "torch.utils.tensorboard",
    "yacs.config",
)
SIZE = 8  # bytes that say how long a call is


# ----------------------------------------------------------------------------------------------------------- the caller


def takes(arguments: Sequence[str]) -> bool:
    """Whether these arguments of Python name a file or a module, and no options of the interpreter's."""
    return bool(arguments) and (arguments[0] == "-m" or not arguments[0].startswith("-"))


def call(
    server: str,
    arguments: Sequence[str],
    *,
    cwd: str,
    env: Mapping[str, str],
    streams: Sequence[int] = (0, 1, 2),
    timeout: float | None = None,
) -> int:
    """Run ``python ARGUMENTS`` to its end.

    Args:
        server: the socket.
        arguments: a file or ``-m`` and a module, then what they are given.
        cwd: folder that it runs in.
        env: its whole environment.
        streams: descriptors that become its input, output and errors.
        timeout: seconds until it is killed.

    Returns:
        The exit status, negative for a signal, as subprocess has it.

    Raises:
        TimeoutError: it was killed.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(server)
        content = json.dumps({"arguments": list(arguments), "cwd": cwd, "env": dict(env)}).encode()
        socket.send_fds(connection, [len(content).to_bytes(SIZE)], list(streams))
        connection.sendall(content)
        told = connection.makefile()
        process = int(told.readline())
        connection.settimeout(timeout)
        try:
            return int(told.readline())
        except TimeoutError:
            os.kill(process, signal.SIGKILL)
            raise


# ----------------------------------------------------------------------------------------------------------- the server


def serve(path: str) -> list[str]:
    """Wait for calls, until the input ends; returns the arguments of a call, in a process that is to become it."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{path}.new")
        listener.listen()
        Path(f"{path}.new").rename(path)  # whoever sees it can connect
        for package in PACKAGES:
            importlib.import_module(package)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that wait for the calls
        while True:
            if 0 in select.select([0, listener.fileno()], [], [])[0]:
                sys.exit()
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                return keep(connection)
            connection.close()


def keep(connection: socket.socket) -> list[str]:
    """Fork the process of a call, and tell the caller its number and how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    header, streams, *_ = socket.recv_fds(connection, SIZE, 3)
    content = connection.makefile("rb").read(int.from_bytes(header))
    process = os.fork()
    if process == 0:
        connection.close()
        return become(**json.loads(content), streams=streams)
    connection.sendall(f"{process}\n".encode())
    _, status = os.waitpid(process, 0)
    connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def become(arguments: list[str], cwd: str, env: dict[str, str], streams: list[int]) -> list[str]:
    """Take on the folder, environment and streams of a call."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    for stream in streams:
        os.close(stream)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.orig_argv = [sys.executable, *arguments]
    sys.modules["numpy"].random.seed()  # otherwise all would draw the same
    return arguments


def run(arguments: list[str]) -> int:
    """``python ARGUMENTS``, in this process; returns the exit status."""
    own = [str(Path(entry).absolute()) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    try:
        if arguments[0] == "-m":
            sys.path[:1] = [str(Path.cwd()), *own]
            sys.argv = arguments[1:]
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            sys.path[:1] = [str(Path(arguments[0]).resolve().parent), *own]
            sys.argv = arguments
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


if __name__ == "__main__":
    status = run(serve(sys.argv[1]))
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # taking the interpreter apart would copy all of its memory first, which takes seconds
