"""A long training of a tiny configuration: whether memory, open files and checkpoints stay as they are.

    python benchmarks/soak.py
    python benchmarks/soak.py --epochs 20

Trains as the script does, with a validation, TensorBoard, MLflow and checkpoints in every epoch, in this process, and
ends with status 1 if memory or open files grow from the first quarter to the last (the first tenth, in which libraries
load, is left out), or if another number of checkpoints than one of each kind is left.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import psutil  # noqa: E402 - the checkout stands first on the path
import torch  # noqa: E402

from benchmarks.common import RESULTS, machine, spread, write_report  # noqa: E402
from config.load import load_config  # noqa: E402
from engine.run import run_main  # noqa: E402
from train_ctl_model import CTLModel  # noqa: E402

GROWTH_MIB = 32  # of the median of a quarter; allocators keep some


class Watched(CTLModel):
    """Notes resident memory and open files at the end of each epoch."""

    memory_mib: list[float] = []  # noqa: RUF012 - one list for the run, read after it
    open_files: list[int] = []  # noqa: RUF012

    def on_train_epoch_end(self) -> None:
        super().on_train_epoch_end()
        process = psutil.Process()
        self.memory_mib.append(process.memory_info().rss / 2**20)
        self.open_files.append(process.num_fds())


def quarters(values: list[Any]) -> dict[str, Any]:
    """The first and the last quarter, and the largest value."""
    values = values[len(values) // 10 :]
    part = max(1, len(values) // 4)
    return {
        "first": spread(values[:part]),
        "last": spread(values[-part:]),
        "largest": max(values),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=200, help="default: 200")
    parser.add_argument("--out", type=Path, help="JSON file, default: benchmarks/results/soak.json")
    args = parser.parse_args()
    out = (args.out or RESULTS / "soak.json").absolute()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        draw = [sys.executable, str(ROOT / "scripts" / "make_toy_dataset.py"), "data", "--size", "32", "16"]
        subprocess.run(
            [*draw, "--ids", "12", "--images-per-id", "6", "--cameras", "3"], check=True, capture_output=True
        )
        options = {
            "MODEL.NAME": "resnet18",
            "MODEL.BACKBONE_EMB_SIZE": 512,
            "MODEL.PRETRAINED": False,
            "INPUT.SIZE_TRAIN": [32, 16],
            "INPUT.SIZE_TEST": [32, 16],
            "DATASETS.ROOT_DIR": "data",
            "DATALOADER.NUM_WORKERS": 1,
            "SOLVER.IMS_PER_BATCH": 3,
            "SOLVER.MAX_EPOCHS": args.epochs,
            "SOLVER.EVAL_PERIOD": 1,
            "OUTPUT_DIR": "out",
            "GPU_IDS": [],
            "USE_MIXED_PRECISION": False,
            "REPRODUCIBLE_NUM_RUNS": 1,
            "TRAINER.PROGRESS_BAR": False,
        }
        run_main(load_config("", [part for pair in options.items() for part in pair]), Watched, "soak")
        run = Path("out/soak/version_0")
        left = {kind: len(list((run / kind).iterdir())) for kind in ("auto_checkpoints", "checkpoints")}
    report: dict[str, Any] = {
        "epochs": args.epochs,
        "machine": machine(1, "pytorch-lightning", "mlflow"),
        "memory_mib": quarters(Watched.memory_mib),
        "open_files": quarters(Watched.open_files),
        "checkpoints_left": left,
    }
    write_report(report, out)
    print(json.dumps(report))
    memory, files = report["memory_mib"], report["open_files"]
    growth = {
        name: part["last"]["median"] - part["first"]["median"] for name, part in (("memory", memory), ("files", files))
    }
    flat = growth["memory"] <= GROWTH_MIB and growth["files"] <= 0
    if not flat or set(left.values()) != {1}:
        sys.exit(1)


if __name__ == "__main__":
    main()
