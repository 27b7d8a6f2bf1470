"""Real processes for tests of distributed code: gloo on the CPU, results and errors brought back."""

import multiprocessing
import os
import pickle
import socket
import time
import traceback

from utils.errors import UserError

# Forked from a server that has imported what the workers need, which takes longer than their work.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.workers"])


def run_processes(worker, count, folder, *arguments, timeout=240):
    """Run ``worker(*arguments)`` in ``count`` processes that find each other as under torchrun.

    Args:
        worker: a function of tests.workers.
        count: number of processes.
        folder: for the results, used once.
        *arguments: passed to each.

    Returns:
        What the workers returned, by rank. A UserError is returned rather than raised.
    """
    folder.mkdir(parents=True)
    port = free_port()
    processes = [
        _CONTEXT.Process(target=_main, args=(worker, rank, count, port, folder, arguments), daemon=True)
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


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _main(worker, rank, count, port, folder, arguments):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test"}
    os.environ |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        outcome = ("result", worker(*arguments))
    except UserError as error:
        outcome = ("result", error)
    except BaseException:
        outcome = ("error", traceback.format_exc())
    partial = folder / f"{rank}.part"
    partial.write_bytes(pickle.dumps(outcome))
    partial.rename(folder / f"{rank}.pkl")
