"""What each network costs: parameters, multiply-adds, images per second in training and embedding; and its ONNX file.

    python benchmarks/bench_backbones.py
    python benchmarks/bench_backbones.py --networks resnet50 "timm:vit_base_patch16_224 MODEL.PATCH_STRIDE 12"
    python benchmarks/bench_backbones.py --networks my_network:SmallNet --out my_network.json

Each network is measured in a process of its own, in turns with resnet50, so that other load on the machine meets both;
ratios are taken within a round. Weights are random, images are drawn. A network that fails is named and passed over;
the status is then 1. The report is written after each network.
"""

import argparse
import copy
import json
import logging
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402 - the checkout stands first on the path
from torch import Tensor  # noqa: E402
from torch.nn.modules.batchnorm import _BatchNorm  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from benchmarks.bench_embedding import drawn_image  # noqa: E402
from benchmarks.bench_training import PER_IDENTITY, fit, make_batch, make_model, make_trainer  # noqa: E402
from benchmarks.common import (  # noqa: E402
    RESULTS,
    cpu_flags,
    in_turns,
    machine,
    ratios,
    spread,
    values_in_turns,
    write_report,
)
from checkpoints.plain import to_plain  # noqa: E402
from datasets.transforms.pixels import ResizedPlanes, normalise  # noqa: E402
from inference.embedding.embedder import Embedder  # noqa: E402
from inference.embedding.exporting import export_checkpoint  # noqa: E402
from inference.embedding.images import read_pixels  # noqa: E402
from modelling.backbones.package_network import parameters_of  # noqa: E402
from train_ctl_model import CTLModel  # noqa: E402

REFERENCE = "resnet50"
_OF_VITS = "timm, TransReID, TransReID-SSL, PersonViT, DINO, iBOT"
# MODEL.NAME and further keys -> whose weights load. docs/BACKBONES.md and docs/FINETUNING.md say more about them.
NETWORKS = {
    "resnet18": "torchvision, timm",
    "resnet50": "torchvision, timm, fast-reid, MoCo, DINO",
    "resnet50_ibn_a": "IBN-Net",
    "osnet_x1_0": "torchreid",
    "osnet_x0_25": "torchreid",
    "osnet_ain_x1_0": "torchreid",
    "timm:vit_tiny_patch16_224": "timm",
    "timm:vit_small_patch14_dinov2": "timm, DINOv2",
    "timm:vit_base_patch16_224": _OF_VITS,
    "timm:vit_base_patch16_224 MODEL.PATCH_STRIDE 12": _OF_VITS,
    "timm:vit_base_patch16_clip_quickgelu_224": "timm, OpenAI's CLIP, CLIP-ReID",
    "timm:swin_tiny_patch4_window7_224": "timm",
    "timm:convnext_tiny": "timm",
    "timm:efficientnet_b0": "timm",
    "timm:mobilenetv3_large_100": "timm",
    "torchvision:mobilenet_v2": "torchvision",
}
PARTS = ("counts", "onnx", "embedding", "training")
EMBEDDING_PRECISIONS = ("32-true", "bf16-true")  # as the Embedder names them, and ...
TRAINING_PRECISIONS = ("32-true", "bf16-mixed")  # ... TRAINER.PRECISION


def build(network: str, size: tuple[int, int], pixels: Tensor) -> CTLModel:
    """The model that a text like ``NAME KEY VALUE ...`` stands for, with random weights.

    The batch norms of its backbone have the statistics of the images and of noise, on which ONNX files are tried;
    otherwise a signal grows from block to block, and rounding with it.
    """
    name, *pairs = network.split()
    options = dict(zip(pairs[::2], pairs[1::2], strict=True))
    model = make_model(name, **{"INPUT.SIZE_TRAIN": list(size), "INPUT.SIZE_TEST": list(size)}, **options)
    norms = [module for module in model.backbone.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        images = normalise(pixels, *(torch.tensor(x).view(3, 1, 1) for x in scaling(model)))
        model.backbone.train()(torch.cat([images, torch.randn_like(images)]))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval()


def scaling(model: CTLModel) -> tuple[Any, Any]:
    return model.hparams.INPUT.PIXEL_MEAN, model.hparams.INPUT.PIXEL_STD


# ------------------------------------------------------------------------------------------------------- the parts


def count(model: CTLModel, size: tuple[int, int]) -> dict[str, int]:
    """Parameters that an embedding depends on, and multiply-adds of one image.

    Convolutions, linear layers and the two matrix products of attention are counted; norms, activations, pooling,
    softmax and interpolation are not. On the device "meta", where nothing is computed, torch's attention consists of
    matrix products; as one kernel of the CPU, torch's counter would pass over it.
    """
    network = copy.deepcopy(model).to("meta").eval().requires_grad_(True)
    with FlopCounterMode(display=False) as counter:
        embedding = network(torch.empty(1, 3, *size, device="meta"))
    used = {id(parameter): parameter.numel() for parameter in parameters_of(embedding)}
    return {
        "parameters": sum(used.values()),
        "multiply_adds": counter.get_total_flops() // 2,
        "embedding_size": embedding.shape[1],
    }


def try_onnx(model: CTLModel) -> dict[str, float]:
    """How far the embeddings of the ONNX file, by onnxruntime, are from torch's; see ``python -m inference.export``."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "model.ckpt"
        torch.save({"state_dict": model.state_dict(), "hyper_parameters": to_plain(model.hparams)}, checkpoint)
        facts = export_checkpoint(checkpoint, Path(folder) / "model.onnx", "onnx")
    return {"relative_error": facts["relative_error"], "cosine": facts["cosine"]}


def rates(seconds: dict[str, list[float]], images: int) -> dict[str, Any]:
    """Images per second, and how many times as fast as the reference; 1 for the reference itself."""
    own = seconds["network"]
    times = ratios(seconds["reference"], own) if "reference" in seconds else 1
    return {"images_per_s": spread([images / value for value in own]), "times_reference": times}


def bench_embedding(models: dict[str, CTLModel], pixels: Tensor, args: argparse.Namespace) -> dict[str, Any]:
    """A batch of resized images through the Embedder."""
    report = {}
    for precision in EMBEDDING_PRECISIONS:
        embedders = {who: Embedder(model, "cpu", precision) for who, model in models.items()}
        functions = {who: partial(embedder.embed_pixels, pixels) for who, embedder in embedders.items()}
        for function in functions.values():  # the first call is not counted
            function()
        report[precision] = rates(in_turns(args.repeats, **functions), len(pixels))
    return report


def step_seconds(model: CTLModel, batch: tuple[Tensor, ...], precision: str, steps: int) -> float:
    """Seconds of a training step: forward, losses, backward and both optimisers, by the Trainer."""
    trainer, clock = make_trainer("cpu", precision)
    fit(trainer, model.train(), batch, steps)  # Lightning leaves a network in eval mode as it is
    return clock.per_step()["step"]


def bench_training(models: dict[str, CTLModel], args: argparse.Namespace) -> dict[str, Any]:
    """Steps of the CTL model on a batch that lies in memory."""
    batch = make_batch(args.batch // PER_IDENTITY, 3, *args.size)
    report = {}
    for precision in TRAINING_PRECISIONS:
        functions = {who: partial(step_seconds, model, batch, precision, args.steps) for who, model in models.items()}
        report[precision] = rates(values_in_turns(args.repeats, **functions), len(batch[0]))
    return report


def measure(network: str, args: argparse.Namespace, row: Path) -> None:
    """Measure one network in this process; its row is written to a file after each part."""
    drawn = [read_pixels(drawn_image(i), ResizedPlanes(args.size)) for i in range(args.batch)]
    pixels = torch.stack(drawn)
    models = {"network": build(network, args.size, pixels)}
    if network != REFERENCE and {"embedding", "training"} & set(args.parts):
        models["reference"] = build(REFERENCE, args.size, pixels)
    parts: dict[str, Callable[[], Any]] = {
        "counts": lambda: count(models["network"], args.size),
        "onnx": lambda: try_onnx(models["network"]),
        "embedding": lambda: bench_embedding(models, pixels, args),
        "training": lambda: bench_training(models, args),
    }
    found: dict[str, Any] = {}
    for part in args.parts:
        try:
            found[part] = parts[part]()
        except Exception as error:  # whatever a network or an exporter raises: the other parts are worth having
            lines = str(error).strip().splitlines()
            found.setdefault("failed", {})[part] = f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
        row.write_text(json.dumps(found), encoding="utf-8")


# ---------------------------------------------------------------------------------------------------- the command


def measure_apart(network: str, argv: list[str]) -> dict[str, Any]:
    """Measure one network in a process of its own, whose memory is free afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        row = Path(folder) / "row.json"
        command = [sys.executable, __file__, *argv, "--measure", network, "--row", str(row)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        found: dict[str, Any] = json.loads(row.read_text(encoding="utf-8")) if row.exists() else {}
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        found.setdefault("failed", {})["process"] = f"status {done.returncode}: {last}"
    return {"network": network, "weights": NETWORKS.get(network), **found}


def read_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--networks", nargs="+", default=list(NETWORKS), metavar="NETWORK",
        help="each MODEL.NAME, or in quotation marks MODEL.NAME KEY VALUE ...; default: those of docs/BACKBONES.md",
    )  # fmt: skip
    parser.add_argument("--size", type=int, nargs=2, default=(256, 128), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--batch", type=int, default=8, help="images, 4 of each identity, default: 8")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="default: all")
    parser.add_argument("--steps", type=int, default=1, help="counted in each round of training, default: 1")
    parser.add_argument("--repeats", type=int, default=2, help="rounds, default: 2")
    parser.add_argument("--threads", type=int, default=2, help="default: 2")
    parser.add_argument("--out", type=Path, default=RESULTS / "backbones.json", help="JSON file, default: %(default)s")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--row", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.batch < 2 * PER_IDENTITY or args.batch % PER_IDENTITY:
        parser.error(f"--batch is {args.batch}; expected a multiple of {PER_IDENTITY}, at least {2 * PER_IDENTITY}.")
    return args


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    args = read_arguments(argv)
    args.size = tuple(args.size)
    if args.measure:
        torch.set_num_threads(args.threads)
        logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)  # what devices there are, for each Trainer
        measure(args.measure, args, args.row)
        return
    packages = ("pytorch-lightning", "torchvision", "timm", "onnxruntime")
    report: dict[str, Any] = {
        "size": list(args.size),
        "batch": args.batch,
        "reference": REFERENCE,
        "machine": {**machine(args.threads, *packages), "cpu_flags": cpu_flags()},
        "networks": [],
    }
    for network in args.networks:
        report["networks"].append(measure_apart(network, argv))
        print(f"{network}: {json.dumps(report['networks'][-1])}", flush=True)
        write_report(report, args.out)
    failed = [row["network"] for row in report["networks"] if "failed" in row]
    print(f"written: {args.out}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
