import importlib.util
import lzma
import os
import random

# Workers of a parallel run share the cores; one thread each also makes float sums repeatable.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch

from tests.support import GOLDEN, ROOT

if importlib.util.find_spec("hypothesis"):  # tests/cuda runs without it
    from hypothesis import settings

    # The same examples in every run; a failing one is printed in a form that repeats it.
    settings.register_profile("repeatable", deadline=None, derandomize=True, print_blob=True)
    settings.load_profile("repeatable")


def pytest_addoption(parser):
    parser.addoption("--by-hand", action="store_true", help="also run the tests marked by_hand")
    parser.addoption("--device", default="cuda", help="device of the tests in tests/cuda: cuda, cuda:1, or cpu")


# Their tests start programs and train. They come first, so that the two workers of a parallel run end together.
LONG_FOLDERS = ("e2e", "docs", "scripts", "benchmarks", "inference", "datasets")


def place(item):
    folder = item.path.relative_to(ROOT / "tests").parts[0]
    return LONG_FOLDERS.index(folder) if folder in LONG_FOLDERS else len(LONG_FOLDERS)


def pytest_collection_modifyitems(config, items):
    items.sort(key=place)
    if not config.getoption("--by-hand"):
        left_out = [item for item in items if item.get_closest_marker("by_hand")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("by_hand")]


@pytest.fixture(autouse=True)
def _seeded():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def legacy_path(tmp_path_factory):
    """The recorded checkpoint of the original, unpacked once."""
    path = tmp_path_factory.mktemp("legacy") / "epoch=3.ckpt"
    path.write_bytes(lzma.decompress((GOLDEN / "legacy_zero.ckpt.xz").read_bytes()))
    return path
