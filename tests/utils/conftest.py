"""The recorded checkpoint of the original, unpacked once."""

import lzma
from pathlib import Path

import pytest

from tests.support import GOLDEN


@pytest.fixture(scope="session")
def legacy_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("legacy") / "epoch=3.ckpt"
    path.write_bytes(lzma.decompress((GOLDEN / "legacy_zero.ckpt.xz").read_bytes()))
    return path
