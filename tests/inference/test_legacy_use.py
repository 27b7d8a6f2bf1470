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
