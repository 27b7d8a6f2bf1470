"""The programs in examples/, run as a user would run them, on drawn images."""

import re
import shutil
from runpy import run_path

import numpy as np
import pytest

from evaluation.metrics import evaluate
from evaluation.retrieval import RankingOptions, RetrievalSet
from evaluation.verification import roc_table
from tests.launch import REPOSITORY_FIRST, run_script
from tests.support import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
DISTANCE = r"    (-?\d+\.\d{4})  (.+)"


@pytest.fixture
def run(tmp_path):
    """Run a program of examples/ in an empty folder; returns the lines that it prints, without those of a log."""

    def run(name, *arguments):
        done = run_script(f"examples/{name}", *arguments, cwd=tmp_path, env=REPOSITORY_FIRST, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    return run


def test_there_are_five():
    names = [path.name for path in EXAMPLES]
    assert names[:3] == ["embed_and_search.py", "evaluate_embeddings.py", "own_data_set.py"]
    assert names[3:] == ["tracker.py", "train_own_loop.py"]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_each_is_short_and_says_in_two_lines_what_it_does(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 40
    docstring = text.split('"""')[1].splitlines()
    assert len(docstring) == 2
    assert docstring[1].startswith("Usage: python ")
    assert f"examples/{path.name}" in docstring[1]


def test_embed_and_search(run, market, checkpoint):
    queries = sorted((market / "market1501" / "query").glob("*.jpg"))
    lines = run("embed_and_search.py", checkpoint, queries[0].parent, queries[0].parent, "--topk", 3)
    assert len(lines) == 4 * len(queries)
    for path, block in zip(queries, (lines[start : start + 4] for start in range(0, len(lines), 4)), strict=True):
        assert block[0] == str(path)
        found = [re.fullmatch(DISTANCE, line) for line in block[1:]]
        assert all(found)
        distances = [float(match[1]) for match in found]
        assert distances == sorted(distances)
        assert (found[0][2], distances[0]) == (str(path), 0)  # each image is nearest to itself


def test_evaluate_embeddings_that_it_draws(run, tmp_path):
    instance, strict, *far = run("evaluate_embeddings.py")
    assert re.fullmatch(r"instance: mAP 0\.\d{4}, Top-1 0\.\d{4}, mINP 0\.\d{4}", instance)
    assert re.fullmatch(r"centroid_strict: mAP 0\.\d{4}, Top-1 0\.\d{4}, mINP 0\.\d{4}", strict)
    assert [re.sub(r"\d\.\d{4}", "X", line) for line in far] == [
        "FAR 0.001: TAR X at cosine distance X",
        "FAR 0.01: TAR X at cosine distance X",
    ]
    assert list(tmp_path.iterdir()) == []
    drawn = RetrievalSet(**run_path(str(ROOT / "examples" / "evaluate_embeddings.py"))["draw_embeddings"]())
    for line, protocol in ((instance, "instance"), (strict, "centroid_strict")):
        assert f"mAP {evaluate(drawn, RankingOptions('cosine', protocol)).mAP:.4f}," in line
    table = roc_table(drawn, RankingOptions("cosine"), far_levels=(1e-3, 1e-2))
    assert [f"TAR {tar:.4f} at" in line for line, tar in zip(far, table.tar, strict=True)] == [True, True]


def test_evaluate_embeddings_of_a_file(run, tmp_path):
    """Two identities at right angles, seen by two cameras: nothing can be ranked wrongly."""
    axes, pids, camids = np.eye(2).repeat(2, axis=0), [0, 0, 1, 1], [0, 1, 0, 1]
    labels = {"q_pids": pids, "g_pids": pids, "q_camids": camids, "g_camids": camids}
    np.savez(tmp_path / "mine.npz", query=axes, gallery=axes, **labels)
    instance, strict, far, _ = run("evaluate_embeddings.py", "mine.npz")
    assert instance == "instance: mAP 1.0000, Top-1 1.0000, mINP 1.0000"
    assert strict == "centroid_strict: mAP 1.0000, Top-1 1.0000, mINP 1.0000"
    assert far.startswith("FAR 0.001: TAR 1.0000 at cosine distance ")


def test_tracker(run, checkpoint):
    *frames, last = run("tracker.py", checkpoint, "--frames", 3, "--people", 6)
    assert [re.sub(r"\d+\.\d", "X", line) for line in frames] == [f"frame {i}: X ms for 6 crops" for i in (1, 2, 3)]
    right = re.fullmatch(r"(\d+) of 18 crops went to the track of the same person", last)
    assert int(right[1]) >= 16  # by random weights, colours are told apart


@pytest.mark.slow
def test_train_own_loop(run, market):
    lines = run("train_own_loop.py", market, "--epochs", 8)
    losses = [float(re.fullmatch(rf"epoch {epoch}: mean loss (\d+\.\d{{4}})", line)[1])
              for epoch, line in enumerate(line for line in lines if line.startswith("epoch"))]  # fmt: skip
    assert len(losses) == 8
    assert sum(losses[-3:]) < sum(losses[:3])  # it learns


@pytest.mark.slow
def test_own_data_set(run, market, tmp_path):
    """The drawn images under names that no data set of this project has."""
    folders = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
    for name, source in folders.items():
        (tmp_path / "mine" / name).mkdir(parents=True)
        for number, path in enumerate(sorted((market / "market1501" / source).glob("0*.jpg"))):
            pid, camera = re.match(r"(\d+)_c(\d)", path.name).groups()
            shutil.copy(path, tmp_path / "mine" / name / f"{int(pid)}_{camera}_{number:04d}.jpg")
    size = ["INPUT.SIZE_TRAIN", "[32,16]", "INPUT.SIZE_TEST", "[32,16]", "DATALOADER.NUM_WORKERS", 0]
    short = ["SOLVER.MAX_EPOCHS", 2, "SOLVER.EVAL_PERIOD", 2, "SOLVER.IMS_PER_BATCH", 3, "LOGGING.MLFLOW", False]
    config = ROOT / "configs" / "toy_resnet18_cpu.yml"
    lines = run("own_data_set.py", "mine", config, *size, *short, "TRAINER.PROGRESS_BAR", False, "OUTPUT_DIR", "out")
    printed = [line for line in lines if re.fullmatch(r"(instances|centroids): mAP \d\.\d{4}, Top-1 \d\.\d{4}", line)]
    assert [line.split(":")[0] for line in printed] == ["instances", "centroids"]
    assert list(tmp_path.glob("out/own_data_set/version_0/checkpoints/*.ckpt"))
