"""Checkpoints of every few epochs, as programs around the original asked for them."""

import pytest
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.demos.boring_classes import BoringModel

import callbacks
from callbacks.chechpointer_callback import ModelCheckpointPeriodic
from utils.errors import MissingPathError, UserError


def fit(folder, *checkpoints, epochs=5, ckpt_path=None):
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        limit_train_batches=1,
        limit_val_batches=0,
        logger=False,
        callbacks=list(checkpoints),
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(BoringModel(), ckpt_path=ckpt_path)
    return trainer


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("interval", "number", "expected"),
    [
        (1, 1, ["model_4.pth"]),
        (1, 2, ["model_3.pth", "model_4.pth"]),
        (2, 1, ["model_3.pth"]),
        (2, 9, ["model_1.pth", "model_3.pth"]),
        (3, 1, ["model_2.pth"]),
    ],
)
def test_every_few_epochs_a_file_and_the_newest_are_kept(tmp_path, interval, number, expected):
    fit(tmp_path, ModelCheckpointPeriodic(tmp_path / "out", "model", interval, number, True))
    assert names(tmp_path / "out") == expected
    epochs = [torch.load(tmp_path / "out" / name, weights_only=True)["epoch"] for name in expected]
    assert epochs == [int(name[6]) for name in expected]


def test_several_in_a_trainer_and_only_their_own_files_are_removed(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for name in ("a_0.pth", "a_9.pth", "a_best.pth", "ab_0.pth", "notes.txt", "checkpoint_0.pth", ".x.tmp"):
        (out / name).touch()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / ".x.tmp").touch()
    fit(
        tmp_path,
        ModelCheckpointPeriodic(dirname=str(out), filename_prefix="a", save_interval=1, n_saved=1, create_dir=False),
        ModelCheckpointPeriodic(dirname=str(out), filename_prefix="b", n_saved=2),
        ModelCheckpointPeriodic(dirname=str(tmp_path / "other"), filename_prefix="a"),
        callbacks.ModelCheckpointPeriodic(),
        epochs=3,
    )
    kept = [".x.tmp", "a_2.pth", "a_9.pth", "a_best.pth", "ab_0.pth", "b_1.pth", "b_2.pth", "checkpoint_0.pth"]
    assert names(out) == [*kept, "notes.txt"]
    assert names(tmp_path / "other") == ["a_2.pth"]
    assert names(tmp_path / "auto_checkpoints") == ["checkpoint_2.pth"]
    assert names(tmp_path / "checkpoints") == []  # beside auto_checkpoints, remains are removed


def test_folders_beside_its_own_are_left_alone(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / ".x.tmp").touch()
    fit(tmp_path, ModelCheckpointPeriodic(tmp_path / "out", "model"), epochs=1)
    assert names(tmp_path / "checkpoints") == [".x.tmp"]
    assert names(tmp_path / "out") == ["model_0.pth"]


def test_a_fit_goes_on_from_its_file(tmp_path):
    out = tmp_path / "out"
    fit(tmp_path, ModelCheckpointPeriodic(out, "model", n_saved=2), epochs=2)
    trainer = fit(
        tmp_path, ModelCheckpointPeriodic(out, "model", n_saved=2), epochs=3, ckpt_path=str(out / "model_1.pth")
    )
    assert trainer.global_step == 3
    assert names(out) == ["model_1.pth", "model_2.pth"]


def test_the_folder_is_created_only_if_that_is_wanted(tmp_path):
    with pytest.raises(MissingPathError, match="gone' does not exist.*create_dir=True"):
        ModelCheckpointPeriodic(tmp_path / "gone", "model", create_dir=False)
    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("out", "model", 0), "save_interval is 0; expected 1 or more"),
        (("out", "model", 1, 0), "n_saved is 0; expected 1 or more"),
        (("out", "sub/model"), "filename_prefix is 'sub/model'"),
    ],
)
def test_settings_that_make_no_sense(arguments, message):
    with pytest.raises(UserError, match=message):
        ModelCheckpointPeriodic(*arguments)
