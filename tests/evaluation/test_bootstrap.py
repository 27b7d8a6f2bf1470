"""Intervals over queries and p-values of paired differences, against plain loops."""

import random

import numpy as np
import pytest
import torch

from evaluation import bootstrap as module
from evaluation.bootstrap import Clusters, bootstrap, confidence_intervals, per_query, sign_flip_p_values
from evaluation.metrics import evaluate_embeddings, metrics_dict


@pytest.fixture
def queries():
    """Identities of different sizes, and two numbers of each query, which those of an identity share in part."""
    rng = np.random.default_rng(3)
    pids = rng.permutation(np.repeat([4, 9, 2, 30, 11, 5], [1, 7, 3, 3, 5, 2]))
    return pids, rng.random((31, 2))[pids] + 0.1 * rng.random((21, 2))


def looped_bootstrap(pids, values, level, resamples, seed):
    """All queries of each identity that is drawn, as often as it is drawn."""
    rng = np.random.default_rng(seed)
    identities = sorted(set(pids.tolist()))
    means = []
    for numbers in rng.integers(0, len(identities), (resamples, len(identities))):
        rows = [row for number in numbers for row in np.flatnonzero(pids == identities[number])]
        means.append(values[rows].mean(axis=0))
    low, high = (np.percentile(means, 100 * share, axis=0) for share in ((1 - level) / 2, 1 - (1 - level) / 2))
    return np.stack([low, high], axis=1)


@pytest.mark.parametrize("level", [0.95, 0.5])
def test_intervals_against_a_loop(queries, level):
    found = bootstrap(Clusters.of(*queries), level, 200, 5)
    np.testing.assert_allclose(found, looped_bootstrap(*queries, level, 200, 5), rtol=1e-12)
    assert found == bootstrap(Clusters.of(*queries), level, 200, 5)
    assert found != bootstrap(Clusters.of(*queries), level, 200, 6)


def test_p_values_against_a_loop(queries):
    pids, values = queries
    values = values - values.mean(axis=0) + np.array([0.0, 0.5])
    signs = 2 * np.random.default_rng(1).integers(0, 2, (500, 6)) - 1
    as_far = np.zeros(2)
    for flips in signs:
        sign = dict(zip(sorted(set(pids.tolist())), flips, strict=True))
        mean = (values * np.array([[sign[pid]] for pid in pids.tolist()])).mean(axis=0)
        as_far += np.abs(mean) >= np.abs(values.mean(axis=0)) - 1e-12
    expected = (as_far + 1) / 501
    found = sign_flip_p_values(Clusters.of(pids, values), 500, 1)
    np.testing.assert_allclose(found, expected)
    assert found[1] < 0.2 < found[0]


def test_blocks_change_nothing(queries, monkeypatch):
    clusters = Clusters.of(*queries)
    whole = bootstrap(clusters, 0.9, 50, 0), sign_flip_p_values(clusters, 50).tolist()
    monkeypatch.setattr(module, "_AT_ONCE", 6 * 8)
    assert (bootstrap(clusters, 0.9, 50, 0), sign_flip_p_values(clusters, 50).tolist()) == whole


def test_equal_sides_differ_by_nothing_and_one_identity_shows_nothing(queries):
    pids, values = queries
    assert sign_flip_p_values(Clusters.of(pids, 0 * values), 99).tolist() == [1, 1]
    assert sign_flip_p_values(Clusters.of(0 * pids, values), 99).tolist() == [1, 1]
    assert bootstrap(Clusters.of(0 * pids, values), 0.95, 10, 0) == []


def test_text_names_identities_as_numbers_do(queries):
    pids, values = queries
    by_name = Clusters.of([f"{pid:03}" for pid in pids], values)
    np.testing.assert_array_equal(by_name.sums, Clusters.of(pids, values).sums)
    np.testing.assert_allclose(by_name.means, values.mean(axis=0))


@pytest.mark.parametrize("protocol", ["instance", "centroid", "centroid_strict"])
def test_intervals_of_an_evaluation(data, protocol):
    """Of its valid queries alone, under the names of its metrics, around their values; with no draw of the others'."""
    result = evaluate_embeddings(*data, protocol=protocol)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    found = confidence_intervals(result)
    assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    metrics = {name.removeprefix("strict_"): value for name, value in metrics_dict(result).items()}
    assert list(found) == list(metrics)
    assert all(low <= metrics[name] <= high for name, (low, high) in found.items())
    pids = data[2][result.query_index]
    expected = looped_bootstrap(pids, result.average_precision[:, None], 0.95, 1000, 0)
    np.testing.assert_allclose(found["mAP"], expected[0])
    assert found["mAP"][0] < found["mAP"][1]
    narrow = confidence_intervals(result, level=0.5, resamples=100)["mAP"]
    assert narrow[1] - narrow[0] < found["mAP"][1] - found["mAP"][0]


def test_identities_that_floating_numbers_do_not_tell_apart(data):
    moved = [pids.astype(np.int64) + 2**60 for pids in data[2:4]]
    plain, large = evaluate_embeddings(*data), evaluate_embeddings(*data[:2], *moved, *data[4:])
    assert (large.pids.dtype, large.pids.tolist()) == (np.int64, moved[0][large.query_index].tolist())
    assert confidence_intervals(large) == confidence_intervals(plain)


def test_the_means_of_the_numbers_of_queries_are_the_metrics(data):
    result = evaluate_embeddings(*data)
    columns = per_query("instance", result.average_precision, result.first_match, result.inp)
    assert {name: column.mean() for name, column in columns.items()} == pytest.approx(metrics_dict(result))
