"""One embedding for several: against plain loops, and what must hold for any rows."""

import doctest

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from utils import aggregation
from utils.aggregation import AGGREGATIONS, aggregate, aggregate_groups
from utils.errors import UnknownNameError, UserError

SIZES = st.integers(1, 24)


def plain(rows, how):
    """The definitions as loops over NumPy rows."""
    rows = [row.astype(np.float64) for row in rows]
    if how == "mean":
        return sum(rows) / len(rows)
    if how == "medoid":
        return min(rows, key=lambda row: sum(np.linalg.norm(row - other) for other in rows))
    kept = list(range(len(rows)))
    for _ in range(10):
        centre = sum(rows[i] for i in kept) / len(kept)
        far = {i: np.linalg.norm(rows[i] - centre) for i in kept}
        median = np.median(list(far.values()))
        spread = max(1.4826 * np.median([abs(value - median) for value in far.values()]), 0.1 * median)
        nearest = sorted(kept, key=far.get)[: (len(rows) + 1) // 2]
        stay = [i for i in kept if far[i] <= median + 3 * spread or i in nearest]
        if stay == kept:
            break
        kept = stay
    return sum(rows[i] for i in kept) / len(kept)


def draw(seed, count, dimension=6, strays=0):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=dimension) * 3 + rng.normal(size=(count, dimension))
    rows[:strays] += rng.normal(size=(strays, dimension)) * 30
    return rows.astype(np.float32)


def test_doctests():
    assert doctest.testmod(aggregation).failed == 0


@given(seed=st.integers(0, 10_000), count=SIZES, strays=st.integers(0, 8))
def test_as_plain_loops(seed, count, strays):
    rows = draw(seed, count, strays=min(strays, count))
    for how in AGGREGATIONS:
        np.testing.assert_allclose(aggregate(rows, how), plain(rows, how), rtol=1e-5, atol=1e-5, err_msg=how)


@pytest.mark.parametrize("how", AGGREGATIONS)
@given(
    seed=st.integers(0, 10_000), sizes=st.lists(SIZES, min_size=1, max_size=9), chunk=st.sampled_from([1, 900, 9000])
)
def test_groups_are_each_as_alone_wherever_their_rows_stand(seed, sizes, chunk, how):
    """Also in chunks of one group or few, where the distances of a group are computed part by part."""
    groups = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    rows = draw(seed, len(groups))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(aggregation, "CHUNK_BYTES", chunk)
        found = aggregate_groups(rows, groups, len(sizes), how)
    expected = [aggregate(rows[groups == group], how) for group in range(len(sizes))]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.stack(expected))
    torch.testing.assert_close(aggregate_groups(torch.from_numpy(rows), groups, len(sizes), how), found)


@pytest.mark.parametrize("how", AGGREGATIONS)
@given(seed=st.integers(0, 10_000), count=st.integers(3, 20))
def test_order_and_scale_do_not_matter(how, seed, count):
    rows = draw(seed, count, strays=1)
    expected = aggregate(rows, how)
    shuffled = np.random.default_rng(seed).permutation(rows)
    torch.testing.assert_close(aggregate(shuffled, how), expected)
    torch.testing.assert_close(aggregate(rows * np.float32(0.25), how), expected * 0.25)


@pytest.mark.parametrize("how", AGGREGATIONS)
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_one_row_and_equal_rows_are_themselves(how, count):
    row = draw(0, 1)
    assert aggregate(row.repeat(count, axis=0), how).tolist() == row[0].tolist()


@pytest.mark.parametrize(("count", "strays"), [(3, 1), (5, 2), (12, 4), (40, 16)])
def test_robust_leaves_out_planted_outliers(count, strays):
    for seed in range(20):
        rows = draw(seed, count, 32, strays)
        inliers = torch.from_numpy(rows[strays:])
        assert (aggregate(rows, "robust") - inliers.mean(0)).norm() < 1.0, seed
        assert (aggregate(rows, "mean") - inliers.mean(0)).norm() > 5.0
        medoid = aggregate(rows, "medoid")
        assert any(torch.equal(medoid, row) for row in inliers)


def test_robust_keeps_at_least_half_even_of_rows_that_scatter_ever_wider():
    """Each round's median is far below the farthest row that is left."""
    rows = 10.0 ** np.arange(9)[:, None]
    assert aggregate(rows, "robust").item() == pytest.approx(rows[:5].mean())
    assert aggregate(np.array([[0.0], [8.0]]), "robust").item() == 4  # of two, neither is the outlier


def test_what_cannot_be_aggregated():
    with pytest.raises(UnknownNameError, match="the aggregation is 'median'; valid: mean, medoid, robust"):
        aggregate(np.ones((2, 2)), "median")
    for rows in (np.ones((0, 2)), np.ones(3)):
        with pytest.raises(UserError, match="expected \\[n, D\\] with at least one row"):
            aggregate(rows)
    with pytest.raises(UserError, match="group 1 has no rows"):
        aggregate_groups(np.ones((2, 2)), np.array([0, 2]), 3)
    with pytest.raises(UserError, match="groups has 1 entries but rows has 2"):
        aggregate_groups(np.ones((2, 2)), np.array([0]), 1)
    assert aggregate_groups(np.ones((0, 4)), np.empty(0, np.int64), 0).shape == (0, 4)
