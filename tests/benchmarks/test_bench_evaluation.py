"""The benchmark of the evaluation runs, and its reference gives the engine's numbers."""

import importlib.util

import pytest

from benchmarks.bench_evaluation import bench_classic, bench_engine, bench_rivals, draw


def _refuse(*arguments):
    raise ValueError("not with these arguments")


@pytest.fixture(scope="module")
def data():
    return draw("small", scale=0.5)


@pytest.fixture
def torchmetrics_alone(monkeypatch):
    original = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "pytorch_metric_learning" else original(name)
    )


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


def test_broken_package_is_reported(data, monkeypatch, torchmetrics_alone):
    monkeypatch.setattr("torchmetrics.retrieval.RetrievalMAP", _refuse)
    report = bench_rivals(data)
    assert report["torchmetrics"]["failed"].startswith("ValueError: ")
    assert "seconds" in report["this_project"]


def test_rivals_agree_and_take_turns(data, torchmetrics_alone):
    report = bench_rivals(data, repeats=2, queries=20)
    assert report["queries"] == 20
    assert report["torchmetrics"]["mAP"] == pytest.approx(report["this_project"]["mAP"], abs=1e-6)
    assert report["torchmetrics"]["Top-1"] == pytest.approx(report["this_project"]["Top-1"], abs=1e-6)
    assert len(report["torchmetrics"]["seconds"]["values"]) == 2


def test_command_writes_json(run_benchmark):
    report = run_benchmark("bench_evaluation", "--size", "small", "--parts", "engine", "--repeats", 1)
    assert report["machine"]["threads"] == 2
    assert report["engine"]["engine_over_product"]["median"] > 0


@pytest.mark.by_hand
def test_every_part(run_benchmark, check_table):
    report = run_benchmark("bench_evaluation", "--size", "small", "--repeats", 1, "--threads", 1)
    for name in ("evaluation_market", "evaluation_msmt", "evaluation_growth"):
        check_table(name, report)
    missing = [name for name in ("torchmetrics", "pytorch_metric_learning") if "skipped" in report["rivals"][name]]
    check_table("evaluation_rivals", report, 1 + 2 * len(missing))  # there is nothing that this project cannot do
