"""The comparison of two evaluations: its numbers, what it says of settings and queries."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evaluation.comparison import compare, describe, differing, most_changed
from evaluation.metrics import evaluate
from evaluation.per_query import Evaluation, QueryTable, read_evaluation
from evaluation.retrieval import RankingOptions, RetrievalSet
from evaluation.tables import write_evaluation
from utils.errors import UserError

OPTIONS = {"level": 0.9, "resamples": 300, "permutations": 200, "seed": 4}


def tables(count=40, shift=0.1):
    """Two tables of the same queries, the second in another order, with its place of each query of the first."""
    rng = np.random.default_rng(2)
    pids = [f"p{pid}" for pid in rng.integers(0, 8, count)]
    order = rng.permutation(count)
    paths = [f"{i}.jpg" for i in range(count)]
    ap = rng.uniform(0.2, 0.7, count)
    first, inp = rng.integers(1, 9, count).astype(float), rng.random(count)
    better = np.clip(ap + shift + 0.1 * rng.normal(size=count), 0.01, 1)
    a = QueryTable([str(i) for i in range(count)], paths, pids, ap, first, inp)
    names = [[column[i] for i in order] for column in (paths, pids)]
    return a, QueryTable(a.query, *names, better[order], np.maximum(first[order] - 1, 1), inp[order]), np.argsort(order)


def evaluations(a, b, about=({}, {}), protocol="instance"):
    return [Evaluation(Path(name), said, {protocol: t}) for name, said, t in zip("ab", about, (a, b), strict=True)]


def test_numbers_against_a_plain_loop():
    a, b, place = tables()
    document, queries = compare(*evaluations(a, b), "instance", **OPTIONS)
    assert list(document["metrics"]) == ["mAP", "Top-1", "Top-5", "Top-10", "Top-20", "Top-50", "mINP"]
    changes = {"mAP": b.ap[place] - a.ap, "Top-1": (b.first[place] <= 1).astype(float) - (a.first <= 1)}
    names = sorted(set(a.pid))
    rows_of = [np.flatnonzero(np.array(a.pid) == name) for name in names]
    for metric, change in changes.items():
        rng = np.random.default_rng(4)
        drawn = [np.concatenate([rows_of[i] for i in row]) for row in rng.integers(0, len(names), (300, len(names)))]
        ends = np.percentile([change[rows].mean() for rows in drawn], [5, 95])
        rng = np.random.default_rng(4)
        flipped = []
        for signs in rng.integers(0, 2, (200, len(names))):
            flipped.append(sum((2 * s - 1) * change[rows].sum() for s, rows in zip(signs, rows_of, strict=True)))
        as_far = sum(abs(total) >= abs(change.sum()) - 1e-9 for total in flipped)
        found = document["metrics"][metric]
        assert found["difference"] == pytest.approx(change.mean())
        assert found["B"] - found["A"] == pytest.approx(change.mean())
        np.testing.assert_allclose(found["interval"], ends)
        assert found["p_value"] == pytest.approx((as_far + 1) / 201)
    assert document["metrics"]["mAP"]["interval"][0] > 0
    assert [query["path"] for query in queries] == a.path
    assert [query["AP_B"] for query in queries] == b.ap[place].tolist()
    assert [query["rank_B"] for query in queries] == b.first[place].tolist()
    assert (document["paired_by"], document["queries"], document["left_out"]) == ("path", 40, 0)
    assert document == compare(*evaluations(a, b), "instance", **OPTIONS)[0]
    other = compare(*evaluations(a, b), "instance", **OPTIONS | {"seed": 5})[0]
    assert other["metrics"]["mAP"]["interval"] != document["metrics"]["mAP"]["interval"]
    assert "mINP" not in compare(*evaluations(a, b, protocol="centroid"), "centroid", **OPTIONS)[0]["metrics"]


def test_queries_without_a_match_on_either_side_are_left_out_and_counted():
    a, b, place = tables()
    for column in (a.ap, a.first, a.inp):
        column[3] = np.nan
    b.ap[place[5]] = np.nan
    document, queries = compare(*evaluations(a, b), "instance", **OPTIONS)
    kept = [i for i in range(40) if i not in (3, 5)]
    assert [query["query"] for query in queries] == [str(i) for i in kept]
    assert document["metrics"]["mAP"]["A"] == pytest.approx(a.ap[kept].mean())
    assert (document["queries"], document["left_out"]) == (38, 2)
    assert "paired by path; 2 without a match in A or B left out" in describe(document, queries, 0)
    b.ap[:] = np.nan
    with pytest.raises(UserError, match="No query has a match in both a and b"):
        compare(*evaluations(a, b), "instance", **OPTIONS)


def test_one_identity_has_no_interval_which_is_said():
    a, b, _ = tables()
    a.pid[:] = b.pid[:] = ["7"] * 40
    document, queries = compare(*evaluations(a, b), "instance", **OPTIONS)
    assert (document["metrics"]["mAP"]["interval"], document["metrics"]["mAP"]["p_value"]) == (None, 1)
    lines = describe(document, queries, 0).splitlines()
    assert lines[2].endswith("queries of 1 identities, paired by path; one identity: no intervals")
    assert lines[5].split()[4:] == ["-", "1"]


def test_what_differs_of_the_settings():
    settings = {"settings": {"rerank": False, "feat_norm": True}, "command": "x", "versions": {"torch": "2.8"}}
    settings |= {"protocols": {"instance": {"gallery_items": 90}}, "network": {"weights": "ab", "size": [2, 1]}}
    digests = {"inputs": {"query": {"path": "q", "sha256": {"q.npz": "12" * 32}}}}
    other = {"settings": {"rerank": True, "feat_norm": True, "query": "q"}, "command": "y", "network": "unknown"}
    a, b = evaluations(*tables()[:2], (settings, other | digests))
    found, alone = differing(a, b, "instance")
    assert alone == [key for key in found if key != "settings.rerank"]
    assert found == {
        "gallery_items": [90, None],
        "settings.rerank": [False, True],
        "network.weights": ["ab", None],
        "network.size": [[2, 1], None],
        "versions.torch": ["2.8", None],
        "inputs.query.path": [None, "q"],
        "inputs.query.sha256": [None, "121212121212"],
    }
    text = describe(*compare(a, b, "instance", **OPTIONS), 0)
    assert "\ndiffers: settings.rerank is false in A, true in B\n" in text
    assert "\n6 settings are told by A or B alone, such as gallery_items\n" in text
    assert text.count("differs: ") == 1
    unknown = describe(*compare(*evaluations(*tables()[:2], (settings, {})), "instance", **OPTIONS), 0)
    assert "settings are not compared, since not both tables have a metrics.json beside them" in unknown


def test_settings_of_a_run_and_of_the_command_have_one_name():
    network = {"weights": "ab", "size": [2, 1]}
    of_run = {"settings": {"feat_norm": True, "distance": "cosine", "self_match": None}, "network": network}
    settings = {"normalize": False, "metric": "cosine", "self_match": "keep"}
    of_command = {"settings": settings, "inputs": {"query": {"embedder": network | {"weights": "cd"}}}}
    a, b = evaluations(*tables()[:2], (of_run, of_command))
    expected = {"settings.feat_norm": [True, False], "settings.self_match": [None, "keep"]}
    expected |= {"network.weights": ["ab", "cd"]}
    assert differing(a, b, "instance") == (expected, [])
    document, queries = compare(a, b, "instance", **OPTIONS)
    assert '\ndiffers: settings.self_match is null in A, "keep" in B\n' in describe(document, queries, 0)
    assert (document["differs"], document["told_by_one"]) == (expected, [])
    single = replace(b, about=of_run | {"network": network | {"dimension": 512}})
    assert "\n1 setting is told by A or B alone, such as network.dimension\n" in describe(
        *compare(a, single, "instance", **OPTIONS), 0
    )


def test_repeated_draws_are_compared_by_the_first_which_is_said():
    about = {"protocols": {"instance": {"draws": {"mAP": {"mean": 0.5}}}}}
    for sides in ((about, {}), ({}, about)):
        text = describe(*compare(*evaluations(*tables()[:2], sides), "instance", **OPTIONS), 0)
        assert "paired by path; of repeated draws of the gallery the first\n" in text
    assert "repeated" not in describe(*compare(*evaluations(*tables()[:2]), "instance", **OPTIONS), 0)


def test_numbers_that_are_too_high_are_called_so(data, tmp_path):
    """In the words of the evaluation itself, as wherever these numbers are printed."""
    images = RetrievalSet(*data)
    for name in "ab":
        write_evaluation(tmp_path / name, [evaluate(images, RankingOptions(protocol="centroid"))], images)
    a, b = read_evaluation(tmp_path / "a"), read_evaluation(tmp_path / "b")
    line = describe(*compare(a, b, "centroid", **OPTIONS), 0).splitlines()[2]
    assert line.startswith("centroids, published protocol: ")
    assert ". The scores are inflated by the published code's camera look-up error; use strict_mAP and" in line
    for sides in ((a, replace(b, about={})), (replace(a, about={}), b)):
        assert "inflated" in describe(*compare(*sides, "centroid", **OPTIONS), 0)


def test_the_queries_that_changed_most():
    aps = [(0.5, 0.5), (0.5, 0.6), (0.5, 0.9), (0.9, 0.1), (0.9, 0.8), (0.0616, 0.0624), (0.0624, 0.0616)]
    queries = [{"query": str(i), "path": "", "pid": "7", "AP_A": a, "AP_B": b} for i, (a, b) in enumerate(aps)]
    gained, lost = most_changed(queries, 20)
    assert ([q["query"] for q in gained], [q["query"] for q in lost]) == (["2", "1"], ["3", "4"])
    assert [len(found) for found in most_changed(queries, 1)] == [1, 1]


def test_in_words():
    a, b, place = tables()
    document, queries = compare(*evaluations(a, b), "instance", **OPTIONS)
    lines = describe(document, queries, 2).splitlines()
    found = document["metrics"]["mAP"]
    assert lines[:2] == ["A: a", "B: b"]
    assert lines[4].split() == ["A", "B", "B", "-", "A", "90%", "interval", "p"]
    low, high = found["interval"]
    numbers = [f"{found['A']:.2%}", f"{found['B']:.2%}", f"{100 * found['difference']:+.2f}"]
    numbers += [f"[{100 * low:+.2f},", f"{100 * high:+.2f}]", f"{found['p_value']:.4g}"]
    assert lines[5].split() == ["mAP", *numbers]
    change = b.ap[place] - a.ap
    best, worst = int(change.argmax()), int(change.argmin())
    assert lines[12] == "queries that gained most (AP in A, in B):"
    assert lines[13] == f"    {a.ap[best]:.3f} -> {b.ap[place][best]:.3f}  {best}.jpg (identity {a.pid[best]})"
    assert lines[15] == "queries that lost most (AP in A, in B):"
    assert lines[16].endswith(f"  {worst}.jpg (identity {a.pid[worst]})")
    assert len(lines) == 18
    nameless = [query | {"path": ""} for query in queries]
    assert f"  query {best} (identity" in describe(document, nameless, 2).splitlines()[13]
    same = describe(*compare(*evaluations(a, a), "instance", **OPTIONS), 2)
    assert "most" not in same
