"""Which lines of other libraries a run leaves out, and that others of the same libraries appear."""

import logging
import warnings

import pytest
from pytorch_lightning.utilities import rank_zero_info

from engine.noise import RECORDS, WARNINGS, quiet_libraries

RANK_ZERO = "pytorch_lightning.utilities.rank_zero"
FABRIC_SEED = "lightning_fabric.utilities.seed"
MLFLOW, BOARD = "pytorch_lightning.loggers.mlflow", "pytorch_lightning.loggers.tensorboard"
# As Lightning 2.1 and 2.6 write them.
LEFT_OUT = [
    (RANK_ZERO, "TPU available: False, using: 0 TPU cores"),
    (RANK_ZERO, "IPU available: False, using: 0 IPUs"),
    (RANK_ZERO, "HPU available: False, using: 0 HPUs"),
    (
        RANK_ZERO,
        "💡 Tip: For seamless cloud logging and experiment tracking, try installing "
        "[litlogger](https://pypi.org/project/litlogger/) to enable LitLogger, which logs metrics and artifacts "
        "automatically to the Lightning Experiments platform.",
    ),
    (
        RANK_ZERO,
        "💡 Tip: For seamless cloud uploads and versioning, try installing "
        "[litmodels](https://pypi.org/project/litmodels/) to enable LitModelCheckpoint, which syncs automatically with "
        "the Lightning model registry.",
    ),
    (RANK_ZERO, "Restoring states from the checkpoint path at out/checkpoint_1.pth"),
    (RANK_ZERO, "`Trainer.fit` stopped: `max_epochs=120` reached."),
    (MLFLOW, "Experiment with name default not found. Creating it."),
    (BOARD, "Missing logger folder: out/train_ctl_model"),
    (FABRIC_SEED, "[rank: 1] Seed set to 0"),
    ("mlflow.store.db.utils", "SQLAlchemy database error. The following exception is caught.\ndatabase is locked"),
]
KEPT = [
    (RANK_ZERO, "A program's own line: TPU available: False, using: 0 TPU cores"),
    (RANK_ZERO, "TPU available: True, using: 8 TPU cores"),
    (RANK_ZERO, "GPU available: False, used: False"),
    (RANK_ZERO, "Restored all states from the checkpoint at out/checkpoint_1.pth"),
    (RANK_ZERO, "`Trainer.fit` stopped: `max_steps=10` reached."),
    (MLFLOW, "Experiment with name mine not found. Creating it."),
    (MLFLOW, "Discarding metric with string value mAP=high."),
    (FABRIC_SEED, "Seed set to 0"),
    (FABRIC_SEED, "[rank: 0] Seed set to 0"),
    ("mlflow.store.db.utils", "SQLAlchemy engine could not be created."),
]
WARNINGS_LEFT_OUT = [
    (
        FutureWarning,
        "`isinstance(treespec, LeafSpec)` is deprecated, use `isinstance(treespec, TreeSpec) and treespec.is_leaf()` "
        "instead.",
    ),
    (
        UserWarning,
        "The number of training batches (8) is smaller than the logging interval Trainer(log_every_n_steps=10). Set a "
        "lower value for log_every_n_steps if you want to see logs for the training epoch.",
    ),
    (UserWarning, "Checkpoint directory out/run/version_0/checkpoints exists and is not empty."),
    (
        UserWarning,
        "The 'train_dataloader' does not have many workers which may be a bottleneck. Consider increasing the value of "
        "the `num_workers` argument` to `num_workers=1` in the `DataLoader` to improve performance.",
    ),
    (UserWarning, "You have overridden `on_before_batch_transfer` in `LightningModule` but have passed in a"),
]
WARNINGS_KEPT = [
    (FutureWarning, "`isinstance(treespec, NodeSpec)` is deprecated"),
    (UserWarning, "This DataLoader will create 16 worker processes in total."),
    (UserWarning, "GPU available but not used. You can set it by doing `Trainer(accelerator='gpu')`."),
    (RuntimeWarning, "Checkpoint directory out exists and is not empty."),
]


@pytest.mark.parametrize(("logger", "message"), LEFT_OUT)
def test_a_record_that_is_left_out(logger, message, caplog):
    quiet_libraries()
    logging.getLogger(logger).error(message)
    assert not caplog.records


@pytest.mark.parametrize(("logger", "message"), KEPT)
def test_a_record_that_appears(logger, message, caplog):
    quiet_libraries()
    logging.getLogger(logger).error(message)
    assert [record.getMessage() for record in caplog.records] == [message]


def test_lightning_still_speaks_through_the_logger_of_the_table(caplog):
    with caplog.at_level(logging.INFO):
        rank_zero_info("GPU available: False, used: False")
    assert [record.name for record in caplog.records] == [RANK_ZERO]


def test_warnings():
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        quiet_libraries()
        quiet_libraries()
        for category, message in WARNINGS_LEFT_OUT + WARNINGS_KEPT:
            warnings.warn(message, category, stacklevel=1)
    assert [(entry.category, str(entry.message)) for entry in seen] == WARNINGS_KEPT


def test_each_entry_of_the_tables_is_tried():
    assert len(LEFT_OUT) == sum(len(beginnings) for beginnings in RECORDS.values()) + 2  # TPU, IPU and HPU share one
    assert len(WARNINGS_LEFT_OUT) == len(WARNINGS)


def test_the_filter_of_a_logger_is_added_once():
    quiet_libraries()
    before = {name: list(logging.getLogger(name).filters) for name in RECORDS}
    quiet_libraries()
    assert {name: logging.getLogger(name).filters for name in RECORDS} == before
