"""A data set, a network and a loss of the user's own, named in the configuration: no file edited, no launcher."""

import re

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from config.load import load_config
from engine.run import run_main
from inference import Embedder
from tests import launch
from tests.small import small_options
from train_ctl_model import CTLModel
from utils.errors import UserError

NETS = """
import torch
from torch import nn

def tiny(last_stride=1):
    return nn.Sequential(nn.Conv2d(3, 24, 3, stride=8), nn.BatchNorm2d(24), nn.ReLU())

class Classifier(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 24, 3, stride=8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10))
"""
DATA = """
from pathlib import Path
from datasets.bases import ReidDataModule, Splits

class Shop(ReidDataModule):
    def read_splits(self):
        root = Path(self.cfg.DATASETS.ROOT_DIR) / "market1501"
        return Splits(*(self.read(root / name) for name in ("bounding_box_train", "query", "bounding_box_test")))

    def read(self, folder):
        return [(str(p), int(p.name[:4]), int(p.name[6]) - 1) for p in sorted(folder.glob("0*.jpg"))]
"""
LOSSES = """
import torch
from torch import nn

class Spread(nn.Module):
    def __init__(self, num_classes, embedding_size):
        super().__init__()
        self.target = nn.Parameter(torch.ones(embedding_size))

    def forward(self, features, labels):
        return (features.var(0) - self.target).square().mean()
"""
OWN = {
    "MODEL.NAME": "my_package.nets:tiny",
    "MODEL.BACKBONE_EMB_SIZE": 24,
    "DATASETS.NAMES": "my_package.data:Shop",
    "LOSSES.EXTRA": "['my_package.losses:Spread']",
    "LOSSES.EXTRA_WEIGHTS": "[0.5]",
    "SOLVER.MAX_EPOCHS": 1,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The current folder of the user, with a package in it."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "my_package").mkdir()
    for name, text in (("nets", NETS), ("data", DATA), ("losses", LOSSES)):
        (folder / "my_package" / f"{name}.py").write_text(text)
    return folder


@pytest.fixture
def run(folder, tiny, monkeypatch):
    """A run in this process; the first one, of the fixture below, is the user's own command."""
    monkeypatch.syspath_prepend(folder)
    return lambda **options: run_main(load_config("", tiny(**OWN | options)), CTLModel, "run")


@pytest.fixture(scope="module")
def trained(folder, toy, tmp_path_factory):
    options = small_options(**OWN, **{"DATASETS.ROOT_DIR": str(toy), "OUTPUT_DIR": ""})
    done = launch.run_script("train_ctl_model.py", *options, cwd=folder, timeout=300)
    assert done.returncode == 0, done.stderr
    return (
        folder
        / "logs"
        / "my_package.data.Shop"
        / "train_ctl_model"
        / "version_0"
        / "auto_checkpoints"
        / "checkpoint_0.pth"
    )


def test_the_loss_is_trained_and_logged(trained):
    events = EventAccumulator(str(trained.parents[1]))
    events.Reload()
    (spread,), (total,) = events.Scalars("Spread"), events.Scalars("epoch_train_loss")
    parts = [events.Scalars(n)[0].value for n in ("query_xent", "query_triplet", "query_center", "centroid_triplet")]
    assert total.value == pytest.approx(sum(parts) + spread.value, rel=1e-5)
    weights = torch.load(trained, weights_only=True)["state_dict"]
    assert weights["extra_losses.Spread.target"].ne(1).any()


def test_the_run_goes_on(trained, run):
    options = {"MODEL.RESUME_TRAINING": True, "MODEL.PRETRAIN_PATH": str(trained), "SOLVER.MAX_EPOCHS": 2}
    run(**options)
    with pytest.raises(UserError, match=r"was trained with LOSSES.EXTRA \['my_package.losses:Spread'\]: continue with"):
        run(**options | {"LOSSES.EXTRA": "[]", "LOSSES.EXTRA_WEIGHTS": "[]"})


def test_the_checkpoint_is_tested_and_embeds(trained, run, folder, tiny, toy, tmp_path):
    (metrics,) = run(**{"TEST.ONLY_TEST": True, "MODEL.PRETRAIN_PATH": str(trained)})
    assert 0 < metrics["instances"]["mAP"] <= 1
    images = {"DATASETS.ROOT_DIR": str(toy / "market1501" / "query"), "MODEL.PRETRAIN_PATH": str(trained)}
    done = launch.run_script("inference/create_embeddings.py", *tiny(**OWN | images), cwd=folder)
    assert done.returncode == 0, done.stderr
    written = np.load(tmp_path / "out" / "embeddings.npy")
    embedder = Embedder.from_checkpoint(trained, "cpu", network=OWN["MODEL.NAME"])
    first = sorted((toy / "market1501" / "query").iterdir())[0]
    np.testing.assert_allclose(embedder.embed(first)[0], written[0], rtol=1e-4, atol=1e-5)


def test_no_code_is_imported_because_a_file_asks_for_it(trained, folder):
    code = (
        "import sys; from inference import Embedder; from utils.errors import UserError\ntry: Embedder.from_checkpoint("
    )
    code += "sys.argv[1], 'cpu')\nexcept UserError as error: print(error, 'my_package' in sys.modules)"
    done = launch.run_code(code, trained, cwd=folder, env=launch.REPOSITORY_FIRST)
    assert "checkpoint_0.pth: its network is MODEL.NAME my_package.nets:tiny" in done.stdout, done.stderr
    assert "set MODEL.NAME my_package.nets:tiny yourself" in done.stdout
    assert done.stdout.endswith("False\n")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("MODEL.NAME", "my_package.nets:huge", "nets.py defines no huge"),
        ("MODEL.NAME", "my_package.nowhere:tiny", "module my_package.nowhere cannot be imported"),
        (
            "MODEL.NAME",
            "my_package.nets:Classifier",
            "gives embeddings of size 10: set MODEL.BACKBONE_EMB_SIZE 10, or 0 for the network's own",
        ),
        ("MODEL.BACKBONE_EMB_SIZE", 32, "set MODEL.BACKBONE_EMB_SIZE 24"),
        ("MODEL.GRAD_CHECKPOINT", True, "has no attribute grad_checkpoint"),
        ("DATASETS.NAMES", "my_package.data:Stall", "data.py defines no Stall"),
        ("LOSSES.EXTRA", "['my_package.losses:Gap']", "losses.py defines no Gap"),
        ("LOSSES.EXTRA_WEIGHTS", "[0.5, 1]", "expected a weight for each loss"),
    ],
)
def test_what_does_not_fit_is_told(run, option, value, message):
    with pytest.raises(UserError, match=re.escape(message)):
        run(**{option: value})
