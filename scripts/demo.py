"""The whole workflow on a drawn data set: draw, evaluate an untrained network, train, evaluate, embed, search.

python -m scripts.demo --output demo_output
"""

import argparse
import logging
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONFIG = "configs/toy_resnet18_cpu.yml"
METRICS = ("strict_mAP", "strict_Top-1", "mAP", "Top-1", "Top-5", "mINP")


def main() -> None:
    """Run the demonstration and print where its results are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="demo_output", help="folder for the data set, logs and results")
    parser.add_argument("--seed", type=int, default=0, help="seed of the data set and of the training")
    parser.add_argument(
        "opts", nargs="*", metavar="KEY VALUE", help="config keys and values that override the demo's own"
    )
    args = parser.parse_args()
    start = time.perf_counter()
    output = Path(args.output).resolve()
    data = output / "data"
    run("scripts/make_toy_dataset.py", str(data), "--seed", str(args.seed), "--force")

    from config.cli import clean_exit

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with clean_exit():
        results = demonstrate(data, output, args.seed, args.opts)
    summarize(results, output, time.perf_counter() - start)


def demonstrate(data: Path, output: Path, seed: int, opts: list[str]) -> dict[str, dict[str, dict[str, float]]]:
    """Evaluate an untrained network, train one, test its newest checkpoint; {stage: {kind: {metric: value}}}."""
    from config.load import load_config
    from engine.run import run_main, run_untrained
    from train_ctl_model import CTLModel

    common = ["DATASETS.ROOT_DIR", str(data), "REPRODUCIBLE", True, "REPRODUCIBLE_NUM_RUNS", 1]
    common += ["REPRODUCIBLE_SEED", seed, "LOGGING.MLFLOW_URI", f"sqlite:///{output / 'mlflow.db'}"]
    cfg = load_config(str(ROOT / CONFIG), [*common, "OUTPUT_DIR", str(output / "training"), *opts])
    say("An untrained network, for comparison")
    untrained = run_untrained(cfg, CTLModel)
    say(f"python train_ctl_model.py --config_file={CONFIG} DATASETS.ROOT_DIR {data} OUTPUT_DIR {cfg.OUTPUT_DIR}")
    (trained,) = run_main(cfg, CTLModel, "train_ctl_model")
    checkpoint = max(output.glob("training/**/auto_checkpoints/*.pth"), key=lambda path: path.stat().st_mtime)
    only_test = ["TEST.ONLY_TEST", True, "MODEL.PRETRAIN_PATH", str(checkpoint), "TEST.VISUALIZE", "yes"]
    say("The same from the saved checkpoint, with strips: TEST.ONLY_TEST True MODEL.PRETRAIN_PATH " + str(checkpoint))
    cfg = load_config(
        str(ROOT / CONFIG),
        [*common, "OUTPUT_DIR", str(output / "test"), *opts, *only_test, "TEST.VISUALIZE_MAX_NUMBER", 12],
    )
    (tested,) = run_main(cfg, CTLModel, "test_ctl_model")
    search(data, output, checkpoint)
    return {"untrained": untrained, "trained": trained, "from checkpoint": tested}


def search(data: Path, output: Path, checkpoint: Path) -> None:
    """Embed the gallery, then find the images most similar to each query."""
    common = ("--config_file", str(ROOT / CONFIG), "MODEL.PRETRAIN_PATH", str(checkpoint))
    market, gallery = data / "market1501", str(output / "gallery")
    images = ("DATASETS.ROOT_DIR", str(market / "bounding_box_test"), "OUTPUT_DIR", gallery)
    run("inference/create_embeddings.py", *common, *images)
    queries = ("DATASETS.ROOT_DIR", str(market / "query"), "OUTPUT_DIR", str(output / "search"))
    options = ("--gallery_data", gallery, "--topk", "10", "--normalize_features", "--html")
    run("inference/get_similar.py", *options, *common, *queries)


def summarize(results: dict[str, dict[str, dict[str, float]]], output: Path, seconds: float) -> None:
    """Print the metrics before and after training, and where the results are."""
    print(f"\n{'':34}" + "".join(f"{name:>14}" for name in METRICS))
    for stage, kinds in results.items():
        for kind, metrics in kinds.items():
            row = (f"{metrics[name]:14.4f}" if name in metrics else f"{'-':>14}" for name in METRICS)
            caveat = "  mAP, Top-k: inflated, use strict_*" if "strict_mAP" in metrics else ""
            print(f"{stage + ', ' + kind:34}" + "".join(row) + caveat)
    print(
        "\ninstances: each gallery image is ranked. centroids: strict_*: one centroid per identity, without images of\n"
        "the query's camera; mAP, Top-k: the published protocol, inflated by its camera look-up error. See README.md."
    )
    print(f"\ndone in {seconds:.0f} s; everything is under {output}:")
    for title, pattern in (
        ("best checkpoint", "training/**/checkpoints/*.ckpt"),
        ("newest checkpoint, to resume from", "training/**/auto_checkpoints/*.pth"),
        ("TensorBoard (tensorboard --logdir)", "training/train_ctl_model"),
        ("MLflow (mlflow ui --backend-store-uri sqlite:///...)", "mlflow.db"),
        ("curves, a map and ranked results", "test/visrank/index.html"),
        ("embeddings of the gallery", "gallery/embeddings.npy"),
        ("images most similar to each query", "search/results.html"),
    ):
        for path in sorted(output.glob(pattern)):
            print(f"  {title}: {path}")


def run(script: str, *arguments: str) -> None:
    """Run a script of this repository as a user would."""
    say(" ".join(("python", script, *arguments)))
    status = subprocess.run([sys.executable, str(ROOT / script), *arguments], check=False).returncode
    if status:
        raise SystemExit(status)


def say(line: str) -> None:
    """Announce a step."""
    print(f"\n=== {line}", flush=True)


if __name__ == "__main__":
    main()
