import errno
import io
import os
import resource
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from checkpoints.writing import atomic_save


@pytest.fixture
def full_disk():
    """No file may grow beyond 64 KiB: writing more fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_does_not_fit_leaves_the_old_file_and_no_other(tmp_path, full_disk):
    path = tmp_path / "model.ckpt"
    atomic_save({"weights": torch.ones(4)}, path)
    with pytest.raises(OSError, match="File too large"):
        atomic_save({"weights": torch.zeros(1 << 16)}, path)
    assert list(tmp_path.iterdir()) == [path]
    assert torch.load(path, weights_only=True)["weights"].tolist() == [1, 1, 1, 1]


class FailingOnce(io.BytesIO):
    """Has no space for the first bytes, and space again for those that follow."""

    failed = False

    def write(self, data):
        if not self.failed:
            self.failed = True
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


def test_a_file_with_a_hole_is_no_file(monkeypatch):
    stream = FailingOnce()
    temporary = SimpleNamespace(open=lambda mode: stream)
    monkeypatch.setattr("checkpoints.writing.replacing", lambda path: nullcontext(temporary))
    with pytest.raises(OSError, match="No space left on device"):
        atomic_save({"weights": torch.ones(4)}, "model.ckpt")
