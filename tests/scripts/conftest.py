import shutil

import pytest

from tests.support import unpack


@pytest.fixture(scope="session")
def unpacked_fashion(tmp_path_factory):
    return unpack("fashion_s0_raw", tmp_path_factory.mktemp("fashion"))


@pytest.fixture
def fashion(unpacked_fashion, tmp_path):
    """The small raw trees that the recorded conversions started from: df/ and s2s/."""
    return shutil.copytree(unpacked_fashion, tmp_path, dirs_exist_ok=True)


@pytest.fixture
def fashion_lists(unpacked_fashion, tmp_path):
    """The same without the pictures."""
    return shutil.copytree(unpacked_fashion, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.jpg"))
