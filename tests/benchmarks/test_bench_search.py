"""The benchmark of the search runs, and exact ways find all neighbours."""

import pytest

SMALL = ("--gallery", 600, "--queries", 10, "--dims", 16, "--topk", 5, "--repeats", 1, "--threads", 1)
SHOWN_WITHOUT = {"product": 3, "exact": 1, "ratio": 3, "distances": 3}  # cells that a row of the table does not have


@pytest.mark.by_hand
def test_every_part(run_benchmark, check_table):
    parts = ("product", "exact", "faiss:flat", "faiss:ivf", "faiss:hnsw", "milvus")
    report = run_benchmark("bench_search", *SMALL, "--parts", *parts)
    assert report["exact"]["pairs_times_4_bytes_mib"] == pytest.approx(10 * 600 * 4 / 2**20)
    assert report["faiss:flat"]["recall"] == 1
    assert all(0 < report[part]["recall"] <= 1 for part in parts[3:])
    check_table("search", report, sum(SHOWN_WITHOUT.values()))
