"""Mean and spread over several evaluations."""

import numpy as np
import pytest

from evaluation.statistics import describe_summary, summarize

RUNS = [{"mAP": 0.5, "Top-1": 0.25, "mINP": 0.1}, {"mAP": 0.75, "Top-1": 1.0}, {"mAP": 0.7, "Top-1": 0.5}]


def test_mean_and_deviation_of_a_sample():
    summary = summarize(RUNS)
    assert list(summary) == ["mAP", "Top-1"]  # what every evaluation has
    assert summary["mAP"]["values"] == [0.5, 0.75, 0.7]
    assert summary["mAP"]["mean"] == pytest.approx(0.65)
    assert summary["mAP"]["std"] == pytest.approx(np.std([0.5, 0.75, 0.7]) * np.sqrt(3 / 2))
    assert describe_summary(summary) == "mAP 65.00 ± 13.23%  Top-1 58.33 ± 38.19%"


def test_one_evaluation_has_no_deviation():
    summary = summarize(RUNS[:1])
    assert summary["mINP"] == {"mean": 0.1, "std": None, "values": [0.1]}
    assert describe_summary(summary) == "mAP 50.00%  Top-1 25.00%  mINP 10.00%"
