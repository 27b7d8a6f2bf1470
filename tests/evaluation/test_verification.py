"""TAR at FAR against the sorted list of all pairs."""

import numpy as np
import pytest

from evaluation.rerank import Rerank
from evaluation.retrieval import RankingOptions, RetrievalSet
from evaluation.verification import FAR_LEVELS, roc_table
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
    assert table.threshold.tolist() == [1, 1.5, 2]
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
