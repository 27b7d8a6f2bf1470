"""The benchmark of COCO files runs and counts what it builds."""

import pytest

from benchmarks import bench_coco


@pytest.mark.by_hand
def test_every_part_builds_as_many_annotations_as_asked(run_here, check_table):
    report = run_here(bench_coco, "--sizes", 400, 40, "--repeats", 2)
    for part in bench_coco.PARTS:
        assert {size: row["annotations"] for size, row in report[part].items()} == {"40": 40, "400": 400}
        assert report[part]["40"]["each_over_smallest"]["values"] == [1, 1]
        assert len(report[part]["400"]["cpu_seconds"]["values"]) == 2
    check_table("coco", report)
