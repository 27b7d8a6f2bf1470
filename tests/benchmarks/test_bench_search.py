"""The benchmark of the search runs, and exact ways find all neighbours."""

import numpy as np
import pytest

from benchmarks.large_search import BLOCK, IMAGES, Mixture
from inference.searching.search import search_gallery

SMALL = ("--gallery", 600, "--queries", 10, "--dims", 16, "--topk", 5, "--repeats", 1, "--threads", 1)
SHOWN_WITHOUT = {"product": 3, "exact": 1, "ratio": 3, "distances": 3}  # cells that a row of the table does not have


@pytest.mark.by_hand
def test_every_part(run_benchmark, check_table):
    parts = ("product", "exact", "faiss:flat", "faiss:ivf", "faiss:ivfpq", "faiss:hnsw", "milvus")
    report = run_benchmark("bench_search", *SMALL, "--parts", *parts)
    assert report["exact"]["pairs_times_4_bytes_mib"] == pytest.approx(10 * 600 * 4 / 2**20)
    assert report["faiss:flat"]["recall"] == 1
    assert all(0 < report[part]["recall"] <= 1 for part in parts[3:])
    check_table("search", report, sum(SHOWN_WITHOUT.values()))


@pytest.mark.by_hand
def test_a_large_gallery(run_benchmark, tmp_path):
    rows = ("--large", "--rows", 20_000, "--dims", 64, "--threads", 1, "--folder", tmp_path)
    first = run_benchmark("bench_search", *rows, "--kinds", "exact,ivfpq")
    both = run_benchmark("bench_search", *rows, "--kinds", "ivf,milvus")
    assert {name: both[name] for name in ("exact", "ivfpq")} == {name: first[name] for name in ("exact", "ivfpq")}
    assert (both["exact"]["rows"], both["exact"]["recall"]) == (20_000, 1)
    for kind, bytes_of_row in (("ivfpq", 8 + 8), ("ivf", 4 * 64 + 8), ("milvus", 4 * 64)):
        assert both[kind]["recall"] > 0.9
        assert both[kind]["mib"] > 20_000 * bytes_of_row / 2**20
        assert min(both[kind]["build_mib"], both[kind]["query_mib"]) >= both[kind]["libraries_mib"]
    assert both["ivfpq"]["mib"] < 1
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".npy", ".npy"]  # gallery, exact results


def test_the_large_gallery_is_a_mixture_of_identities(tmp_path):
    mixture, rows = Mixture(32, seed=3), BLOCK + 50
    mixture.write(tmp_path / "gallery.npy", rows)
    gallery, query = np.load(tmp_path / "gallery.npy", mmap_mode="r"), mixture.queries(rows)
    assert gallery.shape == (rows, 32)
    assert np.array_equal(query, Mixture(32, seed=3).queries(rows))
    numbers = np.random.default_rng((3, 0, 1)).integers(0, rows, len(query))
    nearest = search_gallery(query, gallery, topk=1)[0][:, 0]
    assert (nearest // IMAGES == numbers // IMAGES).mean() > 0.9
