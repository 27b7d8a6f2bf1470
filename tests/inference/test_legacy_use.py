"""Programs written against the original run unchanged, as processes of their own."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from inference.embedding.embedder import Embedder
from modelling.bases import ModelBase
from tests.launch import run_python
from tests.support import ROOT, fill_by_recipe
from utils.distances import get_cosine


@pytest.fixture(scope="module")
def resnet50_checkpoint(legacy_checkpoint, tmp_path_factory):
    """The original's checkpoint turned into one of resnet50: its yacs nodes and callback class are still pickled."""
    path = tmp_path_factory.mktemp("legacy50") / "epoch=119.ckpt"
    content = torch.load(legacy_checkpoint, weights_only=False)  # the file is ours
    hparams = content["hyper_parameters"]
    for key, value in {"NAME": "resnet50", "BACKBONE_EMB_SIZE": 2048}.items():
        hparams["MODEL"][key] = value
    hparams["INPUT"]["SIZE_TEST"] = [256, 128]
    model = ModelBase(**hparams, load_imagenet=False)
    content["state_dict"] = fill_by_recipe(model.state_dict())
    torch.save(content, path)
    assert b"yacs.config" in path.read_bytes()[: 1 << 20]
    return path


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The program outside the repository, where nothing of it can be found by chance."""
    return shutil.copy(Path(__file__).parent / "legacy_program.py", tmp_path_factory.mktemp("elsewhere") / "extract.py")


@pytest.mark.parametrize(
    ("flags", "folder"),
    [(["--patch-load", "--patch-hparams", "--no-cfg"], None), (["--utils", "--patch-load"], ROOT / "inference")],
    ids=["another folder, everything patched", "inference, configured"],
)
def test_program_from_the_wild(program, resnet50_checkpoint, recorded_images, tmp_path, flags, folder):
    images = [str(path) for path in sorted((recorded_images / "query").iterdir())[:2]]
    output = tmp_path / "features.npy"
    # The weights file that the configuration file names, ./models/..., is in neither of the folders.
    command = (program, ROOT, resnet50_checkpoint, output, *images, *flags)
    done = run_python(*command, cwd=folder or tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    found = np.load(output)
    expected = Embedder.from_checkpoint(resnet50_checkpoint, device="cpu", num_workers=0).embed(images)
    assert found.dtype == np.float32
    # OpenCV decodes JPEG by another library than Pillow: a grey level here and there.
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-3 * np.abs(expected).max())
    cosine = get_cosine(torch.from_numpy(found), torch.from_numpy(found)).numpy()
    np.testing.assert_allclose(np.load(tmp_path / "features_distances.npy"), cosine, atol=1e-5)


@pytest.fixture(scope="module")
def fork(tmp_path_factory):
    """A copy of the code with two scripts of 2021 in its inference/ folder."""
    root = tmp_path_factory.mktemp("fork")
    for room in ROOT.iterdir():
        if room.suffix == ".py":
            shutil.copy(room, root)
        elif (room / "__init__.py").is_file() and room.name != "tests":
            shutil.copytree(room, root / room.name, ignore=lambda _, names: [n for n in names if n == "__pycache__"])
    for script in (Path(__file__).parent / "scripts_of_2021").glob("*.py"):
        shutil.copy(script, root / "inference")
    return root


@pytest.mark.slow
def test_scripts_of_2021_that_lie_in_inference(fork, legacy_checkpoint, recorded_images, embedder, tmp_path):
    config = tmp_path / "small.yml"
    config.write_text(f"INPUT:\n  SIZE_TEST: [64, 32]\nMODEL:\n  PRETRAIN_PATH: '{legacy_checkpoint}'\nGPU_IDS: []\n")
    people = tmp_path / "people"
    for path in sorted((recorded_images / "bounding_box_test").glob("*.jpg"))[::6]:
        (people / path.name[:4]).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, people / path.name[:4])

    def run(script, *arguments):
        command = (fork / "inference" / script, "--config_file", config, *arguments)
        done = run_python(*command, cwd=fork / "inference", timeout=300)
        assert done.returncode == 0, done.stderr

    gallery, paths = embedder.embed_folder(people, in_subfolders=True)
    embed = ("--images-in-subfolders", "DATASETS.ROOT_DIR", people, "OUTPUT_DIR")
    run("create_embeddings_2021.py", *embed, tmp_path / "images")
    assert np.load(tmp_path / "images" / "paths.npy").tolist() == paths
    found = np.load(tmp_path / "images" / "embeddings.npy")
    np.testing.assert_allclose(found, gallery, rtol=0, atol=1e-5 * np.abs(gallery).max())

    run("create_embeddings_2021.py", *embed, tmp_path / "centroids", "MODEL.USE_CENTROIDS", True)
    pids = [Path(path).parent.name for path in paths]
    names = list(dict.fromkeys(pids))
    assert np.load(tmp_path / "centroids" / "paths.npy").tolist() == names
    means = [np.mean([row for row, pid in zip(gallery, pids, strict=True) if pid == name], axis=0) for name in names]
    found = np.load(tmp_path / "centroids" / "embeddings.npy")
    np.testing.assert_allclose(found, means, rtol=0, atol=1e-5 * np.abs(gallery).max())

    search = ("--normalize_features", "--topk", 7, "DATASETS.ROOT_DIR", recorded_images / "query")
    search += ("SOLVER.DISTANCE_FUNC", "cosine", "OUTPUT_DIR", tmp_path)
    run("get_similar_2021.py", "--gallery_data", tmp_path / "images", *search)
    queries, query_paths = embedder.embed_folder(recorded_images / "query")
    distances = get_cosine(torch.from_numpy(queries), torch.from_numpy(gallery)).numpy()
    results = np.load(tmp_path / "results.npy", allow_pickle=True).item()
    assert list(results) == query_paths
    for row, result in zip(distances, results.values(), strict=True):
        np.testing.assert_allclose(result["distances"], np.sort(row)[:7], atol=1e-5)
        np.testing.assert_allclose(row[result["indices"]], result["distances"], atol=1e-5)
        assert result["paths"].tolist() == [paths[i] for i in result["indices"]]
