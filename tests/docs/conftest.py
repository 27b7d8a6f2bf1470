import numpy as np
import pytest
import torch

from checkpoints.plain import to_plain
from config.load import load_config
from tests.launch import run_script
from train_ctl_model import CTLModel


@pytest.fixture(scope="session")
def market(tmp_path_factory):
    """A folder that holds a drawn market1501/: 12 identities in training, 4 in test, images of 32 x 16 pixels."""
    folder = tmp_path_factory.mktemp("drawn") / "data"
    size = ("--ids", "16", "--cameras", "3", "--images-per-id", "6", "--size", "32", "16")
    assert run_script("scripts/make_toy_dataset.py", folder, *size).returncode == 0
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A checkpoint of a ResNet-18 with random weights."""
    torch.manual_seed(0)
    network = ["MODEL.NAME", "resnet18", "MODEL.BACKBONE_EMB_SIZE", 512, "MODEL.PRETRAINED", False]
    model = CTLModel(load_config("", [*network, "INPUT.SIZE_TEST", [32, 16]]), num_classes=12, num_query=12)
    path = tmp_path_factory.mktemp("checkpoint") / "model.ckpt"
    torch.save({"state_dict": model.state_dict(), "hyper_parameters": to_plain(model.hparams)}, path)
    return path


@pytest.fixture(scope="session")
def arrays():
    """Embeddings, pids and camids of queries and of a gallery: 6 identities seen by 3 cameras."""
    rng = np.random.default_rng(0)
    pids, camids = np.repeat(np.arange(6), 3), np.tile(np.arange(3), 6)
    centres = rng.normal(size=(6, 8))[pids]
    return [{"embeddings": centres + rng.normal(size=centres.shape), "pids": pids, "camids": camids} for _ in range(2)]
