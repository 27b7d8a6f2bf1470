"""Saving: the whole new file or the old one, whatever interrupts."""

import errno
import io
import os
import pickle
import resource
from collections import OrderedDict
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from yacs.config import CfgNode

from checkpoints.plain import to_plain
from checkpoints.reading import load_checkpoint
from checkpoints.writing import atomic_save


def test_saving_and_loading_again(tmp_path: Path) -> None:
    checkpoint = {"state_dict": OrderedDict(w=torch.randn(3)), "hyper_parameters": CfgNode({"A": CfgNode({"B": 1})})}
    path = tmp_path / "new" / "folder" / "epoch=0.ckpt"
    atomic_save(to_plain(checkpoint), path)
    loaded = load_checkpoint(path)
    assert loaded["hyper_parameters"] == {"A": {"B": 1}}
    assert torch.equal(loaded["state_dict"]["w"], checkpoint["state_dict"]["w"])
    assert torch.load(path, weights_only=True).keys() == loaded.keys()
    assert [entry.name for entry in path.parent.iterdir()] == ["epoch=0.ckpt"]


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    atomic_save({"epoch": 1}, path)
    with pytest.raises((AttributeError, pickle.PicklingError)):
        atomic_save({"epoch": 2, "tensor": torch.ones(3), "function": lambda: 0}, path)
    assert load_checkpoint(path) == {"epoch": 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("at", [1, 3])
def test_a_full_disk_is_reported_in_its_own_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """torch's writer would answer by an error about positions in the file."""
    path = tmp_path / "last.ckpt"
    atomic_save({"epoch": 1}, path)
    open_file, calls = Path.open, [0]

    def open_full(self: Path, *args: Any, **kwargs: Any) -> Any:
        return FullAfter(open_file(self, *args, **kwargs), at, calls)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left on device") as caught:
        patch.setattr(Path, "open", open_full)
        atomic_save({"epoch": 2, "weights": torch.ones(1000)}, path)
    assert caught.value.errno == errno.ENOSPC
    assert calls[0] == at  # nothing more is written once the disk is full
    assert load_checkpoint(path) == {"epoch": 1}
    assert list(tmp_path.iterdir()) == [path]


class FullAfter:
    """A file on a disk that is full from the given call of ``write`` on."""

    def __init__(self, stream: Any, at: int, calls: list[int]) -> None:
        self.stream, self.at, self.calls = stream, at, calls

    def __enter__(self) -> "FullAfter":
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()

    def write(self, data: Any) -> int:
        self.calls[0] += 1
        if self.calls[0] >= self.at:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.stream.write(data)

    def flush(self) -> None:
        self.stream.flush()


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
