"""The benchmark of decoders: what it compares, and what it says of those that are missing."""

import sys

import pytest

from benchmarks import bench_decoding, bench_frame
from tests.inference.conftest import draw_picture


def test_readers_agree_and_missing_ones_are_named(tmp_path, monkeypatch, run_here, check_table):
    monkeypatch.setattr(bench_decoding, "CASES", {"originals": ((256, 128), 90, 1.0)})
    monkeypatch.setattr(bench_decoding, "SIZE", (64, 32))
    monkeypatch.setattr(bench_decoding, "WHOLE", bench_decoding.ResizedPlanes((64, 32)))
    monkeypatch.setattr(bench_decoding, "DRAFT", bench_decoding.ResizedPlanes((64, 32), draft=True))
    monkeypatch.setitem(sys.modules, "turbojpeg", None)  # as if it were not installed
    draw_picture(tmp_path / "photos" / "a.jpg", 0)
    draw_picture(tmp_path / "photos" / "b.png", 0)  # not a JPEG file
    report = run_here(
        bench_decoding, "--images", 3, "--repeats", 2, "--photos", tmp_path / "photos", "--cases", "originals"
    )
    assert {"pyturbojpeg", "pyturbojpeg_draft"} <= set(report["left_out"])
    readers = report["originals"]
    assert readers["ours"]["grey_levels"] == {"mean": 0, "p99": 0, "max": 0}
    assert 0 < readers["ours_draft"]["grey_levels"]["mean"] < 3
    assert readers["torchvision"]["grey_levels"]["max"] <= 1
    ours, draft = (readers[name]["images_per_s"]["values"] for name in ("ours", "ours_draft"))
    expected = [b / a for a, b in zip(ours, draft, strict=True)]
    assert readers["ours_draft"]["times_ours"]["values"] == pytest.approx(expected, rel=1e-3)
    check_table("decoding", report, dashes=4 if "simplejpeg" in readers else 8)


def test_frame(run_here, check_table):
    small = ("--networks", "resnet18", "--size", 32, 16, "--crops", 3, "--frames", 1, "--repeats", 2, "--threads", 1)
    report = run_here(bench_frame, *small)
    assert len(report["resnet18"]["32-true"]["ms_per_frame"]["values"]) == 2
    check_table("frame", report)
