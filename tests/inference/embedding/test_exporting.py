"""Exported networks, run by a program without this code; exports that fail leave no file."""

import errno
import json
import lzma
import os
import re
import sys
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from checkpoints.plain import to_plain
from evaluation.calibration import Calibration, write_calibration
from inference import Embedder, export
from inference.embedding import exporting
from inference.embedding.exporting import METADATA, WRITERS, export_checkpoint
from modelling.backbones import BACKBONES
from modelling.bases import ModelBase
from tests.launch import forbid_modules, run_code, run_module
from tests.small import small_config
from tests.support import GOLDEN, ROOT, fill_by_recipe
from utils import compat
from utils.distances import normalize
from utils.errors import UserError

NETWORKS = {"resnet18": 512}
ENDINGS = {"onnx": ".onnx", "torchscript": ".pt", "torch_export": ".pt2"}

# What a user writes who has the file and none of our code. The folder is empty and the checkout is not on the path.
READERS = {
    "onnx": """
import onnxruntime
session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
facts = json.loads(session.get_modelmeta().custom_metadata_map["preprocessing"])
run = lambda images: session.run([facts["output"]], {facts["input"]: images})[0]
""",
    "torchscript": """
import torch
files = {"preprocessing.json": ""}
network = torch.jit.load(path, _extra_files=files)
facts = json.loads(files["preprocessing.json"])
run = lambda images: network(torch.from_numpy(images)).numpy()
""",
    "torch_export": """
import torch
files = {"preprocessing.json": ""}
network = torch.export.load(path, extra_files=files).module()
facts = json.loads(files["preprocessing.json"])
run = lambda images: network(torch.from_numpy(images)).numpy()
""",
}
PROGRAM = """
import json, sys
import numpy as np
for path in sys.argv[2:]:
    kind = {"onnx": "onnx", "pt": "torchscript", "pt2": "torch_export"}[path.rsplit(".", 1)[1]]
    exec(json.loads(sys.argv[1])[kind])
    images = np.load(path + ".in.npy")
    if facts["batch"] == 1:
        found = np.concatenate([run(image[None]) for image in images])
    else:
        found = run(images)
    np.savez(path + ".out.npz", found=found, facts=json.dumps(facts))
assert not {"inference", "modelling", "utils", "config"} & set(sys.modules)
"""


def run_alone(paths, folder):
    """Run exported files on their images in a program without this code; the embeddings and metadata of each."""
    for path in paths:
        np.save(f"{path}.in.npy", images())
    folder.mkdir()
    done = run_code(PROGRAM, json.dumps(READERS), *paths, cwd=folder, timeout=550)
    assert done.returncode == 0, done.stderr
    for path in paths:
        with np.load(f"{path}.out.npz") as archive:
            yield archive["found"], json.loads(str(archive["facts"]))


def images():
    return np.random.default_rng(0).standard_normal((3, 3, 64, 32)).astype(np.float32)


def write_checkpoint(path, name):
    network = {"MODEL.NAME": name, "MODEL.BACKBONE_EMB_SIZE": NETWORKS[name]}
    cfg = small_config(**network, **{"INPUT.SIZE_TEST": [64, 32], "INPUT.PIXEL_MEAN": [0.5, 0.4, 0.3]})
    model = ModelBase(cfg, num_classes=4, load_imagenet=False)
    model.load_state_dict(fill_by_recipe(model.state_dict()))
    torch.save({"state_dict": model.state_dict(), "hyper_parameters": to_plain(model.hparams)}, path)
    with torch.no_grad():
        return model.eval()(torch.from_numpy(images()))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Network -> (checkpoint, the embeddings of images())."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return {name: (folder / f"{name}.ckpt", write_checkpoint(folder / f"{name}.ckpt", name)) for name in NETWORKS}


# Each option on and off in each format. test_every_network_is_exported_and_compared has the other networks.
CASES = [
    ("resnet18", "onnx", False, True),
    ("resnet18", "onnx", True, False),
    ("resnet18", "torchscript", True, False),
    ("resnet18", "torchscript", False, True),
    ("resnet18", "torch_export", True, compat.PROGRAMS_TAKE_ANY_BATCH),
    ("resnet18", "torch_export", False, False),
]


@pytest.fixture(scope="module")
def exported(checkpoints, tmp_path_factory):
    """Every case, written and then run by one program without this code: (metadata returned, found, metadata read)."""
    folder = tmp_path_factory.mktemp("exported")
    paths, returned = [], []
    for number, (name, form, unit, dynamic) in enumerate(CASES):
        paths.append(folder / f"{number}{ENDINGS[form]}")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            returned.append(export_checkpoint(checkpoints[name][0], paths[-1], form, unit=unit, dynamic_batch=dynamic))
    assert sorted(folder.iterdir()) == sorted(paths)
    for path in paths:  # TorchScript keeps the places of its source
        assert path.suffix == ".pt" or str(ROOT).encode() not in path.read_bytes()
    alone = run_alone(paths, tmp_path_factory.mktemp("elsewhere") / "empty")
    return dict(zip(CASES, zip(returned, alone, strict=True), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_file_runs_without_this_code(case, exported, checkpoints):
    name, form, unit, dynamic = case
    returned, (found, read) = exported[case]
    expected = normalize(checkpoints[name][1]) if unit else checkpoints[name][1]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert returned["cosine"] >= 0.99999
    assert returned["relative_error"] <= 1e-4
    assert read == {key: value for key, value in returned.items() if key not in ("cosine", "relative_error")}
    assert {key: read[key] for key in read if key not in ("exporter", "source_sha256", "weights")} == {
        "input": "images", "output": "embeddings", "batch": "any" if dynamic or form == "torchscript" else 1,
        "layout": "NCHW", "channels": "RGB", "dtype": "float32", "image_size": [64, 32],
        "resize": "bilinear with antialiasing, as Pillow", "resize_mode": "stretch", "border": None, "flip": False,
        "pooling": "avg", "neck_feat": "after",
        "pixel_range": [0.0, 1.0],
        "pixel_mean": [0.5, 0.4, 0.3], "pixel_std": [0.229, 0.224, 0.225],
        "embedding_size": NETWORKS[name], "exif_orientation": True, "draft_decoding": False,
        "normalized": unit, "network": name,
        "source": f"{name}.ckpt",
    }  # fmt: skip


def test_a_calibration_is_kept_in_the_metadata(checkpoints, tmp_path):
    """A program that reads the file gets the calibration of the evaluation; one of other embeddings is refused."""
    checkpoint = checkpoints["resnet18"][0]
    network = Embedder.from_checkpoint(checkpoint, "cpu").identity
    line = Calibration("platt", {"slope": 2.0, "offset": -1.0}, "euclidean", False, 0.1, network)
    file, output = write_calibration(tmp_path, line.to_dict()), tmp_path / "a.pt"
    export.main([str(checkpoint), str(output), "--format", "torchscript", "--calibration", str(file)])
    with zipfile.ZipFile(output) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(f"/extra/{METADATA}.json"))
        facts = json.loads(archive.read(name))
    assert Calibration.from_dict(facts["calibration"]) == line
    output.unlink()

    with pytest.raises(UserError, match=r"is of embeddings as they are, but --normalize exports a network that scales"):
        export_checkpoint(checkpoint, output, "torchscript", unit=True, calibration=file)
    write_calibration(tmp_path, replace(line, normalize=True).to_dict())
    with pytest.raises(UserError, match=r"is of embeddings of unit length, which this network does not give: give --n"):
        export_checkpoint(checkpoint, output, "torchscript", calibration=file)
    for key, value in (
        ("weights", "ab"),
        ("mean", [0, 0, 0]),
        ("flip", True),
        ("neck_feat", "before"),
    ):
        write_calibration(tmp_path, replace(line, network={**network, key: value}).to_dict())
        with pytest.raises(UserError, match=f"is of embeddings with {key} "):
            export_checkpoint(checkpoint, output, "torchscript", calibration=file)
    with pytest.raises(UserError, match="is of embeddings with size"):
        write_calibration(tmp_path, line.to_dict())
        export_checkpoint(checkpoint, output, "torchscript", size=(96, 64), calibration=file)
    assert not output.exists()


@pytest.mark.by_hand
def test_files_average_with_the_mirror_image_themselves(checkpoints, tmp_path):
    content = torch.load(checkpoints["resnet18"][0], weights_only=True)
    content["hyper_parameters"]["TEST"]["FLIP"] = True
    content["hyper_parameters"]["INPUT"]["RESIZE"] = "pad"
    torch.save(content, tmp_path / "both.ckpt")
    model = ModelBase.load_from_checkpoint(tmp_path / "both.ckpt").eval()
    paths = [tmp_path / f"both{ending}" for ending in ENDINGS.values()]
    for form, path in zip(ENDINGS, paths, strict=True):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert export_checkpoint(tmp_path / "both.ckpt", path, form, unit=True)["cosine"] >= 0.99999
    with torch.no_grad():
        one, other = (model.embed(torch.from_numpy(views.copy())) for views in (images(), images()[..., ::-1]))
    for found, read in run_alone(paths, tmp_path / "empty"):
        np.testing.assert_allclose(found, normalize((one + other) / 2), rtol=1e-4, atol=1e-5)
        assert abs(found - normalize(one).numpy()).max() > 1e-3
        assert (read["flip"], read["resize_mode"], read["border"]) == (True, "pad", [128, 102, 76])


@pytest.mark.by_hand
@pytest.mark.parametrize(
    "name",
    [
        *BACKBONES,
        *(f"timm:{name}" for name in ("vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "mobilenetv3_small_050")),
        *(f"torchvision:{name}" for name in ("convnext_tiny", "mobilenet_v2")),
    ],
)
def test_every_network_is_exported_and_compared(name, tmp_path):
    cfg = small_config(
        **{"MODEL.NAME": name, "MODEL.BACKBONE_EMB_SIZE": 0, "INPUT.SIZE_TRAIN": [96, 64], "INPUT.SIZE_TEST": [96, 64]}
    )
    model = ModelBase(cfg, num_classes=4, load_imagenet=False)
    torch.save({"state_dict": model.state_dict(), "hyper_parameters": to_plain(model.hparams)}, tmp_path / "it.ckpt")
    told = export_checkpoint(tmp_path / "it.ckpt", tmp_path / "it.onnx", "onnx")
    assert (told["network"], told["embedding_size"]) == (name, model.bn.num_features)
    assert told["cosine"] >= 0.99999


def test_a_checkpoint_of_the_original(tmp_path, capsys):
    (tmp_path / "old.ckpt").write_bytes(lzma.decompress((GOLDEN / "legacy_zero.ckpt.xz").read_bytes()))
    output = tmp_path / "new folder" / "old.pt2"
    export.main([str(tmp_path / "old.ckpt"), str(output), "--format", "torch_export", "--size", "64", "32"])
    shown = capsys.readouterr()
    assert shown.err == ""
    assert "resnet18, images 64 x 32, embeddings of 512; against torch: cosine 1.0000000" in shown.out
    assert torch.export.load(output).module()(torch.ones(1, 3, 64, 32)).shape == (1, 512)


def test_the_exporter_of_older_torch(checkpoints, tmp_path, monkeypatch):
    monkeypatch.setattr(compat, "ONNX_NEEDS_ONNXSCRIPT", False)
    facts = export_checkpoint(checkpoints["resnet18"][0], tmp_path / "a.onnx", "onnx", unit=True, dynamic_batch=True)
    ((found, read),) = run_alone([tmp_path / "a.onnx"], tmp_path / "empty")
    np.testing.assert_allclose(found, normalize(checkpoints["resnet18"][1]), atol=1e-5)
    assert read["normalized"]
    assert facts["relative_error"] <= 1e-4


def test_programs_of_torch_2_1_take_one_batch_size(checkpoints, tmp_path, monkeypatch):
    monkeypatch.setattr(compat, "PROGRAMS_TAKE_ANY_BATCH", False)
    with pytest.raises(UserError, match="--dynamic-batch with torch_export needs torch 2.2"):
        export_checkpoint(checkpoints["resnet18"][0], tmp_path / "a.pt2", "torch_export", dynamic_batch=True)
    assert not (tmp_path / "a.pt2").exists()


@pytest.mark.parametrize("fault", ["direction", "size", "shape", "nan"])
def test_a_file_that_disagrees_is_not_kept(fault, checkpoints, tmp_path, monkeypatch, capsys):
    faults = {
        "direction": lambda x: x + 0.01 * np.abs(x).max(),
        "size": lambda x: x * (1 + 2e-4),  # the cosine does not see it
        "shape": lambda x: x[:, :-1],
        "nan": lambda x: x * np.nan,
    }
    write = exporting.WRITERS["torchscript"]

    def write_faulty(*args):
        run = write(*args)
        return lambda batch: faults[fault](run(batch))

    monkeypatch.setitem(exporting.WRITERS, "torchscript", write_faulty)
    with pytest.raises(SystemExit) as ended:
        export.main([str(checkpoints["resnet18"][0]), str(tmp_path / "a.pt"), "--format", "torchscript"])
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("types", [True, False])
def test_a_file_may_differ_by_what_rounding_explains(types, checkpoints, tmp_path, monkeypatch):
    """Not a network that float64 does not run: nothing tells its rounding."""
    write, embed = exporting.WRITERS["torchscript"], ModelBase.embed

    def magnify(self, images):  # what is left of a difference of close numbers
        found = embed(self, images)
        found = found + 1000 * ((found + 1e4) - 1e4 - found)
        return found if types else torch.nn.functional.linear(found, torch.eye(512))

    def write_other(*args):
        run = write(*args)
        return lambda batch: run(batch) * (1 + 3e-4)

    monkeypatch.setattr(ModelBase, "embed", magnify)
    monkeypatch.setitem(exporting.WRITERS, "torchscript", write_other)
    if types:
        told = export_checkpoint(checkpoints["resnet18"][0], tmp_path / "a.pt", "torchscript")
        assert 2e-4 < told["relative_error"] < 1e-3
    else:
        with pytest.raises(UserError, match="relative error 3.0e-04, allowed at most 1.0e-04"):
            export_checkpoint(checkpoints["resnet18"][0], tmp_path / "a.pt", "torchscript")


def test_an_exporter_that_fails_is_quoted(checkpoints, tmp_path, monkeypatch, capsys):
    def fail(*args):
        raise RuntimeError("unsupported: an operator\nmore of it")

    monkeypatch.setitem(exporting.WRITERS, "torchscript", fail)
    with pytest.raises(SystemExit) as ended:
        export.main([str(checkpoints["resnet18"][0]), str(tmp_path / "a.pt"), "--format", "torchscript"])
    assert ended.value.code == 2
    assert "as torchscript (RuntimeError: unsupported: an operator); choose another format" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["missing.ckpt", "a.onnx", "--format", "onnx"], "No such checkpoint: 'missing.ckpt'"),
        (["missing.ckpt", "a.onnx", "--format", "onnx", "--size", "8", "300"], "--size is 8 300"),
        (["missing.ckpt", "a.onnx", "--format", "tflite"], "torchscript"),
        (["missing.ckpt", "a.onnx"], "--format"),
        (["missing.ckpt", ".", "--format", "onnx"], "'.' is a folder"),
    ],
)
def test_wrong_calls_are_explained(argv, message, capsys):
    with pytest.raises(SystemExit) as ended:
        export.main(argv)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["resnet18.ckpt", "./resnet18.ckpt", "link.pt"])
def test_the_checkpoint_is_not_written_over(name, checkpoints, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    content = checkpoints["resnet18"][0].read_bytes()
    (tmp_path / "resnet18.ckpt").write_bytes(content)
    (tmp_path / "link.pt").symlink_to("resnet18.ckpt")
    with pytest.raises(SystemExit) as ended:
        export.main(["resnet18.ckpt", name, "--format", "torchscript"])
    assert ended.value.code == 2
    assert "is the checkpoint itself" in capsys.readouterr().err
    assert (tmp_path / "resnet18.ckpt").read_bytes() == content
    assert (tmp_path / "link.pt").is_symlink()


def fail_to_write(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("output", "reason"),
    [("/proc/a.pt", "No such file or directory|Permission denied"), ("full/a.pt", "No space left on device")],
)
def test_a_place_that_cannot_be_written_to_is_named(output, reason, checkpoints, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if output.startswith("full"):
        monkeypatch.setattr(Path, "write_bytes", fail_to_write)
    with pytest.raises(SystemExit):
        export.main([str(checkpoints["resnet18"][0]), output, "--format", "torchscript"])
    expected = rf"error: {output} cannot be written \(({reason})\); choose another output folder.\n"
    assert re.fullmatch(expected, capsys.readouterr().err)


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_missing_packages_are_named(package, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"needs the package {package},.*pip install 'centroids-reid\[export\]'"):
        export_checkpoint("missing.ckpt", tmp_path / "a.onnx", "onnx")


def test_an_unknown_format_is_named(tmp_path):
    with pytest.raises(UserError, match=", ".join(WRITERS)):
        export_checkpoint("missing.ckpt", tmp_path / "a.onnx", "tflite")
    assert METADATA == "preprocessing"


def test_help_needs_no_torch(tmp_path):
    environment = forbid_modules(tmp_path, "torch", "numpy", "onnx", "pytorch_lightning")
    done = run_module("inference.export", "--help", env=environment)
    assert done.returncode == 0, done.stderr
    assert "--dynamic-batch" in done.stdout
