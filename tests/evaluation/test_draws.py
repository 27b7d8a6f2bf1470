"""Repeated draws of queries and gallery: rows, means and spread against a plain loop."""

import json

import numpy as np
import pytest
import torch

from datasets.draws import GalleryDraw
from evaluation.draws import Rows, with_draws
from evaluation.metrics import evaluate, metrics_dict
from evaluation.retrieval import RankingOptions, RetrievalSet
from evaluation.tables import describe, write_evaluation


@pytest.fixture
def rows(data):
    query, gallery, q_pids, g_pids, q_camids, g_camids = data
    labels = (torch.from_numpy(np.concatenate(pair)) for pair in ((q_pids, g_pids), (q_camids, g_camids)))
    embeddings = torch.from_numpy(np.concatenate([query, gallery]))
    return Rows(embeddings, *labels, 12, [f"{i}.jpg" for i in range(52)])


DRAWS = [
    GalleryDraw(rng.permutation(52)[:15], rng.permutation(52)[:30]) for rng in map(np.random.default_rng, range(4))
]


def results_of(rows, protocols, draws=DRAWS):
    for draw in draws:
        retrieval = RetrievalSet.of_rows(*rows.of_draw(draw))
        yield {protocol: evaluate(retrieval, RankingOptions(protocol=protocol)) for protocol in protocols}


def test_a_draw_selects_rows(rows):
    draw = GalleryDraw([50, 3], [0, 51])
    drawn = rows.of_draw(draw)
    assert (drawn.num_query, drawn.paths) == (2, ["50.jpg", "3.jpg", "0.jpg", "51.jpg"])
    for own, all_rows in zip(drawn[:3], rows[:3], strict=True):
        assert torch.equal(own, all_rows[[50, 3, 0, 51]])
    assert rows._replace(paths=None).of_draw(draw).paths is None


def test_all_rows_in_their_order_are_not_copied(rows):
    drawn = rows.of_draw(GalleryDraw(list(range(20)), np.arange(20, 52)))
    assert drawn.num_query == 20
    assert all(own is given for own, given in zip(drawn[:3], rows[:3], strict=True))


@pytest.mark.parametrize("protocols", [["instance"], ["centroid_strict", "centroid"]])
def test_means_and_spread_against_a_loop(rows, protocols):
    found = with_draws(results_of(rows, protocols))
    assert list(found) == protocols
    for protocol in protocols:
        alone = []
        for draw in DRAWS:
            q, g = list(draw.query), list(draw.gallery)
            arrays = rows.embeddings[q], rows.embeddings[g], rows.pids[q], rows.pids[g], rows.camids[q], rows.camids[g]
            alone.append(evaluate(RetrievalSet(*arrays), RankingOptions(protocol=protocol)))
        result, tables = found[protocol], [metrics_dict(one) for one in alone]
        means = {name: np.mean([table[name] for table in tables]) for name in tables[0]}
        assert metrics_dict(result) == pytest.approx(means)
        for name, spread in result.draws.items():
            logged = name if name in means else f"strict_{name}"
            values = [table[logged] for table in tables]
            assert spread["values"] == values
            assert spread["std"] == pytest.approx(np.sqrt(sum((v - np.mean(values)) ** 2 for v in values) / 3))
        np.testing.assert_allclose(result.cmc, np.mean([one.cmc for one in alone], axis=0), rtol=1e-6)
        assert result.cmc.dtype == np.float32
        note = "Means over 4 draws of queries and gallery; what is told of single queries is of the first."
        assert result.note == f"{alone[0].note} {note}"
        np.testing.assert_array_equal(result.single_performance, alone[0].single_performance)


def test_a_protocol_that_some_draws_lack_is_the_mean_of_the_others(rows):
    whole = list(results_of(rows, ["centroid_strict", "centroid"]))
    del whole[2]["centroid"]
    found = with_draws(whole)
    assert [len(found[name].draws["mAP"]["values"]) for name in found] == [4, 3]


def test_they_are_told_in_every_report(rows, tmp_path):
    found = with_draws(results_of(rows, ["centroid_strict", "instance"]))
    retrieval = RetrievalSet.of_rows(*rows.of_draw(DRAWS[0]))
    for with_intervals in (True, False):
        head, numbers = describe(found["instance"], with_intervals).splitlines()
        assert head.endswith("mean ± standard deviation over 4 draws of queries and gallery):")
        draws = found["instance"].draws["mAP"]
        assert f"    mAP {100 * draws['mean']:.2f} ± {100 * draws['std']:.2f}%  Top-1 " in numbers
        assert "[" not in numbers
    assert "  strict_Top-1 " in describe(found["centroid_strict"]) and " ± " in describe(found["centroid_strict"])
    metrics, table = write_evaluation(tmp_path, list(found.values()), retrieval)
    document = json.loads(metrics.read_text())
    assert document["mAP"] == found["instance"].draws["mAP"]["mean"]
    assert document["strict_mAP"] == found["centroid_strict"].draws["mAP"]["mean"]
    details = document["protocols"]["instance"]
    assert details["draws"] == found["instance"].draws
    assert details["mAP"] == document["mAP"]
    assert details["intervals_are"]["of"] == "the first draw"
    assert details["intervals"]["mAP"][0] <= details["draws"]["mAP"]["values"][0] <= details["intervals"]["mAP"][1]
    assert len(table.read_text().splitlines()) == 1 + 2 * 15
