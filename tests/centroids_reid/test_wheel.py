"""The built package as users install it: beside their own modules, without what they did not ask for."""

import json
import sys
from email.parser import BytesParser
from textwrap import dedent

import numpy as np
import pytest
import torch

from checkpoints.plain import to_plain
from inference import Embedder
from tests.centroids_reid.conftest import pip, read_archive
from tests.docs.test_commands import BLOCKS
from tests.launch import run_command
from tests.small import small_config
from tests.support import ROOT
from train_ctl_model import CTLModel

pytestmark = pytest.mark.slow

PACKAGE, VERSION = "centroids_reid", "2.0.0"


def test_the_wheel_holds_one_package(wheel):
    files = read_archive(wheel)
    info = f"{PACKAGE}-{VERSION}.dist-info"
    assert {name.partition("/")[0] for name in files} == {PACKAGE, info}
    assert files[f"{info}/top_level.txt"].decode().split() == [PACKAGE]
    configs = {f"{PACKAGE}/configs/{path.name}" for path in ROOT.glob("configs/*.yml")}
    assert configs | {f"{PACKAGE}/py.typed", f"{PACKAGE}/train_ctl_model.py"} <= set(files)
    left_out = ("tests", "benchmarks", "examples", "in_repository", "one_package", "mutate", "demo.py")
    assert not [name for name in files if any(part in name for part in left_out)]
    metadata = BytesParser().parsebytes(files[f"{info}/METADATA"])
    asked = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    names = "einops numpy pillow pytorch-lightning torch torchvision tqdm yacs"
    assert sorted(line.partition(">")[0].partition("<")[0] for line in asked) == names.split()


def test_the_wheel_of_the_clone_is_that_of_the_source_distribution(built, wheel, tmp_path):
    clone = built.parent / "clone"
    done = run_command(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, cwd=clone)
    assert done.returncode == 0, done.stdout + done.stderr
    (other,) = tmp_path.glob("*.whl")
    assert read_archive(other) == read_archive(wheel)


def test_twine_finds_nothing_to_mend(built):
    done = run_command(sys.executable, "-m", "twine", "check", "--strict", *built.iterdir())
    assert done.returncode == 0 and done.stdout.count("PASSED") == 2, done.stdout + done.stderr


@pytest.fixture(scope="module")
def slim(install):
    """The package without any extra."""
    return install()


@pytest.fixture(scope="module")
def data(slim, tmp_path_factory):
    """The folder of a drawn market1501: 12 identities in training, 4 in test."""
    folder = tmp_path_factory.mktemp("drawn") / "data"
    size = ("--ids", 16, "--cameras", 3, "--images-per-id", 6, "--size", 32, 16)
    slim.expect("ctl-toy", folder, *size)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint that the repository wrote."""
    model = CTLModel(small_config(), num_classes=12, num_query=12)
    path = tmp_path_factory.mktemp("checkpoint") / "model.ckpt"
    torch.save({"state_dict": model.state_dict(), "hyper_parameters": to_plain(model.hparams)}, path)
    return path


def test_an_engineer_embeds_searches_and_evaluates(slim, data, checkpoint, tmp_path):
    """The embeddings are those of the repository."""
    common = ("--config_file", "256_resnet50.yml", "MODEL.PRETRAIN_PATH", checkpoint, "GPU_IDS", "[]")
    images, gallery = data / "market1501" / "bounding_box_test", tmp_path / "gallery"
    said = slim.expect("ctl-embed", *common, "DATASETS.ROOT_DIR", images, "OUTPUT_DIR", gallery)
    configs = slim.packages.resolve() / PACKAGE / "configs"
    assert said.count(f"--config_file 256_resnet50.yml: taken from {configs}, since there is no such file in ") == 1
    embeddings, paths = np.load(gallery / "embeddings.npy"), np.load(gallery / "paths.npy")
    expected = Embedder.from_checkpoint(checkpoint, device="cpu").embed(list(paths))
    np.testing.assert_allclose(embeddings, expected, rtol=1e-5, atol=1e-6)

    found = tmp_path / "found"
    search = ("--gallery_data", gallery, "--topk", 3, "--html", "DATASETS.ROOT_DIR", images, "OUTPUT_DIR", found)
    slim.expect("ctl-search", *search, *common)
    assert (found / "results.npy").is_file() and (found / "results.html").is_file()

    for subset in ("query", "gallery"):
        of_set = ("--split", subset, "DATASETS.ROOT_DIR", data, "DATASETS.NAMES", "market1501")
        slim.expect("ctl-embed", *common, *of_set, "OUTPUT_DIR", tmp_path / subset)
    sides = ("--query", tmp_path / "query", "--gallery", tmp_path / "gallery")
    assert "mAP" in slim.expect("ctl-evaluate", *sides, "--output", tmp_path / "metrics")
    metrics = json.loads((tmp_path / "metrics" / "metrics.json").read_text())
    assert metrics["versions"]["centroids-reid"] == VERSION and "ctl-evaluate --query" in metrics["command"]


def test_a_program_imports_names_of_the_package(slim, checkpoint):
    code = """
        import sys, time
        start = time.perf_counter()
        import centroids_reid
        print(time.perf_counter() - start)
        def packages():
            files = [str(getattr(module, "__file__", "")) for module in list(sys.modules.values())]
            return {file.partition("site-packages/")[2].partition("/")[0] for file in files} - {""}
        assert packages() == {"centroids_reid"}, packages()
        import torch
        of_torch = packages()
        from centroids_reid import CentroidTripletLoss
        assert packages() - of_torch == {"einops"}, packages() - of_torch
        from centroids_reid import CTLModel, Embedder, cfg, evaluate_embeddings
        assert CTLModel.__module__ == "centroids_reid.train_ctl_model"
        assert Embedder.__module__ == "centroids_reid.inference.embedding.embedder"
        from centroids_reid.config import cfg as same
        assert cfg is same
        embedder = Embedder(CTLModel.load_from_checkpoint(sys.argv[1]), "cpu")
        assert embedder.dimension == 512
        of_repository = [n for n, m in sys.modules.items() if str(getattr(m, "__file__", "")).startswith(sys.argv[2])]
        assert not of_repository, of_repository
    """
    seconds = float(slim.expect("python", "-c", dedent(code), checkpoint, f"{ROOT}/"))
    assert seconds < 0.1


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        ("ctl-train --config_file toy_resnet18_cpu.yml DATASETS.ROOT_DIR {data} OUTPUT_DIR out", "train"),
        ("ctl-export {checkpoint} out.onnx --format onnx", "export"),
        ("ctl-search --gallery_data {gallery} --index faiss:hnsw MODEL.PRETRAIN_PATH {checkpoint} GPU_IDS [] "
         "DATASETS.ROOT_DIR {gallery}", "search"),
        ("ctl-split images.parquet --by csv --out data.csv", "parquet"),
        ("ctl-embed MODEL.PRETRAIN_PATH weights.safetensors GPU_IDS [] DATASETS.ROOT_DIR {data}", "safetensors"),
    ],
)  # fmt: skip
def test_what_is_missing_is_named_with_its_extra(slim, data, checkpoint, gallery, tmp_path, command, extra):
    (tmp_path / "images.parquet").write_bytes(b"PAR1")
    (tmp_path / "weights.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    words = command.format(data=data, checkpoint=checkpoint, gallery=gallery).split()
    said = slim.expect(*words, status=2, cwd=tmp_path)
    assert said.splitlines()[-1].startswith("error: ")
    assert said.endswith(f"pip install 'centroids-reid[{extra}]'\n"), said


@pytest.fixture(scope="module")
def gallery(slim, data, checkpoint, tmp_path_factory):
    """The folder of a gallery of the drawn test images."""
    folder = tmp_path_factory.mktemp("gallery") / "gallery"
    images = data / "market1501" / "bounding_box_test"
    slim.expect(
        *("ctl-embed", "MODEL.PRETRAIN_PATH", checkpoint, "GPU_IDS", "[]"),
        *("DATASETS.ROOT_DIR", images, "OUTPUT_DIR", folder),
    )
    return folder


def test_a_researcher_trains_resumes_and_exports(install, tmp_path):
    """What the page on installation says; one epoch more, in two processes; and what the repository reads of it."""
    full = install("train", "export")
    (block,) = [block for block in BLOCKS["docs/INSTALL.md"] if "ctl-train" in block.text and block.language == "sh"]
    full.paste(block.text, cwd=tmp_path)
    assert (tmp_path / "logs" / "gallery" / "embeddings.npy").is_file() and (tmp_path / "mlflow.db").is_file()

    more = ("SOLVER.MAX_EPOCHS", 7, "MODEL.PRETRAIN_PATH", "auto", "LOGGING.MLFLOW", False)
    two = ("GPU_IDS", "[0,1]", "SOLVER.DIST_BACKEND", "ddp_cpu", "SOLVER.IMS_PER_BATCH", 4)
    common = ("--config_file", "toy_resnet18_cpu.yml", "DATASETS.ROOT_DIR", "data/toy", "OUTPUT_DIR", "logs/toy")
    said = full.expect("ctl-train", *common, *more, *two, cwd=tmp_path)
    assert said.count("--config_file toy_resnet18_cpu.yml: taken from ") == 1 and "MEMBER: 2/2" in said
    newest = tmp_path / "logs" / "toy" / "train_ctl_model" / "version_0" / "auto_checkpoints" / "epoch=6.ckpt"
    model = CTLModel.load_from_checkpoint(newest)
    assert model.hparams.SOLVER.MAX_EPOCHS == 7
    full.expect("ctl-export", newest, "model.onnx", "--format", "onnx", cwd=tmp_path)


def test_uninstalling_leaves_nothing(slim):
    before = {path.name for path in slim.packages.iterdir()}
    commands = {path.name for path in (slim.folder / "bin").glob("ctl-*")}
    names = ("train", "train-base", "embed", "search", "evaluate", "export", "validate", "split", "toy")
    assert commands == {f"ctl-{name}" for name in names}
    pip(slim, "uninstall", "--yes", "centroids-reid")
    gone = before - {path.name for path in slim.packages.iterdir()}
    assert gone == {PACKAGE, f"{PACKAGE}-{VERSION}.dist-info"}
    assert not list((slim.folder / "bin").glob("ctl-*"))
