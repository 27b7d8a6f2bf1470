"""OSNet: torchreid's weights by name and shape, its recorded outputs, and its checkpoints as they are."""

import copy
import json
import logging
import lzma
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from modelling.backbones import BACKBONES, NetworkOptions, get_backbone
from modelling.backbones.osnet import Gate, LightConv, OSNet
from modelling.backbones.resnet_ibn_a import InstanceNorm
from modelling.baseline import Baseline
from modelling.bases import ModelBase
from modelling.from_weights import model_of_weights
from tests.small import small_config
from tests.support import GOLDEN, assert_close, counting_saved_numbers, fill_by_recipe, golden
from train_ctl_model import CTLModel
from utils.errors import CheckpointError, NotACtlCheckpointError

KEYS = json.loads(lzma.decompress((GOLDEN / "osnet_state_dict_keys.json.xz").read_bytes()))
RECORDED = golden("osnet_given")
IMAGES = torch.from_numpy(RECORDED["x"])
REFUSAL = NotACtlCheckpointError("no CTL checkpoint")


def config(name: str, **more: Any) -> Any:
    return small_config(**{"MODEL.NAME": name} | more)


def torchreid_weights(name: str) -> dict[str, Tensor]:
    """The state dict of the recording, with the classifier."""
    kinds = {True: torch.int64, False: torch.float32}
    state = {key: torch.empty(size, dtype=kinds[key.endswith("num_batches_tracked")]) for key, size in KEYS[name]}
    return fill_by_recipe(state)


def torchreid_file(name: str, folder: Path) -> Path:
    """A checkpoint as torchreid writes it while it trains on several devices."""
    weights = {f"module.{key}": value for key, value in torchreid_weights(name).items()}
    optimizer = {"state": {0: {"step": 3, "exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1e-3, "params": [0]}]}
    content = {"state_dict": weights, "epoch": 60, "rank1": np.float64(0.9), "optimizer": optimizer, "scheduler": {}}
    torch.save(content, folder / "model.pth.tar-60")
    return folder / "model.pth.tar-60"


@pytest.fixture(params=KEYS)
def recorded(request: pytest.FixtureRequest) -> tuple[str, Baseline]:
    """A name and its network with the weights of the recording."""
    with torch.device("meta"):
        baseline = Baseline(config(request.param))
    weights = {f"base.{k}": v for k, v in torchreid_weights(request.param).items() if not k.startswith("classifier.")}
    baseline.load_state_dict(weights, assign=True)
    return request.param, baseline


def test_every_network_was_recorded() -> None:
    assert {name for name in BACKBONES if name.startswith("osnet_")} == set(KEYS)
    assert all(get_backbone(name).embedding_size == 512 for name in KEYS)


@pytest.mark.parametrize("name", KEYS)
def test_entries_are_torchreids_in_order(name: str) -> None:
    with torch.device("meta"):
        state = get_backbone(name).build(NetworkOptions()).state_dict()
    expected = [[key, size] for key, size in KEYS[name] if not key.startswith("classifier.")]
    assert [[key, list(value.shape)] for key, value in state.items()] == expected


def test_maps_and_embeddings_are_the_recorded_ones(recorded: tuple[str, Baseline]) -> None:
    name, baseline = recorded
    with torch.no_grad():
        feature_map, embeddings = baseline.eval()(IMAGES)
    assert feature_map.shape == tuple(RECORDED[f"{name}_mapshape"])
    assert_close(feature_map.mean((2, 3))[:, ::4], RECORDED[f"{name}_pooled"])
    assert_close(embeddings[:, ::4], RECORDED[f"{name}_embedding"])
    assert baseline.in_planes == embeddings.shape[1] == 512


def test_embeddings_in_train_mode_are_the_recorded_ones(recorded: tuple[str, Baseline]) -> None:
    name, baseline = recorded
    with torch.no_grad():
        _, embeddings = baseline.train()(IMAGES)
    expected = RECORDED[f"{name}_train_embedding"]
    # Batch statistics over four images amplify rounding: the recording is up to 4e-4 away from float64, and equal to
    # these networks in every bit where they compute with two threads. So relative to the largest number, about 2.
    np.testing.assert_allclose(embeddings[:, ::4], expected, rtol=1e-4, atol=1e-4 * expected.max())


def test_the_gate_against_a_plain_loop() -> None:
    torch.manual_seed(0)
    gate, x = Gate(32), torch.randn(2, 32, 3, 4)
    biases = [nn.init.normal_(gate.get_parameter(f"{name}.bias")) for name in ("fc1", "fc2")]
    expected = torch.empty_like(x)
    for b in range(2):
        mean = torch.stack([x[b, c].mean() for c in range(32)])
        inner = (gate.fc1.weight[:, :, 0, 0] @ mean + biases[0]).clamp(min=0)
        outer = gate.fc2.weight[:, :, 0, 0] @ inner + biases[1]
        expected[b] = x[b] / (1 + (-outer).exp())[:, None, None]
    torch.testing.assert_close(gate(x), expected)


@pytest.mark.parametrize("name", ["osnet_x0_25", "osnet_ibn_x1_0", "osnet_ain_x0_25"])
def test_initial_weights(name: str) -> None:
    torch.manual_seed(0)
    network = get_backbone(name).build(NetworkOptions())
    stem = network.conv1.conv.weight
    assert stem.std().item() == pytest.approx((2 / (49 * len(stem))) ** 0.5, rel=0.1)
    assert network.fc[0].weight.std().item() == pytest.approx(0.01, rel=0.05) and network.fc[0].bias.eq(0).all()
    for module in network.modules():
        if isinstance(module, Gate):
            assert all(module.get_parameter(f"{name}.bias").eq(0).all() for name in ("fc1", "fc2"))
        elif isinstance(module, nn.BatchNorm2d | InstanceNorm):
            assert module.weight.eq(1).all() and module.bias.eq(0).all()


@pytest.mark.parametrize("variant", ["", "ibn", "ain"])
def test_recomputed_blocks_give_the_same_gradients_and_running_statistics(variant: str) -> None:
    torch.manual_seed(1)
    plain = OSNet(0.25, variant).train()
    recomputed = copy.deepcopy(plain)
    recomputed.grad_checkpoint = True
    kept = []
    for network in (plain, recomputed):
        with counting_saved_numbers() as saved:
            embeddings = network.after_pooling(network(IMAGES).mean((2, 3)))
        embeddings.square().mean().backward()
        kept.append(sum(saved))
    for one, other in zip(plain.parameters(), recomputed.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None and torch.equal(one.grad, other.grad)
    for (key, one), other in zip(plain.state_dict().items(), recomputed.state_dict().values(), strict=True):
        assert torch.equal(one, other), key
    assert kept[1] < kept[0] / 4


def test_embeddings_keep_their_digits_under_autocast() -> None:
    torch.manual_seed(0)
    network = OSNet(0.25).eval()
    pooled = torch.rand(2, 128)
    with torch.no_grad():
        expected = network.after_pooling(pooled)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert network.fc(pooled).dtype == torch.bfloat16
            found = network.after_pooling(pooled)
            feature_map, embeddings = Baseline(config("osnet_ain_x0_25")).eval()(IMAGES)
    assert torch.equal(found, expected)
    assert (feature_map.dtype, embeddings.dtype) == (torch.bfloat16, torch.float32)


def test_an_instance_norm_is_computed_in_float32_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    norm, x = InstanceNorm(8), (300 + torch.randn(2, 8, 4, 4)).bfloat16()
    compute, dtypes = nn.functional.instance_norm, []

    def spy(x: Tensor, **options: Any) -> Tensor:
        dtypes.append(x.dtype)  # a CPU would widen half precision by itself
        return compute(x, **options)

    with torch.autocast("cpu", dtype=torch.bfloat16), monkeypatch.context() as patch:
        patch.setattr(nn.functional, "instance_norm", spy)
        found = norm(x)
    assert (found.dtype, dtypes) == (torch.bfloat16, [torch.float32])
    torch.testing.assert_close(found, nn.functional.instance_norm(x.float()).bfloat16(), rtol=0, atol=0)
    wide = torch.randn(2, 8, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(norm(wide), nn.functional.instance_norm(wide), rtol=1e-12, atol=1e-12)
    kinds = {
        key: type(module) for key, module in OSNet(0.25, "ain").named_modules() if "IN" in key or key == "conv1.bn"
    }
    assert set(kinds.values()) == {InstanceNorm} and len(kinds) == 5


@pytest.mark.parametrize("variant", ["", "ain"])
def test_layers_are_counted_from_the_stem(variant: str) -> None:
    network = OSNet(0.25, variant)
    groups = network.layer_groups()
    assert list(groups) == [name for name, _ in network.named_parameters()]
    after = "pool2.0" if variant else "conv2.2.0"
    names = ["conv1.conv", "conv2.0.conv1.conv", "conv2.1.gate.fc1", f"{after}.conv", "conv3.0.conv3.conv"]
    names += ["conv3.1.conv3.conv", "conv4.0.downsample.conv", "conv4.1.conv1.bn", "conv5.bn", "fc.0"]
    assert [groups[f"{name}.weight"] for name in names] == [0, 1, 2, 2, 3, 4, 5, 6, 7, 8]
    assert list(groups.values()) == sorted(groups.values()) and set(groups.values()) == set(range(9))


def test_a_light_convolution_is_cheap() -> None:
    weights = sum(p.numel() for name, p in LightConv(64).named_parameters() if "conv" in name)
    assert weights == 64 * 64 + 64 * 9  # of 64 * 64 * 9


# ------------------------------------------------------------------------------------------------ torchreid's files


def test_a_file_of_torchreid_starts_a_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = torchreid_file("osnet_ain_x0_25", tmp_path)
    start = {"MODEL.PRETRAINED": True, "MODEL.PRETRAIN_PATH": str(path)}
    with caplog.at_level(logging.INFO):
        model = CTLModel(config("osnet_ain_x0_25", **start), num_classes=5)
    weights = torchreid_weights("osnet_ain_x0_25")
    state = model.backbone.base.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in state.items())
    count = sum(not key.endswith("num_batches_tracked") for key in state)
    assert caplog.messages == [
        f"Loaded torchreid osnet_ain_x0_25 weights from {path} into MODEL.NAME osnet_ain_x0_25: {count} of {count} "
        "tensors loaded (those under state_dict.module.), left out: 2 (module.classifier.weight, "
        "module.classifier.bias), missing: none."
    ]


def test_a_file_of_torchreid_embeds_as_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = torchreid_file("osnet_x0_25", tmp_path)
    model = model_of_weights(ModelBase, path, config("osnet_x0_25"), REFUSAL, num_classes=1).eval()
    assert caplog.messages == [
        f"{path} holds torchreid osnet_x0_25 weights, not a trained CTL model: embeddings are the pooled features of "
        "the backbone, after its last layer."
    ]
    with torch.no_grad():
        found = model(IMAGES)
    np.testing.assert_allclose(found[:, ::4], RECORDED["osnet_x0_25_embedding"], rtol=2e-5, atol=1e-6)  # 1 + eps


def test_another_network_is_refused_and_named(tmp_path: Path) -> None:
    path = torchreid_file("osnet_x0_25", tmp_path)
    start = {"MODEL.PRETRAINED": True, "MODEL.PRETRAIN_PATH": str(path)}
    for name in ("osnet_x0_5", "osnet_ain_x0_25", "resnet18"):
        with pytest.raises(CheckpointError, match=rf"torchreid osnet_x0_25 weights, which MODEL.NAME {name} cannot s"):
            Baseline(config(name, **start))
    lacks = {key: value for key, value in torchreid_weights("osnet_x0_25").items() if not key.startswith("fc.")}
    torch.save(lacks, path)  # the layer after the pooling belongs to the network
    with pytest.raises(CheckpointError, match=r"missing: 6 \(fc\.0\.weight, fc\.0\.bias, fc\.1\.weight, \.\.\.\)"):
        Baseline(config("osnet_x0_25", **start))
