import lzma
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from inference.embedding.embedder import Embedder
from modelling.bases import ModelBase
from tests.support import GOLDEN, fill_by_recipe


@pytest.fixture(scope="session")
def recorded_images(tmp_path_factory):
    """The folder market1501 with the recorded pictures."""
    folder = tmp_path_factory.mktemp("recorded")
    with tarfile.open(GOLDEN / "e2e_s0_images.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder / "market1501"


@pytest.fixture(scope="session")
def legacy_checkpoint(tmp_path_factory):
    """A checkpoint of the original, weights filled by the recipe: resnet18, pictures of 64 x 32."""
    path = tmp_path_factory.mktemp("legacy") / "legacy.ckpt"
    path.write_bytes(lzma.decompress((GOLDEN / "legacy_zero.ckpt.xz").read_bytes()))
    content = torch.load(path, weights_only=False)  # the file is ours: this keeps its classes as they are
    content["state_dict"].update(fill_by_recipe(content["state_dict"]))
    torch.save(content, path)
    return path


@pytest.fixture(scope="session")
def model(legacy_checkpoint):
    """The model of that checkpoint, in eval mode."""
    return ModelBase.load_from_checkpoint(legacy_checkpoint).eval()


@pytest.fixture(scope="session")
def embedder(model):
    """The same model as an Embedder."""
    return Embedder(model, "cpu", num_workers=1)


@pytest.fixture
def pictures(tmp_path):
    """Seven drawn pictures of different sizes in a folder, with a file among them that is no picture."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "notes.txt").write_text("no picture")
    for number in range(7):
        draw_picture(folder / f"{'abc'[number % 3]}_{number}.png", number)
    return folder


def draw_picture(path, seed):
    """A picture of smooth random colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (4, 3, 3), dtype=np.uint8))
    small.resize((20 + seed % 5, 50 - seed % 7), Image.Resampling.BILINEAR).save(path)
    return path
