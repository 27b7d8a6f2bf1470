"""Images per second of one core, from files to the network's input: with and without the cache, and a plain loop.

    python benchmarks/bench_data.py
    python benchmarks/bench_data.py --cases fashion --images 256

The plain loop is Pillow and torchvision as most projects write it: open, convert, Resize, RandomHorizontalFlip, Pad,
RandomCrop, ToTensor, Normalize, and the same RandomErasing. A cold cache decodes and writes, a warm one reads; files
lie in the page cache throughout. What is compared is measured in turns, round by round, in CPU seconds of this process
(the system's share included), so that other load counts for little; ratios are those of a round.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402 - the checkout stands first on the path
from PIL import Image  # noqa: E402
from torchvision import transforms as tv  # noqa: E402

from benchmarks.bench_embedding import drawn_image  # noqa: E402
from benchmarks.common import RESULTS, machine, ratios, spread, write_report  # noqa: E402
from config.defaults import _C as DEFAULTS  # noqa: E402
from datasets.caching.cache import ImageCache  # noqa: E402
from datasets.caching.folders import disk_folder  # noqa: E402
from datasets.transforms import RandomErasing, ReidTransforms  # noqa: E402
from datasets.transforms.pixels import ResizedPlanes  # noqa: E402
from utils.image import pil_loader  # noqa: E402

# height and width of the files and of the network's input
CASES = {
    "market": ((128, 64), (256, 128)),
    "fashion": ((320, 320), (320, 320)),
    "photos": ((1024, 512), (256, 128)),
}

Transform = Callable[[Any], torch.Tensor]


def plain_loader(path: str) -> Image.Image:
    return Image.open(path).convert("RGB")


def plain_transforms(cfg: Any, is_train: bool) -> Transform:
    """What ReidTransforms does, put together from torchvision's parts."""
    options = cfg.INPUT
    size = list(options.SIZE_TRAIN if is_train else options.SIZE_TEST)
    begin: list[Any] = [tv.Resize(size)]
    end: list[Any] = [tv.ToTensor(), tv.Normalize(options.PIXEL_MEAN, options.PIXEL_STD)]
    if is_train:
        begin += [tv.RandomHorizontalFlip(options.PROB), tv.Pad(options.PADDING), tv.RandomCrop(size)]
        end += [RandomErasing(options.RE_PROB, mean=options.PIXEL_MEAN)]
    return tv.Compose(begin + end)


def run(paths: list[str], load: Callable[[str], Any], transform: Transform) -> list[torch.Tensor]:
    """All images with the same draws each time; the last few are returned."""
    random.seed(0)
    torch.manual_seed(0)
    last = [transform(load(path)) for path in paths[:4]]
    for path in paths[4:]:
        last = [*last[1:], transform(load(path))]
    return last


def bench_case(case: str, is_train: bool, images: int, repeats: int, memory: str) -> dict[str, Any]:
    """Images per second of each way, and each as a multiple of the plain loop."""
    (height, width), size = CASES[case]
    cfg = DEFAULTS.clone()
    cfg.merge_from_list(["INPUT.SIZE_TRAIN", list(size), "INPUT.SIZE_TEST", list(size)])
    ours, plain = ReidTransforms(cfg).build_transforms(is_train), plain_transforms(cfg, is_train)
    with tempfile.TemporaryDirectory() as files, tempfile.TemporaryDirectory(dir=memory or None) as shared:
        paths = [str(Path(files) / f"{i:05d}.jpg") for i in range(images)]
        for i, path in enumerate(paths):
            drawn_image(i, height, width).save(path, quality=90)
        places = {"ram": shared, "disk": files}
        resize = ResizedPlanes(size)
        warm = {name: ImageCache(disk_folder(f"{place}/warm"), paths, resize) for name, place in places.items()}

        def cold(place: str) -> None:
            run(paths, ImageCache(disk_folder(f"{place}/cold"), paths, resize), ours)

        functions: dict[str, Callable[[], Any]] = {
            "plain": partial(run, paths, plain_loader, plain),
            "uncached": partial(run, paths, pil_loader, ours),
            **{f"{name}_cold": partial(cold, place) for name, place in places.items()},
            **{f"{name}_warm": partial(run, paths, cache, ours) for name, cache in warm.items()},
        }
        expected = functions["plain"]()
        for name in ("uncached", "ram_warm", "ram_warm", "disk_warm", "disk_warm"):  # the first pass fills a cache
            found = functions[name]()
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), name
        seconds: dict[str, list[float]] = {name: [] for name in functions}
        for turn in range(repeats):
            for name in list(functions)[:: 1 if turn % 2 == 0 else -1]:
                start = time.process_time()
                functions[name]()
                seconds[name].append(time.process_time() - start)
            for place in places.values():
                shutil.rmtree(f"{place}/cold")
    report: dict[str, Any] = {"files": [height, width], "input": list(size), "images": images}
    for name, values in seconds.items():
        report[name] = {"images_per_s": spread([images / value for value in values])}
        if name != "plain":
            report[name]["times_plain"] = ratios(seconds["plain"], values)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="default: all")
    parser.add_argument("--images", type=int, default=400, help="default: 400")
    parser.add_argument("--repeats", type=int, default=7, help="rounds, default: 7")
    parser.add_argument("--memory", help="folder in memory for the cache ram, default: /dev/shm where there is one")
    parser.add_argument("--out", type=Path, default=RESULTS / "data.json", help="JSON file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    memory = args.memory or ("/dev/shm" if Path("/dev/shm").is_dir() else "")
    report: dict[str, Any] = {
        "repeats": args.repeats,
        "memory": memory,
        "machine": machine(1, "torchvision", "pillow"),
    }
    for case in args.cases:
        report[case] = {}
        for name, is_train in (("train", True), ("test", False)):
            report[case][name] = bench_case(case, is_train, args.images, args.repeats, memory)
            medians = {
                key: (round(part["images_per_s"]["median"]), round(part.get("times_plain", {"median": 1})["median"], 2))
                for key, part in report[case][name].items()
                if isinstance(part, dict)
            }
            print(f"{case} {name}: {json.dumps(medians)}", flush=True)
            write_report(report, args.out)
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
