"""The benchmark of a GPU runs on the CPU too, keeps to its time, and says which goals are met."""

import json

import pytest
import torch

from benchmarks import gpu


@pytest.fixture
def run(tmp_path):
    threads = torch.get_num_threads()

    def call(*arguments):
        out = tmp_path / "report.json"
        small = ("--device", "cpu", "--network", "resnet18", "--size", "32", "32", "--batches", "8")
        gpu.main([*small, "--precisions", "32-true", "--evaluations", "small", "--out", str(out), *map(str, arguments)])
        return json.loads(out.read_text())

    yield call
    torch.set_num_threads(threads)


@pytest.mark.by_hand
def test_every_part_is_measured(run, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "SECONDS", 0.01)
    monkeypatch.setattr(gpu, "FILES", 64)
    report = run("--minutes", 5, "--no-compile")
    (row,) = report["training"].values()
    assert row["times_plain"] == pytest.approx(row["plain_ms"] / row["step_ms"], rel=1e-2)
    assert row["step_over_backbone"] == pytest.approx(row["step_ms"] / row["backbone_ms"], rel=1e-2)
    assert row["images_per_s"] == pytest.approx(8 / row["step_ms"] * 1e3, rel=1e-2)
    assert report["loading"]["jpeg"]["images_per_s"] > 0
    assert set(report["embedding"]["resnet18"]) == {"32-true", "bf16-true"}
    assert report["evaluation"]["small"]["reranking_s"] > 0
    assert report["left_out"] == []
    assert "nothing was left out" in capsys.readouterr().out


def test_what_would_begin_too_late_is_named(run):
    report = run("--minutes", 0)
    assert report["left_out"] == [
        *("training: 8, 32-true", "loading: jpeg", "embedding: resnet18", "evaluation: small"),
        "training: 8, 32-true, compiled",
    ]
    assert "training" not in report


def test_a_part_without_enough_memory_is_named_and_the_others_go_on(run, monkeypatch):
    def fail(*arguments):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")

    for part in ("cell", "loading", "embedding"):
        monkeypatch.setattr(gpu, f"bench_{part}", fail)
    monkeypatch.setattr(gpu, "bench_evaluation", lambda *arguments: {"evaluation_over_product": 2.0})
    report = run("--minutes", 5)
    assert report["training"]["8, 32-true, compiled"] == {"failed": "CUDA out of memory. Tried to allocate 2.00 GiB."}
    assert report["goals"]["evaluation_over_product"]["missed"] == {"small": 2.0}


def test_goals():
    rows = {"a": {"times_plain": 1.0, "step_over_backbone": 1.11}, "b": {"times_plain": 0.9}, "c": {"failed": "memory"}}
    found = gpu.goals_of({"training": rows, "evaluation": {"msmt": {"evaluation_over_product": 1.5}}})
    assert (found["times_plain"]["met"], found["times_plain"]["missed"]) == (["a"], {"b": 0.9})
    assert found["step_over_backbone"]["missed"] == {"a": 1.11}
    assert found["evaluation_over_product"]["met"] == ["msmt"]


def test_without_a_card_the_command_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no CUDA device; --device cpu"):
        gpu.main([])
