"""The benchmark of the Embedder runs, and what it compares agrees."""

import pytest

from benchmarks import bench_embedding

SMALL = ("--network", "resnet18", "--size", 32, 16, "--batch", 4, "--repeats", 2, "--threads", 1)


@pytest.mark.by_hand
def test_forward_and_pipeline(run_here, check_table):
    parts = ("--images", 6, "--parts", "forward", "pipeline")
    report = run_here(bench_embedding, *SMALL, *parts)
    assert report["forward"]["32-true"]["least_cosine_to_plain"] > 0.99999
    assert [part["precision"] for part in report["pipeline"]] == ["32-true", "bf16-true"]
    plain = report["forward"]["plain_images_per_s"]["values"]
    ours = report["forward"]["32-true"]
    expected = [a / b for a, b in zip(ours["images_per_s"]["values"], plain, strict=True)]
    assert ours["times_plain"]["values"] == pytest.approx(expected, rel=1e-3)
    check_table("embedding_forward", report)
    check_table("embedding_pipeline", report)


@pytest.mark.by_hand
def test_memory(run_here, check_table):
    report = run_here(bench_embedding, "--parts", "memory", "--files", 400, "--dimension", 8)
    assert [(row["files"], row["dimension"]) for row in report["memory"]] == [(40, 8), (400, 8)]
    assert all(row["libraries_mib"] > 0 for row in report["memory"])
    check_table("embedding_memory", report)
