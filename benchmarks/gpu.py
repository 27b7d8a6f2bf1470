"""What a GPU makes of this project, in one command of a few minutes: training, loading, embedding, evaluation.

    python -m benchmarks.gpu --minutes 5
    python -m benchmarks.gpu --minutes 1 --device cpu --network resnet18 --size 64 32 --batches 8 --evaluations small

Weights are random, images and embeddings are drawn. A training step is measured beside two others in the same process:
a plain PyTorch loop of the same network, losses, precision and memory format, and the forward and backward pass of the
backbone alone. The profiler adds the time of the step's own kernels, which no step can be faster than. The report says
which goals are met, and what was left out when the time was up. It is written after each part.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402 - the checkout stands first on the path
from pytorch_lightning import Callback, Trainer  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

from benchmarks.bench_embedding import drawn_image  # noqa: E402
from benchmarks.bench_evaluation import SIZES, draw, labels  # noqa: E402
from benchmarks.bench_training import PER_IDENTITY, PlainLoop, make_batch, make_model  # noqa: E402
from benchmarks.common import RESULTS, machine, write_report  # noqa: E402
from config.defaults import _C as DEFAULTS  # noqa: E402
from datasets.loading import BaseDatasetLabelled, LateStartLoader  # noqa: E402
from datasets.transforms import ReidTransforms  # noqa: E402
from engine.noise import quiet_libraries  # noqa: E402
from evaluation.metrics import evaluate_embeddings  # noqa: E402
from evaluation.rerank import Rerank  # noqa: E402
from inference.embedding.embedder import Embedder  # noqa: E402
from modelling.backbones import NetworkOptions, get_backbone  # noqa: E402
from utils.devices import count_cpus  # noqa: E402

PRECISIONS = ("32-true", "tf32", "16-mixed", "bf16-mixed")
WARM_UP, SECONDS, MOST_STEPS = 3, 1.5, 30  # steps before the clock starts, its least time, and the most steps
FILES = 2048  # images that are loaded
GOALS = {  # name -> limit, and whether smaller is better
    "step_over_backbone": (1.10, True),
    "times_plain": (1.0, False),
    "evaluation_over_product": (1.5, True),
}


@dataclass(frozen=True)
class Cell:
    """One way to train."""

    batch: int  # images
    precision: str  # one of PRECISIONS
    compiled: bool

    @property
    def name(self) -> str:
        return f"{self.batch}, {self.precision}{', compiled' if self.compiled else ''}"

    @property
    def lightning(self) -> str:
        """The precision as Lightning names it."""
        return "32-true" if self.precision == "tf32" else self.precision


@contextmanager
def products_of(precision: str) -> Iterator[None]:
    """TF32 on or off, for matrix products and convolutions alike."""
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False


class Clock:
    """Time on a device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def now(self) -> float:
        """Seconds, once the device has done all that it was asked for."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def per_call(self, function: Callable[[], Any]) -> float:
        """Seconds of a call, on average over as many as fit into SECONDS, after WARM_UP calls."""
        for _ in range(WARM_UP):
            function()
        start = self.now()
        function()
        calls = max(2, min(MOST_STEPS, round(SECONDS / max(self.now() - start, 1e-6))))
        start = self.now()
        for _ in range(calls):
            function()
        return (self.now() - start) / calls

    def kernel_seconds(self, function: Callable[[], Any], calls: int) -> float | None:
        """Seconds that the kernels of ``function``, which makes so many steps, take for one; None on a CPU."""
        if self.device.type != "cuda":
            return None
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            function()
            self.now()
        return sum(event.self_device_time_total for event in seen.key_averages()) / 1e6 / calls

    def start_peak(self) -> None:
        """Let the peak memory count from here."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_mib(self) -> float | None:
        """MiB that torch allocated at most; None on a CPU."""
        return round(torch.cuda.max_memory_allocated(self.device) / 2**20, 1) if self.device.type == "cuda" else None


class StepTimes(Callback):
    """Times the steps of a fit as one span, after WARM_UP of them; asks for nothing in between."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.begun, self.seconds = clock, 0.0, 0.0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == WARM_UP - 1:
            self.begun = self.clock.now()
        elif batch_idx == trainer.num_training_batches - 1:
            self.seconds = (self.clock.now() - self.begun) / (batch_idx + 1 - WARM_UP)


def train(model: Any, batch: tuple[Tensor, ...], steps: int, cell: Cell, clock: Clock) -> float:
    """Seconds of a step of this project, through a Trainer."""
    times = StepTimes(clock)
    trainer = Trainer(
        accelerator="gpu" if clock.device.type == "cuda" else "cpu",
        devices=[clock.device.index or 0] if clock.device.type == "cuda" else 1,
        precision=cell.lightning,  # type: ignore[arg-type]
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[times],
    )
    trainer.fit(model, DataLoader([batch] * (WARM_UP + steps), batch_size=None))  # type: ignore[arg-type]
    return times.seconds


def plain_seconds(network: str, cell: Cell, images: Tensor, targets: Tensor, clock: Clock) -> float:
    """Seconds of a step of the plain loop."""
    loop = PlainLoop(network, clock.device, cell.precision, channels_last=True)
    return clock.per_call(lambda: loop.step(images, targets))


def bench_cell(cell: Cell, network: str, size: list[int], clock: Clock) -> dict[str, Any]:
    """Steps of this project, of the plain loop and of the backbone alone, in one precision."""
    batch = make_batch(cell.batch // PER_IDENTITY, 3, *size)
    images, targets = batch[0].to(clock.device), batch[1].to(clock.device)
    batch = (images, *batch[1:])  # the copy of images is not measured in any of them
    with products_of(cell.precision):
        backbone = get_backbone(network).build(NetworkOptions(1)).to(clock.device, memory_format=torch.channels_last)
        half = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}.get(cell.precision)

        def alone() -> None:
            with torch.autocast(clock.device.type, half or torch.bfloat16, enabled=half is not None):
                features = backbone(images.contiguous(memory_format=torch.channels_last))
            features.float().mean((2, 3)).sum().backward()
            backbone.zero_grad()

        seconds = {"backbone": clock.per_call(alone)}
        seconds["plain"] = plain_seconds(network, cell, images, targets, clock)
        model = make_model(network, **{"MODEL.COMPILE": cell.compiled})
        clock.start_peak()
        steps = max(2, min(MOST_STEPS, round(SECONDS / seconds["plain"])))
        seconds["step"] = train(model, batch, steps, cell, clock)
        peak = clock.peak_mib()
        model = make_model(network) if cell.compiled else model
        kernels = clock.kernel_seconds(lambda: train(model, batch, 3, cell, clock), WARM_UP + 3)
    row: dict[str, Any] = {f"{name}_ms": round(1e3 * value, 3) for name, value in seconds.items()} | {
        "images_per_s": round(cell.batch / seconds["step"], 1),
        "times_plain": round(seconds["plain"] / seconds["step"], 3),
        "step_over_backbone": round(seconds["step"] / seconds["backbone"], 3),
        "peak_mib": peak,
    }
    if kernels is not None and not cell.compiled:  # a profile of compiled kernels would compile once more
        row |= {"kernels_ms": round(1e3 * kernels, 3), "step_over_kernels": round(seconds["step"] / kernels, 3)}
    return row


def bench_loading(size: list[int], folder: Path) -> dict[str, Any]:
    """Images per second from JPEG files of 128 x 64 to batches, by as many workers as this machine has cores."""
    workers, files = count_cpus(), []
    for i in range(FILES):
        files.append(str(folder / f"{i:05d}.jpg"))
        drawn_image(i % 64).save(files[-1], quality=90)
    cfg = DEFAULTS.clone()
    cfg.merge_from_list(["INPUT.SIZE_TRAIN", size])
    samples = [(path, i // PER_IDENTITY, 0, i) for i, path in enumerate(files)]
    data = BaseDatasetLabelled(samples, ReidTransforms(cfg).build_transforms(is_train=True))
    loader = LateStartLoader(data, batch_size=64, num_workers=workers)
    next(iter(loader))
    start = time.perf_counter()
    seen = sum(len(batch[0]) for batch in loader)
    return {"workers": workers, "images_per_s": round(seen / (time.perf_counter() - start), 1)}


def bench_embedding(network: str, size: list[int], folder: Path, clock: Clock) -> dict[str, Any]:
    """Images per second of the Embedder: on pixels in memory, and from the files of the part before."""
    model = make_model(network)
    row: dict[str, Any] = {}
    pixels = torch.randint(0, 256, (128, 3, *size), dtype=torch.uint8)
    pixels = pixels.pin_memory() if clock.device.type == "cuda" else pixels
    for precision in ("32-true", "bf16-true", *(["16-true"] if clock.device.type == "cuda" else [])):
        embedder = Embedder(model, clock.device, precision, size=size, batch_size=128)
        clock.start_peak()
        seconds = clock.per_call(partial(embedder.embed_pixels, pixels))
        row[precision] = {"forward_images_per_s": round(128 / seconds, 1), "peak_mib": clock.peak_mib()}
        files = sorted(map(str, folder.glob("*.jpg")))
        start = clock.now()
        embedder.embed(files)
        row[precision]["from_files_images_per_s"] = round(len(files) / (clock.now() - start), 1)
    return row


def product_seconds(query: Tensor, gallery: Tensor, clock: Clock) -> float:
    """Seconds of the product of two matrices, into memory that is there already."""
    product = torch.empty(len(query), len(gallery), device=clock.device)
    return clock.per_call(lambda: torch.mm(query, gallery.t(), out=product))


def bench_evaluation(name: str, rerank: bool, clock: Clock) -> dict[str, Any]:
    """The whole evaluation on the device beside the product of its two matrices, and re-ranking beside its own."""
    data = draw(name)
    query, gallery = (data[side].to(clock.device) for side in ("query", "gallery"))
    seconds = {"product": product_seconds(query, gallery, clock)}
    clock.start_peak()
    seconds["evaluation"] = clock.per_call(lambda: evaluate_embeddings(query, gallery, *labels(data)))
    row: dict[str, Any] = {"peak_mib": clock.peak_mib()}
    row["evaluation_over_product"] = round(seconds["evaluation"] / seconds["product"], 3)
    if rerank:
        start = clock.now()
        evaluate_embeddings(query, gallery, *labels(data), rerank=Rerank())
        seconds["reranking"] = clock.now() - start
        images = torch.cat((query, gallery))
        seconds["product_of_all"] = product_seconds(images, images, clock)
        row["reranking_over_product_of_all"] = round(seconds["reranking"] / seconds["product_of_all"], 3)
    return row | {f"{part}_s": round(value, 4) for part, value in seconds.items()}


def goals_of(report: dict[str, Any]) -> dict[str, Any]:
    """Which parts of a report meet each goal, and which do not."""
    parts = {**report.get("training", {}), **report.get("evaluation", {})}
    found = {}
    for goal, (limit, smaller) in GOALS.items():
        values = {name: row[goal] for name, row in parts.items() if goal in row}
        met = [name for name, value in values.items() if (value <= limit if smaller else value >= limit)]
        median = statistics.median(values.values()) if values else None
        missed = {name: value for name, value in values.items() if name not in met}
        found[goal] = {"limit": limit, "median": median, "met": met, "missed": missed}
    return found


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--minutes",
        type=float,
        default=5,
        help="parts that would begin later are left out, a part that has begun is finished; default 5",
    )
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu to try the command; default: cuda")
    parser.add_argument("--network", default="resnet50")
    parser.add_argument("--size", type=int, nargs=2, default=[256, 128], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 256], help="images; default: 64 256")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--evaluations", nargs="+", choices=SIZES, default=["market", "msmt"])
    parser.add_argument(
        "--no-compile", action="store_true", help="leave out MODEL.COMPILE, which takes a minute a cell"
    )
    parser.add_argument("--out", type=Path, help="JSON file, default: benchmarks/results/gpu_CARD.json")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    quiet_libraries()
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit("error: torch finds no CUDA device; --device cpu tries the command without one.")
    started, device = time.perf_counter(), torch.device(args.device)
    clock = Clock(device)
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "none"
    report: dict[str, Any] = {
        "card": card,
        "network": args.network,
        "size": args.size,
        "machine": machine(torch.get_num_threads(), "pytorch-lightning", "torchvision"),
        "cuda": torch.version.cuda,
    }
    out = args.out or RESULTS / f"gpu_{'_'.join(card.lower().split())}.json"
    cells = [Cell(batch, precision, False) for precision in args.precisions for batch in args.batches]
    compiled = [] if args.no_compile else [Cell(cell.batch, cell.precision, True) for cell in reversed(cells)]
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder)
        work: list[tuple[str, str, Callable[[], Any]]] = [
            *(("training", c.name, lambda c=c: bench_cell(c, args.network, args.size, clock)) for c in cells),
            ("loading", "jpeg", lambda: bench_loading(args.size, files)),
            ("embedding", args.network, lambda: bench_embedding(args.network, args.size, files, clock)),
            *(
                ("evaluation", name, lambda name=name: bench_evaluation(name, name != "msmt", clock))
                for name in args.evaluations
            ),
            *(("training", c.name, lambda c=c: bench_cell(c, args.network, args.size, clock)) for c in compiled),
        ]
        left_out = []
        for part, name, measure in work:
            if time.perf_counter() - started > 60 * args.minutes:
                left_out.append(f"{part}: {name}")
                continue
            print(f"{part}, {name}: ...", flush=True)
            try:
                row = measure()
            except torch.cuda.OutOfMemoryError as error:
                row = {"failed": str(error).splitlines()[0]}
            report.setdefault(part, {})[name] = row
            report |= {"goals": goals_of(report), "left_out": left_out}
            print(f"{part}, {name}: {json.dumps(row)}", flush=True)
            write_report(report, out)
    report["left_out"] = left_out
    write_report(report, out)
    for goal, found in goals_of(report).items():
        print(f"{goal} (goal {found['limit']}): met by {len(found['met'])}, missed by {found['missed'] or 'none'}")
    print(f"{'left out: ' + ', '.join(left_out) if left_out else 'nothing was left out'}; written: {out}")


if __name__ == "__main__":
    main()
