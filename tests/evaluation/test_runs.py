"""Mean and spread over the evaluations of several runs, and the cross-domain matrix of several test sets."""

import json

import numpy as np
import pytest

from evaluation.places import EvaluationPlace
from evaluation.runs import (
    cross_domain_lines,
    metrics_by_protocol,
    read_evaluation,
    summarize_documents,
    summarize_runs,
    write_matrix,
    write_summary,
)
from utils.errors import UserError

CAVEAT = "inflated; use the others"


def details(value, **more):
    return {"mAP": value, "mINP": value / 2, "topk": {"1": value / 4, "5": 1.0}} | more


def document(number, *protocols, **more):
    values = {"instance": details(0.5 + 0.1 * number), "centroid_strict": details(0.8 + 0.1 * number)}
    values["centroid"] = details(0.9, caveat=CAVEAT)
    chosen = protocols or tuple(values)
    run = {"run": {"number": number, "seed": 7 + number}}
    return run | {"protocols": {name: values[name] for name in chosen}} | more


def write(folder, content):
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(content))


def test_metrics_have_their_logged_names():
    assert metrics_by_protocol(document(0)) == {
        "instance": {"mAP": 0.5, "Top-1": 0.125, "Top-5": 1.0, "mINP": 0.25},
        "centroid_strict": {"strict_mAP": 0.8, "strict_Top-1": 0.2, "strict_Top-5": 1.0},
        "centroid": {"mAP": 0.9, "Top-1": 0.225, "Top-5": 1.0},
    }


def test_mean_and_spread_of_each_kind(tmp_path):
    summary = summarize_documents([document(0), document(1)])
    written = json.loads(write_summary(summary, tmp_path).read_text())
    assert written["runs"] == [0, 1]
    assert written["seeds"] == [7, 8]
    assert written["caveat"] == f"centroids, published protocol: the scores are {CAVEAT}."
    assert written["instances"]["mAP"] == {
        "mean": pytest.approx(0.55), "std": pytest.approx(np.std([0.5, 0.6], ddof=1)), "values": [0.5, 0.6],
    }  # fmt: skip
    assert list(written["centroids"]) == ["strict_mAP", "strict_Top-1", "strict_Top-5", "mAP", "Top-1", "Top-5"]
    assert "left_out" not in written
    assert {"versions", "command"} <= set(written)
    assert summary.lines("2 runs") == [
        "2 runs, single images (mean ± standard deviation):\n    mAP 55.00 ± 7.07%  Top-1 13.75 ± 1.77%  Top-5 100.00 "
        "± 0.00%  mINP 27.50 ± 3.54%",
        "    mAP of each run: 50.00%, 60.00%",
        "2 runs, centroids, strict protocol (mean ± standard deviation):\n    strict_mAP 85.00 ± 7.07%  strict_Top-1 "
        "21.25 ± 1.77%  strict_Top-5 100.00 ± 0.00%",
        "    strict_mAP of each run: 80.00%, 90.00%",
        "2 runs, centroids, published protocol (mean ± standard deviation):\n    mAP 90.00 ± 0.00%  Top-1 22.50 ± "
        f"0.00%  Top-5 100.00 ± 0.00%  ({CAVEAT})",
        "    mAP of each run: 90.00%, 90.00%",
    ]
    scalars = summary.scalars()
    assert scalars["instances/mAP_mean"] == pytest.approx(0.55)
    assert scalars["centroids/strict_mAP_std"] == pytest.approx(0.0707, abs=1e-4)


def test_what_some_runs_lack_is_left_out_and_said(tmp_path):
    fewer = document(1, "instance", "centroid_strict")
    del fewer["protocols"]["instance"]["topk"]["5"]
    summary = summarize_documents([document(0), fewer])
    assert list(summary.protocols) == ["instance", "centroid_strict"]
    assert summary.lines("2 runs")[-1] == (
        "2 runs: left out of the summary, since not every run has them: single images: Top-5; centroids, published "
        "protocol: mAP, Top-1, Top-5"
    )
    assert json.loads(write_summary(summary, tmp_path).read_text())["left_out"] == {
        "instance": ["Top-5"], "centroid": ["mAP", "Top-1", "Top-5"],
    }  # fmt: skip
    assert summary.document().get("caveat") is None  # of numbers that are not there


def test_runs_are_read_from_their_folders(tmp_path):
    for number in (0, 2):
        write(tmp_path / f"run_{number}", document(number))
        write(tmp_path / f"run_{number}" / "veri776", document(number, "instance"))
    summary = summarize_runs(tmp_path, [0, 1, 2], EvaluationPlace())
    assert (summary.runs, summary.seeds) == ([0, 2], [7, 9])  # the other has left no evaluation
    assert summary.protocols["instance"]["mAP"]["values"] == [0.5, pytest.approx(0.7)]
    assert list(summarize_runs(tmp_path, [0, 2], EvaluationPlace(None, "veri776")).protocols) == ["instance"]
    write(tmp_path / "veri776", document(0, "instance"))
    single = summarize_runs(tmp_path, [None], EvaluationPlace(None, "veri776")).scalars()
    assert single == {f"instances/{name}_mean": v for name, v in metrics_by_protocol(document(0))["instance"].items()}
    assert summarize_runs(tmp_path / "none", [None], EvaluationPlace()) is None


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"protocols": 3}', pytest.param("[" * 200000, id="deep")])
def test_a_damaged_evaluation_is_named(tmp_path, text):
    (tmp_path / "metrics.json").write_text(text)
    with pytest.raises(UserError, match=r"metrics.json cannot be read \(.+\); expected an evaluation\.$"):
        read_evaluation(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        *({"protocols": {"instance": entry}} for entry in (None, [1], "x", 3, {"mINP": 0.5})),
        *({"protocols": {"instance": details(0.5, mAP=value)}} for value in (float("nan"), "abc", None, [0.5])),
        *({"protocols": {"instance": details(0.5, topk=value)}} for value in (None, [1], {"1": "x"})),
        {"protocols": {"instance": details(0.5, caveat=["x"])}},
        *({"run": value} for value in (None, [1], "x", {"number": "x"}, {"seed": float("nan")})),
        {"trained_on": ["x"]},
    ],
)
def test_a_foreign_evaluation_of_a_run_is_named(tmp_path, change):
    write(tmp_path / "run_0", {**document(0), **change})
    with pytest.raises(UserError, match=r"run_0/metrics.json cannot be read \(.+\); expected an evaluation\.$"):
        summarize_runs(tmp_path, [0], EvaluationPlace())


def test_a_byte_order_mark_is_no_damage(tmp_path):
    (tmp_path / "metrics.json").write_text("\ufeff" + json.dumps(document(0)), encoding="utf-8")
    assert read_evaluation(tmp_path) == document(0)


def test_the_matrix_has_a_row_for_each_training_and_a_column_for_each_test_set(tmp_path):
    rows = {
        "market1501": {
            "market1501": summarize_documents([document(3), document(4)]),
            "veri776": summarize_documents([document(0, "instance"), document(1, "instance")]),
        },
        "veri776": {
            "market1501": summarize_documents([document(1)]),
            "veri776": summarize_documents([document(2, protocols={"instance": details(0.7, caveat="too kind")})]),
        },
    }
    instances, centroids = cross_domain_lines(rows)
    assert instances.splitlines() == [
        "cross-domain matrix, mAP / Top-1 in %, single images:",
        "    trained on | market1501                  | veri776",
        "    ----------------------------------------------------------------------",
        "    market1501 | 85.00 ± 7.07 / 21.25 ± 1.77 | 55.00 ± 7.07 / 13.75 ± 1.77",
        "    veri776    | 60.00 / 15.00               | 70.00 / 17.50",
        "    single images of veri776: the scores are too kind.",
    ]
    assert centroids.splitlines()[0].endswith("centroids, strict protocol:")
    assert centroids.splitlines()[3].endswith("| - / -")  # not evaluated
    written = json.loads(write_matrix(rows, tmp_path).read_text())
    assert (written["trained_on"], written["tested_on"]) == (["market1501", "veri776"], ["market1501", "veri776"])
    assert written["instances"]["mAP"] == [[pytest.approx(0.85), pytest.approx(0.55)], [0.6, 0.7]]
    assert written["std"]["instances"]["Top-1"][0][1] == pytest.approx(np.std([0.125, 0.15], ddof=1))
    assert written["std"]["instances"]["mAP"][1] == [None, None]
    assert written["centroids"]["strict_mAP"][0][1] is None
    assert written["caveat"] == "single images of veri776: the scores are too kind."
    alone = {"veri776": {"veri776": rows["veri776"]["market1501"]}}
    assert not {"std", "caveat"} & set(json.loads(write_matrix(alone, tmp_path).read_text()))
