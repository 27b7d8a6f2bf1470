"""Train on a table of one's own images, without and with the centroid loss, from random weights and from given ones.

    python benchmarks/bench_real.py --csv table.csv --weights mobilenet_v2.pth --out real.json
    python benchmarks/bench_real.py --csv table.csv --network resnet18 --size 256 128 --seeds 5 --out real.json

Compared are the network with random weights, and with those of the file as they are; and after training by
train_base_model.py and by train_ctl_model.py, each from random weights and from the file. Two trainings with the same
seed and start have the same initial weights and see the same batches, so the difference CTL - baseline is taken for
each seed. The network of the last epoch counts: no epoch is chosen by what it is tested on. All trainings have one
schedule and one learning rate, which are not searched for; further KEY VALUE pairs change any key for all runs.

The report is written after each run. Repeated with the same settings, the benchmark goes on where it was stopped; with
more --seeds, it adds those.
"""

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402 - the checkout stands first on the path

from benchmarks.common import RESULTS, commit, machine, spread, write_report  # noqa: E402
from config.cli import clean_exit  # noqa: E402
from config.load import load_config  # noqa: E402
from engine.run import RunMetrics, run_main, run_untrained  # noqa: E402
from train_base_model import BaseModel  # noqa: E402
from train_ctl_model import CTLModel  # noqa: E402
from utils.errors import UserError  # noqa: E402
from utils.files import content_digest  # noqa: E402

METHODS = {"baseline": BaseModel, "ctl": CTLModel}
# Name in the report -> kind of evaluation, and what it logs.
METRICS = {
    "mAP": ("instances", "mAP"),
    "rank1": ("instances", "Top-1"),
    "centroid_mAP": ("centroids", "strict_mAP"),
    "centroid_rank1": ("centroids", "strict_Top-1"),
}
# Student's t at 97.5 % for 1, 2, ... degrees of freedom; for more than these, the last one is a little too wide.
STUDENT = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
)  # fmt: skip


class Run(NamedTuple):
    """One network to measure: ``method`` is none, baseline or ctl; ``start`` is random or pretrained."""

    method: str
    start: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.method}/{self.start}/{self.seed}"


def plan(seeds: int, has_weights: bool) -> list[Run]:
    """All runs, seed after seed, so that a benchmark that is stopped has whole pairs."""
    runs = [Run("none", "pretrained", 0)] if has_weights else []  # the same for every seed
    for seed in range(seeds):
        runs.append(Run("none", "random", seed))
        runs += [
            Run(method, start, seed) for start in ("random", "pretrained")[: 1 + has_weights] for method in METHODS
        ]
    return runs


# -------------------------------------------------------------------------------------------------------- the numbers


def mean_and_spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean and standard deviation (None for one value) beside median, least, largest, and the values."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "sd": deviation, **spread(list(values))}


def compare(ours: Mapping[int, float], theirs: Mapping[int, float]) -> dict[str, Any] | None:
    """The differences ours - theirs over the seeds that both have; None if there are none.

    Returns:
        Their mean and spread, ``above_zero``, the number of seeds in which ours is higher, and ``interval``, Student's
        95 % interval of the mean, None for one seed.
    """
    differences = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
    if not differences:
        return None
    found = mean_and_spread(differences)
    found["above_zero"] = sum(value > 0 for value in differences)
    found["interval"] = None
    if found["sd"] is not None:
        freedom = min(len(differences) - 1, len(STUDENT))
        half = STUDENT[freedom - 1] * found["sd"] / math.sqrt(len(differences))
        found["interval"] = [found["mean"] - half, found["mean"] + half]
    return found


def summarise(runs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and spread of each way over its seeds, and the paired differences between CTL and the baseline."""
    values: dict[str, dict[str, dict[int, float]]] = {}
    for name, result in runs.items():
        way, _, seed = name.rpartition("/")
        for metric in METRICS:
            values.setdefault(way, {}).setdefault(metric, {})[int(seed)] = result[metric]
    means = {
        way: {metric: mean_and_spread(list(seeds.values())) for metric, seeds in metrics.items()}
        for way, metrics in values.items()
    }
    pairs = {}
    for start in ("random", "pretrained"):
        ours, theirs = (values.get(f"{method}/{start}", {}) for method in ("ctl", "baseline"))
        found = {metric: compare(ours.get(metric, {}), theirs.get(metric, {})) for metric in METRICS}
        if all(found.values()):
            pairs[start] = found
    return {"means": means, "ctl_minus_baseline": pairs}


# ----------------------------------------------------------------------------------------------------------- the runs


def shared_options(args: argparse.Namespace) -> dict[str, Any]:
    """The keys that all runs have in common."""
    return {
        "MODEL.NAME": args.network,
        "MODEL.BACKBONE_EMB_SIZE": 0,
        "INPUT.SIZE_TRAIN": list(args.size),
        "INPUT.SIZE_TEST": list(args.size),
        "INPUT.PADDING": args.size[0] // 25,  # the original's share of the height: 10 of 256
        "DATASETS.NAMES": "csv",
        "DATASETS.ROOT_DIR": "",
        "DATALOADER.NUM_WORKERS": 0,
        "SOLVER.IMS_PER_BATCH": args.identities,
        "SOLVER.MAX_EPOCHS": args.epochs,
        "SOLVER.EVAL_PERIOD": args.epochs,
        "SOLVER.BASE_LR": args.lr,
        "SOLVER.LR_SCHEDULER_NAME": "cosine_annealing",
        "SOLVER.WARMUP_STEPS": 20,
        "GPU_IDS": [],
        "USE_MIXED_PRECISION": False,
        "REPRODUCIBLE": True,
        "REPRODUCIBLE_NUM_RUNS": 1,
        "TRAINER.PROGRESS_BAR": False,
        "LOGGING.MLFLOW": False,
    }


def options(args: argparse.Namespace, run: Run, folder: Path) -> list[Any]:
    """The configuration of a run, as KEY, VALUE, KEY, VALUE, ..."""
    weights = str(args.weights) if run.start == "pretrained" else ""
    chosen = {
        **shared_options(args),
        "MODEL.PRETRAINED": bool(weights),
        "MODEL.PRETRAIN_PATH": weights,
        "DATASETS.CSV_PATH": str(args.csv),
        "TEST.ONLY_TEST": run.method == "none" and bool(weights),
        "OUTPUT_DIR": str(folder),
        "REPRODUCIBLE_SEED": run.seed,
    }
    return [part for pair in chosen.items() for part in pair] + args.opts


def carry_out(args: argparse.Namespace, run: Run) -> dict[str, Any]:
    """Train and test, or only test: the metrics, the seconds it took, and how it was evaluated."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        given = options(args, run, Path(folder))
        if run == ("none", "random", run.seed):
            parts = [
                run_untrained(load_config("", [*given, "MODEL.USE_CENTROIDS", centroids]), CTLModel)
                for centroids in (False, True)
            ]
            results: RunMetrics = parts[0] | parts[1]
        else:
            (results,) = run_main(load_config("", given), METHODS.get(run.method, CTLModel), "train")
        metrics = {name: results[kind][metric] for name, (kind, metric) in METRICS.items()}
        written = Path(folder, "evaluation", "metrics.json")
        evaluation = how_evaluated(json.loads(written.read_text())) if written.is_file() else {}
    return {**metrics, "seconds": round(time.perf_counter() - start, 1), "commit": commit(), **evaluation}


def how_evaluated(written: Mapping[str, Any]) -> dict[str, Any]:
    """What an evaluation says of its queries and gallery."""
    instance, settings = written["protocols"]["instance"], written["settings"]
    counts = {name: instance[name] for name in ("queries", "queries_without_match", "gallery_items")}
    ways = {name: settings[name] for name in ("same_camera_filter", "own_images_left_out", "feat_norm", "distance")}
    return {"evaluation": counts | ways}


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """What all runs of a report have in common; files by their contents."""
    files = {name: getattr(args, name) for name in ("csv", "weights")}
    for path in files.values():
        if path is not None and not path.is_file():
            raise UserError(f"{path} is not a file; --csv takes a table of images, and --weights a file of weights.")
    described = {
        name: path and {"name": path.name, "digest": content_digest(path).hex()} for name, path in files.items()
    }
    return {**described, **shared_options(args), "opts": args.opts}


def finished_runs(out: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The runs of a report that exists already; none if there is no report.

    Raises:
        UserError: it is no report of this benchmark, or one with other settings.
    """
    if not out.is_file():
        return {}
    try:
        report = json.loads(out.read_text(encoding="utf-8"))
        found, runs = dict(report["settings"]), dict(report["runs"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{out} is no report of this benchmark: name another file with --out.") from error
    wanted = json.loads(json.dumps(settings))
    different = [
        f"{name} {found.get(name)!r}, here {wanted.get(name)!r}"
        for name in {**found, **wanted}
        if found.get(name) != wanted.get(name)
    ]
    if different:
        raise UserError(
            f"{out} holds runs with other settings ({'; '.join(different)}): name another file with --out, or delete "
            "this one."
        )
    return runs


def measure(
    runs: Sequence[Run], report: dict[str, Any], out: Path, execute: Callable[[Run], dict[str, Any]]
) -> dict[str, Any]:
    """Carry out the runs that the report lacks, and write it after each."""
    done = report["runs"]
    for run in runs:
        if run.name in done:
            print(f"{run.name}: done before", flush=True)
            continue
        done[run.name] = execute(run)
        report |= summarise(done)
        write_report(report, out)
        print(f"{run.name}: {json.dumps(done[run.name])}", flush=True)
    return report


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--csv", type=Path, required=True, help="table of images, as DATASETS.CSV_PATH takes it (docs/DATA.md)")
    add("--weights", type=Path, help="file of weights for the network; without it, all start from random weights")
    add("--network", default="torchvision:mobilenet_v2", help="MODEL.NAME, default: torchvision:mobilenet_v2")
    add("--size", type=int, nargs=2, default=[128, 128], metavar=("HEIGHT", "WIDTH"), help="default: 128 128")
    add("--seeds", type=int, default=3, help="number of seeds, default: 3")
    add("--epochs", type=int, default=8, help="default: 8")
    add("--identities", type=int, default=16, help="in a batch, with 4 images each, default: 16")
    add("--lr", type=float, default=3.5e-4, help="SOLVER.BASE_LR of all trainings, default: 3.5e-4")
    add("--threads", type=int, default=2, help="default: 2")
    add("--out", type=Path, default=RESULTS / "real.json", help="JSON file, default: benchmarks/results/real.json")
    add("opts", nargs="*", metavar="KEY VALUE", help="config keys and values for all runs")
    return parser.parse_args(argv)


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    with clean_exit():
        settings = settings_of(args)
        report: dict[str, Any] = {
            "settings": settings,
            "machine": machine(args.threads, "pytorch-lightning", "torchvision", "timm"),
            "runs": finished_runs(args.out, settings),
        }
        measure(plan(args.seeds, args.weights is not None), report, args.out, lambda run: carry_out(args, run))
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
