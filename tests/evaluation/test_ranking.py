"""The two ways of counting against a plain loop, with ties, zeros of both signs, and negative distances."""

import threading

import numpy as np
import pytest
import torch

from evaluation import ranking
from evaluation.ranking import count_before, nearest


def draw(seed, rows, columns, chosen):
    rng = np.random.default_rng(seed)
    values = np.array([-2.5, -1e-7, -0.0, 0.0, 1e-45, 1e-7, 1.0, np.nextafter(np.float32(1), 2), 3e38], np.float32)
    block = rng.choice(values, (rows, columns))
    picked = [(r, c) for r in range(rows) for c in rng.choice(columns, min(columns, chosen(rng)), replace=False)]
    row, column = (np.array([p[i] for p in picked], dtype=np.int64).reshape(-1) for i in (0, 1))
    order = np.lexsort((column, block[row, column], row))
    return block, row[order], column[order]


def by_loop(block, row, column):
    return [
        sum(1 for k, v in enumerate(block[r]) if (v, k) < (block[r, c], c)) for r, c in zip(row, column, strict=True)
    ]


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("few", [0, 3, 1000])  # all searched, some rows of each kind, all compared
@pytest.mark.parametrize("search_bytes", [1, 1 << 20])
def test_counts_equal_plain_loop(seed, few, search_bytes, monkeypatch):
    monkeypatch.setattr(ranking, "FEW", few)
    monkeypatch.setattr(ranking, "SEARCH_BYTES", search_bytes)
    block, row, column = draw(seed, rows=6, columns=seed * 3 + 1, chosen=lambda rng: rng.integers(0, 8))
    counts = count_before(torch.from_numpy(block), row, column, block[row, column])
    assert counts.tolist() == by_loop(block, row, column)


@pytest.mark.parametrize("threads", [1, 2, 3, 40])  # of 24 entries
def test_threads_count_the_same(threads, monkeypatch):
    used = set()
    compare = ranking._compare

    def spy(*arguments):
        used.add(threading.get_ident())
        barrier.wait(10)  # all parts are compared at the same time
        return compare(*arguments)

    barrier = threading.Barrier(threads)
    monkeypatch.setattr(ranking, "_compare", spy)
    monkeypatch.setattr(ranking, "ENTRIES_FOR_A_THREAD", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    block, row, column = draw(0, rows=6, columns=30, chosen=lambda rng: 4)
    counts = count_before(torch.from_numpy(block), row, column, block[row, column])
    assert counts.tolist() == by_loop(block, row, column)
    assert len(used) == threads


def test_few_entries_start_no_thread(monkeypatch):
    monkeypatch.setattr(ranking, "ThreadPoolExecutor", None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    block, row, column = draw(0, rows=6, columns=30, chosen=lambda rng: 4)
    assert len(count_before(torch.from_numpy(block), row, column, block[row, column])) == 24


def test_part_of_a_wider_block():
    block, row, column = draw(0, rows=6, columns=30, chosen=lambda rng: 4)
    counts = count_before(torch.from_numpy(np.hstack((block, block)))[:, :30], row, column, block[row, column])
    assert counts.tolist() == by_loop(block, row, column)


def test_many_pairs_are_taken_in_spans(monkeypatch):
    monkeypatch.setattr(ranking, "PAIRS_AT_ONCE", 5)
    q_pids, g_pids = np.array([1, 2, 3, 1, 1, 4]), np.array([1, 1, 2, 1, 3, 3, 1, 1, 1])
    zeros = np.zeros(9, dtype=np.int64)
    same = ranking.SameIdentity(q_pids, g_pids, zeros[:6], ranking.Cameras("g_camids", zeros, 9))
    assert same.spans(0, 6) == [(0, 1), (1, 3), (3, 4), (4, 5), (5, 6)]
    assert same.spans(2, 4) == [(2, 3), (3, 4)]
    pairs = same.pairs(1, 3)
    assert pairs.row.tolist() == [0, 1, 1]
    assert pairs.column.tolist() == [2, 4, 5]
    assert pairs.removed.all()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("search_bytes", [1, 1 << 20])
def test_nearest_equals_stable_sort(seed, search_bytes, monkeypatch):
    monkeypatch.setattr(ranking, "SEARCH_BYTES", search_bytes)
    rng = np.random.default_rng(seed)
    block = rng.choice(np.array([0, 0.5, 1, -1, np.inf], np.float32), (7, 12))
    block[3] = 2
    for count in (1, 2, 5, 12):
        columns, distances = nearest(torch.from_numpy(block), count)
        np.testing.assert_array_equal(columns, np.argsort(block, axis=1, kind="stable")[:, :count])
        np.testing.assert_array_equal(distances, np.take_along_axis(block, columns, 1))
