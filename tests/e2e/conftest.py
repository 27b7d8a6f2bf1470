import subprocess
import sys

import pytest

from config.cli import load_config
from tests.support import ROOT

TINY = {
    "MODEL.NAME": "resnet18",
    "MODEL.BACKBONE_EMB_SIZE": 512,
    "MODEL.PRETRAINED": False,
    "INPUT.SIZE_TRAIN": [32, 16],
    "INPUT.SIZE_TEST": [32, 16],
    "INPUT.PADDING": 2,
    "SOLVER.IMS_PER_BATCH": 3,
    "SOLVER.MAX_EPOCHS": 2,
    "SOLVER.EVAL_PERIOD": 1,
    "SOLVER.WARMUP_EPOCHS": 2,
    "SOLVER.LR_STEPS": (3,),
    "TEST.IMS_PER_BATCH": 32,
    "DATALOADER.NUM_WORKERS": 0,
    "USE_MIXED_PRECISION": False,
    "GPU_IDS": [],
    "REPRODUCIBLE": True,
    "REPRODUCIBLE_NUM_RUNS": 1,
    "TRAINER.PROGRESS_BAR": False,
    "LOGGING.MLFLOW": False,
}


def draw(folder, *arguments):
    script = str(ROOT / "scripts" / "make_toy_dataset.py")
    subprocess.run([sys.executable, script, str(folder), "--size", "32", "16", *arguments], check=True)
    return folder


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """A drawn data set in Market-1501 layout: 8 identities in training, 8 in test."""
    return draw(tmp_path_factory.mktemp("toy") / "data", "--ids", "16", "--cameras", "3", "--images-per-id", "6")


@pytest.fixture(scope="session")
def other_toy(tmp_path_factory):
    """Another one: other identities, and another number of them."""
    arguments = ("--ids", "10", "--cameras", "2", "--images-per-id", "5", "--seed", "7")
    return draw(tmp_path_factory.mktemp("toy") / "other", *arguments)


@pytest.fixture(scope="session")
def coco_toy(tmp_path_factory):
    """A third one in COCO layout."""
    folder = tmp_path_factory.mktemp("toy") / "coco_train_here"
    return draw(folder, "--ids", "12", "--cameras", "2", "--images-per-id", "6", "--layout", "coco")


@pytest.fixture
def tiny(toy, tmp_path):
    """Options of the shortest run that does everything, as load_config takes them: tiny(KEY=VALUE) overrides."""

    def options(**overrides):
        values = TINY | {"DATASETS.ROOT_DIR": str(toy), "OUTPUT_DIR": str(tmp_path / "out")} | overrides
        return [part for pair in values.items() for part in pair]

    return options


@pytest.fixture
def tiny_cfg(tiny):
    return lambda **overrides: load_config("", tiny(**overrides))


@pytest.fixture
def run_script(tmp_path):
    """Run a script of the repository as a user would, in an empty folder; returns the finished process."""

    def run(script, *arguments, python_options=(), timeout=300):
        command = [sys.executable, *python_options, str(ROOT / script), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=timeout)

    return run
