"""DIR at FAR against a plain loop over the queries, with many equal distances."""

import numpy as np
import pytest
import torch

from evaluation.open_set import describe_open_set, draw_unknown, evaluate_open_set, open_set_details
from evaluation.rerank import QueryExpansion, Rerank
from evaluation.retrieval import RankingOptions, RetrievalSet
from tests.evaluation import oracle
from utils.distributed import Processes
from utils.errors import NoValidQueryError, UserError


def draw(seed, m=60, n=90):
    """Whole numbers, whose squared distances are exact and often equal; identities 8 to 11 have no gallery image."""
    rng = np.random.default_rng(seed)
    pids = np.r_[7, rng.integers(0, 12, m - 1), rng.integers(0, 8, n)]
    feats = (rng.integers(0, 5, (12, 3))[pids] + rng.integers(-1, 2, (m + n, 3))).astype(np.float32)
    camids = rng.integers(0, 3, m + n)
    camids[:1], camids[m:][pids[m:] == 7] = 1, 1  # queries of identity 7 and camera 1 find nothing
    return feats[:m], feats[m:], pids[:m], pids[m:], camids[:m], camids[m:]


def by_loop(query, gallery, q_pids, g_pids, q_camids, g_camids, left_out=()):
    """Rank and distance of each known query's nearest right image, and the distances of unknown queries' nearest."""
    held = ~np.isin(g_pids, left_out)
    gallery, g_pids, g_camids = gallery[held], g_pids[held], g_camids[held]
    distances = oracle.squared_euclidean(query, gallery)
    known, alarm, skipped = [], [], 0
    for i, order in enumerate(oracle.stable_order(distances)):
        if q_pids[i] not in g_pids:
            alarm.append(distances[i].min())
            continue
        kept = [j for j in order if g_pids[j] != q_pids[i] or g_camids[j] != q_camids[i]]
        right = [(rank, distances[i, j]) for rank, j in enumerate(kept, start=1) if g_pids[j] == q_pids[i]]
        if right:
            known.append(right[0])
        else:
            skipped += 1
    return np.array(known), np.array(alarm), skipped


@pytest.mark.parametrize("left_out", [(), (2, 5)])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("block_bytes", [None, 1])
def test_equals_a_plain_loop(seed, left_out, block_bytes):
    data = draw(seed)
    result = evaluate_open_set(RetrievalSet(*data), left_out=left_out, block_bytes=block_bytes)
    known, alarm, skipped = by_loop(*data, left_out)
    assert skipped > 0
    assert result.num_skipped == skipped
    assert result.left_out == len(left_out)
    np.testing.assert_array_equal(result.rank, known[:, 0])
    np.testing.assert_array_equal(result.distance, known[:, 1])
    np.testing.assert_array_equal(result.alarm, alarm)
    levels = (0, 0.01, 0.1, 0.3, 0.7, 1)
    for rank in (1, 3):
        table = result.rates(levels, rank)
        for level, far, found, limit in zip(levels, table.far, table.dir, table.threshold, strict=True):
            assert far == (alarm <= limit).mean() <= level
            assert found == ((known[:, 1] <= limit) & (known[:, 0] <= rank)).mean()
            assert level == 1 or (alarm <= np.nextafter(np.float32(limit), np.float32(9e9))).mean() > level


def test_a_level_that_is_a_whole_number_of_alarms_is_reached():
    """0.29 of 100 queries are 29, though 0.29 * 100 is below that in floating point."""
    query = np.r_[[0.0], np.arange(1, 101)][:, None]
    retrieval = RetrievalSet(query, [[0.0]], np.r_[0, np.arange(1, 101)], [0], np.zeros(101), [1])
    assert evaluate_open_set(retrieval).rates([0.29, 0.001]).far.tolist() == [0.29, 0]


def test_alarms_of_one_distance_are_raised_together():
    """Three of four unknown queries are at the distance 4: a level of one half admits none of them but the nearest."""
    retrieval = RetrievalSet([[0.0], [1], [2], [2], [2]], [[0.0]], [0, 1, 2, 3, 4], [0], np.zeros(5), [1])
    table = evaluate_open_set(retrieval).rates([0.5, 0.99, 1])
    assert table.far.tolist() == [0.25, 0.25, 1]
    assert table.threshold.tolist() == [np.nextafter(np.float32(4), np.float32(0)), table.threshold[0], np.inf]


def test_ranks_bound_what_counts_as_identified():
    """The right image is the second nearest."""
    retrieval = RetrievalSet([[0.0], [9]], [[1.0], [2]], [7, 5], [8, 7], [0, 0], [1, 1])
    result = evaluate_open_set(retrieval)
    assert result.rates().rank == 1
    assert [result.rates([0.5], rank).dir.tolist() for rank in (1, 2)] == [[0.0], [1.0]]
    assert describe_open_set(result, (2,))[2] == (
        "    DIR 100.00% at FAR 0.01 and rank 2 (distance up to 49, false alarms 0 of 1)"
    )
    rows = open_set_details(result, (1, 2))["rates"]
    assert [(row["rank"], row["far_level"], row["dir"]) for row in rows][2:4] == [(1, 0.1, 0.0), (2, 0.001, 1.0)]


@pytest.mark.parametrize("count", [2, 3])
def test_several_processes_get_the_result_of_one(count):
    retrieval = RetrievalSet(*draw(0, 1500, 300))
    alone = evaluate_open_set(retrieval, left_out=[3])
    parts = []

    class SentError(Exception):
        pass

    def send(rows):
        parts.append(rows)
        raise SentError

    for rank in range(count):
        with pytest.raises(SentError):
            evaluate_open_set(retrieval, left_out=[3], processes=Processes(rank, count, send))
    assert len(parts[0]) < len(alone.rank)
    together = torch.cat(parts)
    shared = evaluate_open_set(retrieval, left_out=[3], processes=Processes(0, count, lambda rows: together))
    for name in ("rank", "distance", "alarm"):
        np.testing.assert_array_equal(getattr(shared, name), getattr(alone, name))


def test_drawn_identities():
    retrieval = RetrievalSet(*draw(0))
    shared = np.intersect1d(retrieval.q_pids, retrieval.g_pids)
    drawn = draw_unknown(retrieval, 0.5, 3)
    assert len(drawn) == round(len(shared) / 2)
    assert set(drawn) < set(shared)
    assert drawn.tolist() == draw_unknown(retrieval, 0.5, 3).tolist()
    assert any(drawn.tolist() != draw_unknown(retrieval, 0.5, seed).tolist() for seed in range(3))
    with pytest.raises(UserError, match=r"a share of 0\.01 of the 8 identities of queries and gallery is 0 of them"):
        draw_unknown(retrieval, 0.01)
    with pytest.raises(UserError, match=r"a share of 0\.99 of the 8 identities of queries and gallery is 8 of them"):
        draw_unknown(retrieval, 0.99)
    for wrong in (0, 1, np.nan):
        with pytest.raises(UserError, match=f"the share of unknown identities is {wrong}; expected a number between"):
            draw_unknown(retrieval, wrong)


def test_what_cannot_be_answered_is_one_line():
    query, gallery, q_pids, g_pids, q_camids, g_camids = draw(0)
    closed = RetrievalSet(query, gallery, q_pids % 7, g_pids, q_camids, g_camids)
    with pytest.raises(UserError, match=r"There are no unknown queries.*\(--unknown 0\.5, for half of"):
        evaluate_open_set(closed)
    with pytest.raises(NoValidQueryError, match="No query can be evaluated"):
        evaluate_open_set(closed, left_out=range(12))
    for options in (RankingOptions(rerank=Rerank()), RankingOptions(query_expansion=QueryExpansion(2))):
        with pytest.raises(UserError, match="with re-ranking or query expansion, which use all of it"):
            evaluate_open_set(closed, options, left_out=[1])
    result = evaluate_open_set(closed, left_out=[1])
    with pytest.raises(UserError, match=r"far_levels must lie in \[0, 1\]"):
        result.rates([1.5])
    with pytest.raises(UserError, match="rank is 0"):
        result.rates(rank=0)
