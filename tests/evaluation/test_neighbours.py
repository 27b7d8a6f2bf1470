"""The search for neighbours against a sort of all distances, in tiles of one size and shared by processes."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from evaluation import neighbours
from evaluation.neighbours import Nodes, find_neighbours
from tests.evaluation import oracle
from utils.distributed import Processes


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(neighbours, "MAX_TILE", 16)
    monkeypatch.setattr("evaluation.distance_blocks.MAX_TILE", 16)


def draw(seed, m, n, dim=3, values=3):
    """Whole numbers, so that distances are exact and many are equal."""
    rng = np.random.default_rng(seed)
    return [rng.integers(-values, values + 1, (count, dim)).astype(np.float32) for count in (m, n)]


def search(query, gallery, k, processes=None, **how):
    return find_neighbours(Nodes(torch.from_numpy(query), torch.from_numpy(gallery), **how), k, processes)


def shared(count, call):
    """What ``call(processes)`` returns on each of ``count`` processes, which are threads here."""
    rows, barrier = [None] * count, threading.Barrier(count)

    def on(rank):
        def gather(own):
            rows[rank] = own
            barrier.wait()
            whole = torch.cat(rows)
            barrier.wait()
            return whole

        return call(Processes(rank, count, gather))

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(on, range(count)))


def assert_equal(found, expected):
    for name in ("nodes", "distances", "largest"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("m", "n"), [(1, 1), (5, 7), (20, 12), (33, 100), (90, 6)])
@pytest.mark.parametrize("k", [1, 3, 25, 1000])
@pytest.mark.usefixtures("small_tiles")
def test_equals_a_stable_sort(seed, m, n, k):
    query, gallery = draw(seed, m, n)
    nodes = np.concatenate((query, gallery))
    distances = oracle.squared_euclidean(nodes, nodes)
    found = search(query, gallery, min(k, m + n))
    expected = np.argsort(distances, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(found.nodes, expected)
    np.testing.assert_array_equal(found.distances, np.take_along_axis(distances, expected, 1))
    np.testing.assert_array_equal(found.largest, distances.max(1))


@pytest.mark.parametrize("how", [{}, {"feat_norm": True}, {"metric": "cosine"}])
@pytest.mark.parametrize("convert", [np.float32, np.float16, np.float64])
def test_distances_of_every_kind(how, convert, small_tiles):
    query, gallery = (x + 0.5 for x in draw(9, 20, 60, dim=8, values=9))
    query[3] = gallery[7] = 0
    scaled = [x / (np.linalg.norm(x, axis=1, keepdims=True) + 1e-12) if how else x for x in (query, gallery)]
    nodes = np.concatenate(scaled)
    distances = 1 - nodes @ nodes.T if "metric" in how else oracle.squared_euclidean(nodes, nodes)
    found = search(query.astype(convert), gallery.astype(convert), 80, **how)
    np.testing.assert_allclose(found.distances, np.sort(distances, axis=1), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.largest, distances.max(1), rtol=1e-5)
    nodes = Nodes(torch.from_numpy(query), torch.from_numpy(gallery), **how)
    pairs = nodes.pair_distances(found.nodes[:, 0], np.arange(80))
    np.testing.assert_allclose(pairs, found.distances[:, 0], atol=1e-5)


@pytest.mark.parametrize("how", [{}, {"feat_norm": True}, {"metric": "cosine"}])
def test_copies_are_at_the_same_distance_wherever_they_stand(how, small_tiles):
    rng = np.random.default_rng(0)
    query, gallery = (rng.normal(size=(n, 100)).astype(np.float32) for n in (20, 60))
    copies = [0, 5, 17, 40, 79]
    nodes = np.concatenate((query, gallery))
    nodes[copies] = nodes[0]
    found = search(nodes[:20], nodes[20:], 80, **how)
    distances = np.empty((80, 80), np.float32)
    np.put_along_axis(distances, found.nodes, found.distances, 1)
    np.testing.assert_array_equal(distances, distances.T)
    others = np.setdiff1d(np.arange(80), copies)
    assert (distances[others][:, copies] == distances[others][:, :1]).all()


@pytest.mark.parametrize("count", [2, 3, 7, 40])  # 28 products
@pytest.mark.usefixtures("small_tiles")
def test_processes_find_the_same(count):
    rng = np.random.default_rng(1)
    query, gallery = (rng.normal(size=(n, 6)).astype(np.float32) for n in (25, 85))
    gallery[rng.random(85) < 0.3] = query[0]
    expected = search(query, gallery, 9)
    for found in shared(count, lambda processes: search(query, gallery, 9, processes)):
        assert_equal(found, expected)


def test_each_product_is_computed_once(monkeypatch, small_tiles):
    computed = []
    tile = Nodes.tile

    def spy(self, i, j, *arguments):
        computed.append((i, j))
        return tile(self, i, j, *arguments)

    monkeypatch.setattr(Nodes, "tile", spy)
    query, gallery = draw(0, 20, 60)
    search(query, gallery, 3)
    assert computed == [(i, j) for i in range(5) for j in range(i, 5)]
    computed.clear()
    shared(3, lambda processes: search(query, gallery, 3, processes))
    assert sorted(computed) == [(i, j) for i in range(5) for j in range(i, 5)]


def test_accelerators_list_the_same_entries():
    tile = torch.rand(5, 7)
    for each in (tile, tile.t()):
        limit = torch.rand(len(each))
        row, column = (each < limit[:, None]).numpy().nonzero()
        for below in (neighbours._below, neighbours._below_on_accelerator):
            for found, expected in zip(below(each, limit), (row, column, each.numpy()[row, column]), strict=True):
                np.testing.assert_array_equal(found, expected)
