"""Images per second and memory of a gallery made of tar shards, beside the same images in files.

    python benchmarks/bench_sources.py
    python benchmarks/bench_sources.py --images 20000 --shard 1000 --repeats 3

The images are drawn (a pool of JPEG files, each under many names), the weights random. A twentieth of the images is
embedded from shards and from files, which take turns; then all of them are, once, from shards. Each is a process of its
own, so that the peaks of memory can be compared. "--whole shards files" embeds all of them from files as well.
"""

import argparse
import io
import json
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402 - the checkout stands first on the path

from benchmarks.bench_embedding import drawn_image, make_model  # noqa: E402
from benchmarks.common import RESULTS, machine, ratios, spread, start_peak, status_mib, write_report  # noqa: E402
from inference.embedding.embedder import Embedder  # noqa: E402
from inference.galleries.creation import GalleryOptions, create_gallery  # noqa: E402
from inference.galleries.opening import open_source  # noqa: E402
from inference.galleries.sources import FileList, Source  # noqa: E402

WAYS = ("shards", "files")
POOL = 1000  # different images
SIZE = (64, 32)  # of images and of the network's input


def draw(folder: Path, images: int, shard: int, files: int) -> None:
    """Write the images as shards/00000.tar ..., and the first as files/00000/00000000.jpg ..., ``shard`` in each."""
    pool = []
    for seed in range(min(POOL, images)):
        stream = io.BytesIO()
        drawn_image(seed, *SIZE).save(stream, "JPEG", quality=90)
        pool.append(stream.getvalue())
    (folder / "shards").mkdir()
    for first in range(0, images, shard):
        below = folder / "files" / f"{first // shard:05}"
        below.mkdir(parents=True)
        with tarfile.open(folder / "shards" / f"{below.name}.tar", "w") as archive:
            for number in range(first, min(first + shard, images)):
                content = pool[number % len(pool)]
                if number < files:
                    (below / f"{number:08}.jpg").write_bytes(content)
                header = tarfile.TarInfo(f"{number:08}.jpg")
                header.size = len(content)
                archive.addfile(header, io.BytesIO(content))


def source_of(way: str, folder: Path, images: int, shard: int) -> Source:
    """The first images of the folder."""
    if way == "shards":
        return open_source(f"{folder}/shards/{{00000..{(images - 1) // shard:05}}}.tar")
    paths = sorted(str(path) for path in (folder / "files").glob("*/*.jpg"))[:images]
    return FileList(paths, {"root": str(folder), "in_subfolders": True, "source": None})


def measure(way: str, folder: Path, images: int, args: argparse.Namespace) -> dict[str, float]:
    """Embed images in this process: its seconds, and its peak of memory beyond what it had before (Linux)."""
    model = make_model(args.network, SIZE, "")
    embedder = Embedder(model, "cpu", size=SIZE, batch_size=args.batch)
    embedder.embed([drawn_image(0)] * args.batch)
    before, start = start_peak(), time.perf_counter()
    with tempfile.TemporaryDirectory(dir=folder) as out:
        source = source_of(way, folder, images, args.shard)
        made = create_gallery(embedder, source, out, GalleryOptions(progress=False))
    assert made.count == images
    return {"seconds": time.perf_counter() - start, "before_mib": before, "peak_mib": status_mib("VmHWM") - before}


def in_process(way: str, folder: Path, images: int, args: argparse.Namespace) -> dict[str, float]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--measure", way, str(folder), str(images), "--network", args.network]
    command += ["--shard", str(args.shard), "--batch", str(args.batch), "--threads", str(args.threads)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000_000, help="default: 1000000")
    parser.add_argument("--shard", type=int, default=10_000, help="images in a shard, default: 10000")
    parser.add_argument("--network", default="osnet_x0_25")
    parser.add_argument("--batch", type=int, default=64, help="default: 64")
    parser.add_argument("--repeats", type=int, default=3, help="rounds with a twentieth of the images, default: 3")
    parser.add_argument("--whole", nargs="+", choices=WAYS, default=["shards"], help="default: shards")
    parser.add_argument("--threads", type=int, default=2, help="default: 2")
    parser.add_argument("--folder", type=Path, help="where there is room for the images, default: the temporary folder")
    parser.add_argument("--out", type=Path, default=RESULTS / "sources.json")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.measure:
        way, place, count = args.measure
        print(json.dumps(measure(way, Path(place), int(count), args)))
        return
    report: dict[str, Any] = {name: getattr(args, name) for name in ("images", "shard", "network", "batch", "repeats")}
    report |= {"size": SIZE, "machine": machine(args.threads, "pillow"), "parts": []}
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        few = args.images // 20
        draw(folder, args.images, args.shard, args.images if "files" in args.whole else few)
        for images, ways, repeats in ((few, WAYS, args.repeats), (args.images, args.whole, 1)):
            found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
            for turn in range(repeats):
                for way in ways[:: 1 if turn % 2 == 0 else -1]:
                    found[way].append(in_process(way, folder, images, args))
            speeds = {way: [images / run["seconds"] for run in runs] for way, runs in found.items()}
            part: dict[str, Any] = {"images": images}
            if len(ways) == 2:
                part["shards_over_files"] = ratios(speeds["shards"], speeds["files"])
            for way, runs in found.items():
                part[way] = {"images_per_s": spread(speeds[way])}
                part[way] |= {key: spread([run[key] for run in runs]) for key in ("before_mib", "peak_mib")}
            report["parts"].append(part)
            print(json.dumps(part), flush=True)
            write_report(report, args.out)
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
