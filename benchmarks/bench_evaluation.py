"""Time and memory of the evaluation, beside the matrix product alone, the classic evaluator and other packages.

    python benchmarks/bench_evaluation.py --size market
    python benchmarks/bench_evaluation.py --size msmt --parts engine memory
    python benchmarks/bench_evaluation.py --size small --repeats 1

Embeddings are drawn: identities with a shared centre, distractors without. What is compared is measured in turns, round
by round, so that other load on the machine meets both; medians and spreads are of the rounds.
"""

import argparse
import importlib
import importlib.util
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402 - the checkout stands first on the path
import torch  # noqa: E402

from benchmarks.common import (  # noqa: E402
    RESULTS,
    in_turns,
    machine,
    ratios,
    run_parts,
    spread,
    start_peak,
    status_mib,
    timed,
)
from evaluation.metrics import evaluate_distances, evaluate_embeddings  # noqa: E402
from evaluation.rerank import Rerank  # noqa: E402
from evaluation.retrieval import EvalResult  # noqa: E402
from utils.distances import get_euclidean  # noqa: E402

# queries, gallery images, dimensions, identities, images that are distractors, cameras
SIZES = {
    "small": (400, 2000, 256, 100, 400, 6),
    "market": (3368, 15913, 2048, 750, 2798, 6),
    "msmt": (11659, 82161, 2048, 3060, 0, 15),
}
PARTS = ("engine", "protocols", "classic", "memory", "growth", "rerank", "rivals")
PRODUCT_LIMIT = 1_000_000_000  # pairs; beyond, their product is not measured, since it needs more than 4 GiB
CLASSIC_LIMIT = 100_000_000  # pairs; beyond, the classic evaluator needs too much memory and time

Data = dict[str, Any]


def draw(size: str, seed: int = 0, scale: float = 1.0) -> Data:
    """Embeddings and labels; ``scale`` shortens queries and gallery alike."""
    m, n, dim, ids, distractors, cameras = SIZES[size]
    m, n, distractors = (round(count * scale) for count in (m, n, distractors))
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    g_pids = np.concatenate((rng.integers(1, ids + 1, n - distractors), np.zeros(distractors, dtype=np.int64)))
    rng.shuffle(g_pids)
    q_pids = rng.integers(1, ids + 1, m)
    centres = torch.randn(ids + 1, dim, generator=generator)
    centres[0] = 0
    data: Data = {"q_pids": q_pids, "g_pids": g_pids}
    data["q_camids"], data["g_camids"] = rng.integers(0, cameras, m), rng.integers(0, cameras, n)
    for name, pids in (("query", q_pids), ("gallery", g_pids)):
        embeddings = torch.randn(len(pids), dim, generator=generator).mul_(3 * (dim / 2048) ** 0.25)
        for start in range(0, len(pids), 1024):  # in place: the memory part must not meet a larger peak before
            embeddings[start : start + 1024] += centres[torch.from_numpy(pids[start : start + 1024])]
        data[name] = embeddings
    return data


def labels(data: Data) -> tuple[Any, ...]:
    return tuple(data[name] for name in ("q_pids", "g_pids", "q_camids", "g_camids"))


def inputs(data: Data) -> tuple[Any, ...]:
    return (data["query"], data["gallery"], *labels(data))


# ------------------------------------------------------------------------------------------------ what is compared


def classic_ranking(
    distances: np.ndarray,
    q_pids: Any,
    g_pids: Any,
    q_camids: Any,
    g_camids: Any,
    *,
    kind: Any = None,
    max_rank: int = 50,
) -> dict[str, Any]:
    """The usual evaluator of re-identification projects: sort the whole matrix, then one query after the other."""
    indices = np.argsort(distances, axis=1, kind=kind)
    matches = (g_pids[indices] == q_pids[:, np.newaxis]).astype(np.int32)
    all_cmc, all_ap = [], []
    for query in range(len(distances)):
        order = indices[query]
        keep = ~((g_pids[order] == q_pids[query]) & (g_camids[order] == q_camids[query]))
        found = matches[query][keep]
        if not found.any():
            continue
        cmc = found.cumsum()
        cmc[cmc > 1] = 1
        all_cmc.append(cmc[:max_rank])
        precision = [hits / (rank + 1.0) for rank, hits in enumerate(found.cumsum())]
        all_ap.append((np.asarray(precision) * found).sum() / found.sum())
    cmc = np.asarray(all_cmc).astype(np.float32).sum(0) / len(all_cmc)
    return {"mAP": float(np.mean(all_ap)), "cmc": cmc}


# ------------------------------------------------------------------------------------------------------- the parts


def bench_engine(data: Data, repeats: int) -> dict[str, Any]:
    """The whole evaluation beside the product of the two matrices into memory that is there already."""
    product = torch.empty(len(data["query"]), len(data["gallery"]))

    def multiply() -> None:
        torch.mm(data["query"], data["gallery"].t(), out=product)

    multiply()
    evaluate_embeddings(*inputs(data))
    seconds = in_turns(repeats, product=multiply, engine=lambda: evaluate_embeddings(*inputs(data)))
    return {
        "product_s": spread(seconds["product"]),
        "engine_s": spread(seconds["engine"]),
        "engine_over_product": ratios(seconds["engine"], seconds["product"]),
    }


def bench_protocols(data: Data, repeats: int) -> dict[str, Any]:
    """Every protocol and metric."""
    functions = {
        f"{protocol}_{metric}": lambda protocol=protocol, metric=metric: evaluate_embeddings(
            *inputs(data), protocol=protocol, metric=metric
        )
        for protocol in ("instance", "centroid", "centroid_strict")
        for metric in ("euclidean", "cosine")
    }
    return {f"{name}_s": spread(values) for name, values in in_turns(repeats, **functions).items()}


def bench_classic(data: Data, repeats: int) -> dict[str, Any]:
    """The classic evaluator: the ranking of a given matrix of distances, and the whole way from the embeddings."""
    pairs = len(data["query"]) * len(data["gallery"])
    if pairs > CLASSIC_LIMIT:
        return {"skipped": f"{pairs} pairs would need {pairs * 16 / 2**30:.0f} GiB and more"}
    distances = get_euclidean(data["query"], data["gallery"])
    matrix = distances.numpy()

    def whole() -> dict[str, Any]:
        return classic_ranking(get_euclidean(data["query"], data["gallery"]).numpy(), *labels(data))

    given = in_turns(
        repeats,
        classic=lambda: classic_ranking(matrix, *labels(data)),
        engine=lambda: evaluate_distances(distances, *labels(data)),
    )
    both = in_turns(repeats, classic=whole, engine=lambda: evaluate_embeddings(*inputs(data)))
    reference = classic_ranking(matrix, *labels(data), kind="stable")  # items at one distance in gallery order
    return {
        "given_distances": {
            **{f"{name}_s": spread(values) for name, values in given.items()},
            "times_faster": ratios(given["classic"], given["engine"]),
        },
        "from_embeddings": {
            **{f"{name}_s": spread(values) for name, values in both.items()},
            "times_faster": ratios(both["classic"], both["engine"]),
        },
        "same_numbers": {
            "given_distances": agreement(reference, evaluate_distances(distances, *labels(data))),
            "from_embeddings": agreement(reference, evaluate_embeddings(*inputs(data))),
        },
    }


def agreement(reference: dict[str, Any], result: EvalResult) -> dict[str, float]:
    return {
        "mAP": result.mAP,
        "mAP_difference": abs(reference["mAP"] - result.mAP),
        "largest_cmc_difference": float(np.abs(reference["cmc"] - result.cmc[: len(reference["cmc"])]).max()),
    }


def bench_memory(size: str, threads: int) -> dict[str, Any]:
    """Peak memory beyond the inputs, each protocol in a process of its own."""
    return {
        protocol: json.loads(
            subprocess.run(
                [sys.executable, __file__, "--size", size, "--threads", str(threads), "--memory-of", protocol],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
        for protocol in ("instance", "centroid", "centroid_strict", "rerank")
    }


def memory_of(what: str, data: Data) -> dict[str, Any]:
    """Resident memory before, and its peak during, the first evaluation of this process (Linux)."""
    before = start_peak()
    how: dict[str, Any] = {"rerank": Rerank()} if what == "rerank" else {"protocol": what}
    seconds, result = timed(lambda: evaluate_embeddings(*inputs(data), **how))
    return {
        "inputs_and_libraries_mib": round(before, 1),
        "peak_beyond_inputs_mib": round(status_mib("VmHWM") - before, 1),
        "seconds_first_run": round(seconds, 3),
        "mAP": result.mAP,
    }


def bench_growth(size: str, repeats: int, seed: int) -> list[dict[str, Any]]:
    """Seconds per pair of a query and a gallery image, from a quarter of each to all."""
    rows = []
    for scale in (0.25, 0.5, 1.0):
        data = draw(size, seed, scale)
        pairs = len(data["query"]) * len(data["gallery"])
        evaluate_embeddings(*inputs(data))
        seconds = in_turns(repeats, engine=lambda data=data: evaluate_embeddings(*inputs(data)))["engine"]  # type: ignore[misc]
        median = statistics.median(seconds)
        rows.append({"pairs": pairs, "engine_s": spread(seconds), "ns_per_pair": median / pairs * 1e9})
    return rows


def bench_rerank(data: Data, repeats: int) -> dict[str, Any]:
    """k-reciprocal re-ranking with the evaluation of its rankings, beside the product of all images with themselves."""
    numbers = {"mAP_before": evaluate_embeddings(*inputs(data)).mAP}
    images = torch.cat((data["query"], data["gallery"]))

    def whole() -> None:
        numbers["mAP_after"] = evaluate_embeddings(*inputs(data), rerank=Rerank()).mAP

    functions: dict[str, Callable[[], Any]] = {"whole": whole}
    if len(images) ** 2 <= PRODUCT_LIMIT:
        functions["product"] = lambda: images @ images.t()
    seconds = in_turns(repeats, **functions)
    measured = {f"{name}_s": spread(values) for name, values in seconds.items()}
    if "product" in seconds:
        measured["rerank_over_product"] = ratios(seconds["whole"], seconds["product"])
    return measured | numbers


def bench_rivals(data: Data, repeats: int = 1, queries: int = 200) -> dict[str, Any]:
    """Other packages' retrieval metrics on the first queries; none of them removes images of the query's camera."""
    part = {**data, **{name: data[name][:queries] for name in ("query", "q_pids", "q_camids")}}
    rivals = {"this_project": Rival(partial(ours_without_cameras, part), [])}
    missing: dict[str, dict[str, str]] = {}
    for package, prepare in (("torchmetrics", rival_torchmetrics), ("pytorch_metric_learning", rival_pml)):
        if importlib.util.find_spec(package) is None:
            missing[package] = {"skipped": "not installed"}
            continue
        try:
            rivals[package] = prepare(part)
            rivals[package].evaluate()  # what cannot run is found here, and loads what it needs
        except (ImportError, RuntimeError, ValueError, TypeError) as error:
            rivals.pop(package, None)
            missing[package] = {"failed": f"{type(error).__name__}: {error}"}
    numbers = {name: rival.evaluate() for name, rival in rivals.items()}
    seconds = in_turns(repeats, **{name: rival.evaluate for name, rival in rivals.items()})
    measured = {
        name: {"seconds": spread(seconds[name]), **numbers[name], "cannot": rival.cannot}
        for name, rival in rivals.items()
    }
    return {"queries": len(part["query"]), "camera_filter": "off for all", **measured, **missing}


class Rival(NamedTuple):
    """A way to evaluate, which returns its metrics, and what of this project's evaluation it cannot do."""

    evaluate: Callable[[], dict[str, float]]
    cannot: list[str]


def ours_without_cameras(data: Data) -> dict[str, float]:
    no_cameras = (data["q_pids"], data["g_pids"], np.zeros(len(data["query"])), np.ones(len(data["gallery"])))
    result = evaluate_embeddings(data["query"], data["gallery"], *no_cameras)
    return {"mAP": result.mAP, "Top-1": result.topk[1]}


def rival_torchmetrics(data: Data) -> Rival:
    from torchmetrics.retrieval import RetrievalHitRate, RetrievalMAP, RetrievalMRR

    def evaluate() -> dict[str, float]:
        distances = get_euclidean(data["query"], data["gallery"])
        scores = distances.max() - distances  # negative scores count as not retrieved
        m, n = scores.shape
        target = torch.from_numpy(data["q_pids"][:, None] == data["g_pids"])
        index = torch.arange(m).unsqueeze(1).expand(m, n)
        metrics = {"mAP": RetrievalMAP("skip"), "Top-1": RetrievalHitRate("skip", top_k=1), "MRR": RetrievalMRR("skip")}
        return {
            name: float(metric(scores.flatten(), target.flatten(), indexes=index.flatten()))
            for name, metric in metrics.items()
        }

    cannot = ["remove images of the query's camera", "mINP", "centroid protocols", "memory below all pairs at once"]
    return Rival(evaluate, cannot)


def rival_pml(data: Data) -> Rival:
    distances = importlib.import_module("pytorch_metric_learning.distances")
    accuracy = importlib.import_module("pytorch_metric_learning.utils.accuracy_calculator")
    inference = importlib.import_module("pytorch_metric_learning.utils.inference")
    names = {"mean_average_precision": "mAP", "precision_at_1": "Top-1", "mean_reciprocal_rank": "MRR"}

    def evaluate() -> dict[str, float]:
        calculator = accuracy.AccuracyCalculator(
            include=tuple(names),
            k=len(data["gallery"]),
            device=torch.device("cpu"),
            knn_func=inference.CustomKNN(distances.LpDistance(normalize_embeddings=False, power=2), batch_size=64),
        )
        found = calculator.get_accuracy(
            data["query"], torch.from_numpy(data["q_pids"]), data["gallery"], torch.from_numpy(data["g_pids"])
        )
        return {names[name]: float(value) for name, value in found.items()}

    return Rival(evaluate, ["remove images of the query's camera", "CMC beyond rank 1", "mINP", "centroid protocols"])


# ---------------------------------------------------------------------------------------------------- the command


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="market")
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="default: all")
    parser.add_argument("--repeats", type=int, default=5, help="rounds, default: 5")
    parser.add_argument("--threads", type=int, default=2, help="default: 2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file, default: benchmarks/results/evaluation_SIZE.json")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    data = draw(args.size, args.seed)
    if args.memory_of:
        print(json.dumps(memory_of(args.memory_of, data)))
        return
    names = ("queries", "gallery", "dimensions", "identities", "distractors", "cameras")
    report: dict[str, Any] = {
        "size": dict(zip(names, SIZES[args.size], strict=True)),
        "repeats": args.repeats,
        "seed": args.seed,
        "machine": machine(args.threads, "torchmetrics", "pytorch-metric-learning"),
    }
    measure: dict[str, Callable[[], Any]] = {
        "engine": lambda: bench_engine(data, args.repeats),
        "protocols": lambda: bench_protocols(data, args.repeats),
        "classic": lambda: bench_classic(data, args.repeats),
        "memory": lambda: bench_memory(args.size, args.threads),
        "growth": lambda: bench_growth(args.size, args.repeats, args.seed),
        "rerank": lambda: bench_rerank(data, args.repeats),
        "rivals": lambda: bench_rivals(data, args.repeats),
    }
    out = args.out or RESULTS / f"evaluation_{args.size}.json"
    run_parts(args.parts or PARTS, measure, report, out)


if __name__ == "__main__":
    main()
