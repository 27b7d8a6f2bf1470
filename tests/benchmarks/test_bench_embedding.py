"""The benchmark of the Embedder runs, and what it compares agrees."""

import pytest

from benchmarks import bench_embedding
from tests.launch import run_python

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


@pytest.mark.by_hand
def test_engines(run_benchmark, tmp_path):
    """In a process of its own, because of OpenVINO; with drawn data and images."""
    done = run_python("scripts/make_toy_dataset.py", tmp_path / "data", "--seed", 0)
    assert done.returncode == 0, done.stderr
    sizes = ("--batches", 1, 3, "--repeats", 2, "--threads", 1, "--size", 64, 32)
    command = ("--parts", "engines", "--networks", "resnet18", *sizes, "--data", tmp_path / "data")
    (network,) = run_benchmark("bench_embedding", *command)["engines"]
    assert (network["network"], network["size"], network["calibration"]) == ("resnet18", [64, 32], 200)
    assert 0.9 < network["int8_cosine"]["least"] <= network["int8_cosine"]["mean"] < 1
    assert [cell["batch"] for cell in network["cells"]] == [1, 3]
    for cell in network["cells"]:
        names = {f"float32 {engine}" for engine in bench_embedding.ENGINES}
        names |= {"bfloat16 plain", "bfloat16 torch", "int8 onnxruntime", "int8 openvino"}
        assert cell["rows"].keys() - {"bfloat16 openvino"} == names
        ours, other = (cell["rows"][f"float32 {engine}"] for engine in ("torch", "openvino"))
        expected = [a / b for a, b in zip(*(r["images_per_s"]["values"] for r in (other, ours)), strict=True)]
        assert other["times_torch"]["values"] == pytest.approx(expected, rel=1e-3)
    scores = network["mAP"]
    assert scores["float32 torch"] == pytest.approx(scores["float32 openvino"], abs=1e-3)
    assert scores["int8 openvino"] == pytest.approx(scores["float32 torch"], abs=0.1)
