"""The benchmark of shards beside files runs, and measures the same images in both."""

from pathlib import Path

import pytest

from benchmarks import bench_sources


@pytest.mark.by_hand
def test_shards_beside_files(run_here, check_table):
    report = run_here(bench_sources, "--images", 400, "--shard", 20, "--batch", 8, "--threads", 1, "--repeats", 1)
    few, whole = report["parts"]
    assert (few["images"], whole["images"]) == (20, 400)
    ours, files = few["shards"]["images_per_s"]["median"], few["files"]["images_per_s"]["median"]
    assert few["shards_over_files"]["median"] == pytest.approx(ours / files)
    assert whole["shards"]["before_mib"]["median"] > 0
    assert "files" not in whole
    check_table("sources", report, dashes=3)


def test_the_images_of_both_are_the_same(tmp_path):
    bench_sources.draw(tmp_path, 25, 10, 20)
    shards, files = (bench_sources.source_of(way, tmp_path, 20, 10) for way in bench_sources.WAYS)
    from_shards = [item for chunk in shards.chunks() for item in shards.read(chunk)]
    from_files = [item for chunk in files.chunks() for item in files.read(chunk)]
    assert len(from_shards) == len(from_files) == 20
    for ours, other in zip(from_shards, from_files, strict=True):
        assert ours.image.read() == Path(other.image).read_bytes()
