"""The benchmark of training runs, and its plain loop computes the losses of this project."""

import argparse

import pytest
import torch

from benchmarks.bench_training import Embeddings, PlainLoop, make_batch, make_model, train
from benchmarks.common import rows


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
    assert all(parts[name] > 0 for name in ("backward", "optimiser", "heads_forward", "logging"))


def test_tables_show_everything_that_was_measured():
    report = {"size": [2, 3], "part": {"s": {"median": 2.0, "min": 1.0, "max": 3.0, "values": [1, 2, 3]}}}
    assert list(rows(report)) == [("size 0", "2"), ("size 1", "3"), ("part s", "2 (1 to 3)")]
