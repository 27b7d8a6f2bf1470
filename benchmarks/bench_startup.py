"""Seconds from the start of a training until its first batch reaches the training step, beside a bare script.

    python benchmarks/bench_startup.py
    python benchmarks/bench_startup.py --parts imports --repeats 3

Whole processes on a drawn data set (ResNet-18, 32 images of 128 x 64 in a batch, no workers), started in turns after a
round that is not counted. The bare script is benchmarks/bare_training.py. A callback that Lightning finds by its entry
point notes the time in both, so that neither program is changed.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.common import RESULTS, machine, ratios, run_parts, spread  # noqa: E402 - the checkout is first

PARTS = ("first_batch", "imports", "costs")
BARE, OURS = "import torch, torchvision, pytorch_lightning", "import train_ctl_model"
LISTED = 10  # imports, the most expensive ones

HOOK = """
import os
import time

from pytorch_lightning import Callback


class FirstBatch(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        with open(os.environ["FIRST_BATCH_FILE"], "w") as file:
            file.write(f"{time.monotonic()} {len(batch[0])}")
        os._exit(0)


def callbacks():
    return [FirstBatch()]
"""
ENTRY_POINTS = "[pytorch_lightning.callbacks_factory]\nfirst_batch = first_batch_hook:callbacks\n"


def environment(threads: int, **variables: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": str(threads), **variables}


def in_processes(names: list[str], run: Callable[[str], Any], repeats: int) -> dict[str, list[Any]]:
    """What ``run`` gives for each name in each round, after a round that is not counted; every other round reversed."""
    kept: dict[str, list[Any]] = {name: [] for name in names}
    for turn in range(repeats + 1):
        for name in names[:: 1 if turn % 2 == 0 else -1]:
            result = run(name)
            if turn:
                kept[name].append(result)
    return kept


# ------------------------------------------------------------------------------------------------------- the parts


def install_hook(folder: Path) -> None:
    """A package with the callback, for a folder of PYTHONPATH."""
    package = folder / "first_batch_hook-1.0.dist-info"
    package.mkdir(parents=True)
    (folder / "first_batch_hook.py").write_text(HOOK)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: first_batch_hook\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text(ENTRY_POINTS)


def programs(data: Path) -> dict[str, list[str]]:
    """Command lines: the bare script, and ours without and with MLflow, which is on by default."""
    options = {
        "MODEL.NAME": "resnet18",
        "MODEL.BACKBONE_EMB_SIZE": "512",
        "MODEL.PRETRAINED": "False",
        "INPUT.SIZE_TRAIN": "[128,64]",
        "INPUT.SIZE_TEST": "[128,64]",
        "DATASETS.ROOT_DIR": str(data),
        "DATALOADER.NUM_WORKERS": "0",
        "SOLVER.IMS_PER_BATCH": "8",  # identities, with 4 images each
        "GPU_IDS": "[]",
        "USE_MIXED_PRECISION": "False",
        "OUTPUT_DIR": "out",
    }
    ours = [str(ROOT / "train_ctl_model.py"), *(part for pair in options.items() for part in pair)]
    return {
        "bare": [str(ROOT / "benchmarks" / "bare_training.py"), str(data / "market1501" / "bounding_box_train")],
        "this_project": [*ours, "LOGGING.MLFLOW", "False"],
        "this_project_with_mlflow": ours,
    }


def bench_first_batch(repeats: int, threads: int, identities: int) -> dict[str, Any]:
    """Seconds until the first batch reaches the training step, each start in a new folder."""
    with tempfile.TemporaryDirectory() as folder:
        hook, data = Path(folder) / "hook", Path(folder) / "data"
        install_hook(hook)
        draw = [sys.executable, str(ROOT / "scripts" / "make_toy_dataset.py"), str(data), "--ids", str(identities)]
        subprocess.run(draw, check=True, capture_output=True)
        commands = programs(data)

        def first_batch(name: str) -> float:
            with tempfile.TemporaryDirectory(dir=folder) as place:
                noted = Path(place) / "first_batch"
                variables = environment(threads, PYTHONPATH=str(hook), FIRST_BATCH_FILE=str(noted))
                start = time.monotonic()
                done = subprocess.run(
                    [sys.executable, *commands[name]], cwd=place, env=variables, capture_output=True, text=True
                )
                if not noted.exists():
                    raise RuntimeError(f"{name} ended with {done.returncode} before a batch:\n{done.stderr}")
                reached, images = noted.read_text().split()
                assert images == "32", f"{name} has {images} images in a batch"
                return float(reached) - start

        seconds = in_processes(list(commands), first_batch, repeats)
    return {
        name: {"seconds": spread(values), "times_bare": ratios(values, seconds["bare"])}
        for name, values in seconds.items()
    }


def bench_imports(repeats: int, threads: int) -> dict[str, Any]:
    """Seconds and number of modules of the imports alone, inside a new interpreter."""
    statements = {"bare": BARE, "this_project": OURS}
    measure = (
        "import sys, time; before = len(sys.modules); start = time.perf_counter(); {}; "
        "print(time.perf_counter() - start, len(sys.modules) - before)"
    )

    def run(name: str) -> tuple[float, int]:
        command = [sys.executable, "-c", measure.format(statements[name])]
        done = subprocess.run(command, cwd=ROOT, env=environment(threads), capture_output=True, text=True, check=True)
        seconds, modules = done.stdout.split()
        return float(seconds), int(modules)

    found = in_processes(list(statements), run, repeats)
    bare = [seconds for seconds, _ in found["bare"]]
    return {
        name: {
            "seconds": spread([seconds for seconds, _ in rows]),
            "times_bare": ratios([seconds for seconds, _ in rows], bare),
            "modules": rows[0][1],
        }
        for name, rows in found.items()
    }


def bench_costs(repeats: int, threads: int) -> list[dict[str, Any]]:
    """The most expensive imports of ours after those of the bare script: modules by the time of their own code."""
    own: dict[str, list[float]] = {}
    total: dict[str, list[float]] = {}
    for _ in range(repeats):
        command = [sys.executable, "-X", "importtime", "-c", f"{BARE}; import sys; print(file=sys.stderr); {OURS}"]
        done = subprocess.run(command, cwd=ROOT, env=environment(threads), capture_output=True, text=True, check=True)
        beyond = done.stderr.rpartition("\n\n")[2]
        for alone, whole, module in re.findall(r"import time:\s+(\d+) \|\s+(\d+) \|\s+(\S+)", beyond):
            own.setdefault(module, []).append(int(alone) / 1e3)
            total.setdefault(module, []).append(int(whole) / 1e3)
    rows: list[dict[str, Any]] = [
        {"module": name, "own_ms": spread(own[name]), "with_its_imports_ms": spread(total[name])} for name in own
    ]
    return sorted(rows, key=lambda row: -row["own_ms"]["median"])[:LISTED]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="default: all")
    parser.add_argument("--repeats", type=int, default=7, help="counted rounds, default: 7")
    parser.add_argument("--threads", type=int, default=2, help="default: 2")
    parser.add_argument("--identities", type=int, default=24, help="drawn, with 8 images each, default: 24")
    parser.add_argument("--out", type=Path, default=RESULTS / "startup.json", help="JSON file")
    args = parser.parse_args()
    report: dict[str, Any] = {
        "repeats": args.repeats,
        "machine": machine(args.threads, "torchvision", "pytorch-lightning", "mlflow"),
    }
    measure: dict[str, Callable[[], Any]] = {
        "first_batch": lambda: bench_first_batch(args.repeats, args.threads, args.identities),
        "imports": lambda: bench_imports(args.repeats, args.threads),
        "costs": lambda: bench_costs(args.repeats, args.threads),
    }
    run_parts(args.parts, measure, report, args.out)
    for row in report.get("costs", []):
        print(f"{row['own_ms']['median']:8.1f} ms  {row['with_its_imports_ms']['median']:8.1f} ms  {row['module']}")


if __name__ == "__main__":
    main()
