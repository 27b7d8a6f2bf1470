"""Saving: the whole new file or the old one, whatever interrupts."""

import errno
import pickle
from collections import OrderedDict
from pathlib import Path
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
