"""TAR at FAR against the sorted list of all pairs."""

import numpy as np
import pytest

from evaluation.rerank import Rerank
from evaluation.retrieval import RankingOptions, RetrievalSet
from evaluation.verification import FAR_LEVELS, pair_histograms, roc_table
from tests.evaluation import oracle
from utils.errors import UserError


def draw(seed, m=40, n=150):
    rng = np.random.default_rng(seed)
    pids, camids = rng.integers(0, 8, m + n), rng.integers(0, 4, m + n)
    feats = (rng.normal(size=(8, 6))[pids] + rng.normal(size=(m + n, 6))).astype(np.float32)
    return feats[:m], feats[m:], pids[:m], pids[m:], camids[:m], camids[m:]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("metric", "feat_norm"), [("euclidean", False), ("euclidean", True), ("cosine", False)])
@pytest.mark.parametrize("entries", [1, 1 << 20])
def test_equals_all_pairs(seed, metric, feat_norm, entries, monkeypatch):
    monkeypatch.setattr("evaluation.verification.ENTRIES_AT_ONCE", entries)
    query, gallery, q_pids, g_pids, q_camids, g_camids = data = draw(seed)
    table = roc_table(
        RetrievalSet(*data), RankingOptions(metric, feat_norm=feat_norm), far_levels=(0, 0.001, 0.03, 0.5, 1)
    )
    if feat_norm:
        query, gallery = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (query, gallery))
    distances = (oracle.cosine if metric == "cosine" else oracle.squared_euclidean)(query, gallery)
    same = q_pids[:, None] == g_pids
    genuine, impostor = distances[same & (q_camids[:, None] != g_camids)], distances[~same]
    assert table.genuine.sum() == len(genuine)
    assert table.impostor.sum() == len(impostor)
    slack = 3 * (table.edges[1] - table.edges[0])  # pairs within it of the threshold may fall on either side
    for level, far, tar, threshold in zip(table.far_levels, table.far, table.tar, table.threshold, strict=True):
        assert far <= level
        for share, pairs in ((far, impostor), (tar, genuine)):
            assert (pairs <= threshold - slack).mean() - 1e-9 <= share <= (pairs <= threshold + slack).mean() + 1e-9
        assert (impostor <= threshold + 2 * slack).mean() > level or level == 1  # no larger threshold would do
    assert np.all(np.diff(table.tar) >= 0)


def test_levels_and_sizes():
    table = roc_table(RetrievalSet(*draw(0)), bins=100)
    assert table.far_levels.tolist() == list(FAR_LEVELS)
    assert table.edges.shape == (101,)
    assert roc_table(RetrievalSet(*draw(0)), RankingOptions(rerank=Rerank(5, 2))).edges[-1] == 1


def test_every_bin_and_threshold_of_a_small_table():
    """Cosine distances 0 and 2 of the query's identity, 1 and 2 of another: the largest distance is in the last bin."""
    gallery = np.array([[1, 0], [-1, 0], [0, 1], [-1, 0]], np.float32)
    retrieval = RetrievalSet(np.array([[1, 0]], np.float32), gallery, [7], [7, 7, 8, 8], [0], [1, 1, 1, 1])
    table = roc_table(retrieval, RankingOptions("cosine"), far_levels=(0, 0.5, 1), bins=4)
    assert table.edges.tolist() == [0, 0.5, 1, 1.5, 2]
    assert table.genuine.tolist() == [1, 0, 0, 1]
    assert table.impostor.tolist() == [0, 0, 1, 1]
    assert table.threshold.tolist() == [
        np.nextafter(np.float32(1), np.float32(0)),
        np.nextafter(np.float32(1.5), np.float32(0)),
        2,
    ]
    assert table.far.tolist() == [0, 0.5, 1]
    assert table.tar.tolist() == [0.5, 0.5, 1]


def test_no_threshold_keeps_the_level():
    labels = ([1, 1], [1, 2], [0, 0], [1, 1])
    table = roc_table(RetrievalSet(np.zeros((2, 3)), np.zeros((2, 3)), *labels), far_levels=(0, 1))
    assert np.isnan(table.threshold[0])
    assert table.tar.tolist() == [0, 1]
    assert table.far.tolist() == [0, 1]


def test_bad_input():
    data = draw(0)
    with pytest.raises(UserError, match=r"far_levels must lie in \[0, 1\]"):
        roc_table(RetrievalSet(*data), far_levels=(2,))
    with pytest.raises(UserError, match=r"far_levels must lie in \[0, 1\]"):
        roc_table(RetrievalSet(*data), far_levels=(-0.5,))
    with pytest.raises(UserError, match="No query can be evaluated"):
        roc_table(RetrievalSet(*data[:4], np.zeros(40), np.zeros(150)))
    with pytest.raises(UserError, match="no pairs of different identities"):
        roc_table(RetrievalSet(*data[:2], np.zeros(40), np.zeros(150), np.zeros(40), np.ones(150)))


@pytest.mark.parametrize("seed", range(3))
def test_equal_error_rate_of_all_pairs(seed):
    """Between the last threshold with FAR < 1 - TAR and the first without, found by trying each."""
    query, gallery, q_pids, g_pids, q_camids, g_camids = data = draw(seed)
    table = roc_table(RetrievalSet(*data))
    distances = oracle.squared_euclidean(query, gallery)
    same = q_pids[:, None] == g_pids
    genuine, impostor = distances[same & (q_camids[:, None] != g_camids)], distances[~same]
    tried = [((impostor <= t).mean(), (genuine > t).mean(), t) for t in np.sort(distances, axis=None)]
    after = next(i for i, (far, frr, _) in enumerate(tried) if far >= frr)
    rate, threshold = table.equal_error_rate()
    step = 1 / min(len(genuine), len(impostor))
    assert tried[after - 1][0] - step <= rate <= tried[after][0] + step
    slack = table.edges[1] - table.edges[0]
    assert tried[after - 1][2] - slack <= threshold <= tried[after][2] + slack


def test_equal_error_rate_of_a_small_table():
    """FAR 0, 0, 0, 0.5, 1 and TAR 0, 0.5, 0.5, 0.5, 1 at the edges: both errors are one half at 1.5."""
    gallery = np.array([[1, 0], [-1, 0], [0, 1], [-1, 0]], np.float32)
    retrieval = RetrievalSet(np.array([[1, 0]], np.float32), gallery, [7], [7, 7, 8, 8], [0], [1, 1, 1, 1])
    table = roc_table(retrieval, RankingOptions("cosine"), bins=4)
    assert table.equal_error_rate() == (0.5, np.nextafter(np.float32(1.5), np.float32(0)))
    curve = table.curve()
    assert list(zip(curve.far, curve.tar, strict=True)) == [(0, 0), (0, 0.5), (0, 0.5), (0.5, 0.5), (1, 1)]
    assert curve.threshold.tolist() == [np.nextafter(np.float32(x), np.float32(-1)) for x in (0, 0.5, 1, 1.5)] + [2]


def test_thresholds_accept_the_pairs_that_were_counted():
    """Whole numbers, so that many distances lie on the edges, and distances without rounding."""
    assert roc_table(
        RetrievalSet([[1.0]], [[1.0], [0.0]], [7], [7, 8], [0], [1, 1]), far_levels=[0.1]
    ).threshold.tolist() == [np.nextafter(np.float32(1), np.float32(0))]
    rng = np.random.default_rng(0)
    query, gallery = (rng.integers(0, 4, (count, 3)).astype(np.float32) for count in (60, 90))
    q_pids, g_pids = rng.integers(0, 5, 60), rng.integers(0, 5, 90)
    retrieval = RetrievalSet(query, gallery, q_pids, g_pids, np.zeros(60), np.ones(90))
    distances = np.square(query[:, None] - gallery).sum(2)
    same = q_pids[:, None] == g_pids
    for bins in (1 << 16, 54, 7):
        table = roc_table(retrieval, far_levels=(0.02, 0.3, 0.9, 1), bins=bins)
        curve = table.curve()
        for rates in (table, curve):
            for far, tar, threshold in zip(rates.far, rates.tar, rates.threshold, strict=True):
                assert np.isnan(threshold) or (distances[~same] <= threshold).mean() == far
                assert np.isnan(threshold) or (distances[same] <= threshold).mean() == tar
                assert np.isnan(threshold) or threshold == np.float32(threshold) or far == 1


def test_equal_error_rate_is_interpolated():
    """Rates cross within one bin: FAR 0 and 2/3, 1 - TAR 1 and 0."""
    retrieval = RetrievalSet([[1.0, 0]], [[1.0, 0.0], [0.9, 0.1], [0.9, 0.1], [-1, 0]], [7], [7, 8, 8, 8], [0], [1] * 4)
    rate, threshold = roc_table(retrieval, RankingOptions("cosine"), bins=4).equal_error_rate()
    assert (rate, threshold) == pytest.approx((0.4, 0.3))


def test_curve_is_part_of_the_whole_and_short():
    table = roc_table(RetrievalSet(*draw(0, 200, 600)))
    far, tar = table.rates()
    curve = table.curve(100)
    assert 50 < len(curve.far) <= 100
    place = np.searchsorted(table.edges, curve.threshold)
    np.testing.assert_array_equal(curve.far, far[place])
    np.testing.assert_array_equal(curve.tar, tar[place])
    assert (np.diff(curve.threshold) > 0).all()
    assert (curve.far[0], curve.tar[0], curve.far[-1], curve.tar[-1]) == (0, 0, 1, 1)
    for level in (1e-4, 1e-3, 1e-2):  # small rates are there as well, on which applications look
        assert ((curve.far > level / 2) & (curve.far < level * 2)).any()
    assert np.diff(curve.tar).max() < 0.05
    assert len(table.curve().far) <= 500


def test_groups_of_pairs():
    query, gallery, q_pids, g_pids, q_camids, g_camids = data = draw(0)
    halves = (q_pids % 2, g_pids % 2)
    found = pair_histograms(RetrievalSet(*data), halves=halves, bins=50)
    same = q_pids[:, None] == g_pids
    group = np.where(halves[0][:, None] == halves[1], halves[1], 2)
    number = (oracle.squared_euclidean(query, gallery) / found.edges[1]).astype(int)
    for i in range(3):
        genuine = np.bincount(number[(group == i) & same & (q_camids[:, None] != g_camids)], minlength=50)
        impostor = np.bincount(number[(group == i) & ~same], minlength=50)
        assert found.genuine[i].tolist() == genuine.tolist()
        assert found.impostor[i].tolist() == impostor.tolist()
