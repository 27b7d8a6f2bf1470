"""metrics.json and the table of queries that an evaluation writes, and its summary in words."""

import csv
import json

import numpy as np
import pytest

from evaluation.bootstrap import confidence_intervals
from evaluation.metrics import evaluate, evaluate_embeddings, metrics_dict
from evaluation.retrieval import RetrievalSet
from evaluation.tables import describe, write_evaluation
from utils.errors import UserError
from utils.labels import Names


def test_metrics_and_table(data, tmp_path):
    results = [evaluate_embeddings(*data, protocol=protocol) for protocol in ("centroid", "centroid_strict")]
    paths = [f"bilder/{i},ä.jpg" for i in range(12)]
    out = tmp_path / "a" / "evaluation"
    metrics, table = write_evaluation(out, results, RetrievalSet(*data, q_paths=paths), {"metric": "euclidean"})
    assert sorted(out.iterdir()) == [metrics, table]
    document = json.loads(metrics.read_text(encoding="utf-8"))
    assert {key: document[key] for key in metrics_dict(*results)} == metrics_dict(*results)
    assert document["settings"] == {"metric": "euclidean"}
    assert document["protocols"]["centroid_strict"]["queries_without_match"] == results[1].num_skipped > 0
    assert "reciprocal rank" in document["protocols"]["centroid_strict"]["note"]
    assert len(document["protocols"]["centroid"]["cmc"]) == 50
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 24
    for result in results:
        own = [row for row in rows if row["protocol"] == result.protocol]
        assert [row["path"] for row in own] == paths
        assert [int(row["camera"]) for row in own] == data[4].tolist()
        assert own[11]["AP"] == own[11]["first_match_rank"] == ""
        valid = [row for row in own if row["AP"]]
        assert [int(row["query"]) for row in valid] == result.query_index.tolist()
        np.testing.assert_allclose([float(row["AP"]) for row in valid], result.average_precision, atol=1e-6)
        assert [int(row["first_match_rank"]) for row in valid] == result.first_match.tolist()
        assert [int(row["relevant"]) for row in valid] == result.num_relevant.tolist()


def test_without_paths(data, tmp_path):
    _, table = write_evaluation(tmp_path, [evaluate_embeddings(*data)], RetrievalSet(*data))
    assert table.read_text().splitlines()[1].startswith("instance,0,,")


def test_described_with_what_mean_ap_means(data):
    assert "reciprocal" not in describe(evaluate_embeddings(*data))
    text = describe(evaluate_embeddings(*data, protocol="centroid_strict"))
    assert "strict protocol" in text
    assert "1 without a match left out" in text
    assert "mAP is the mean reciprocal rank" in text


def test_another_number_of_queries_is_refused(data, tmp_path):
    fewer = RetrievalSet(data[0][:3], data[1], data[2][:3], data[3], data[4][:3], data[5])
    with pytest.raises(UserError, match="retrieval has 3 entries but the evaluation has 12"):
        write_evaluation(tmp_path, [evaluate_embeddings(*data)], fewer)


def test_names_of_identities_and_cameras(data, tmp_path):
    names = Names({int(pid): f"person {pid}" for pid in data[2]}, {0: "door"})
    write_evaluation(tmp_path, [evaluate_embeddings(*data)], RetrievalSet(*data, names=names))
    rows = list(csv.DictReader((tmp_path / "per_query.csv").read_text().splitlines()))
    assert [row["pid"] for row in rows] == [f"person {pid}" for pid in data[2]]
    assert [row["camera"] for row in rows] == ["door" if camera == 0 else str(camera) for camera in data[4]]


def test_no_camera_is_written_where_there_are_none(data, tmp_path):
    retrieval = RetrievalSet(*data, has_cameras=False)
    write_evaluation(tmp_path, [evaluate(retrieval)], retrieval)
    rows = list(csv.DictReader((tmp_path / "per_query.csv").read_text().splitlines()))
    assert {row["camera"] for row in rows} == {""}


def test_what_else_is_said_of_the_evaluation(data, tmp_path):
    result = evaluate_embeddings(*data)
    metrics, _ = write_evaluation(tmp_path, [result], RetrievalSet(*data), about={"command": "x"})
    assert json.loads(metrics.read_text())["command"] == "x"


def test_intervals_are_written_and_described(data, tmp_path):
    results = [evaluate_embeddings(*data, protocol=protocol) for protocol in ("instance", "centroid_strict")]
    metrics, _ = write_evaluation(tmp_path, results, RetrievalSet(*data))
    for result in results:
        written = json.loads(metrics.read_text())["protocols"][result.protocol]
        assert written["intervals"] == confidence_intervals(result)
        assert written["intervals_are"] == {"level": 0.95, "resamples": 1000, "clustered_by": "identity"}
        head, numbers = describe(result, with_intervals=True).splitlines()
        assert head.endswith("; [95% interval over queries, by identity]):")
        low, high = written["intervals"]["mAP"]
        assert f"mAP {result.mAP:.2%} [{100 * low:.2f}, {100 * high:.2f}]  " in numbers
        assert numbers.count("[") == len(metrics_dict(result))
        assert "[" not in describe(result)


def test_one_identity_has_no_interval_which_is_said(tmp_path):
    images = RetrievalSet([[1.0], [2.0]], [[0.9]], [7, 7], [7], [0, 0], [1])
    result = evaluate(images)
    assert describe(result, with_intervals=True).splitlines() == [
        "single images (2 queries against 1 items; no intervals: one identity):",
        describe(result).splitlines()[1],
    ]
    metrics, _ = write_evaluation(tmp_path, [result], images)
    assert json.loads(metrics.read_text())["protocols"]["instance"]["intervals"] == {}


def test_two_evaluations_are_never_mixed(data, tmp_path):
    """If one of the files cannot be written, the other is what it was."""
    (tmp_path / "metrics.json").write_text("old")
    (tmp_path / "per_query.csv").mkdir()
    with pytest.raises(UserError, match="per_query.csv' is a folder"):
        write_evaluation(tmp_path, [evaluate_embeddings(*data)], RetrievalSet(*data))
    assert (tmp_path / "metrics.json").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2
