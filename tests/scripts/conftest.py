import pytest

from tests.support import unpack


@pytest.fixture
def fashion(tmp_path):
    """The small raw trees that the recorded conversions started from: df/ and s2s/."""
    return unpack("fashion_s0_raw", tmp_path)
