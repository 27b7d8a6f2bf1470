"""The benchmark of the evaluation runs, and its reference gives the engine's numbers."""

import json
import subprocess
import sys

import pytest

from benchmarks.bench_evaluation import bench_classic, bench_engine, bench_rivals, draw
from tests.support import ROOT


@pytest.fixture(scope="module")
def data():
    return draw("small", scale=0.5)


def test_classic_evaluator_gives_the_same_numbers(data):
    report = bench_classic(data, repeats=1)
    for numbers in report["same_numbers"].values():
        assert 0.01 < numbers["mAP"] < 0.99
        assert numbers["mAP_difference"] < 1e-9
        assert numbers["largest_cmc_difference"] < 1e-7
    assert report["given_distances"]["times_faster"]["median"] > 1


def test_ratios_belong_to_their_rounds(data):
    report = bench_engine(data, repeats=2)
    expected = [
        engine / product
        for engine, product in zip(report["engine_s"]["values"], report["product_s"]["values"], strict=True)
    ]
    assert report["engine_over_product"]["values"] == pytest.approx(expected, rel=1e-3)


def test_missing_package_is_reported(data, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    report = bench_rivals(data)
    assert report["torchmetrics"] == report["pytorch_metric_learning"] == {"skipped": "not installed"}
    assert report["this_project"]["mAP"] > 0


def test_command_writes_json(tmp_path):
    out = tmp_path / "evaluation.json"
    command = [
        sys.executable,
        "benchmarks/bench_evaluation.py",
        "--size",
        "small",
        "--parts",
        "engine",
        "--repeats",
        "1",
    ]
    done = subprocess.run(
        [*command, "--out", str(out)], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert report["machine"]["threads"] == 2
    assert report["engine"]["engine_over_product"]["median"] > 0
