import resource

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
