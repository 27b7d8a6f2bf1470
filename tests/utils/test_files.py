"""Files that are there whole or not at all, and the folder that a run writes to."""

import errno
import hashlib
import os
from pathlib import Path

import pytest

from utils.errors import CheckpointError, UserError
from utils.files import (
    content_digest,
    output_folder,
    replacing,
    require_writable,
    write_bytes,
    write_text,
    written_whole,
)

WAYS = [replacing, written_whole]


@pytest.mark.parametrize("way", WAYS)
def test_the_old_file_is_there_until_the_new_one_is_whole(tmp_path, way):
    path = tmp_path / "new" / "folder" / "a.txt"
    with way(path) as temporary:
        assert temporary.parent == path.parent
        assert temporary.name.startswith(".")
        temporary.write_text("one")
    with way(path) as temporary:
        temporary.write_text("half")
        assert path.read_text() == "one"
        temporary.write_text("two")
    assert path.read_text() == "two"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt(), CheckpointError("what the block read")])
def test_a_block_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, way, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(type(error)) as caught, way(path) as temporary:
        temporary.write_text("half")
        raise error
    assert caught.value is error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_another_temporary_name(tmp_path):
    with replacing(tmp_path / "a.npy", tmp_path / "b.partial") as temporary:
        assert temporary == tmp_path / "b.partial"
        temporary.touch()
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]


def test_the_file_is_on_the_disk_before_it_takes_the_name(tmp_path, monkeypatch):
    order = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda number: order.append("fsync") or fsync(number))
    monkeypatch.setattr(Path, "replace", lambda self, to: order.append("replace") or replace(self, to))
    write_text(tmp_path / "a.txt", "ä")
    assert order == ["fsync", "replace"]
    assert (tmp_path / "a.txt").read_bytes() == "ä".encode()


def test_an_ending_is_kept_for_writers_that_go_by_it(tmp_path):
    with written_whole(tmp_path / "a.png", keep_ending=True) as temporary:
        assert temporary.suffix == ".png"
        temporary.touch()
    with written_whole(tmp_path / "a.png") as temporary:
        assert temporary.suffix == ".tmp"
        temporary.touch()


def test_a_folder_in_the_place_of_a_file_is_met_before_the_work(tmp_path):
    with pytest.raises(UserError, match="is a folder; expected the name of a file"), written_whole(tmp_path):
        pytest.fail("the block ran")


def test_errors_of_the_disk_name_the_file_and_the_reason(tmp_path):
    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    path = tmp_path / "a.txt"
    reason = r"a.txt cannot be written \(No space left on device\)"
    with pytest.raises(UserError, match=reason) as caught, written_whole(path) as temporary:
        full(temporary)
    assert isinstance(caught.value.__cause__, OSError)
    with pytest.raises(OSError, match="No space left on device") as raised, replacing(path) as temporary:
        full(temporary)
    assert not isinstance(raised.value, UserError)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"a.txt cannot be written \((Not a directory|File exists)\)"):
        write_bytes(tmp_path / "file" / "a.txt", b"")


def test_writing_returns_the_path(tmp_path):
    assert write_bytes(str(tmp_path / "a"), b"\0\1") == tmp_path / "a"
    assert (tmp_path / "a").read_bytes() == b"\0\1"


@pytest.mark.parametrize(("output_dir", "expected"), [("out/here", Path("out/here")), ("", Path("logs/market1501"))])
def test_the_folder_of_a_run(output_dir, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert output_folder(output_dir, "market1501") == expected
    assert not list(tmp_path.iterdir())  # asking makes no folder


def test_a_folder_that_can_be_written_is_made_and_left_empty(tmp_path):
    assert require_writable(str(tmp_path / "a" / "b"), "OUTPUT_DIR") == tmp_path / "a" / "b"
    assert list((tmp_path / "a").iterdir()) == [tmp_path / "a" / "b"]
    assert not list((tmp_path / "a" / "b").iterdir())


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_folder_that_cannot_be_written_names_the_key(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=rf"OUTPUT_DIR: cannot write to '.*{name}' \((File exists|Not a directory)\)"):
        require_writable(tmp_path / name, "OUTPUT_DIR")


def test_digest(tmp_path):
    (tmp_path / "a").write_bytes(b"content")
    assert content_digest(tmp_path / "a") == hashlib.sha256(b"content").digest()
    assert content_digest(tmp_path / "no") == b""
