"""int8 files: written by the real program, measured, and used like any other network."""

import json
import logging

import numpy as np
import onnx
import pytest

from inference import Embedder, create_embeddings, export
from inference.embedding import quantising
from inference.embedding.engines import ExportedModel
from inference.embedding.exporting import export_checkpoint
from inference.embedding.images import get_all_images
from inference.embedding.quantising import choose_images, cosine, quantise
from tests.inference.conftest import draw_picture
from utils.errors import CheckpointError, MissingPathError, UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibration")
    for number in range(12):
        draw_picture(folder / f"{'ab'[number % 2]}" / f"{number:02d}.png", number)
    return folder


@pytest.fixture(scope="module")
def single(legacy_checkpoint, tmp_path_factory):
    """The network in float32, and what was told of it."""
    path = tmp_path_factory.mktemp("single") / "person.onnx"
    export_checkpoint(legacy_checkpoint, path, "onnx", dynamic_batch=True)
    return path


@pytest.fixture(scope="module")
def written(single, folder, tmp_path_factory):
    """An int8 file, made by quantise()."""
    path = tmp_path_factory.mktemp("written") / "int8.onnx"
    return path, quantise(single, path, choose_images(folder))


def test_the_file_computes_in_int8_and_says_what_that_costs(written, single, embedder, folder):
    path, facts = written
    operators = [node.op_type for node in onnx.load(path).graph.node]
    assert operators.count("QuantizeLinear") > 20
    assert path.stat().st_size < single.stat().st_size / 3
    other = Embedder.from_checkpoint(path, "cpu", engine="onnxruntime")
    images = choose_images(folder)
    assert (facts["int8"]["images"], facts["int8"]["held_out"]) == (10, 2)
    expected = cosine(embedder.embed(images[2::5]), other.embed(images[2::5]))
    assert facts["int8"]["cosine_mean"] == pytest.approx(expected.mean(), abs=1e-5)
    assert facts["int8"]["cosine_least"] == pytest.approx(expected.min(), abs=1e-5)
    assert 0.97 < expected.min() < 0.99999
    read = {p.key: p.value for p in onnx.load(path).metadata_props}["preprocessing"]
    assert json.loads(read) == facts


def test_only_int8_makes_galleries_incomparable(written, single, embedder):
    """A file in float32 has the identity of its checkpoint."""
    assert Embedder.from_checkpoint(single, "cpu", engine="onnxruntime").identity == embedder.identity
    found = Embedder.from_checkpoint(written[0], "cpu", engine="onnxruntime").identity
    assert {key for key in found if found[key] != embedder.identity[key]} == {"weights", "dtype"}
    assert found["dtype"] == "int8"


def test_a_gallery_of_the_file(written, pictures, tmp_path, caplog):
    command = ["--engine", "onnxruntime", "MODEL.PRETRAIN_PATH", str(written[0]), "DATASETS.ROOT_DIR", str(pictures)]
    with caplog.at_level(logging.WARNING):
        create_embeddings.main([*command, "OUTPUT_DIR", str(tmp_path / "g"), "INPUT.SIZE_TEST", "[32, 32]"])
    found = np.load(tmp_path / "g" / "embeddings.npy")
    embedder = Embedder.from_checkpoint(written[0], "cpu", engine="onnxruntime")
    np.testing.assert_allclose(found, embedder.embed(get_all_images(pictures)), rtol=1e-5, atol=1e-5)
    told = [record.getMessage() for record in caplog.records]
    assert "INPUT.SIZE_TEST: [64, 32] in the checkpoint, which is used, [32, 32] here." in told


def test_the_program(legacy_checkpoint, single, folder, tmp_path, monkeypatch, capsys):
    """It takes an export from elsewhere in this test, which saves the time of another."""

    def exported(checkpoint, output, format, **options):
        assert options.pop("dynamic_batch") and not any(options.values())
        output.write_bytes(single.read_bytes())
        return {**ExportedModel(single).facts, "cosine": 1.0, "relative_error": 0.0}

    monkeypatch.setattr("inference.embedding.exporting.export_checkpoint", exported)
    monkeypatch.setattr(quantising, "WARN_BELOW", 1.0)
    command = [str(legacy_checkpoint), str(tmp_path / "a.onnx"), "--format", "onnx", "--int8", str(folder)]
    export.main([*command, "--int8-images", "4"])
    shown = capsys.readouterr()
    assert "int8, calibrated on 4 images: cosine to float32 on 1 others, mean 0." in shown.out
    assert shown.err.startswith("warning: a cosine below 1.0 costs accuracy; evaluate with this file")
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]


@pytest.mark.parametrize("fault", ["breaks", "few", "unreadable"])
def test_what_cannot_be_quantised_leaves_no_file(fault, single, folder, tmp_path, monkeypatch):
    paths = choose_images(folder)[:5]
    if fault == "breaks":
        monkeypatch.setattr(quantising, "REFUSE_BELOW", 1.1)
        message = r"was not written: int8 does not suit resnet18, .* \(mean of 1 held-out images\); needed 1.1"
    elif fault == "few":
        paths, message = paths[:4], "--int8 names 4 images; expected five or more"
    else:
        (tmp_path / "broken.jpg").write_bytes(b"no image")
        paths, message = [*paths[:4], str(tmp_path / "broken.jpg")], "broken.jpg"
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=message):
        quantise(single, tmp_path / "out" / "a.onnx", paths)
    assert not list((tmp_path / "out").iterdir())


def test_images_are_taken_evenly_from_a_folder_or_a_list(folder, tmp_path):
    everything = sorted(str(path) for path in folder.rglob("*.png"))
    assert choose_images(folder) == everything
    assert choose_images(folder, 4) == [everything[row] for row in (0, 3, 6, 8, 11)]
    listed = folder / "list.txt"
    listed.write_text("b/01.png\n\na/00.png\n", encoding="utf-8")
    assert choose_images(listed) == [str(folder / "b/01.png"), str(folder / "a/00.png")]
    listed.unlink()
    with pytest.raises(MissingPathError, match="which does not exist; expected a folder or a list"):
        choose_images(tmp_path / "nowhere")
    with pytest.raises(UserError, match="which holds no images"):
        choose_images(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "torchscript"], "--int8 does not go with --format torchscript"),
        (["--format", "onnx", "--calibration", "c.json"], "--int8 does not go with --calibration, which is of float32"),
        (["--format", "onnx", "--int8-images", "3"], "expected a whole number, 4 or more"),
    ],
)
def test_wrong_calls_are_explained(options, message, folder, capsys):
    with pytest.raises(SystemExit) as ended:
        export.main(["a.ckpt", "a.onnx", "--int8", str(folder), *options])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_what_a_file_cannot_do_is_refused(written, single, tmp_path):
    with pytest.raises(UserError, match="torch does not run .*; choose the engine auto, onnxruntime or openvino"):
        Embedder.from_checkpoint(single, "cpu")
    with pytest.raises(UserError, match=r"takes images of \[64, 32\]"):
        Embedder.from_checkpoint(single, "cpu", engine="onnxruntime", size=(32, 32))
    with pytest.raises(UserError, match="is int8; the precision bfloat16 does not go with it"):
        Embedder.from_checkpoint(written[0], "cpu", "bf16-true", engine="onnxruntime")
    (tmp_path / "other.onnx").write_bytes(b"no network")
    with pytest.raises(CheckpointError, match=r"other.onnx cannot be read .* expected a file of this version"):
        Embedder.from_checkpoint(tmp_path / "other.onnx", "cpu", engine="onnxruntime")
    with pytest.raises(MissingPathError, match="No such file"):
        Embedder.from_checkpoint(tmp_path / "missing.onnx", "cpu", engine="onnxruntime")
    model = onnx.load(single)
    facts = ExportedModel(single).facts | {"batch": 1}
    onnx.helper.set_model_props(model, {"preprocessing": json.dumps(facts)})
    onnx.save(model, tmp_path / "one.onnx")
    with pytest.raises(UserError, match="takes one image at a time; export it with --dynamic-batch"):
        Embedder.from_checkpoint(tmp_path / "one.onnx", "cpu", engine="onnxruntime")
