"""Milliseconds that the crops of one frame take, as a tracker gives them: arrays in memory, one call a frame.

    python benchmarks/bench_frame.py
    python benchmarks/bench_frame.py --networks osnet_x1_0 --crops 10

Weights are random, crops are drawn, from 96 x 48 to 224 x 112 pixels; the least time a frame of each round is taken.
"""

import argparse
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402 - the checkout stands first on the path
import torch  # noqa: E402

from benchmarks.bench_embedding import drawn_image, make_model  # noqa: E402
from benchmarks.common import RESULTS, machine, run_parts, spread, values_in_turns  # noqa: E402
from inference.embedding.embedder import Embedder  # noqa: E402

NETWORKS = ("resnet18", "resnet50", "osnet_x1_0")


def bench_network(network: str, size: tuple[int, int], crops: int, frames: int, repeats: int) -> dict[str, Any]:
    """Milliseconds of a frame, in float32 and bfloat16."""
    model = make_model(network, size, "")
    boxes = [(96 + 32 * (i % 5), 48 + 16 * (i % 5)) for i in range(crops)]
    images = [np.asarray(drawn_image(i, *box))[..., ::-1] for i, box in enumerate(boxes)]  # blue, green, red

    def frame(embedder: Embedder) -> float:
        best = float("inf")
        for _ in range(frames):
            start = time.perf_counter()
            embedder.embed([image[..., ::-1] for image in images])
            best = min(best, time.perf_counter() - start)
        return 1e3 * best

    kinds = {name: Embedder(model, "cpu", name, size=size, batch_size=crops) for name in ("32-true", "bf16-true")}
    values = values_in_turns(repeats, **{name: partial(frame, embedder) for name, embedder in kinds.items()})
    return {name: {"ms_per_frame": spread(found)} for name, found in values.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=NETWORKS, help=f"default: {' '.join(NETWORKS)}")
    parser.add_argument("--size", type=int, nargs=2, default=(256, 128), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--crops", type=int, default=30, help="in a frame, default: 30")
    parser.add_argument("--frames", type=int, default=5, help="of a round, default: 5")
    parser.add_argument("--repeats", type=int, default=5, help="rounds, default: 5")
    parser.add_argument("--threads", type=int, default=2, help="default: 2")
    parser.add_argument("--out", type=Path, default=RESULTS / "frame.json", help="JSON file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    measure = {n: partial(bench_network, n, args.size, args.crops, args.frames, args.repeats) for n in args.networks}
    report = {"crops": args.crops, "size": list(args.size), "repeats": args.repeats}
    run_parts(args.networks, measure, {**report, "machine": machine(args.threads, "torchvision")}, args.out)


if __name__ == "__main__":
    main()
