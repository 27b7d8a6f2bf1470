"""Where the time of a training step goes, beside the backbone alone and a straightforward PyTorch loop.

    python benchmarks/bench_training.py
    python benchmarks/bench_training.py --parts heads
    python benchmarks/bench_training.py --device gpu --precision 16-mixed --identities 64 --steps 20

Batches are drawn and lie in memory; the loader is measured by bench_data.py. What is compared is measured in turns, so
that other load on the machine meets all; ratios are taken within a round.
"""

import argparse
import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402 - the checkout stands first on the path
from pytorch_lightning import Callback, Trainer  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

from benchmarks.common import RESULTS, machine, ratios, run_parts, spread, start_peak, status_mib  # noqa: E402
from config.defaults import _C as DEFAULTS  # noqa: E402
from modelling.backbones import NetworkOptions, get_backbone  # noqa: E402
from train_ctl_model import CTLModel  # noqa: E402

PARTS = ("heads", "step", "memory")
CLASSES = 751
PER_IDENTITY = 4
VARIANTS: dict[str, dict[str, Any]] = {
    "this_project": {},
    "contiguous": {"MODEL.CHANNELS_LAST": False},
    "grad_checkpoint": {"MODEL.GRAD_CHECKPOINT": True},
}


def make_model(network: str, **options: Any) -> CTLModel:
    cfg = DEFAULTS.clone()
    size = get_backbone(network).embedding_size
    options = {"MODEL.NAME": network, "MODEL.BACKBONE_EMB_SIZE": size, "MODEL.PRETRAINED": False} | options
    cfg.merge_from_list([part for pair in options.items() for part in pair])
    torch.manual_seed(0)
    return CTLModel(cfg, num_classes=CLASSES, num_query=0)


def make_batch(identities: int, *shape: int) -> tuple[Tensor, ...]:
    """What the training loader gives: images (or embeddings), pids, camids, is_real."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.randperm(CLASSES, generator=generator)[:identities].repeat_interleave(PER_IDENTITY)
    images = torch.randn(len(labels), *shape, generator=generator)
    return images, labels, torch.zeros_like(labels), torch.ones(len(labels), dtype=torch.bool)


class Clock(Callback):
    """Seconds of the parts of each step, the first left out."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.parts: dict[str, list[float]] = defaultdict(list)
        self.steps: list[float] = []
        self._end = 0.0

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def wrap(self, owner: Any, method: str, part: str) -> None:
        """Count the calls of a method as a part of the step."""
        original = getattr(owner, method)

        def timed_method(*args: Any, **kwargs: Any) -> Any:
            start = self.now()
            result = original(*args, **kwargs)
            self.parts[part].append(self.now() - start)
            return result

        setattr(owner, method, timed_method)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self._end:
            self.parts["data_wait"].append(self.now() - self._end)
        self._start = self.now()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        now = self.now()
        self.steps.append(now - (self._end or self._start))
        self._end = now

    def per_step(self) -> dict[str, float]:
        """Mean seconds of a step and of its parts, without the first step."""
        count = len(self.steps) - 1
        calls = {name: max(1, round(len(values) / len(self.steps))) for name, values in self.parts.items()}
        seconds = {name: sum(values[-count * calls[name] :]) / count for name, values in self.parts.items()}
        return {"step": sum(self.steps[1:]) / count} | seconds


def make_trainer(device: str, precision: Any) -> tuple[Trainer, Clock]:
    """A Trainer as the scripts set it up, and the clock of its steps."""
    trainer = Trainer(
        accelerator=device,
        devices=1,
        precision=precision,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    clock = Clock(trainer.strategy.root_device)
    trainer.callbacks.append(clock)  # type: ignore[attr-defined]
    return trainer, clock


def fit(trainer: Trainer, model: CTLModel, batch: tuple[Tensor, ...], steps: int) -> None:
    """``steps`` steps, after one that is not counted."""
    trainer.fit(model, DataLoader([batch] * (steps + 1), batch_size=None))  # type: ignore[arg-type]


def train(model: CTLModel, batch: tuple[Tensor, ...], steps: int, args: argparse.Namespace) -> dict[str, float]:
    """Seconds of a step and of its parts, on average over ``steps`` steps."""
    trainer, clock = make_trainer(args.device, args.precision)
    clock.wrap(model.backbone, "forward", "forward")
    clock.wrap(model, "manual_backward", "backward")
    clock.wrap(model, "record_step", "logging")
    clock.wrap(model, "training_step", "training_step")
    original = model.configure_optimizers

    def configure() -> Any:
        optimizers, schedules = original()
        for optimizer in optimizers:
            clock.wrap(optimizer, "step", "optimiser")
        return optimizers, schedules

    model.configure_optimizers = configure  # type: ignore[method-assign]
    fit(trainer, model, batch, steps)
    parts = clock.per_step()
    training_step = parts.pop("training_step")
    parts["heads_forward"] = training_step - parts["forward"] - parts["backward"] - parts["optimiser"]
    parts["trainer"] = parts["step"] - training_step - parts["logging"] - parts.get("data_wait", 0.0)
    return parts


# ---------------------------------------------------------------------------- a straightforward loop, to compare with


def plain_ctl_loss(features: Tensor, labels: Tensor, margin: float) -> Tensor:
    """One round after another, one identity after another."""
    identities = labels.unique().tolist()
    losses = []
    for i in range(PER_IDENTITY):
        queries, centroids = [], []
        for identity in identities:
            rows = (labels == identity).nonzero().flatten().tolist()
            queries.append(features[rows[i]])
            centroids.append(features[rows[:i] + rows[i + 1 :]].mean(0))
        pids = torch.tensor(identities * 2, device=features.device)
        losses.append(plain_triplet(torch.stack(queries + centroids), pids, margin))
    return torch.stack(losses).mean()


def plain_triplet(features: Tensor, labels: Tensor, margin: float) -> Tensor:
    distances = torch.cdist(features, features, compute_mode="use_mm_for_euclid_dist")
    same = labels[:, None] == labels[None, :]
    positive = distances.masked_fill(~same, 0).max(1)[0]
    negative = distances.masked_fill(same, torch.inf).min(1)[0]
    return torch.relu(positive - negative + margin).mean()


class PlainLoop:
    """The same network and losses as most code bases write them: Adam, float() of each loss.

    Args:
        network: of the registry.
        device: to train on.
        precision: as Lightning names it; 16-mixed scales the loss.
        channels_last: the memory format of images and network; most code bases leave it contiguous.
    """

    def __init__(
        self, network: str, device: torch.device, precision: str = "32-true", channels_last: bool = False
    ) -> None:
        size = get_backbone(network).embedding_size
        torch.manual_seed(0)
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.backbone = get_backbone(network).build(NetworkOptions(1)).to(device).to(memory_format=self.format)
        self.bn, self.classifier = nn.BatchNorm1d(size).to(device), nn.Linear(size, CLASSES, bias=False).to(device)
        self.centers = nn.Parameter(torch.randn(CLASSES, size, device=device))
        modules = (self.backbone, self.bn, self.classifier)
        self.adam = torch.optim.Adam([p for m in modules for p in m.parameters()], lr=1e-4, weight_decay=5e-4)
        self.sgd = torch.optim.SGD([self.centers], lr=0.5)
        self.xent = nn.CrossEntropyLoss(label_smoothing=0.1)
        self.log: list[dict[str, float]] = []
        half = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}.get(precision)
        self.autocast = torch.autocast(device.type, half or torch.bfloat16, enabled=half is not None)
        self.scaler = torch.amp.GradScaler(device.type) if precision == "16-mixed" else None

    def step(self, images: Tensor, labels: Tensor) -> None:
        with self.autocast:
            feature_map = self.backbone(images.contiguous(memory_format=self.format))
        features = feature_map.float().mean((2, 3))
        losses = {
            "xent": self.xent(self.classifier(self.bn(features)), labels),
            "triplet": plain_triplet(features, labels, 0.5),
            "center": 0.0005 * (features - self.centers[labels]).square().sum(1).mean(),
            "centroid": plain_ctl_loss(features, labels, 0.5),
        }
        self.adam.zero_grad()
        self.sgd.zero_grad()
        total = sum(losses.values(), torch.zeros((), device=images.device))
        (total if self.scaler is None else self.scaler.scale(total)).backward()
        for optimizer in (self.adam, self.sgd):
            if optimizer is self.sgd:
                assert self.centers.grad is not None
                self.centers.grad *= 1 / 0.0005
            if self.scaler is None:
                optimizer.step()
            else:
                self.scaler.step(optimizer)
        if self.scaler is not None:
            self.scaler.update()
        self.log.append({name: float(loss.detach()) for name, loss in losses.items()})


# ------------------------------------------------------------------------------------------------------- the parts


class Embeddings(nn.Module):
    """In place of the backbone: the batch holds embeddings already, which need a gradient as in training."""

    def forward(self, x: Tensor) -> tuple[None, Tensor]:
        return None, x.clone().requires_grad_()


def bench_heads(args: argparse.Namespace) -> list[dict[str, Any]]:
    """All of a step but the backbone: losses forward and backward, both optimiser steps, for growing batches."""
    rows = []
    for identities in (args.identities, 2 * args.identities, 4 * args.identities):
        model = make_model(args.network)
        model.backbone = Embeddings()  # type: ignore[assignment]
        batch = make_batch(identities, get_backbone(args.network).embedding_size)
        seconds = [train(model, batch, 20, args)["step"] for _ in range(args.repeats)]
        rows.append({"images": len(batch[0]), "ms": spread([1e3 * value for value in seconds])})
    return rows


@contextmanager
def alone(network: str, device: torch.device) -> Iterator[Callable[[Tensor], None]]:
    """Forward and backward pass of the backbone, channels last, and nothing else."""
    torch.manual_seed(0)
    backbone = get_backbone(network).build(NetworkOptions(1)).to(device).to(memory_format=torch.channels_last)

    def run(images: Tensor) -> None:
        features = backbone(images.contiguous(memory_format=torch.channels_last)).mean((2, 3))
        features.backward(torch.full_like(features, 1e-3))
        for parameter in backbone.parameters():
            parameter.grad = None

    yield run


def bench_step(args: argparse.Namespace) -> dict[str, Any]:
    """Steps of this project, of the plain loop, and of the backbone alone, in turns."""
    device = torch.device("cuda" if args.device == "gpu" else "cpu")
    batch = make_batch(args.identities, 3, *args.size)
    images, labels = batch[0].to(device), batch[1].to(device)
    loop, model = PlainLoop(args.network, device), make_model(args.network)
    wrapped = {name: getattr(model, name) for name in ("manual_backward", "record_step", "training_step")}
    kept: dict[str, list[float]] = defaultdict(list)

    def timed_steps(step: Callable[[], None]) -> float:
        step()
        clock = Clock(device)
        start = clock.now()
        for _ in range(args.steps):
            step()
        return (clock.now() - start) / args.steps

    with alone(args.network, device) as backbone:
        for turn in range(args.repeats):
            order = ["ours", "plain", "backbone"][:: 1 if turn % 2 == 0 else -1]
            for name in order:
                if name == "ours":
                    for method, original in wrapped.items():
                        setattr(model, method, original)
                    model.backbone.__dict__.pop("forward", None)
                    model.__dict__.pop("configure_optimizers", None)
                    for part, seconds in train(model, batch, args.steps, args).items():
                        kept[part].append(seconds)
                elif name == "plain":
                    kept["plain"].append(timed_steps(lambda: loop.step(images, labels)))
                else:
                    kept["backbone"].append(timed_steps(lambda: backbone(images)))
    return {
        "images": len(images),
        **{f"{name}_s": spread(values) for name, values in kept.items()},
        "times_faster_than_plain": ratios(kept["plain"], kept["step"]),
        "step_over_backbone": ratios(kept["step"], kept["backbone"]),
    }


def memory_of(what: str, args: argparse.Namespace) -> dict[str, float]:
    """Peak memory beyond libraries of two steps, in this process (Linux), or on the GPU."""
    batch = make_batch(args.identities, 3, *args.size)
    gpu = args.device == "gpu"
    before = 0.0 if gpu else start_peak()
    if what == "plain":
        device = torch.device("cuda" if gpu else "cpu")
        loop = PlainLoop(args.network, device)
        for _ in range(2):
            loop.step(batch[0].to(device), batch[1].to(device))
    else:
        train(make_model(args.network, **VARIANTS[what]), batch, 1, args)
    peak = torch.cuda.max_memory_allocated() / 2**20 if gpu else status_mib("VmHWM") - before
    return {"peak_mib": round(peak, 1)}


def bench_memory(args: argparse.Namespace, argv: list[str]) -> dict[str, Any]:
    """Each variant in a process of its own."""
    return {
        what: json.loads(
            subprocess.run(
                [sys.executable, __file__, *argv, "--memory-of", what], stdout=subprocess.PIPE, text=True, check=True
            ).stdout.splitlines()[-1]
        )
        for what in ("plain", *VARIANTS)
    }


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet50")
    parser.add_argument("--size", type=int, nargs=2, default=(256, 128), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--identities", type=int, default=16, help="in a batch, with 4 images each, default: 16")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--precision", default="32-true", help="as Lightning names it; the plain loop is in float32")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="default: all")
    parser.add_argument("--steps", type=int, default=2, help="counted in each round, default: 2")
    parser.add_argument("--repeats", type=int, default=3, help="rounds, default: 3")
    parser.add_argument("--threads", type=int, default=2, help="default: 2")
    parser.add_argument("--out", type=Path, help="JSON file, default: benchmarks/results/training_NETWORK.json")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    if args.memory_of:
        print(json.dumps(memory_of(args.memory_of, args)))
        return
    report: dict[str, Any] = {
        "network": args.network,
        "size": list(args.size),
        "precision": args.precision,
        "machine": machine(args.threads, "pytorch-lightning", "torchvision"),
    }
    measure: dict[str, Callable[[], Any]] = {
        "heads": lambda: bench_heads(args),
        "step": lambda: bench_step(args),
        "memory": lambda: bench_memory(args, argv),
    }
    out = args.out or RESULTS / f"training_{args.network}.json"
    run_parts(args.parts, measure, report, out)


if __name__ == "__main__":
    main()
