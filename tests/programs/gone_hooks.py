"""Hooks that Lightning 2 never calls: the run ends before it begins, and the message says what to write instead.

Prints:
Mine.validation_epoch_end is never .* on_validation_epoch_end.*docs/MIGRATION.md
Mine.test_epoch_end .* on_test_epoch_end.*docs/MIGRATION.md
Mine.optimizer_step .* training_step.*docs/MIGRATION.md
lacks the section\\(s\\) LOGGING, LOSSES, TRAINER and .*MIGRATION.md
"""
import os
import sys

from yacs.config import CfgNode

from config import cfg
from train_ctl_model import CTLModel
from utils.misc import run_main

root = os.path.dirname(os.path.dirname(os.path.abspath(sys.modules["config"].__file__)))
cfg.merge_from_file(os.path.join(root, "configs", "toy_resnet18_cpu.yml"))
cfg.merge_from_list(["DATASETS.ROOT_DIR", sys.argv[1], "INPUT.SIZE_TRAIN", [32, 16], "INPUT.SIZE_TEST", [32, 16],
                     "SOLVER.MAX_EPOCHS", 1, "REPRODUCIBLE_NUM_RUNS", 1, "LOGGING.MLFLOW", False, "OUTPUT_DIR", "out"])

HOOKS = {
    "validation_epoch_end": lambda self, outputs: None,
    "test_epoch_end": lambda self, outputs: None,
    "optimizer_step": lambda self, epoch, batch_idx, optimizer, optimizer_idx, *args, **kwargs: optimizer.step(),
}
for name, hook in HOOKS.items():
    Mine = type("Mine", (CTLModel,), {name: hook, "training_step": lambda self, batch, batch_idx: sys.exit("a step was made")})
    try:
        run_main(cfg, Mine, "mine")
    except ValueError as error:
        print(error)
    else:
        sys.exit("no error for " + name)

old = CfgNode({name: value for name, value in cfg.items() if name not in ("LOGGING", "LOSSES", "TRAINER")})
del old.MODEL["CHANNELS_LAST"]
try:
    run_main(old, CTLModel, "mine")
except ValueError as error:
    print(error)
