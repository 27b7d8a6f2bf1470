import shutil
from functools import partial

import pytest

from tests import launch
from tests.small import small_config, small_options
from tests.thin import THIN


def draw(folder, *arguments):
    done = launch.run_script("scripts/make_toy_dataset.py", folder, "--size", "32", "16", *arguments)
    assert done.returncode == 0, done.stderr
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
def two_sets(toy, other_toy, tmp_path):
    """A Market-1501 and a DukeMTMC-reID tree below one folder."""
    root = tmp_path / "data"
    shutil.copytree(toy / "market1501", root / "market1501")
    shutil.copytree(other_toy / "market1501", root / "DukeMTMC-reID", ignore=shutil.ignore_patterns("-1_*"))
    return root


@pytest.fixture
def tiny_folders(toy, tmp_path):
    return {"DATASETS.ROOT_DIR": str(toy), "OUTPUT_DIR": str(tmp_path / "out")}


@pytest.fixture
def tiny(tiny_folders):
    """small_options with the thin network on the drawn data set, writing to the test's folder."""
    return lambda **overrides: small_options(**tiny_folders | THIN | overrides)


@pytest.fixture
def tiny_cfg(tiny_folders):
    """The same as a configuration."""
    return lambda **overrides: small_config(**tiny_folders | THIN | overrides)


@pytest.fixture
def run_script(tmp_path):
    """launch.run_script in an empty folder, with time for a training."""

    return partial(launch.run_script, cwd=tmp_path, timeout=300)
