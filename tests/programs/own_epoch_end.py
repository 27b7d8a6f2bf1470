"""A subclass of CTLModel with the hooks of Lightning 1.1, none of which calls super() except where it says so.

Prints:
hooks were called, and rates stepped once an epoch
own tag in the log: 2 values
"""
import os
import sys

import pytorch_lightning as pl
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from config import cfg
from train_ctl_model import CTLModel
from utils.misc import run_main

SEEN = {"batches": [], "ends": [], "lists": [], "rates": [], "starts": 0, "batch_ends": 0}


class Mixin:
    def training_epoch_end(self, outputs):
        SEEN["ends"].append(len(outputs))
        assert all("loss" in o and not o["loss"].requires_grad for o in outputs)
        super().training_epoch_end(outputs)  # the base's logging as well
        self.trainer.accelerator_backend.barrier()
        value = float(sum(o["loss"] for o in outputs) / len(outputs))
        self.trainer.logger_connector.callback_metrics.update({"own_tag": value})
        self.trainer.logger.log_metrics({"own_tag": value}, step=self.trainer.current_epoch)
        SEEN["rates"].append(self.lr_scheduler.get_last_lr()[0])
        self.lr_scheduler.step()


class Mine(Mixin, CTLModel):
    def training_step(self, batch, batch_idx, opt_idx=None):
        assert len(batch) == 4
        SEEN["batches"].append(batch_idx)
        return super().training_step(batch, batch_idx, opt_idx)

    def on_fit_start(self):
        pass

    def on_train_start(self):
        pass

    def on_train_epoch_start(self):
        SEEN["starts"] += 1

    def on_train_batch_start(self, batch, batch_idx, dataloader_idx):
        assert dataloader_idx == 0

    def on_train_batch_end(self, outputs, batch, batch_idx, dataloader_idx):
        SEEN["batch_ends"] += 1

    def on_train_epoch_end(self, outputs):
        SEEN["lists"].append(len(outputs))

    def on_validation_epoch_start(self):
        pass


if __name__ == "__main__":
    root = os.path.dirname(os.path.dirname(os.path.abspath(sys.modules["config"].__file__)))
    cfg.merge_from_file(os.path.join(root, "configs", "toy_resnet18_cpu.yml"))
    cfg.merge_from_list(["DATASETS.ROOT_DIR", sys.argv[1], "INPUT.SIZE_TRAIN", [32, 16], "INPUT.SIZE_TEST", [32, 16],
                         "SOLVER.MAX_EPOCHS", 2, "SOLVER.EVAL_PERIOD", 1, "SOLVER.IMS_PER_BATCH", 12, "SOLVER.LR_STEPS", (1,), "SOLVER.LR_SCHEDULER_NAME", "multistep_lr",
                         "SOLVER.USE_WARMUP_LR", False, "REPRODUCIBLE_NUM_RUNS", 1, "LOGGING.MLFLOW", False,
                         "TRAINER.PROGRESS_BAR", False, "OUTPUT_DIR", "out"])
    results = run_main(cfg, Mine, "mine")
    first, second = SEEN["ends"]  # the length of an epoch depends on its draws
    assert SEEN["batches"] == list(range(first)) + list(range(second)), SEEN
    assert SEEN["lists"] == [first, second] and SEEN["starts"] == 2, SEEN
    assert SEEN["batch_ends"] == first + second, SEEN
    base = cfg.SOLVER.BASE_LR
    assert SEEN["rates"] == [base, base * cfg.SOLVER.GAMMA], SEEN
    assert results and "mAP" in results[0]["instances"]
    print("hooks were called, and rates stepped once an epoch")
    events = EventAccumulator("out/mine/version_0")
    events.Reload()
    assert [round(e.value, 8) for e in events.Scalars("lr")] == [round(base, 8), round(base * cfg.SOLVER.GAMMA, 8)]
    assert [e.step for e in events.Scalars("epoch_train_loss")] == [0, 1]
    print("own tag in the log: %d values" % len(events.Scalars("own_tag")))
