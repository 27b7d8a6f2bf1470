import lzma
import os

# Workers of a parallel run share the cores; one thread each also makes float sums repeatable.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from tests.support import GOLDEN


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def legacy_path(tmp_path_factory):
    """The recorded checkpoint of the original, unpacked once."""
    path = tmp_path_factory.mktemp("legacy") / "epoch=3.ckpt"
    path.write_bytes(lzma.decompress((GOLDEN / "legacy_zero.ckpt.xz").read_bytes()))
    return path
