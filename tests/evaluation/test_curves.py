"""Precision at levels of recall and the table of cameras, against plain loops and whole evaluations."""

import numpy as np
import pytest

from evaluation.curves import MOST_CAMERAS, measure_curves
from evaluation.metrics import evaluate
from evaluation.retrieval import RankingOptions, RetrievalSet
from tests.evaluation import oracle
from utils.errors import NoValidQueryError


def test_precision_is_the_best_at_this_or_any_greater_recall(data):
    query, gallery, q_pids, g_pids, q_camids, g_camids = data
    order = oracle.stable_order(oracle.squared_euclidean(query, gallery))
    curves = []
    for i, ranking in enumerate(order):
        kept = [j for j in ranking if not (g_pids[j] == q_pids[i] and g_camids[j] == q_camids[i])]
        right = [g_pids[j] == q_pids[i] for j in kept]
        if any(right):
            points = [(sum(right[: k + 1]) / sum(right), sum(right[: k + 1]) / (k + 1)) for k in range(len(kept))]
            curves.append([max(p for r, p in points if r >= level / 100 - 1e-12) for level in range(101)])
    measured = measure_curves(RetrievalSet(*data)).precision
    np.testing.assert_allclose(measured, np.mean(curves, axis=0), rtol=1e-12)
    assert len(curves) == 11 and 0 < measured[100] < measured[0] <= 1


def test_one_relevant_item_gives_a_flat_line(data):
    options = RankingOptions(protocol="centroid_strict")
    curves = measure_curves(RetrievalSet(*data), options)
    np.testing.assert_allclose(curves.precision, evaluate(RetrievalSet(*data), options).mAP)
    assert curves.cameras is None


def test_a_cell_is_the_evaluation_without_right_images_of_other_cameras(data):
    retrieval = RetrievalSet(*data)
    table = measure_curves(retrieval).cameras
    assert table.query_cameras.tolist() == table.gallery_cameras.tolist() == [0, 1, 2] and table.left_out == 0
    query, gallery, q_pids, g_pids, q_camids, g_camids = data
    order = oracle.stable_order(oracle.squared_euclidean(query, gallery))
    for a in range(3):
        for b in range(3):
            found = []
            for i in np.flatnonzero(q_camids == a):
                kept = [j for j in order[i] if g_pids[j] != q_pids[i] or g_camids[j] == b != a]
                single = oracle.evaluate([kept], q_pids[i : i + 1], g_pids, [a], [{c} for c in g_camids])["single"]
                found += single[:, 2].tolist()
            assert table.queries[a, b] == len(found)
            assert np.isnan(table.mean_ap[a, b]) if a == b else table.mean_ap[a, b] == pytest.approx(np.mean(found))
    assert table.queries.sum() > 10


def test_neither_depends_on_the_blocks(rng_set):
    whole, parts = measure_curves(rng_set), measure_curves(rng_set, block_bytes=1)
    np.testing.assert_array_equal(whole.precision, parts.precision)
    np.testing.assert_array_equal(whole.cameras.mean_ap, parts.cameras.mean_ap)
    np.testing.assert_array_equal(whole.cameras.queries, parts.cameras.queries)


@pytest.fixture
def rng_set():
    """1100 queries, so that there are several tiles, by 40 cameras."""
    rng = np.random.default_rng(0)
    pids, camids = rng.integers(0, 300, 1500), np.minimum(rng.integers(0, 41, 1500), 39)
    feats = (rng.normal(size=(300, 4))[pids] + rng.normal(size=(1500, 4))).astype(np.float32)
    return RetrievalSet(feats[:1100], feats[1100:], pids[:1100], pids[1100:], camids[:1100], camids[1100:])


def test_a_table_has_room_for_the_cameras_with_the_most_images(rng_set):
    table = measure_curves(rng_set).cameras
    assert table.mean_ap.shape == (MOST_CAMERAS, MOST_CAMERAS) and table.left_out == 20
    counts = np.bincount(rng_set.q_camids)
    shown = table.query_cameras.tolist()
    assert shown == sorted(shown) and 39 in shown  # which has twice as many as the others
    assert min(counts[shown]) >= max(counts[sorted(set(range(40)) - set(shown))])
    has_right = (rng_set.q_pids[:, None] == rng_set.g_pids) & (rng_set.q_camids[:, None] != rng_set.g_camids)
    for place, camera in enumerate(
        table.gallery_cameras.tolist()
    ):  # images of cameras that are not shown count nowhere
        found = has_right[:, rng_set.g_camids == camera].any(axis=1) & np.isin(rng_set.q_camids, shown)
        assert table.queries[:, place].sum() == found.sum()


def test_without_cameras_or_with_several_of_an_item_there_is_no_table(data):
    assert measure_curves(RetrievalSet(*data, has_cameras=False)).cameras is None
    sets = [{camera} for camera in data[5].tolist()]
    assert measure_curves(RetrievalSet(*data[:5], sets)).cameras is None
    assert measure_curves(RetrievalSet(*data)).cameras is not None


def test_without_any_match_there_is_no_curve():
    with pytest.raises(NoValidQueryError, match="No query can be evaluated"):
        measure_curves(RetrievalSet([[1.0]], [[0.9]], [7], [8], [0], [1]))
