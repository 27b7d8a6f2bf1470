#!/usr/bin/env python
"""Change one line of the code at a time, and see whether the tests notice.

    python scripts/mutate.py --number 50 --seed 0 --json mutants.json
    python scripts/mutate.py --only losses/center_loss.py --number 20

Each change (a mutant) is made in a temporary copy of the working tree, where the tests of that module run until the
first failure. The changes: a comparison, an arithmetic or a boolean operator becomes another; a number grows or
shrinks by one; True, False and None become another constant; a ``not``, a bound of a slice or a statement goes; the
first two arguments of a call change places; a function returns early or returns None. Texts, annotations, assertions,
decorators and imports stay as they are. A mutant that survives shows a missing test, code that does nothing, or a
change that means the same. The exit status is 1 if any survives. This is run by hand:
50 mutants take about five minutes.
"""

import argparse
import contextlib
import importlib
import json
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue
from types import ModuleType

if __package__ in (None, ""):  # run as a file: the packages lie one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.mutants import ROOT, Mutant, draw, tests_of

FORKS = multiprocessing.get_context("fork")
IMPORTED = ("torch", "torchvision", "pytorch_lightning", "hypothesis", "pytest")  # once, before the forks
MEMORY = 8 << 30  # bytes that a test may take: a loop that no longer ends must not fill the machine


def run_pytest(tree: Path, arguments: list[str]) -> None:
    """Run the tests of a tree in this process, which was forked with the heavy imports made."""
    os.setsid()  # what the tests start can be ended together
    os.chdir(tree)
    os.environ["PYTHONPATH"] = str(tree)
    # Compiled files are told apart by second and size, which a mutant may share with the one before.
    os.environ["PYTHONDONTWRITEBYTECODE"], sys.dont_write_bytecode = "1", True
    sys.path[:] = [
        str(tree),
        *(path for path in sys.path if path and Path(path).resolve() not in (ROOT, ROOT / "scripts")),
    ]
    for name in [name for name in sys.modules if name.split(".")[0] == "scripts"]:
        del sys.modules[name]
    sys.modules["__main__"] = ModuleType("__main__")  # or else the processes of a test would import this file
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nowhere, stream)
    import pytest

    os._exit(pytest.main(arguments))  # leaving in the usual way would wait for threads that were not forked


def tests_pass(tree: Path, tests: tuple[str, ...], deselect: list[str], timeout: float) -> bool:
    """Whether the tests pass in time; what they started ends with them."""
    arguments = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow", *(f"--deselect={name}" for name in deselect)]
    arguments += [f"--basetemp={tree}_tests", *tests]
    process = FORKS.Process(target=run_pytest, args=(tree, arguments))
    process.start()
    process.join(timeout)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid or 0, signal.SIGKILL)
    process.join()
    return process.exitcode == 0


def is_caught(mutant: Mutant, tree: Path, deselect: list[str], timeout: float) -> bool:
    """Make the change in the tree, run the tests, and take the change back."""
    file = tree / mutant.path
    source = file.read_bytes()
    file.write_bytes(mutant.apply(source))
    try:
        return not tests_pass(tree, tests_of(mutant.path), deselect, timeout)
    finally:
        file.write_bytes(source)


def run(drawn: list[Mutant], jobs: int, deselect: list[str], folder: Path) -> list[Mutant]:
    """The mutants that survive; each is printed as soon as it is known."""
    trees: SimpleQueue[Path] = SimpleQueue()
    for number in range(jobs):
        ignored = shutil.ignore_patterns(".git", ".venv", ".*_cache", "__pycache__")
        trees.put(shutil.copytree(ROOT, folder / str(number), symlinks=True, ignore=ignored))
    seconds = {}
    for tests in sorted({tests_of(mutant.path) for mutant in drawn}):
        start, tree = time.monotonic(), folder / "0"
        if not tests_pass(tree, tests, deselect, timeout=600):
            sys.exit(f"error: {' '.join(tests)} fail without any change: mend them, or leave them out by --deselect")
        seconds[tests] = time.monotonic() - start

    def survives(mutant: Mutant) -> bool:
        tree = trees.get()
        caught = is_caught(mutant, tree, deselect, timeout=20 + 4 * seconds[tests_of(mutant.path)])
        trees.put(tree)
        if not caught:
            print(f"{mutant.path}:{mutant.line}\n  - {mutant.before}\n  + {mutant.after}", flush=True)
        return not caught

    with ThreadPoolExecutor(jobs) as pool:
        return [mutant for mutant, alive in zip(drawn, pool.map(survives, drawn), strict=True) if alive]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=50, metavar="N", help="mutants to draw (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default: %(default)s)")
    parser.add_argument("--only", default="", metavar="PREFIX", help="only files whose path begins so: losses/")
    parser.add_argument("--jobs", type=int, choices=(1, 2), default=1, help="mutants at once (default: %(default)s)")
    parser.add_argument("--deselect", action="append", default=[], metavar="TEST", help="leave a test out, as pytest's")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the survivors and the counts there")
    options = parser.parse_args(arguments)
    os.environ["OMP_NUM_THREADS"] = "1"  # read once, by what is forked
    for name in IMPORTED:
        importlib.import_module(name)
    drawn = draw(options.number, options.seed, options.only)
    if not drawn:
        parser.error(f"nothing to change: no file of the table begins with {options.only!r}, or --number is 0")
    with tempfile.TemporaryDirectory(prefix="mutants_") as folder:
        alive = run(drawn, options.jobs, options.deselect, Path(folder))
    caught = len(drawn) - len(alive)
    print(f"{caught} of {len(drawn)} mutants caught ({caught / len(drawn):.1%}), {len(alive)} survive")
    if options.json:
        result = {"seed": options.seed, "drawn": len(drawn), "caught": caught, "survivors": [asdict(m) for m in alive]}
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main())
