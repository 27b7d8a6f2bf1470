"""Which checkpoint of which run is the newest, and what is left of writes that were cut short."""

import os

import pytest

from checkpoints.run_files import (
    AUTO_FOLDER,
    BEST_FOLDER,
    find_newest,
    has_more_epochs,
    list_checkpoints,
    remove_temporaries,
    version_of,
)
from tests.checkpoints.run_states import save


def test_the_last_epoch_of_the_last_version_that_belongs(tmp_path, caplog):
    save(tmp_path, 2, 90, run=0)
    save(tmp_path, 10, 3, run=0)
    newest = save(tmp_path, 10, 12, run=0)
    other = save(tmp_path, 11, 1, run=1)
    (tmp_path / "version_12").mkdir()
    (tmp_path / "version_x").mkdir()
    assert find_newest(tmp_path, lambda hparams: hparams["run"] == 0) == newest
    assert find_newest(tmp_path, lambda hparams: True) == other
    with caplog.at_level("INFO"):
        assert find_newest(tmp_path / "nothing", lambda hparams: True) is None
        assert not caplog.messages
        assert find_newest(tmp_path, lambda hparams: False) is None
    (message,) = caplog.messages
    assert message.startswith("passed over: 4 checkpoint(s) of runs with another seed (")
    assert message.endswith(f"the newest is {other}")
    save(tmp_path / "one", 0, 0, run=0)
    with caplog.at_level("INFO"):
        find_newest(tmp_path / "one", lambda hparams: False)
    assert caplog.messages[1].startswith("passed over: 1 checkpoint(s) ")
    assert version_of(newest, tmp_path) == "version_10"
    assert version_of(tmp_path / "elsewhere.pth", tmp_path) is None


def test_a_file_that_is_cut_off_is_passed_over_and_remains_of_writes_are_removed(tmp_path, caplog):
    older, broken = save(tmp_path, 0, 3), save(tmp_path, 0, 4)
    os.truncate(broken, broken.stat().st_size // 2)
    remains = broken.with_name(".checkpoint_5.pth.17.tmp")
    remains.touch()
    (broken.parent / "notes.txt").touch()
    assert find_newest(tmp_path, lambda hparams: True) == older
    assert "checkpoint_4.pth" in caplog.text
    assert not remains.exists()
    assert list_checkpoints(broken.parent) == [broken, older]


def test_checkpoints_are_listed_by_number(tmp_path):
    for name in ("checkpoint_9.pth", "checkpoint_10.pth", "checkpoint_x.pth", "checkpoint_3.pth.bak", "epoch=4.ckpt"):
        (tmp_path / name).touch()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint_10.pth", "checkpoint_9.pth"]
    assert list_checkpoints(tmp_path / "nothing") == []


@pytest.mark.parametrize(("epochs", "expected"), [(0, True), (3, True), (4, False)])
def test_a_checkpoint_of_epoch_3_is_a_state_after_four_epochs(tmp_path, epochs, expected):
    version = save(tmp_path, 0, 3).parent.parent
    assert has_more_epochs(version, epochs) is expected
    assert not has_more_epochs(tmp_path / "nothing", 0)


def test_a_checkpoint_elsewhere_belongs_to_no_version(tmp_path):
    best = tmp_path / "runs" / "version_4" / BEST_FOLDER / "epoch=1.ckpt"
    assert version_of(best, tmp_path / "runs") == "version_4"
    assert version_of(tmp_path / "runs" / "version_4" / ".." / ".." / "a.pth", tmp_path / "runs") is None


def test_only_remains_of_writes_are_removed(tmp_path):
    kept = [tmp_path / folder / "checkpoint_1.pth" for folder in (AUTO_FOLDER, BEST_FOLDER)]
    remains = [tmp_path / folder / ".0123.tmp" for folder in (AUTO_FOLDER, BEST_FOLDER)]
    own = [tmp_path / ".own.tmp", tmp_path / AUTO_FOLDER / "notes.tmp"]
    for path in (*kept, *remains, *own):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    remove_temporaries(tmp_path)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == {*kept, *own}
    remove_temporaries(tmp_path / "nothing")
