"""The benchmark of the data runs; its own check compares the pixels of all ways."""

import pytest
import torch

from benchmarks import bench_data


def test_command_writes_ratios_of_each_round(tmp_path, monkeypatch, run_here, check_table):
    monkeypatch.setattr(bench_data, "CASES", dict.fromkeys(bench_data.CASES, ((32, 16), (16, 8))))
    report = run_here(bench_data, "--images", 6, "--repeats", 2, "--memory", tmp_path)
    assert report["market"]["train"]["input"] == [16, 8]
    assert report["machine"]["threads"] == 1
    assert report["machine"]["pillow"]
    for part in ("train", "test"):
        rates = report["market"][part]
        assert len(rates["plain"]["images_per_s"]["values"]) == 2
        for name in ("uncached", "ram_cold", "ram_warm", "disk_cold", "disk_warm"):
            expected = [
                ours / plain
                for ours, plain in zip(
                    rates[name]["images_per_s"]["values"], rates["plain"]["images_per_s"]["values"], strict=True
                )
            ]
            assert rates[name]["times_plain"]["values"] == pytest.approx(expected, rel=1e-3)
        check_table(f"data_{part}", report)
    assert not list(tmp_path.glob("tmp*"))


def test_ways_that_differ_are_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_data, "CASES", {"small": ((32, 16), (16, 8))})
    monkeypatch.setattr(
        bench_data.ReidTransforms, "build_transforms", lambda self, train: lambda _: torch.zeros(3, 16, 8)
    )
    with pytest.raises(AssertionError, match="uncached"):
        bench_data.bench_case("small", False, images=4, repeats=1, memory=str(tmp_path))
