"""Images per second of training and evaluation with one and two processes on the CPU, and their efficiency.

    python benchmarks/bench_scaling.py
    python benchmarks/bench_scaling.py --processes 1 2 4 --threads 4
    python benchmarks/bench_scaling.py --part embedding

Each number of processes trains a ResNet-18 on drawn people for some epochs and validates after each; the first epoch is
left out. Every process computes with the same number of threads, so that twice the processes have twice the cores.
Efficiency is the speed over that of one process times the number of processes. The part "embedding" embeds drawn images
with create_embeddings.py in turns; the time is that of the embedding alone, from the first chunk to the last.
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

from benchmarks.bench_embedding import drawn_image  # noqa: E402 - the checkout stands first on the path
from benchmarks.common import RESULTS, machine, spread, write_report  # noqa: E402
from config.load import load_config  # noqa: E402
from datasets import init_dataset  # noqa: E402
from engine.trainer import build_trainer  # noqa: E402
from modelling.backbones import NetworkOptions, get_backbone  # noqa: E402
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


def bench_embedding(args: argparse.Namespace) -> dict[str, Any]:
    """Images per second of galleries that each number of processes makes, in turns."""
    rates: dict[int, list[float]] = {count: [] for count in args.processes}
    with tempfile.TemporaryDirectory() as folder:
        images, model = Path(folder) / "images", Path(folder) / "model.pth"
        images.mkdir()
        for number in range(args.images):
            drawn_image(number).save(images / f"{number:06d}.jpg")
        torch.save(get_backbone("resnet18").build(NetworkOptions()).state_dict(), model)
        options = {"DATASETS.ROOT_DIR": images, "MODEL.PRETRAIN_PATH": model, "MODEL.NAME": "resnet18"}
        options |= {"MODEL.BACKBONE_EMB_SIZE": 512, "INPUT.SIZE_TEST": "[128,64]", "TEST.IMS_PER_BATCH": 32}
        options |= {"SOLVER.DIST_BACKEND": "ddp_cpu", "TRAINER.PROGRESS_BAR": False, "DATALOADER.NUM_WORKERS": 1}
        for turn in range(args.repeats):
            for count in args.processes:
                out = Path(folder) / f"{turn}_{count}"
                given = [str(part) for pair in options.items() for part in pair]
                given += ["GPU_IDS", str(list(range(count))), "OUTPUT_DIR", str(out), "--chunk-size", str(args.chunk)]
                rates[count].append(args.images / seconds_of_chunks(given, out, args))
    one = spread(rates[1])["median"] if 1 in rates else None
    report: dict[str, Any] = {"network": "resnet18, 128 x 64", "images": args.images, "chunk": args.chunk}
    for count, values in rates.items():
        row = report[f"{count}_processes"] = {"embedding_images_per_s": spread(values)}
        if one is not None and count > 1:
            row["embedding_efficiency"] = row["embedding_images_per_s"]["median"] / (count * one)
    return report


def seconds_of_chunks(given: list[str], out: Path, args: argparse.Namespace) -> float:
    """Run create_embeddings.py; the time from the first claim to the gallery, without the start of the processes."""
    command = [sys.executable, str(ROOT / "inference" / "create_embeddings.py"), *given]
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
    began = 0.0
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as running:
        while running.poll() is None:
            if not began and any((out / "embeddings.parts").glob("*.claim")):
                began = time.perf_counter()
            if (out / "paths.npy").exists():
                break
            time.sleep(0.002)
        seconds = time.perf_counter() - began
    if running.returncode or not began:
        raise RuntimeError(f"{' '.join(command)} ended with status {running.returncode}")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="default: 1 2")
    parser.add_argument("--threads", type=int, default=1, help="of each process, default: 1")
    parser.add_argument("--identities", type=int, default=8, help="of a step, over all processes, default: 8")
    parser.add_argument("--epochs", type=int, default=3, help="counted, after one that is not, default: 3")
    parser.add_argument("--part", choices=("training", "embedding"), default="training", help="default: training")
    parser.add_argument("--images", type=int, default=4096, help="that are embedded, default: 4096")
    parser.add_argument("--chunk", type=int, default=128, help="images in a chunk, default: 128")
    parser.add_argument("--repeats", type=int, default=3, help="galleries for each number, default: 3")
    parser.add_argument("--out", type=Path, help="JSON file, default: benchmarks/results/scaling[_embedding].json")
    parser.add_argument("--work", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.work:
        work(args)
        return
    if args.part == "embedding":
        out = args.out or RESULTS / "scaling_embedding.json"
        write_report(bench_embedding(args) | {"machine": machine(args.threads)}, out)
        print(f"written: {out}")
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
