"""The built package as users install it: beside their own modules, without what they did not ask for."""

import json
import sys
from email.parser import BytesParser
from textwrap import dedent

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement

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
    others = ("py.typed", "train_ctl_model.py", "evaluation/pages.js")
    assert configs.union(f"{PACKAGE}/{name}" for name in others) <= set(files)
    left_out = ("tests", "benchmarks", "examples", "in_repository", "one_package", "mutate", "demo.py")
    assert not [name for name in files if any(part in name for part in left_out)]
    metadata = BytesParser().parsebytes(files[f"{info}/METADATA"])
    asked = map(Requirement, metadata.get_all("Requires-Dist"))
    names = "einops numpy pillow pytorch-lightning torch torchvision tqdm yacs"
    assert sorted(requirement.name for requirement in asked if not requirement.marker) == names.split()


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
    common = ("MODEL.PRETRAIN_PATH", checkpoint, "GPU_IDS", "[]")
    query, gallery = tmp_path / "query", tmp_path / "gallery"
    for folder in (query, gallery):
        of_set = ("--split", folder.name, "DATASETS.ROOT_DIR", data, "DATASETS.NAMES", "market1501")
        slim.expect("ctl-embed", *common, *of_set, "OUTPUT_DIR", folder)
    expected = Embedder.from_checkpoint(checkpoint, device="cpu").embed(list(np.load(gallery / "paths.npy")))
    np.testing.assert_allclose(np.load(gallery / "embeddings.npy"), expected, rtol=1e-5, atol=1e-6)

    found, images = tmp_path / "found", data / "market1501" / "query"
    search = ("--gallery_data", gallery, "--topk", 3, "--html", "DATASETS.ROOT_DIR", images, "OUTPUT_DIR", found)
    said = slim.expect("ctl-search", "--config_file", "toy_resnet18_cpu.yml", *search, *common)
    configs = slim.packages.resolve() / PACKAGE / "configs"
    assert said.count(f"--config_file toy_resnet18_cpu.yml: taken from {configs}, since there is no such file in ") == 1
    assert (found / "results.npy").is_file() and (found / "results.html").is_file()

    assert "mAP" in slim.expect("ctl-evaluate", "--query", query, "--gallery", gallery, "--output", tmp_path / "out")
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["versions"]["centroids-reid"] == VERSION and "ctl-evaluate --query" in metrics["command"]


def test_a_program_imports_names_of_the_package(slim, checkpoint):
    code = """
        import sys, time
        start = time.process_time()
        import centroids_reid
        print(time.process_time() - start)
        def packages():
            files = [str(getattr(module, "__file__", "")) for module in list(sys.modules.values())]
            return {file.partition("site-packages/")[2].partition("/")[0] for file in files} - {""}
        assert packages() == {"centroids_reid"}, packages()
        assert centroids_reid.__version__ == "2.0.0"
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


def test_what_a_file_of_the_users_imports_by_the_names_of_a_clone_is_told(slim, tmp_path):
    (tmp_path / "mine.py").write_text("from checkpoints.nothing import x")
    (slim.folder / "crowd" / "checkpoints.py").rename(tmp_path / "aside.py")
    try:
        said = slim.expect(
            "ctl-validate", "DATASETS.NAMES", "mine:Shop", "DATASETS.ROOT_DIR", tmp_path, status=2, cwd=tmp_path
        )
    finally:
        (tmp_path / "aside.py").rename(slim.folder / "crowd" / "checkpoints.py")
    assert "It imports checkpoints, which is centroids_reid.checkpoints in the installed package." in said


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        ("ctl-train --config_file toy_resnet18_cpu.yml DATASETS.ROOT_DIR {data} OUTPUT_DIR out", "train"),
        ("ctl-export {checkpoint} out.onnx --format onnx", "export"),
        pytest.param("ctl-split images.parquet --by csv --out data.csv", "parquet", marks=pytest.mark.by_hand),
        pytest.param(
            "ctl-embed MODEL.PRETRAIN_PATH w.safetensors GPU_IDS [] DATASETS.ROOT_DIR {images}",
            "safetensors", marks=pytest.mark.by_hand,
        ),
        pytest.param(
            "ctl-search --gallery_data gallery --index faiss:hnsw MODEL.PRETRAIN_PATH {checkpoint} GPU_IDS [] "
            "DATASETS.ROOT_DIR {images}",
            "search", marks=pytest.mark.by_hand,
        ),
    ],
)  # fmt: skip
def test_what_is_missing_is_named_with_its_extra(slim, data, checkpoint, tmp_path, command, extra):
    images = data / "market1501" / "query"
    if extra == "search":
        model = ("MODEL.PRETRAIN_PATH", checkpoint, "GPU_IDS", "[]")
        slim.expect("ctl-embed", *model, "DATASETS.ROOT_DIR", images, "OUTPUT_DIR", tmp_path / "gallery")
    (tmp_path / "images.parquet").write_bytes(b"PAR1")
    (tmp_path / "w.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    words = command.format(data=data, checkpoint=checkpoint, images=images).split()
    said = slim.expect(*words, status=2, cwd=tmp_path)
    assert said.splitlines()[-1].startswith("error: ")
    assert said.endswith(f"pip install 'centroids-reid[{extra}]'\n"), said


@pytest.mark.by_hand
def test_a_researcher_trains_resumes_and_exports(install, tmp_path):
    """What the page on installation says, made small; one epoch more, in two processes; what the repository reads."""
    full = install("train", "export")
    (block,) = [block for block in BLOCKS["docs/INSTALL.md"] if "ctl-toy" in block.text and block.language == "sh"]
    small = ["INPUT.SIZE_TRAIN", "[32,16]", "INPUT.SIZE_TEST", "[32,16]", "DATALOADER.NUM_WORKERS", "0"]
    (before, after) = block.text.split("SOLVER.MAX_EPOCHS 3")
    full.paste(" ".join((before, "SOLVER.MAX_EPOCHS 3", *small, after)), cwd=tmp_path)
    assert (tmp_path / "logs" / "gallery" / "embeddings.npy").is_file() and (tmp_path / "mlflow.db").is_file()

    common = (
        "--config_file",
        "toy_resnet18_cpu.yml",
        "DATASETS.ROOT_DIR",
        "data/toy",
        "OUTPUT_DIR",
        "logs/toy",
        *small,
    )
    more = (
        "SOLVER.MAX_EPOCHS",
        4,
        "MODEL.RESUME_TRAINING",
        True,
        "MODEL.PRETRAIN_PATH",
        "auto",
        "LOGGING.MLFLOW",
        False,
    )
    two = ("GPU_IDS", "[0,1]", "SOLVER.DIST_BACKEND", "ddp_cpu", "SOLVER.IMS_PER_BATCH", 4)
    said = full.expect("ctl-train", *common, *more, *two, cwd=tmp_path)
    assert said.count("--config_file toy_resnet18_cpu.yml: taken from ") == 1 and "MEMBER: 2/2" in said
    assert "epoch 4/4: " in said and "epoch 3/4: " not in said
    newest = tmp_path / "logs" / "toy" / "train_ctl_model" / "version_0" / "auto_checkpoints" / "checkpoint_3.pth"
    assert CTLModel.load_from_checkpoint(newest).hparams.SOLVER.MAX_EPOCHS == 4
    full.expect("ctl-export", newest, "model.onnx", "--format", "onnx", cwd=tmp_path)
    assert (tmp_path / "model.onnx").is_file()


def test_uninstalling_leaves_nothing(slim):
    before = {path.name for path in slim.packages.iterdir()}
    commands = {path.name for path in (slim.folder / "bin").glob("ctl-*")}
    names = ("train", "train-base", "embed", "edit-gallery", "search", "evaluate", "export", "validate", "split", "toy")
    assert commands == {f"ctl-{name}" for name in names}
    pip(slim, "uninstall", "--yes", "centroids-reid")
    gone = before - {path.name for path in slim.packages.iterdir()}
    assert gone == {PACKAGE, f"{PACKAGE}-{VERSION}.dist-info"}
    assert not list((slim.folder / "bin").glob("ctl-*"))
