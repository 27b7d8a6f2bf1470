"""Engines other than torch: the same numbers, the rule of "auto", and what they refuse."""

import copy
import logging
import pickle
import sys

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from inference import Embedder
from inference.embedding import engines
from inference.embedding.engines import Computation, network_of
from inference.embedding.images import get_all_images
from inference.embedding.runtimes import OnnxRuntime
from tests.inference.embedding.test_pickling import Embedded
from tests.launch import run_code
from utils.errors import UnknownNameError, UserError

# OpenVINO's threads would be lost in processes that later tests fork from this one, so it works in one of its own.
CHILD = """
import functools, pickle, sys
import numpy as np, torch
from inference import Embedder
from inference.embedding import engines
from inference.embedding.runtimes import OpenVino, computes_bfloat16
from modelling.bases import ModelBase
from tests.inference.embedding.test_engines import tell_error
from torch.utils.data import DataLoader
from tests.inference.embedding.test_pickling import Embedded

torch.set_num_threads(1)
export = engines.onnx_content
images = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), np.uint8)

def largest_error(found, expected):
    return (abs(found - expected).max(1) / abs(expected).max(1)).max()

for name in sys.argv[1:]:
    size = [224, 224] if name.startswith("timm:") else [64, 32]
    cfg = {"MODEL": {"NAME": name, "PRETRAINED": False, "BACKBONE_EMB_SIZE": 0}, "INPUT": {"SIZE_TEST": size}}
    torch.manual_seed(0)
    model = ModelBase(cfg, num_classes=2).train()
    with torch.no_grad():  # batch norms see some images, without which the signal grows from block to block
        model(torch.randn(8, 3, *size))
    model.eval()
    content = []  # one export for both
    engines.onnx_content = lambda *given: content[0] if content else content.append(export(*given)) or content[0]
    plain = Embedder(model, "cpu")
    expected = plain.embed(images)
    for engine in ("onnxruntime", "openvino"):
        embedder = Embedder(model, "cpu", engine=engine, batch_size=4)
        assert embedder.engine == engine and embedder.identity == plain.identity
        found = embedder.embed(images)
        print(f"{name} {engine} {largest_error(found, expected):.1e}", flush=True)
        assert largest_error(found, expected) <= 1e-4
        if name != sys.argv[1]:
            continue
        for count in (1, 2, 5):  # with programs of their own, or without
            assert largest_error(embedder.embed(images[:count], 5), expected[:count]) <= 1e-4
        plain.flip = embedder.flip = True
        assert largest_error(embedder.embed(images), plain.embed(images)) <= 1e-4
        plain.flip = embedder.flip = False
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(embedder)).embed(images), found)
        loader = DataLoader(Embedded(embedder, list(images[:2])), batch_size=None, num_workers=1)
        assert largest_error(np.stack([np.asarray(row) for row in loader]), expected[:2]) <= 1e-4
        np.testing.assert_array_equal(embedder.embed(images), found)

model.hparams.MODEL.NECK_FEAT = "before"
content.clear()
before = Embedder(model, "cpu").embed(images)
assert largest_error(Embedder(model, "cpu", engine="openvino").embed(images), before) <= 1e-4
if computes_bfloat16("openvino"):
    other = Embedder(model, "cpu", "bf16-true", engine="openvino")
    assert 1e-5 < largest_error(other.embed(images), before) < 0.1 and other.identity["dtype"] == "bfloat16"
else:
    assert "openvino does not compute in bfloat16" in tell_error(Embedder, model, "cpu", "bf16-true", engine="openvino")
print("all well")
"""


def tell_error(call, *given, **named):
    with pytest.raises(UserError) as told:
        call(*given, **named)
    assert "\n" not in str(told.value)
    return str(told.value)


def run_child(*networks):
    done = run_code(CHILD, *networks, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("all well\n")


@pytest.mark.slow
def test_both_engines_give_the_numbers_of_torch():
    run_child("resnet18")


@pytest.mark.by_hand
def test_so_do_other_networks():
    run_child("resnet50_ibn_a", "osnet_x0_25", "timm:mobilenetv3_small_050")


@pytest.fixture(scope="module")
def other(model):
    """The embedder of the fixture ``embedder``, computed by ONNX Runtime."""
    return Embedder(model, "cpu", engine="onnxruntime", num_workers=1)


def test_every_way_goes_through_the_engine(embedder, other, pictures, monkeypatch):
    expected, paths = embedder.embed_folder(pictures)
    found, _ = other.embed_folder(pictures)
    scale = abs(expected).max()
    assert abs(found - expected).max() <= 1e-4 * scale
    assert abs(found - expected).max() > 0, "computed by torch"
    assert other.identity == embedder.identity
    pixels = torch.randint(0, 256, (3, 3, 64, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert abs(other.embed_pixels(pixels) - embedder.embed_pixels(pixels)).max() <= 1e-4 * scale
    tensor = torch.randn(2, 3, 64, 32, generator=torch.Generator().manual_seed(0))
    for images in (tensor, tensor.to(memory_format=torch.channels_last)):
        assert abs(other.embed(images) - embedder.embed(images)).max() <= 1e-4 * scale
    monkeypatch.setattr(other, "flip", True)
    mirrored = embedder.embed(tensor.flip(-1))
    assert abs(2 * other.embed(tensor) - embedder.embed(tensor) - mirrored).max() <= 2e-4 * scale
    message = tell_error(other.embed, torch.zeros(1, 3, 32, 32))
    assert "[3, 32, 32], but the engine onnxruntime was prepared for [3, 64, 32]" in message
    assert paths


def test_copies_pickles_and_forked_workers(other, pictures):
    paths = get_all_images(pictures)
    expected = other.embed(paths)
    for copied in (pickle.loads(pickle.dumps(other)), copy.deepcopy(other)):
        assert (copied.engine, copied.identity) == ("onnxruntime", other.identity)
        np.testing.assert_array_equal(copied.embed(paths), expected)
    one_by_one = np.stack([other.embed(path)[0] for path in paths])
    loader = DataLoader(Embedded(other, paths), batch_size=None, num_workers=1)
    np.testing.assert_allclose(np.stack([np.asarray(row) for row in loader]), one_by_one, rtol=1e-4, atol=1e-5)


def test_it_takes_as_many_threads_as_torch(other, monkeypatch):
    import onnxruntime

    seen = []
    original = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda c, o, **k: seen.append(o.intra_op_num_threads) or original(c, o, **k)
    )
    copy.deepcopy(other).embed(torch.zeros(1, 3, 64, 32))
    assert seen == [torch.get_num_threads()]


def how(engine, dtype=torch.float32, device="cpu"):
    return Computation(engine, torch.device(device), dtype, (64, 32), (0.5,) * 3, (0.2,) * 3, 4)


@pytest.mark.parametrize(
    ("installed", "bfloat16", "folded", "dtype", "device", "chosen"),
    [
        ("onnxruntime openvino", False, True, "float32", "cpu", "openvino"),
        ("onnxruntime openvino", False, False, "float32", "cpu", "openvino"),
        ("onnxruntime", False, False, "float32", "cpu", "onnxruntime"),
        ("onnxruntime", False, True, "float32", "cpu", "torch"),
        ("openvino", False, False, "float32", "cpu", "openvino"),
        ("", False, False, "float32", "cpu", "torch"),
        ("onnxruntime openvino", True, False, "bfloat16", "cpu", "openvino"),
        ("onnxruntime openvino", False, False, "bfloat16", "cpu", "torch"),
        ("onnxruntime openvino", True, False, "float64", "cpu", "torch"),
        ("onnxruntime openvino", True, True, "float32", "meta", "torch"),
    ],
)
def test_auto_follows_its_rule(installed, bfloat16, folded, dtype, device, chosen, model, monkeypatch, caplog):
    network = torch.nn.Identity() if not folded else engines.FoldedNetwork.__new__(engines.FoldedNetwork)
    monkeypatch.setattr(engines, "inference_network", lambda *_: network)
    monkeypatch.setattr(engines, "is_installed", lambda name: name in [*installed.split(), "onnxscript"])
    monkeypatch.setattr(engines, "computes_bfloat16", lambda name: bfloat16 and name == "openvino")
    monkeypatch.setattr(engines, "_export", lambda model, engine, how: f"exported for {engine}")
    with caplog.at_level(logging.INFO):
        found, engine = network_of(model, how("auto", getattr(torch, dtype), device))
    assert engine == chosen
    assert found == (network if chosen == "torch" else f"exported for {chosen}")
    assert [record.getMessage().startswith(f"Engine: {chosen}, ") for record in caplog.records] == [True]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (how("onnxruntime", device="meta"), "computes on the CPU, but the device is meta: choose the device cpu"),
        (how("openvino", torch.float64), "openvino does not compute in float64 on this CPU: choose the precision 32-t"),
        (how("onnxruntime", torch.bfloat16), "onnxruntime does not compute in bfloat16 on this CPU"),
    ],
)
def test_what_an_engine_cannot_do_is_refused(wanted, message, model):
    told = tell_error(network_of, model, wanted)
    assert message in told
    assert told.endswith("or choose the engine torch.")


def test_unknown_engines_and_arguments(model):
    with pytest.raises(UnknownNameError, match="the engine is 'tensorrt'; valid names: torch, onnxruntime, op"):
        Embedder(model, "cpu", engine="tensorrt")
    with pytest.raises(UserError, match="16-true does not work on the device cpu"):
        Embedder(model, "cpu", "16-true", engine="onnxruntime")
    with pytest.raises(TypeError, match="unexpected keyword argument 'sizes'"):
        Embedder(model, "cpu", sizes=(64, 32))


@pytest.mark.parametrize(("engine", "extra"), [("onnxruntime", "export"), ("openvino", "openvino")])
def test_a_missing_package_is_named(engine, extra, model, monkeypatch):
    monkeypatch.setitem(sys.modules, engine, None)
    message = tell_error(Embedder, model, "cpu", engine=engine)
    assert f"the engine {engine} needs the package {engine}" in message
    assert f"'centroids-reid[{extra}]'" in message


def fail_to_export(network, size):
    raise RuntimeError("unsupported: an operator\nmore of it")


@pytest.mark.parametrize("fault", ["export", "numbers"])
def test_a_network_that_an_engine_cannot_compute(fault, model, other, embedder, pictures, monkeypatch, caplog):
    if fault == "export":
        monkeypatch.setattr(engines, "onnx_content", fail_to_export)
        message = "resnet18 cannot be exported for the engine onnxruntime (RuntimeError: unsupported: an operator)"
    else:
        run = OnnxRuntime.run
        monkeypatch.setattr(engines, "onnx_content", lambda *_: other.network.content)
        monkeypatch.setattr(OnnxRuntime, "run", lambda self, images: run(self, images) * (1 + 3e-4))
        message = "resnet18 in the engine onnxruntime disagrees with torch (cosine 1.0000000, needed at least 0.99999"
    told = tell_error(Embedder, model, "cpu", engine="onnxruntime")
    assert told.startswith(("the network " if fault == "export" else "") + message)
    assert told.endswith("; choose the engine torch.")
    monkeypatch.setattr(engines, "_is_ready", lambda name, how: True)
    monkeypatch.setitem(engines.RUNTIMES, "openvino", OnnxRuntime)
    with caplog.at_level(logging.INFO):
        fallen_back = Embedder(model, "cpu", engine="auto")
    assert fallen_back.engine == "torch"
    assert any(record.getMessage().startswith("Engine: torch, since ") for record in caplog.records)
    paths = get_all_images(pictures)
    np.testing.assert_array_equal(fallen_back.embed(paths), embedder.embed(paths))
