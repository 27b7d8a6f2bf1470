"""The benchmark of training runs, and its plain loop computes the losses of this project."""

import argparse

import pytest
import torch

from benchmarks import bench_training
from benchmarks.bench_training import Embeddings, PlainLoop, make_batch, make_model, train


@pytest.fixture
def options():
    return argparse.Namespace(device="cpu", precision="32-true")


def test_the_plain_loop_computes_the_same_losses():
    images, labels, _, is_real = make_batch(3, 3, 32, 16)
    model, loop = make_model("resnet18"), PlainLoop("resnet18", torch.device("cpu"))
    loop.backbone.load_state_dict(model.backbone.base.state_dict())
    loop.classifier.load_state_dict(model.fc_query.state_dict())
    loop.centers.data.copy_(model.center_loss.centers.data)
    loop.step(images, labels)
    kept = {}
    model.optimize = lambda losses, statistics: kept.update(losses)
    model.train().training_step((images, labels, labels, is_real), 0)
    for plain, ours in {"xent": "query_xent", "triplet": "query_triplet", "center": "query_center"}.items():
        assert loop.log[0][plain] == pytest.approx(float(kept[ours]), rel=1e-4)
    assert loop.log[0]["centroid"] == pytest.approx(float(kept["centroid_triplet"]), rel=1e-4)


def test_parts_of_a_step_add_up(options):
    model = make_model("resnet18")
    model.backbone = Embeddings()
    parts = train(model, make_batch(4, 512), 3, options)
    assert sum(seconds for name, seconds in parts.items() if name != "step") == pytest.approx(parts["step"])
    assert all(parts[name] > 0 for name in ("backward", "optimiser", "heads_forward", "logging", "trainer"))


def test_heads(run_here, check_table):
    report = run_here(
        bench_training, "--network", "resnet18", "--identities", 2, "--parts", "heads", "--repeats", 2, "--threads", 1
    )
    assert [row["images"] for row in report["heads"]] == [8, 16, 32]
    assert all(len(row["ms"]["values"]) == 2 for row in report["heads"])
    check_table("training_heads", report)


@pytest.mark.by_hand
def test_step_and_memory(run_benchmark, check_table):
    small = ("--network", "resnet18", "--size", 32, 16, "--identities", 2, "--steps", 1, "--repeats", 2, "--threads", 1)
    report = run_benchmark("bench_training", *small, "--parts", "step", "memory")
    step = report["step"]
    expected = [a / b for a, b in zip(step["plain_s"]["values"], step["step_s"]["values"], strict=True)]
    assert step["times_faster_than_plain"]["values"] == pytest.approx(expected, rel=1e-3)
    assert all(row["peak_mib"] > 0 for row in report["memory"].values())
    check_table("training_step", report)
    check_table("training_memory", report)
