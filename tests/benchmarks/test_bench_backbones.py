"""The benchmark of the networks runs, counts what it says, and goes on where one network fails."""

import argparse
import json

import pytest
import torch
from torch import nn

from benchmarks import bench_backbones
from benchmarks.bench_backbones import NETWORKS, PARTS, build, count, measure
from benchmarks.bench_training import make_batch
from benchmarks.common import spread
from utils.errors import UserError

SIZE = (64, 32)


@pytest.fixture
def pixels():
    return torch.randint(0, 256, (8, 3, *SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def measured(tmp_path):
    """Measure a network in this process; returns its row."""

    def run(network, *parts):
        args = argparse.Namespace(size=SIZE, batch=8, parts=parts, steps=1, repeats=1)
        measure(network, args, tmp_path / "row.json")
        return json.loads((tmp_path / "row.json").read_text())

    return run


def layers_of(model):
    """Multiply-adds of the convolutions and linear layers of one image, from the shapes that they see."""
    found = []

    def note(module, inputs, output):
        positions = output[0, 0].numel() if isinstance(module, nn.Conv2d) else output[0].numel() // output.shape[-1]
        found.append(positions * module.weight.numel())

    for module in model.backbone.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(note)
    with torch.no_grad():
        model(torch.zeros(1, 3, *SIZE))
    return sum(found)


@pytest.mark.parametrize("network", ["resnet18", "osnet_x0_25", "torchvision:mobilenet_v2"])
def test_convolutions_and_linear_layers_are_counted(network, pixels):
    model = build(network, SIZE, pixels)
    assert count(model, SIZE)["multiply_adds"] == layers_of(model)


def test_attention_is_counted_too(pixels):
    """4 rows and 2 columns of patches and a class token: 9 tokens of 192 numbers, in 12 blocks."""
    model = build("timm:vit_tiny_patch16_224", SIZE, pixels)
    found = count(model, SIZE)
    assert found["multiply_adds"] == layers_of(model) + 12 * 2 * 9 * 9 * 192
    assert found["embedding_size"] == 192


def test_parameters_are_those_of_an_embedding(pixels):
    """Without the classifier, the centres, and what published IBN-a weights have behind the pooling."""
    model = build("resnet50_ibn_a", SIZE, pixels)
    unused = sum(parameter.numel() for parameter in model.backbone.base.fc.parameters())
    assert unused > 2_000_000
    every = sum(parameter.numel() for part in (model.backbone, model.bn) for parameter in part.parameters())
    assert count(model, SIZE)["parameters"] == every - unused


def test_keys_after_a_name_are_set(pixels):
    model = build("resnet18 MODEL.EMBED_DIM 64 MODEL.LAST_STRIDE 2", SIZE, pixels)
    assert (model.hparams.MODEL.LAST_STRIDE, list(model.hparams.INPUT.SIZE_TRAIN)) == (2, list(SIZE))
    assert count(model, SIZE)["embedding_size"] == 64


def test_batch_norms_know_the_images_and_noise(pixels):
    model = build("resnet18", SIZE, pixels)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in bench_backbones.scaling(model))
    with torch.no_grad():
        seen = model.backbone.base.conv1((pixels / 255 - mean) / std).mean((0, 2, 3))
    norm = model.backbone.base.bn1
    # Noise has the mean 0, so that half of the images' is left.
    torch.testing.assert_close(norm.running_mean, seen / 2, rtol=0.1, atol=0.02)
    assert abs(seen).max() > 0.2
    assert norm.momentum == 0.1
    assert not model.training
    assert model.bn.running_mean.abs().max() == 0  # the neck of a new model


@pytest.mark.by_hand
def test_a_network_beside_the_reference(measured, monkeypatch):
    monkeypatch.setattr(bench_backbones, "REFERENCE", "resnet18")
    row = measured("osnet_x0_25", "embedding", "training")
    assert {name: list(row[name]) for name in row} == {
        "embedding": ["32-true", "bf16-true"], "training": ["32-true", "bf16-mixed"],
    }  # fmt: skip
    for speeds in (*row["embedding"].values(), *row["training"].values()):
        assert len(speeds["images_per_s"]["values"]) == len(speeds["times_reference"]["values"]) == 1
        assert speeds["images_per_s"]["min"] > 0


def test_a_step_is_one_of_training(pixels):
    """Batch norms follow the images, and both optimisers step."""
    model = build("resnet18", SIZE, pixels)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert bench_backbones.step_seconds(model, make_batch(2, 3, *SIZE), "32-true", 1) > 0
    after = model.state_dict()
    for name in ("backbone.base.conv1.weight", "backbone.base.bn1.running_mean", "center_loss.centers"):
        assert not torch.equal(before[name], after[name]), name


def test_times_are_taken_within_a_round():
    found = bench_backbones.rates({"network": [1.0, 2.0], "reference": [2.0, 8.0]}, 8)
    assert found == {"images_per_s": spread([8.0, 4.0]), "times_reference": spread([2.0, 4.0])}
    assert bench_backbones.rates({"network": [1.0]}, 8)["times_reference"] == 1


def test_a_part_that_fails_leaves_the_others(measured, monkeypatch):
    def fail(*_):
        raise UserError("no such format\nand more")

    monkeypatch.setattr(bench_backbones, "export_checkpoint", fail)
    row = measured("torchvision:mobilenet_v2", "onnx", "counts")
    assert row["failed"] == {"onnx": "UserError: no such format"}
    assert row["counts"]["parameters"] > 2_000_000


def test_the_report_is_written_after_each_network(run_here, monkeypatch, tmp_path, capsys):
    written = []

    def apart(network, argv):
        file = tmp_path / "report.json"
        written.append(len(json.loads(file.read_text())["networks"]) if file.exists() else 0)
        return {"network": network} | ({"failed": {"process": "status 1: no"}} if network == "b" else {})

    monkeypatch.setattr(bench_backbones, "measure_apart", apart)
    with pytest.raises(SystemExit) as ended:
        run_here(bench_backbones, "--networks", "a", "b", "c")
    assert (ended.value.code, written) == (1, [0, 1, 2])
    assert capsys.readouterr().out.endswith("report.json; failed: b\n")
    with pytest.raises(SystemExit) as ended:
        run_here(bench_backbones, "--networks", "a")
    assert ended.value.code == 0


@pytest.mark.parametrize("batch", [4, 10])
def test_a_batch_holds_four_images_of_two_identities_or_more(batch, run_here, capsys):
    with pytest.raises(SystemExit) as ended:
        run_here(bench_backbones, "--batch", batch)
    assert ended.value.code == 2
    assert f"--batch is {batch}; expected a multiple of 4, at least 8." in capsys.readouterr().err


def test_what_is_measured_by_default():
    assert len(NETWORKS) == 16
    assert all(NETWORKS.values())
    assert bench_backbones.read_arguments([]).networks == list(NETWORKS)


@pytest.mark.by_hand
def test_three_networks_one_of_which_does_not_exist(run_benchmark, check_table):
    small = ("--size", *SIZE, "--repeats", 2, "--threads", 1)
    names = ("resnet50", "no_such_network", "timm:vit_tiny_patch16_224 MODEL.PATCH_STRIDE 12")
    report = run_benchmark("bench_backbones", "--networks", *names, *small, status=(1,))
    first, missing, second = report["networks"]
    assert missing["failed"]["process"].startswith("status 1: utils.errors.UnknownNameError: MODEL.NAME is 'no_such")
    assert set(first) == set(second) == {"network", "weights", *PARTS}
    assert first["training"]["32-true"]["times_reference"] == 1
    assert second["onnx"]["relative_error"] < 1e-4
    report["networks"] = [first, second]
    check_table("backbones", report, 1)  # whose weights load is told for the networks of the page
    check_table("backbones_training", report)
    check_table("backbones_embedding", report)
