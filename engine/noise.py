"""Lines of other libraries that tell a run nothing. Each is left out by its own text: all their other lines appear."""

import logging
import re
import warnings

# Logger -> beginnings of records. They hold for Lightning 2.1 to 2.6; some versions do not have all of them.
RECORDS = {
    "pytorch_lightning.utilities.rank_zero": (
        r"(TPU|IPU|HPU) available: False, using: 0 ",
        r".{0,2}Tip: For seamless cloud logging and experiment tracking, try installing \[litlogger\]",
        r".{0,2}Tip: For seamless cloud uploads and versioning, try installing \[litmodels\]",
        r"Restoring states from the checkpoint path at ",  # "Restored all states from ..." follows
        r"`Trainer\.fit` stopped: `max_epochs=\d+` reached\.$",
    ),
    "pytorch_lightning.loggers.mlflow": (r"Experiment with name default not found\. Creating it\.$",),
    "pytorch_lightning.loggers.tensorboard": (r"Missing logger folder: ",),
    "lightning_fabric.utilities.seed": (r"\[rank: [1-9]\d*\] Seed set to ",),  # the first process says it too
    # The error is raised as well, and said in one line by callbacks.tracking.
    "mlflow.store.db.utils": (r"SQLAlchemy database error\. The following exception is caught\.",),
}

# Category, beginning of the message.
WARNINGS: tuple[tuple[type[Warning], str], ...] = (
    (FutureWarning, r"`isinstance\(treespec, LeafSpec\)` is deprecated"),  # Lightning's own use of it
    # LOGGING.EVERY_N_STEPS only paces the progress bar: what a run logs, it logs once an epoch.
    (UserWarning, r"The number of training batches \(\d+\) is smaller than the logging interval"),
    (UserWarning, r"Checkpoint directory .* exists and is not empty\.$"),  # of a run that continues
    # DATALOADER.NUM_WORKERS is what the user set; said again for each loader of each epoch.
    (UserWarning, r"The '\w+' does not have many workers which may be a bottleneck\."),
    # It is about a data module's hook that the model's would hide; our data modules have none of this name.
    (UserWarning, r"You have overridden `on_before_batch_transfer`"),
)


def quiet_libraries() -> None:
    """Leave out the lines of the two tables above, in this process. Calling it again changes nothing."""
    for name in RECORDS:
        logging.getLogger(name).addFilter(is_wanted)
    for category, beginning in WARNINGS:
        warnings.filterwarnings("ignore", beginning, category)


def is_wanted(record: logging.LogRecord) -> bool:
    """Whether a record is not one of RECORDS; a filter for its logger."""
    message = record.getMessage()
    return not any(re.match(beginning, message) for beginning in RECORDS.get(record.name, ()))
