"""Time to build and to read COCO files, without images: it should grow in proportion to the annotations.

    python benchmarks/bench_coco.py
    python benchmarks/bench_coco.py --sizes 1000 10000 100000 --repeats 7

Parts: street2shop and deep_fashion read drawn metadata, plan all crops and build the COCO files as the conversions do;
reader is what training does with such a file, empty files standing for the images. Sizes take turns; seconds are CPU
seconds, which other work on the machine disturbs less.
"""

import argparse
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.common import RESULTS, machine, ratios, spread, write_report  # noqa: E402 - the checkout is first
from datasets.readers.coco import read_coco  # noqa: E402
from scripts.coco_builder import CocoBuilder  # noqa: E402
from scripts.deep_fashion2reid import build_indexes as index_deep_fashion  # noqa: E402
from scripts.deep_fashion_lists import read_images  # noqa: E402
from scripts.street2shop_coco2reid import build_indexes as index_street2shop  # noqa: E402
from scripts.street2shop_coco2reid import plan  # noqa: E402
from scripts.street2shop_metadata import CATEGORIES, read_categories  # noqa: E402

SIZE = (320, 320)
Part = Callable[[], int]  # builds or reads, and returns the number of annotations


def street2shop(folder: Path, annotations: int) -> Part:
    """Products with two street and two shop photos each, one in ten of them in the test."""
    (folder / "json").mkdir(parents=True)
    box = {"left": 3, "top": 5, "width": 28, "height": 14}
    products = annotations // 4
    for number, name in enumerate(CATEGORIES):
        mine = range(number, products, len(CATEGORIES))
        lists = {
            "train_pairs": [{"photo": 4 * i + j, "product": i, "bbox": box} for i in mine if i % 10 for j in (0, 1)],
            "test_pairs": [
                {"photo": 4 * i + j, "product": i, "bbox": box} for i in mine if i % 10 == 0 for j in (0, 1)
            ],
            "retrieval": [{"photo": 4 * i + j, "product": i} for i in mine for j in (2, 3)],
        }
        for kind, entries in lists.items():
            (folder / "json" / f"{kind}_{name}.json").write_text(json.dumps(entries))

    def build() -> int:
        builders = index_street2shop(plan(read_categories(folder), 1), SIZE, {})
        return sum(len(builder.annotations) for builder in builders.values())

    return build


def deep_fashion(folder: Path, annotations: int) -> Part:
    """Items with two street and two shop images each, thus four pairs, one in ten in val and one in ten in test."""
    pairs, boxes = [], []
    for item in range(annotations // 4):
        path = f"img/CLOTHING/Type_{item % 20}/id_{item:08d}"
        users, shops = ([f"{path}/{kind}_{i:02d}.jpg" for i in (1, 2)] for kind in ("comsumer", "shop"))
        split = {0: "val", 1: "test"}.get(item % 10, "train")
        pairs += [f"{user}  {shop}  id_{item:08d}  {split}" for user in users for shop in shops]
        boxes += [f"{user}  2  2  5 0 18 18" for user in users] + [f"{shop}  2  1  5 0 18 18" for shop in shops]
    for name, rows in (("Eval/list_eval_partition.txt", pairs), ("Anno/list_bbox_consumer2shop.txt", boxes)):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("\n".join([str(len(rows)), "header", *rows]))

    def build() -> int:
        builders = index_deep_fashion([(image, SIZE) for image in read_images(folder)])
        return sum(len(builders[split].annotations) for split in ("train", "val", "test"))

    return build


def reader(folder: Path, annotations: int) -> Part:
    """One annotation for each image, four of each identity."""
    builder = CocoBuilder()
    (folder / "train").mkdir(parents=True)
    for number in range(annotations):
        builder.add_image(number, f"{number:09d}.jpg", SIZE)
        builder.add_identity(number, number, 0, pair_id=number // 4, style=0, source="user")
        (folder / "train" / f"{number:09d}.jpg").touch()
    builder.write(folder / "train_coco_reid.json")
    return lambda: len(read_coco(folder / "train_coco_reid.json", folder / "train", 0))


PARTS: dict[str, Callable[[Path, int], Part]] = {
    "street2shop": street2shop,
    "deep_fashion": deep_fashion,
    "reader": reader,
}


def bench(prepare: Callable[[Path, int], Part], sizes: list[int], repeats: int, folder: Path) -> dict[str, Any]:
    """CPU seconds for each size, and how the time for one annotation grows from the smallest size to each other."""
    parts = {str(size): prepare(folder / str(size), size) for size in sizes}
    counts = {size: part() for size, part in parts.items()}  # the first call warms the caches
    seconds: dict[str, list[float]] = {size: [] for size in parts}
    for _ in range(repeats):
        for size, part in parts.items():
            gc.collect()
            start = time.process_time()
            part()
            seconds[size].append(time.process_time() - start)
    each = {size: [value / counts[size] for value in seconds[size]] for size in parts}
    smallest = each[str(sizes[0])]
    return {
        size: {
            "annotations": counts[size],
            "cpu_seconds": spread(seconds[size]),
            "microseconds_each": 1e6 * statistics.median(each[size]),
            # In each round; 1: linear. The ratio of the sizes: quadratic.
            "each_over_smallest": ratios(each[size], smallest),
        }
        for size in parts
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000], help="default: 10000 100000")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    parser.add_argument("--repeats", type=int, default=5, help="rounds, default: 5")
    parser.add_argument("--out", type=Path, default=RESULTS / "coco.json", help="default: benchmarks/results/coco.json")
    args = parser.parse_args()
    report: dict[str, Any] = {"repeats": args.repeats, "machine": machine(1)}
    with tempfile.TemporaryDirectory() as folder:
        for part in args.parts:
            report[part] = bench(PARTS[part], sorted(args.sizes), args.repeats, Path(folder) / part)
            print(f"{part}: {json.dumps(report[part])}", flush=True)
    write_report(report, args.out)
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
