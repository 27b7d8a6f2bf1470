"""What the benchmarks share: timing in turns, spreads, memory, the machine they ran on, and how reports are written.

benchmarks/tables.py turns the reports into the tables of docs/BENCHMARKS.md.
"""

import gc
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from utils.files import write_text

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
STARTED = datetime.now(UTC)


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that a call took, and what it returned."""
    gc.collect()
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def in_turns(repeats: int, **functions: Callable[[], Any]) -> dict[str, list[float]]:
    """Seconds of each function in each round; every other round in the reverse order."""
    return values_in_turns(repeats, **{name: lambda f=f: timed(f)[0] for name, f in functions.items()})


def values_in_turns(repeats: int, **functions: Callable[[], float]) -> dict[str, list[float]]:
    """The same for functions that take their time themselves, and return it."""
    values: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(repeats):
        for name in list(functions)[:: 1 if turn % 2 == 0 else -1]:
            values[name].append(functions[name]())
    return values


def spread(values: list[float]) -> dict[str, Any]:
    """Median, least, largest, and the values themselves."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "values": [float(f"{value:.5g}") for value in values],
    }


def ratios(values: list[float], others: list[float]) -> dict[str, Any]:
    """The spread of values / others, round by round."""
    return spread([a / b for a, b in zip(values, others, strict=True)])


def status_mib(field: str) -> float:
    """A field of /proc/self/status in MiB (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def start_peak() -> float:
    """Let the peak memory of this process count from here; resident MiB at this point (Linux)."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    return status_mib("VmRSS")


def cpu_flags() -> list[str]:
    """Which of the instructions that bfloat16 profits from this CPU has (Linux)."""
    info = Path("/proc/cpuinfo")
    words = set(info.read_text().split()) if info.exists() else set()
    return sorted(words & {"avx2", "avx512f", "avx512_bf16", "amx_bf16"})


def machine(threads: int, *packages: str) -> dict[str, Any]:
    """What the numbers were measured on and with: versions of torch, numpy and ``packages``, None where missing."""
    versions: dict[str, str | None] = {}
    for package in ("torch", "numpy", *packages):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    cpuinfo, model = Path("/proc/cpuinfo"), platform.processor()
    if cpuinfo.exists():
        model = next((x.split(":")[1].strip() for x in cpuinfo.read_text().splitlines() if "model name" in x), model)
    return {
        "python": platform.python_version(),
        **versions,
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": threads,
        "load_average": os.getloadavg() if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
    }


def command_line() -> str:
    """How this program was called, as a line for a shell in the root of the repository."""
    program = Path(sys.argv[0]).resolve()
    name = program.relative_to(ROOT).as_posix() if program.is_relative_to(ROOT) else program.name
    return shlex.join(["python", name, *sys.argv[1:]])


def commit() -> str | None:
    """The commit that is checked out, "with changes" if files differ from it; None outside a git repository.

    Results and pages do not count: a measurement changes them.
    """

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        name = git("rev-parse", "HEAD")
        changed = git("status", "--porcelain", "--", ".", ":!benchmarks/results", ":!docs", ":!*.md")
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{name} with changes" if changed else name


def write_report(report: dict[str, Any], out: Path) -> None:
    """The report so far as JSON, headed by the command line, the date it was started and the commit."""
    origin = {"command": command_line(), "date": STARTED.isoformat(timespec="seconds"), "commit": commit()}
    write_text(out, json.dumps(origin | report, indent=1) + "\n")


def run_parts(
    parts: Iterable[str], measure: Mapping[str, Callable[[], Any]], report: dict[str, Any], out: Path
) -> None:
    """Measure one part after the other, and write the report after each."""
    for part in parts:
        report[part] = measure[part]()
        print(f"{part}: {json.dumps(report[part])}", flush=True)
        write_report(report, out)
    print(f"written: {out}")
