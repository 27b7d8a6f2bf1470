"""The tables of docs/BENCHMARKS.md and docs/BACKBONES.md, from the reports in benchmarks/results/.

    python -m benchmarks.tables          # rewrites what stands between the markers of the pages
    python -m benchmarks.tables --check  # status 1 if a page is not what the reports say

A table stands between ``<!-- table: NAME -->`` and ``<!-- end -->``. Measured values are medians with their range in
brackets. A report that does not exist gives "Not measured yet."; a part that a report lacks gives a dash.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.common import RESULTS, ROOT
from inference.searching.indexes import lists_of

PAGES = tuple(ROOT / "docs" / f"{name}.md" for name in ("BENCHMARKS", "BACKBONES", "SCALING"))
NOT_MEASURED = "Not measured yet."
NOTHING = "–"
CARDS = "gpu_*"  # the reports of benchmarks.gpu, one a card, which share their tables
MARKED = re.compile(r"(<!-- table: (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)

Report = dict[str, Any]
Row = tuple[str, ...]  # the cells of a row, the first being its head


class Table(NamedTuple):
    """Which report a table is made from, the heads of its columns, and its rows.

    A table that is computed from several reports names them with "+" between, and gets them by name.
    """

    report: str
    heads: Callable[[Report], Row]
    rows: Callable[[Report], Iterator[Row]]


# ----------------------------------------------------------------------------------------------------------- the cells


def find(report: Any, path: str) -> Any:
    """What stands at "part/name/0" of a report; None if it lacks that."""
    for key in path.split("/"):
        if isinstance(report, list):
            report = report[int(key)] if int(key) < len(report) else None
        else:
            report = report.get(key) if isinstance(report, dict) else None
    return report


def number(value: float) -> str:
    """Three significant digits, and all digits before the point."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    text = f"{value:.3g}"
    return text if "e" not in text else f"{value:.1e}"


def cell(report: Report, path: str, unit: str = "", scale: float = 1.0) -> str:
    """A measured value: the median with its range, or a single number."""
    value = find(report, path)
    if value is None:
        return NOTHING
    unit = f" {unit}" if unit else ""
    if isinstance(value, dict):
        median, low, high = (number(scale * value[name]) for name in ("median", "min", "max"))
        return f"{median}{unit} ({low} to {high})"
    return f"{number(scale * value)}{unit}"


def columns(*heads: str) -> Callable[[Report], Row]:
    return lambda report: heads


# ---------------------------------------------------------------------------------------------------------- the tables


def startup_rows(report: Report) -> Iterator[Row]:
    names = {
        "bare": "bare script",
        "this_project": "`train_ctl_model.py`, `LOGGING.MLFLOW False`",
        "this_project_with_mlflow": "`train_ctl_model.py` with MLflow, as by default",
    }
    for name, title in names.items():
        yield title, cell(report, f"first_batch/{name}/seconds", "s"), cell(report, f"first_batch/{name}/times_bare")


def startup_import_rows(report: Report) -> Iterator[Row]:
    names = {
        "bare": "`import torch, torchvision, pytorch_lightning`",
        "this_project": "`import train_ctl_model`",
    }
    for name, title in names.items():
        values = (cell(report, f"imports/{name}/{key}", unit) for key, unit in (("seconds", "s"), ("times_bare", "")))
        yield title, *values, cell(report, f"imports/{name}/modules")


def startup_cost_rows(report: Report) -> Iterator[Row]:
    for i, row in enumerate(report.get("costs", [])):
        values = (cell(report, f"costs/{i}/{name}", "ms") for name in ("own_ms", "with_its_imports_ms"))
        yield f"`{row['module']}`", *values


def training_step_rows(report: Report) -> Iterator[Row]:
    yield "plain PyTorch loop, a whole step", cell(report, "step/plain_s", "s")
    yield "this project, a whole step", cell(report, "step/step_s", "s")
    parts = {
        "forward": "backbone, forward",
        "backward": "backward pass",
        "heads_forward": "losses, forward",
        "optimiser": "both optimisers",
        "logging": "logging",
        "data_wait": "waiting for data that is in memory",
        "trainer": "the rest of the Trainer",
    }
    for name, title in parts.items():
        yield f"... {title}", cell(report, f"step/{name}_s", "ms", 1e3)
    yield "the backbone alone, forward and backward", cell(report, "step/backbone_s", "s")
    yield "plain loop / this project", cell(report, "step/times_faster_than_plain")
    yield "this project / backbone alone", cell(report, "step/step_over_backbone")


def training_head_rows(report: Report) -> Iterator[Row]:
    for i, row in enumerate(report.get("heads", [])):
        yield str(row["images"]), cell(report, f"heads/{i}/ms", "ms")


def training_memory_rows(report: Report) -> Iterator[Row]:
    names = {
        "plain": "plain PyTorch loop",
        "this_project": "this project",
        "contiguous": "`MODEL.CHANNELS_LAST False`",
        "grad_checkpoint": "`MODEL.GRAD_CHECKPOINT True`",
    }
    for name, title in names.items():
        yield title, cell(report, f"memory/{name}/peak_mib", "MiB")


def evaluation_heads(report: Report) -> Row:
    size = report["size"]
    return "", f"{size['queries']:,} queries x {size['gallery']:,} images x {size['dimensions']:,} numbers"


def evaluation_rows(report: Report) -> Iterator[Row]:
    yield "product of the two matrices alone", cell(report, "engine/product_s", "s")
    yield "whole evaluation, single images", cell(report, "engine/engine_s", "s")
    yield "... as a multiple of the product", cell(report, "engine/engine_over_product")
    yield "... for a pair of a query and a gallery image", cell(report, "growth/2/ns_per_pair", "ns")
    titles = {
        "instance": "single images",
        "centroid": "centroids, published protocol",
        "centroid_strict": "centroids, strict protocol",
    }
    for metric in ("euclidean", "cosine"):
        for protocol, title in titles.items():
            yield f"{title}, {metric}", cell(report, f"protocols/{protocol}_{metric}_s", "s")
    for protocol, title in titles.items():
        yield f"{title}, memory", cell(report, f"memory/{protocol}/peak_beyond_inputs_mib", "MiB")
    yield "k-reciprocal re-ranking and evaluation", cell(report, "rerank/whole_s", "s")
    yield "... as a multiple of the product of all images with themselves", cell(report, "rerank/rerank_over_product")
    yield "... memory", cell(report, "memory/rerank/peak_beyond_inputs_mib", "MiB")
    yield "... in that run", cell(report, "memory/rerank/seconds_first_run", "s")
    skipped = find(report, "classic/skipped")
    if skipped:
        yield "classic evaluator", f"not measured: {skipped}"
        return
    yield "classic evaluator, from the embeddings", cell(report, "classic/from_embeddings/classic_s", "s")
    yield "... as a multiple of this project's time", cell(report, "classic/from_embeddings/times_faster")
    yield "... difference in mAP", cell(report, "classic/same_numbers/from_embeddings/mAP_difference")
    yield "classic evaluator, distances given", cell(report, "classic/given_distances/classic_s", "s")
    yield "... as a multiple of this project's time", cell(report, "classic/given_distances/times_faster")


def growth_rows(report: Report) -> Iterator[Row]:
    for i, row in enumerate(report.get("growth", [])):
        yield f"{row['pairs']:,}", cell(report, f"growth/{i}/engine_s", "s"), cell(report, f"growth/{i}/ns_per_pair")


def rival_rows(report: Report) -> Iterator[Row]:
    titles = {
        "this_project": "this project",
        "torchmetrics": "torchmetrics",
        "pytorch_metric_learning": "pytorch-metric-learning",
    }
    for name, title in titles.items():
        part = find(report, f"rivals/{name}") or {}
        why = part.get("skipped") or part.get("failed") or ", ".join(part.get("cannot", [])) or NOTHING
        version = report["machine"].get(title) or ""
        yield f"{title} {version}".strip(), cell(report, f"rivals/{name}/seconds", "s"), six_digits(part), why


def six_digits(part: Report) -> str:
    return f"{part['mAP']:.6f}" if "mAP" in part else NOTHING


def embedding_rows(report: Report) -> Iterator[Row]:
    yield "plain model in eval mode, float32", cell(report, "forward/plain_images_per_s"), "1", NOTHING
    for precision, title in (("32-true", "float32"), ("bf16-true", "bfloat16")):
        names = ("images_per_s", "times_plain")
        values = (cell(report, f"forward/{precision}/{name}") for name in names)
        cosine = find(report, f"forward/{precision}/least_cosine_to_plain")
        yield f"Embedder, {title}", *values, NOTHING if cosine is None else f"{cosine:.6f}"


def engine_rows(report: Report) -> Iterator[Row]:
    for i, network in enumerate(report.get("engines", [])):
        for j, part in enumerate(network["cells"]):
            for name in part["rows"]:
                precision, engine = name.split()
                values = (
                    cell(report, f"engines/{i}/cells/{j}/rows/{name}/{v}") for v in ("images_per_s", "times_torch")
                )
                yield f"`{network['network']}`", str(part["batch"]), precision, engine, *values


def int8_rows(report: Report) -> Iterator[Row]:
    for network in report.get("engines", []):
        cosine, scores = network["int8_cosine"], network["mAP"]
        for name in [name for name in scores if name.startswith("int8 ")]:
            values = (cosine["mean"], cosine["least"], scores["float32 torch"], scores[name])
            yield f"`{network['network']}`", name.removeprefix("int8 "), *(f"{value:.4f}" for value in values)


def pipeline_rows(report: Report) -> Iterator[Row]:
    for i, part in enumerate(report.get("pipeline", [])):
        shares = (cell(report, f"pipeline/{i}/{threads}_threads_share_of_forward") for threads in (0, 1, 2))
        decode = (cell(report, f"pipeline/{i}/{name}_ms_per_image") for name in ("decode", "decode_by_transforms"))
        yield part["precision"], cell(report, f"pipeline/{i}/forward_images_per_s"), *shares, *decode


def embedding_memory_rows(report: Report) -> Iterator[Row]:
    for i, part in enumerate(report.get("memory", [])):
        names = ("embeddings_mib", "peak_beyond_mib", "libraries_mib", "seconds_without_model")
        values = (cell(report, f"memory/{i}/{name}") for name in names)
        yield f"{part['files']:,} x {part['dimension']:,}", *values


def source_rows(report: Report) -> Iterator[Row]:
    for i, part in enumerate(report.get("parts", [])):
        names = ("shards/images_per_s", "files/images_per_s", "shards_over_files", "shards/peak_mib", "files/peak_mib")
        yield f"{part['images']:,}", *(cell(report, f"parts/{i}/{name}") for name in names)


def search_heads(report: Report) -> Row:
    size = f"{report['queries']:,} queries in {report['gallery']:,} x {report['dims']:,}"
    return size, "seconds", "first search, which builds", "memory", "recall"


def search_rows(report: Report) -> Iterator[Row]:
    yield "matrix product alone, in memory", cell(report, "product/seconds"), NOTHING, NOTHING, NOTHING
    memory = "peak_beyond_mib"
    yield "exact, from the file", cell(report, "exact/seconds"), NOTHING, cell(report, f"exact/{memory}", "MiB"), "1"
    if find(report, "exact/seconds") and find(report, "product/seconds"):
        ratio = report["exact"]["seconds"]["median"] / report["product"]["seconds"]["median"]
        yield "... medians, as a multiple of the product", number(ratio), NOTHING, NOTHING, NOTHING
    yield "the whole distance matrix", NOTHING, NOTHING, cell(report, "exact/pairs_times_4_bytes_mib", "MiB"), NOTHING
    for part in ("faiss:flat", "faiss:ivf", "faiss:ivfpq", "faiss:hnsw", "milvus"):
        if part in report:
            names = (("load_and_search_s", ""), ("first_s", "s"), (memory, "MiB"), ("recall", ""))
            yield f"`{part}`", *(cell(report, f"{part}/{name}", unit) for name, unit in names)


LARGE = {"exact": "exact", "ivfpq": "`faiss:ivfpq`", "ivf": "`faiss:ivf`, lists on disk", "milvus": "embedded Milvus"}


def large_search_heads(report: Report) -> Row:
    queries, topk = report["queries"], report["topk"]
    heads = ("", "rows", "building", "memory of building", "files", f"seconds for {queries} queries")
    return (*heads, "memory of searching", f"recall@{topk}")


def large_search_rows(report: Report) -> Iterator[Row]:
    for kind, title in LARGE.items():
        if kind in report:
            names = (("build_s", "s"), ("build_mib", "MiB"), ("mib", "MiB"), ("query_s", ""), ("query_mib", "MiB"))
            cells = (cell(report, f"{kind}/{name}", unit) for name, unit in (*names, ("recall", "")))
            yield title, cell(report, f"{kind}/rows"), *cells


def network_title(row: Report) -> str:
    """The name of a network, and the keys that it was measured with."""
    name, *pairs = row["network"].split()
    settings = [" ".join(pair) for pair in zip(pairs[::2], pairs[1::2], strict=True)]
    return ", ".join(f"`{part}`" for part in (name, *settings))


def network_cell(row: Report, path: str, scale: float = 1.0) -> str:
    """A value of a network; "failed" if the part of the report that would have it did."""
    return "failed" if find(row, f"failed/{path.partition('/')[0]}") else cell(row, path, scale=scale)


def network_rows(report: Report) -> Iterator[Row]:
    for row in report.get("networks", []):
        values = (("embedding_size", 1.0), ("parameters", 1e-6), ("multiply_adds", 1e-9))
        counts = (network_cell(row, f"counts/{name}", scale) for name, scale in values)
        yield network_title(row), *counts, network_cell(row, "onnx/relative_error"), row.get("weights") or NOTHING


def network_speed_rows(part: str, *precisions: str) -> Callable[[Report], Iterator[Row]]:
    """A row for each network: images per second in each precision, and how many times those of the reference."""

    def rows(report: Report) -> Iterator[Row]:
        for row in report.get("networks", []):
            places = [f"{part}/{p}/{name}" for p in precisions for name in ("images_per_s", "times_reference")]
            yield network_title(row), *(network_cell(row, place) for place in places)

    return rows


def data_rows(transforms: str) -> Callable[[Report], Iterator[Row]]:
    """A row for each case: the plain loop, then the others as multiples of it."""

    def rows(report: Report) -> Iterator[Row]:
        for case in ("market", "fashion", "photos"):
            part = find(report, f"{case}/{transforms}")
            if part is not None:
                sizes = ", ".join("{} x {}".format(*part[name]) for name in ("files", "input"))
                names = ("uncached", "ram_cold", "ram_warm", "disk_cold", "disk_warm")
                values = (cell(part, f"{name}/times_plain") for name in names)
                yield sizes, cell(part, "plain/images_per_s"), *values

    return rows


def decoding_rows(report: Report) -> Iterator[Row]:
    """A row for each case: the project's own reader, the others as multiples of it, and how far drafts are from it."""
    for case in ("crops", "photos", "originals", "large", "frames"):
        part = find(report, case)
        if part is not None:
            sizes = "{} x {}".format(*part["files"]) if "files" in part else "photos"
            values = (cell(part, f"{name}/times_ours") for name in DECODERS)
            apart = (cell(part, f"ours_draft/grey_levels/{name}") for name in ("mean", "p99"))
            yield sizes, cell(part, "ours/images_per_s"), *values, " / ".join(apart)


def frame_rows(report: Report) -> Iterator[Row]:
    for name, part in report.items():
        if isinstance(part, dict) and "32-true" in part:
            yield f"`{name}`", *(cell(part, f"{kind}/ms_per_frame", "ms") for kind in ("32-true", "bf16-true"))


def coco_rows(report: Report) -> Iterator[Row]:
    titles = {
        "street2shop": "Street2Shop: plan the crops, build the COCO files",
        "deep_fashion": "DeepFashion: plan the crops, build the COCO files",
        "reader": "read such a file for training",
    }
    for name, title in titles.items():
        for size, part in report.get(name, {}).items():
            values = (cell(part, "cpu_seconds", "s"), cell(part, "microseconds_each"), cell(part, "each_over_smallest"))
            yield title, f"{int(size):,}", *values


def scaling_rows(report: Report) -> Iterator[Row]:
    for name, part in report.items():
        if name.endswith("_processes"):
            count = name.partition("_")[0]
            cells = []
            for work in ("training", "evaluation"):
                cells.append(cell(part, f"{work}_images_per_s"))
                cells.append("1" if count == "1" else cell(part, f"{work}_efficiency"))
            yield count, *cells


def embedding_scaling_rows(report: Report) -> Iterator[Row]:
    for name, part in report.items():
        if name.endswith("_processes"):
            efficiency = "1" if name == "1_processes" else cell(part, "embedding_efficiency")
            yield name.partition("_")[0], cell(part, "embedding_images_per_s"), efficiency


COST_IMAGES, COST_CORES = 100_000_000, 64  # of the gallery, and of each machine
COST_OF = "embedding_engines+decoding+scaling_embedding+backbones"


def cost_rows(reports: Report) -> Iterator[Row]:
    """Hours and bytes of a gallery: each image is decoded and goes through the fastest engine, on one core."""
    engines, decoded = reports["embedding_engines"], find(reports, "decoding/crops/ours/images_per_s/median")
    efficiency = min(1.0, find(reports, "scaling_embedding/2_processes/embedding_efficiency"))
    widths = {row["network"]: row["counts"]["embedding_size"] for row in reports["backbones"]["networks"]}
    for network in engines["engines"]:
        rows = max(network["cells"], key=lambda part: part["batch"])["rows"]
        speeds = [row["images_per_s"]["median"] for name, row in rows.items() if name.startswith("float32")]
        core = 1 / (engines["machine"]["threads"] / max(speeds) + 1 / decoded)
        hours = COST_IMAGES / (core * COST_CORES * efficiency) / 3600
        gigabytes = [number(COST_IMAGES * widths[network["network"]] * each / 1e9) for each in (4, 2)]
        yield f"`{network['network']}`", number(core), number(hours), number(hours / 10), *gigabytes


def search_cost_rows(report: Report) -> Iterator[Row]:
    """Time, disk and memory at COST_IMAGES rows; the lists of an index grow with the root of the rows."""
    exact = report["exact"]
    more = COST_IMAGES / exact["rows"]
    yield "exact", NOTHING, NOTHING, number(exact["query_s"] * more / 60), number(exact["query_mib"] / 1024)
    for kind, title in (("ivfpq", "`faiss:ivfpq`"), ("ivf", "`faiss:ivf`, lists on disk")):
        found = report[kind]
        more = COST_IMAGES / found["rows"]
        lists = lists_of(COST_IMAGES) / lists_of(found["rows"])
        hours, files = found["build_s"] * more * lists / 3600, found["mib"] * more / 1024
        minutes = found["query_s"] * more / lists / 60
        libraries, held = found["libraries_mib"], more if kind == "ivfpq" else more / lists  # all, or a list at a time
        memory = (libraries + (found["query_mib"] - libraries) * held) / 1024
        yield title, number(hours), number(files), number(minutes), number(memory)


def soak_rows(report: Report) -> Iterator[Row]:
    for name, title, unit in (("memory_mib", "resident memory", "MiB"), ("open_files", "open files", "")):
        yield title, *(cell(report, f"{name}/{part}", unit) for part in ("first", "last", "largest"))
    left = report["checkpoints_left"]
    yield f"best checkpoints left after {report['epochs']} epochs", NOTHING, str(left["checkpoints"]), NOTHING
    yield "... to resume from", NOTHING, str(left["auto_checkpoints"]), NOTHING


NETWORK_SPEED_HEADS = columns(
    "network", "float32, images/s", "times `resnet50`", "bfloat16, images/s", "times `resnet50`"
)


WAYS = {
    "none/random": "random weights, untrained",
    "none/pretrained": "given weights, as they are",
    "baseline/random": "baseline, from random weights",
    "ctl/random": "CTL, from random weights",
    "baseline/pretrained": "baseline, from given weights",
    "ctl/pretrained": "CTL, from given weights",
}
STARTS = {"random": "from random weights", "pretrained": "from given weights"}
METRICS = {
    "mAP": "mAP",
    "rank1": "Rank-1",
    "centroid_mAP": "centroids, mAP",
    "centroid_rank1": "centroids, Rank-1",
}


def percent(values: Report) -> str:
    """Mean and standard deviation, with the range in brackets; a single value alone."""
    mean, deviation, low, high = (values[name] for name in ("mean", "sd", "min", "max"))
    if deviation is None:
        return f"{100 * mean:.1f}"
    return f"{100 * mean:.1f} ± {100 * deviation:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def real_rows(report: Report) -> Iterator[Row]:
    for way, title in WAYS.items():
        found = report.get("means", {}).get(way)
        if found:
            yield title, str(len(found["mAP"]["values"])), *(percent(found[metric]) for metric in METRICS)


def real_pair_rows(report: Report) -> Iterator[Row]:
    for start, metrics in report.get("ctl_minus_baseline", {}).items():
        for metric, title in METRICS.items():
            found = metrics[metric]
            interval = NOTHING
            if found["interval"]:
                interval = "{:+.1f} to {:+.1f}".format(*(100 * value for value in found["interval"]))
            count = f"{found['above_zero']} of {len(found['values'])}"
            yield f"{STARTS[start]}, {title}", f"{100 * found['mean']:+.1f}", interval, count


DATA_HEADS = columns(
    "files, input (height x width)", "plain loop, images/s", "no cache",
    "filling `ram`", "from `ram`", "filling `disk`", "from `disk`",
)  # fmt: skip


def gpu_training_rows(cards: Report) -> Iterator[Row]:
    for report in cards.values():
        for name, row in report.get("training", {}).items():
            if "failed" in row:
                yield (report["card"], name, *["failed"] * 7)
                continue
            times = [cell(row, f"{part}_ms", "ms") for part in ("step", "plain", "backbone", "kernels")]
            ratios = [cell(row, part) for part in ("images_per_s", "step_over_backbone")]
            yield (report["card"], name, *times, *ratios, cell(row, "peak_mib", "MiB"))


def gpu_other_rows(cards: Report) -> Iterator[Row]:
    for report in cards.values():
        card = report["card"]
        for row in report.get("loading", {}).values():
            yield card, f"loading, {row['workers']} workers", cell(row, "images_per_s", "images/s"), NOTHING, NOTHING
        for network, precisions in report.get("embedding", {}).items():
            for precision, row in precisions.items() if "failed" not in precisions else ():
                name, peak = f"{network}, {precision}", cell(row, "peak_mib", "MiB")
                yield card, f"embedding in memory, {name}", cell(row, "forward_images_per_s", "images/s"), NOTHING, peak
                speed = cell(row, "from_files_images_per_s", "images/s")
                yield card, f"embedding from files, {name}", speed, NOTHING, NOTHING
        for size, row in report.get("evaluation", {}).items():
            speed, peak = cell(row, "evaluation_s", "s"), cell(row, "peak_mib", "MiB")
            yield card, f"evaluation, {size}", speed, cell(row, "evaluation_over_product"), peak
            if "reranking_s" in row:
                ratio = cell(row, "reranking_over_product_of_all")
                yield card, f"re-ranking, {size}", cell(row, "reranking_s", "s"), ratio, NOTHING


DECODERS = {
    "ours_draft": "`INPUT.DRAFT_DECODING`",
    "simplejpeg": "simplejpeg",
    "simplejpeg_draft": "simplejpeg, draft",
    "pyturbojpeg": "PyTurboJPEG",
    "pyturbojpeg_draft": "PyTurboJPEG, draft",
    "torchvision": "torchvision",
}
INT8_HEADS = columns("network", "engine", "cosine to float32, mean", "least", "mAP in float32", "mAP in int8")
TABLES = {
    "startup": Table("startup", columns("", "first batch reaches the training step after", "times bare"), startup_rows),
    "startup_imports": Table("startup", columns("", "seconds", "times bare", "modules"), startup_import_rows),
    "startup_costs": Table("startup", columns("module", "its own code", "with its imports"), startup_cost_rows),
    "training_step": Table("training_resnet50", columns("", "time"), training_step_rows),
    "training_heads": Table("training_resnet50", columns("images in a batch", "time of a step"), training_head_rows),
    "training_memory": Table("training_resnet50", columns("", "peak memory of two steps"), training_memory_rows),
    "data_train": Table("data", DATA_HEADS, data_rows("train")),
    "data_test": Table("data", DATA_HEADS, data_rows("test")),
    "decoding": Table(
        "decoding",
        columns("files", "by default, images/s", *DECODERS.values(), "draft: grey levels apart, mean / 99 %"),
        decoding_rows,
    ),
    "frame": Table("frame", columns("network", "float32", "bfloat16"), frame_rows),
    "evaluation_market": Table("evaluation_market", evaluation_heads, evaluation_rows),
    "evaluation_msmt": Table("evaluation_msmt", evaluation_heads, evaluation_rows),
    "evaluation_growth": Table(
        "evaluation_market", columns("pairs of a query and a gallery image", "whole evaluation", "ns for a pair"),
        growth_rows,
    ),
    "evaluation_rivals": Table(
        "evaluation_market", columns("", "time", "mAP", "what it cannot do, or why it was not measured"), rival_rows
    ),
    "embedding_forward": Table(
        "embedding_resnet50", columns("", "images/s", "times plain", "least cosine to plain"), embedding_rows
    ),
    "engines": Table(
        "embedding_engines",
        columns("network", "batch", "precision", "engine", "images/s", "times the Embedder with torch"),
        engine_rows,
    ),
    "engines_int8": Table("embedding_int8", INT8_HEADS, int8_rows),
    "engines_int8_real": Table("embedding_int8_real", INT8_HEADS, int8_rows),
    "embedding_pipeline": Table(
        "embedding_resnet50",
        columns(
            "precision", "forward pass alone, images/s", "from files, no thread", "1 thread", "2 threads",
            "decoding, ms for an image", "... by torchvision's transforms",
        ),
        pipeline_rows,
    ),
    "embedding_memory": Table(
        "embedding_resnet50",
        columns("files x numbers", "embeddings, MiB", "peak, MiB", "libraries, MiB", "seconds without the network"),
        embedding_memory_rows,
    ),
    "sources": Table(
        "sources",
        columns(
            *("images", "tar files, images/s", "files, images/s", "tar files / files"),
            *("tar files, peak, MiB", "files, peak, MiB"),
        ),
        source_rows,
    ),
    "search": Table("search_1000000", search_heads, search_rows),
    "search_large": Table("search_10000000", large_search_heads, large_search_rows),
    "coco": Table(
        "coco", columns("", "annotations", "CPU time", "µs for one", "... as a multiple of the smallest"), coco_rows
    ),
    "scaling": Table(
        "scaling", columns("processes", "training, images/s", "efficiency", "evaluation, images/s", "efficiency"),
        scaling_rows,
    ),
    "backbones": Table(
        "backbones",
        columns(
            "network", "numbers of an embedding", "parameters, millions", "multiply-adds, billions",
            "ONNX, relative error", "weights that load",
        ),
        network_rows,
    ),
    "backbones_training": Table(
        "backbones_speed", NETWORK_SPEED_HEADS, network_speed_rows("training", "32-true", "bf16-mixed")
    ),
    "backbones_embedding": Table(
        "backbones_speed", NETWORK_SPEED_HEADS, network_speed_rows("embedding", "32-true", "bf16-true")
    ),
    "real": Table("real", columns("", "seeds", *METRICS.values()), real_rows),
    "real_pairs": Table(
        "real", columns("CTL - baseline", "mean difference", "95 % interval", "seeds with CTL ahead"), real_pair_rows
    ),
    "scaling_embedding": Table(
        "scaling_embedding", columns("processes", "images/s", "efficiency"), embedding_scaling_rows
    ),
    "cost": Table(
        COST_OF,
        columns("network", "images/s of a core", f"hours on {COST_CORES} cores", f"on {10 * COST_CORES} cores",
                "embeddings in float32, GB", "in float16, GB"),
        cost_rows,
    ),
    "search_cost": Table(
        "search_10000000",
        columns("", "hours of building", "index, GiB", "minutes for 100 queries", "memory of searching, GiB"),
        search_cost_rows,
    ),
    "gpu_training": Table(
        CARDS,
        columns("card", "images, precision", "step", "plain loop", "backbone alone", "its kernels", "images/s",
                "step / backbone", "peak memory"),
        gpu_training_rows,
    ),
    "gpu_other": Table(
        CARDS, columns("card", "", "measured", "times the product alone", "peak memory"), gpu_other_rows
    ),
    "soak": Table("soak", columns("", "first quarter", "last quarter", "largest"), soak_rows),
}  # fmt: skip
REPORTS = tuple(dict.fromkeys(name for table in TABLES.values() for name in table.report.split("+")))


def origin_table(reports: dict[str, Report]) -> str:
    """How and on what each report was measured."""
    heads = ("report", "command", "date", "commit", "machine", "load at the start", "versions")
    rows: list[Row] = []
    for name, report in reports.items():
        facts = dict(report["machine"])
        cpu, cores, threads, load = (facts.pop(key) for key in ("cpu", "cores", "threads", "load_average"))
        system = facts.pop("system")
        facts.pop("cpu_flags", None)
        versions = ", ".join(f"{package} {version or 'not installed'}" for package, version in facts.items())
        machine = f"{cpu}, {cores} cores, {threads} thread{'s' * (threads != 1)}, {system}"
        commit, _, changes = (report["commit"] or NOTHING).partition(" ")
        average = NOTHING if load is None else number(load[0])
        source = f"{commit[:10]} {changes}".rstrip()
        rows.append((name, f"`{report['command']}`", report["date"][:10], source, machine, average, versions))
    return markdown(heads, rows)


# ------------------------------------------------------------------------------------------------------------ the page


def markdown(heads: Row, rows: list[Row]) -> str:
    if not rows:
        return f"{NOT_MEASURED}\n"
    lines = [heads, ("---",) * len(heads), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def read_reports(folder: Path) -> dict[str, Report]:
    """The reports that the pages show and the folder has, by name."""
    files = {name: folder / f"{name}.json" for name in REPORTS}
    files |= {file.stem: file for file in sorted(folder.glob(f"{CARDS}.json"))}
    return {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items() if file.is_file()}


def given(name: str, reports: dict[str, Report]) -> Report | None:
    """What a table is made from; None if it was not measured."""
    if name == CARDS:
        return {found: report for found, report in reports.items() if fnmatch(found, CARDS)}
    if "+" not in name:
        return reports.get(name)
    parts = {part: reports.get(part) for part in name.split("+")}
    return None if None in parts.values() else parts


def render(name: str, reports: dict[str, Report]) -> str:
    """The Markdown of one table.

    Raises:
        KeyError: there is no table of that name.
    """
    if name == "origin":
        return origin_table(reports)
    table = TABLES[name]
    report = given(table.report, reports)
    if not report:
        return f"{NOT_MEASURED}\n"
    return markdown(table.heads(report), list(table.rows(report)))


def replaced(page: str, reports: dict[str, Report]) -> str:
    """The page with what the reports say between its markers."""
    return MARKED.sub(lambda found: found[1] + render(found[2], reports) + found[4], page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; status 1 if a page is out of date")
    args = parser.parse_args()
    reports = read_reports(RESULTS)
    old = {page: page.read_text(encoding="utf-8") for page in PAGES}
    new = {page: replaced(text, reports) for page, text in old.items()}
    if args.check:
        sys.exit(old != new)
    for page, text in new.items():
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
