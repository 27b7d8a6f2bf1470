"""Images per second of the embedder beside the plain model, what decoding costs, and the memory of long runs.

    python benchmarks/bench_embedding.py
    python benchmarks/bench_embedding.py --network resnet50_ibn_a --size 320 320 --parts forward
    python benchmarks/bench_embedding.py --parts memory --files 1000000
    python benchmarks/bench_embedding.py --parts engines --networks resnet50 osnet_x1_0 --out engines.json
    python -m scripts.demo --output demo_output; python benchmarks/bench_embedding.py --parts engines --size 128 64 \
        --checkpoint demo_output/.../epoch=9.ckpt --data demo_output/data

Weights are random unless --checkpoint gives some, images are drawn. What is compared is measured in turns, round by
round, so that other load on the machine meets both; ratios are taken within a round.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402 - the checkout stands first on the path
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from benchmarks.common import (  # noqa: E402
    RESULTS,
    cpu_flags,
    in_turns,
    machine,
    ratios,
    spread,
    start_peak,
    status_mib,
    write_report,
)
from checkpoints.plain import to_plain  # noqa: E402
from config.defaults import _C as DEFAULTS  # noqa: E402
from datasets import init_dataset  # noqa: E402
from datasets.transforms import ReidTransforms  # noqa: E402
from datasets.transforms.pixels import ResizedPlanes, normalise  # noqa: E402
from evaluation.metrics import evaluate_embeddings  # noqa: E402
from inference.embedding.embedder import EmbeddedBatch, Embedder  # noqa: E402
from inference.embedding.folding import fuses  # noqa: E402
from inference.embedding.images import read_pixels  # noqa: E402
from inference.embedding.runtimes import Runtime  # noqa: E402
from inference.galleries.creation import GalleryOptions, create_gallery  # noqa: E402
from inference.galleries.labels import read_subset  # noqa: E402
from inference.galleries.sources import folder_source  # noqa: E402
from modelling.backbones import get_backbone  # noqa: E402
from modelling.bases import ModelBase  # noqa: E402
from utils.errors import UserError  # noqa: E402
from utils.image import pil_loader  # noqa: E402

PARTS = ("forward", "pipeline", "memory")
ENGINES = ("plain", "torch", "onnxruntime", "openvino")  # the plain model, and the engines of an Embedder
PRECISIONS = ("32-true", "bf16-true")


def make_model(network: str, size: Sequence[int], checkpoint: str) -> ModelBase:
    """The model of a checkpoint, or one with random weights whose batch norms have seen some images."""
    if checkpoint:
        return ModelBase.load_from_checkpoint(checkpoint).eval()
    cfg = DEFAULTS.clone()
    cfg.merge_from_list(["MODEL.NAME", network, "MODEL.BACKBONE_EMB_SIZE", get_backbone(network).embedding_size])
    # Plain as most code bases have it; the embedder chooses its own memory format.
    cfg.merge_from_list(["INPUT.SIZE_TEST", list(size), "MODEL.CHANNELS_LAST", False])
    torch.manual_seed(0)
    model = ModelBase(cfg, num_classes=2, load_imagenet=False).train()
    with torch.no_grad():
        for seed in range(4):  # statistics of batch norm, without which the signal grows from block to block
            model(torch.stack([transform(drawn_image(8 * seed + i), cfg) for i in range(8)]))
    return model.eval()


def drawn_image(seed: int, height: int = 128, width: int = 64) -> Image.Image:
    """Smooth random colours with some grain, of the size of a crop of a person."""
    rng = np.random.default_rng(seed)
    smooth = Image.fromarray(rng.integers(0, 256, (8, 4, 3), dtype=np.uint8))
    pixels = np.asarray(smooth.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int64)
    return Image.fromarray((pixels + rng.integers(-12, 13, pixels.shape)).clip(0, 255).astype(np.uint8))


def transform(image: Image.Image, cfg: Any) -> Tensor:
    return ReidTransforms(cfg).build_transforms(is_train=False)(image)


# ------------------------------------------------------------------------------------------------------- the parts


def bench_forward(model: ModelBase, size: Sequence[int], batch: int, repeats: int) -> dict[str, Any]:
    """One batch through the plain model in eval mode, and through the embedder's network."""
    count = max(batch, 16)
    pixels = torch.stack([read_pixels(drawn_image(100 + i), ResizedPlanes(size)) for i in range(count)])[:batch]
    embedders = {precision: Embedder(model, "cpu", precision, size=size) for precision in PRECISIONS}
    e0 = next(iter(embedders.values()))
    images = normalise(pixels, e0._mean, e0._std)

    def plain() -> Tensor:
        with torch.no_grad():
            return model(images)

    functions = {precision: lambda e=e: e.embed_pixels(pixels) for precision, e in embedders.items()}
    expected = plain()
    found = {name: torch.from_numpy(function()) for name, function in functions.items()}
    seconds = in_turns(repeats, plain=plain, **functions)
    report: dict[str, Any] = {"plain_images_per_s": spread([batch / value for value in seconds["plain"]])}
    for name in PRECISIONS:
        report[name] = {
            "images_per_s": spread([batch / value for value in seconds[name]]),
            "times_plain": ratios(seconds["plain"], seconds[name]),
            "largest_difference_to_largest_value": float((found[name] - expected).abs().max() / expected.abs().max()),
            "least_cosine_to_plain": float(nn.functional.cosine_similarity(found[name], expected).min()),
            "relu_and_sum_inside_convolutions": fuses(embedders[name].dtype),
        }
    return report


def bench_pipeline(
    model: ModelBase, size: Sequence[int], batch: int, repeats: int, images: int, precision: str
) -> dict[str, Any]:
    """From JPEG files to embeddings, beside the forward pass alone on pixels that are in memory already."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder) / f"{i:04d}.jpg") for i in range(images)]
        for i, path in enumerate(paths):
            drawn_image(i).save(path, quality=90)
        embedders = {
            n: Embedder(model, "cpu", precision, size=size, batch_size=batch, num_workers=n) for n in (0, 1, 2)
        }
        embedder = embedders[0]
        pixels = torch.stack([read_pixels(path, ResizedPlanes(size)) for path in paths])

        def forward() -> None:
            for part in pixels.split(batch):
                embedder.embed_pixels(part)

        def decode() -> None:
            for path in paths:
                read_pixels(path, ResizedPlanes(size))

        def decode_by_transforms() -> None:
            steps = ReidTransforms(model.hparams).build_transforms(is_train=False)
            for path in paths:
                steps(pil_loader(path))

        functions = {f"{n}_threads": lambda e=e: e.embed(paths) for n, e in embedders.items()}
        forward()
        seconds = in_turns(
            repeats, forward=forward, decode=decode, decode_by_transforms=decode_by_transforms, **functions
        )
    report: dict[str, Any] = {"precision": precision, "images": images, "batch": batch}
    report["forward_images_per_s"] = spread([images / value for value in seconds["forward"]])
    for name in ("decode", "decode_by_transforms"):
        report[f"{name}_ms_per_image"] = spread([value / images * 1e3 for value in seconds[name]])
    for name in functions:
        report[f"{name}_share_of_forward"] = ratios(seconds["forward"], seconds[name])
    return report


def bench_engines(network: str, args: argparse.Namespace) -> dict[str, Any]:
    """Images per second of the same network in each engine, precision and size of batch, with the same threads."""
    from inference.embedding.exporting import export_checkpoint
    from inference.embedding.quantising import choose_images, quantise

    model = make_model(network, args.size, args.checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, single, int8 = (Path(folder) / name for name in ("it.ckpt", "single.onnx", "int8.onnx"))
        torch.save({"state_dict": model.state_dict(), "hyper_parameters": to_plain(model.hparams)}, checkpoint)
        export_checkpoint(checkpoint, single, "onnx", dynamic_batch=True)
        calibration = Path(folder) / "calibration.txt"
        if args.data:
            paths = subset(args.data, "train").paths
        else:
            paths = [f"{folder}/{i:04d}.png" for i in range(args.images)]
            for i, path in enumerate(paths):
                drawn_image(i).save(path)
        calibration.write_text("\n".join(str(Path(path).absolute()) for path in paths))
        told = quantise(single, int8, choose_images(calibration))["int8"]
        embedders = {
            (precision, engine): embedder
            for precision in ("float32", "bfloat16", "int8")
            for engine in args.engines
            if engine != "plain" and (embedder := embedder_of(precision, engine, model, single, int8)) is not None
        }
    size = list(model.hparams.INPUT.SIZE_TEST)
    report = {"network": model.hparams.MODEL.NAME, "size": size, "calibration": told["images"]}
    report |= {"int8_cosine": {key: told[f"cosine_{key}"] for key in ("mean", "least")}}
    if args.data:
        report |= {"data": Path(args.data).name}
        report["mAP"] = {f"{p} {e}": mean_ap(embedder, args.data) for (p, e), embedder in embedders.items()}
    report["cells"] = [bench_cell(model, embedders, batch, args) for batch in args.batches]
    return report


def embedder_of(precision: str, engine: str, model: ModelBase, single: Path, int8: Path) -> Embedder | None:
    """An Embedder, or None where that engine does not have the precision, here or at all."""
    try:
        if precision == "int8":
            return Embedder.from_checkpoint(int8, "cpu", engine=engine)
        name = {"float32": "32-true", "bfloat16": "bf16-true"}[precision]
        if engine == "torch":
            return Embedder(model, "cpu", name)
        return Embedder.from_checkpoint(single, "cpu", name, engine=engine)
    except UserError as error:
        print(f"left out: {precision}, {engine}: {error}", flush=True)
        return None


def bench_cell(
    model: ModelBase, embedders: dict[tuple[str, str], Embedder], batch: int, args: argparse.Namespace
) -> dict[str, Any]:
    """One size of batch, everything in turns."""
    size = model.hparams.INPUT.SIZE_TEST
    pixels = torch.stack([read_pixels(drawn_image(100 + i), ResizedPlanes(size)) for i in range(batch)])
    first = next(iter(embedders.values()))
    images = normalise(pixels, first._mean, first._std)

    def plain(dtype: torch.dtype | None) -> Tensor:
        with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype is not None):
            return model(images)

    functions: dict[str, Any] = {}
    if "plain" in args.engines:
        functions = {"float32 plain": lambda: plain(None), "bfloat16 plain": lambda: plain(torch.bfloat16)}
    for (precision, engine), embedder in embedders.items():
        if isinstance(embedder.network, Runtime):
            embedder.network.batch_size = batch
        functions[f"{precision} {engine}"] = lambda e=embedder: e.embed_pixels(pixels)
    for function in functions.values():
        function()  # what is prepared for this size of batch
    seconds = in_turns(args.repeats, **functions)
    rows = {}
    for name, values in seconds.items():
        rows[name] = {"images_per_s": spread([batch / value for value in values])}
        if (ours := f"{name.partition(' ')[0]} torch") in seconds and ours != name:
            rows[name]["times_torch"] = ratios(seconds[ours], values)
    return {"batch": batch, "rows": rows}


def subset(data: str, name: str) -> Any:
    """The train, query or gallery images of drawn data (scripts/make_toy_dataset.py), or of a table."""
    cfg = DEFAULTS.clone()
    kind = "csv" if Path(data).is_file() else "market1501"
    place = ["DATASETS.CSV_PATH", data, "DATASETS.ROOT_DIR", ""] if kind == "csv" else ["DATASETS.ROOT_DIR", data]
    cfg.merge_from_list(["DATASETS.NAMES", kind, *place])
    return read_subset(init_dataset(kind, cfg=cfg), name)


def mean_ap(embedder: Embedder, data: str) -> float:
    """mAP on the test images of a data set."""
    sides = subset(data, "query"), subset(data, "gallery")
    pids = [[pid for pid, _ in images.labels] for images in sides]
    # Without cameras, all images of the gallery count.
    camids = [[i if camid is None else camid for _, camid in images.labels] for i, images in enumerate(sides)]
    embeddings = [embedder.embed(images.paths) for images in sides]
    return evaluate_embeddings(*embeddings, *pids, *camids, metric="cosine").mAP


class StandIn:
    """Instead of a model: rows at once, so that only the run itself is measured."""

    def __init__(self, dimension: int) -> None:
        self.identity, self.dimension, self.batch_size = {"dimension": dimension}, dimension, 128

    def embed_given_batches(
        self, batches: Iterable[Sequence[Any]], on_error: str = "stop"
    ) -> Generator[EmbeddedBatch, None, None]:
        rows = np.random.default_rng(0).standard_normal((self.batch_size, self.dimension)).astype(np.float32)
        start = 0
        for batch in batches:
            yield EmbeddedBatch(start, rows[: len(batch)], list(range(start, start + len(batch))), {})
            start += len(batch)


def memory_of(files: int, dimension: int) -> dict[str, Any]:
    """Peak memory of this process while it makes a gallery of so many files (links to one image), on Linux."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "images"
        root.mkdir()
        drawn_image(0).save(Path(folder) / "one.jpg")
        for i in range(files):
            if i % 30_000 == 0:  # a file system allows some ten thousand links to a file
                source = Path(folder) / f"{i}.jpg"
                source.write_bytes((Path(folder) / "one.jpg").read_bytes())
            os.link(source, root / f"{i:08d}.jpg")
        before, start = start_peak(), time.perf_counter()
        options = GalleryOptions(progress=False)
        create_gallery(StandIn(dimension), folder_source(root), Path(folder) / "out", options)  # type: ignore[arg-type]
        return {
            "files": files,
            "dimension": dimension,
            "libraries_mib": round(before, 1),
            "peak_beyond_mib": round(status_mib("VmHWM") - before, 1),
            "embeddings_mib": round((Path(folder) / "out" / "embeddings.npy").stat().st_size / 2**20, 1),
            "seconds_without_model": round(time.perf_counter() - start, 1),
        }


def bench_memory(files: int, dimension: int) -> list[dict[str, Any]]:
    """A tenth of the files, and all, each in a process of its own."""
    command = [sys.executable, __file__, "--dimension", str(dimension), "--memory-of"]
    runs = [
        subprocess.run([*command, str(count)], capture_output=True, text=True, check=True)
        for count in (files // 10, files)
    ]
    return [json.loads(run.stdout) for run in runs]


# ---------------------------------------------------------------------------------------------------- the command


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet50")
    parser.add_argument("--size", type=int, nargs=2, default=(256, 128), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--checkpoint", default="", help="weights to use, instead of random ones")
    parser.add_argument("--batch", type=int, default=32, help="default: 32")
    parser.add_argument("--images", type=int, default=128, help="files of the part pipeline, default: 128")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS, help="of the part pipeline")
    parser.add_argument("--files", type=int, default=1_000_000, help="of the part memory, default: 1000000")
    parser.add_argument("--dimension", type=int, default=512, help="of the part memory, default: 512")
    parser.add_argument(
        "--parts", nargs="+", choices=(*PARTS, "engines"), default=PARTS, help="default: all but engines"
    )
    parser.add_argument("--networks", nargs="+", help="of the part engines, default: that of --network")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES, help="default: all")
    parser.add_argument(
        "--batches", nargs="+", type=int, default=(1, 8, 32), help="of the part engines, default: 1 8 32"
    )
    parser.add_argument("--data", default="", help="drawn data set, or table, for mAP and calibration in engines")
    parser.add_argument("--repeats", type=int, default=5, help="rounds, default: 5")
    parser.add_argument("--threads", type=int, default=2, help="default: 2")
    parser.add_argument("--out", type=Path, help="JSON file, default: benchmarks/results/embedding_NETWORK.json")
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory_of:
        print(json.dumps(memory_of(args.memory_of, args.dimension)))
        return
    report: dict[str, Any] = {
        "network": args.network,
        "size": list(args.size),
        "weights": "checkpoint" if args.checkpoint else "random",
        "repeats": args.repeats,
        "machine": {
            **machine(args.threads, "torchvision", "pillow", "onnxruntime", "openvino"),
            "cpu_flags": cpu_flags(),
        },
    }
    out = args.out or RESULTS / f"embedding_{args.network}.json"
    needs_model = {"forward", "pipeline"} & set(args.parts)
    model = make_model(args.network, args.size, args.checkpoint) if needs_model else None
    for part in args.parts:
        if part == "memory":
            report[part] = bench_memory(args.files, args.dimension)
        elif part == "engines":
            report[part] = [bench_engines(network, args) for network in args.networks or [args.network]]
        elif part == "forward":
            report[part] = bench_forward(model, args.size, args.batch, args.repeats)  # type: ignore[arg-type]
        else:
            report[part] = [
                bench_pipeline(model, args.size, args.batch, args.repeats, args.images, precision)  # type: ignore[arg-type]
                for precision in args.precisions
            ]
        print(f"{part}: {json.dumps(report[part])}", flush=True)
        write_report(report, out)
    print(f"written: {out}")


if __name__ == "__main__":
    main()
