"""Images per second of training and evaluation with one and two processes on the CPU, and their efficiency.

    python benchmarks/bench_scaling.py
    python benchmarks/bench_scaling.py --processes 1 2 4 --threads 4

Each number of processes trains a ResNet-18 on drawn people for some epochs and validates after each; the first epoch is
left out. Every process computes with the same number of threads, so that twice the processes have twice the cores.
Efficiency is the speed over that of one process times the number of processes.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402 - the checkout stands first on the path
from pytorch_lightning import Callback  # noqa: E402

from benchmarks.common import RESULTS, machine, spread, write_report  # noqa: E402
from config.load import load_config  # noqa: E402
from datasets import init_dataset  # noqa: E402
from engine.trainer import build_trainer  # noqa: E402
from train_ctl_model import CTLModel  # noqa: E402


class Rates(Callback):
    """Images per second of each training epoch and each validation, over all processes."""

    def __init__(self) -> None:
        self.training: list[float] = []
        self.evaluation: list[float] = []

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self._images, self._start = 0, time.perf_counter()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._images += len(batch[0]) * trainer.world_size
        self._seconds = time.perf_counter() - self._start  # without the validation that follows

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self._validation = time.perf_counter()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        loader = trainer.val_dataloaders
        self.evaluation.append(len(loader.dataset) / (time.perf_counter() - self._validation))

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.training.append(self._images / self._seconds)


def work(args: argparse.Namespace) -> None:
    """One run; its first process writes the rates."""
    options: dict[str, Any] = {
        "MODEL.NAME": "resnet18",
        "MODEL.BACKBONE_EMB_SIZE": 512,
        "MODEL.PRETRAINED": False,
        "INPUT.SIZE_TRAIN": [128, 64],
        "INPUT.SIZE_TEST": [128, 64],
        "DATASETS.ROOT_DIR": str(args.data),
        "DATALOADER.NUM_WORKERS": 0,
        "SOLVER.IMS_PER_BATCH": args.identities // args.work,
        "SOLVER.MAX_EPOCHS": args.epochs + 1,
        "SOLVER.EVAL_PERIOD": 1,
        "SOLVER.DIST_BACKEND": "ddp_cpu",
        "GPU_IDS": list(range(args.work)),
        "TEST.IMS_PER_BATCH": 32,
        "REPRODUCIBLE": False,
        "USE_MIXED_PRECISION": False,
        "TRAINER.PROGRESS_BAR": False,
    }
    cfg = load_config("", [part for pair in options.items() for part in pair])
    cfg.OUTPUT_DIR, cfg.LOG_DIR = "", str(args.data / "logs")
    data = init_dataset("market1501", cfg=cfg)
    data.setup()
    model = CTLModel(cfg, num_query=data.num_query, num_classes=data.num_classes)
    trainer, rates = build_trainer(cfg, []), Rates()
    trainer.callbacks = [rates]  # type: ignore[attr-defined]
    trainer.fit(model, datamodule=data)
    if trainer.is_global_zero:
        args.out.write_text(json.dumps({"training": rates.training[1:], "evaluation": rates.evaluation[1:]}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="default: 1 2")
    parser.add_argument("--threads", type=int, default=1, help="of each process, default: 1")
    parser.add_argument("--identities", type=int, default=8, help="of a step, over all processes, default: 8")
    parser.add_argument("--epochs", type=int, default=3, help="counted, after one that is not, default: 3")
    parser.add_argument("--out", type=Path, help="JSON file, default: benchmarks/results/scaling.json")
    parser.add_argument("--work", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.work:
        work(args)
        return
    report: dict[str, Any] = {
        "network": "resnet18, 128 x 64",
        "images_of_a_step": 4 * args.identities,
        "machine": machine(args.threads, "pytorch-lightning"),
    }
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        draw = [sys.executable, str(ROOT / "scripts" / "make_toy_dataset.py"), str(data), "--ids", "60"]
        subprocess.run([*draw, "--images-per-id", "12"], check=True, stdout=subprocess.DEVNULL)
        for count in args.processes:
            result = Path(folder) / f"{count}.json"
            command = [sys.executable, __file__, "--work", str(count), "--data", str(data), "--out", str(result)]
            command += [
                "--threads",
                str(args.threads),
                "--identities",
                str(args.identities),
                "--epochs",
                str(args.epochs),
            ]
            environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
            subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
            rates = json.loads(result.read_text())
            report[f"{count}_processes"] = {f"{name}_images_per_s": spread(values) for name, values in rates.items()}
    one = report.get("1_processes")
    for count in args.processes:
        if one is not None and count > 1:
            row = report[f"{count}_processes"]
            for name in ("training", "evaluation"):
                key = f"{name}_images_per_s"
                row[f"{name}_efficiency"] = row[key]["median"] / (count * one[key]["median"])
    out = args.out or RESULTS / "scaling.json"
    write_report(report, out)
    print(f"{json.dumps(report)}\nwritten: {out}")


if __name__ == "__main__":
    main()
