"""The one small configuration: the shortest run on the CPU that does everything."""

from typing import Any

from yacs.config import CfgNode

from config.load import load_config

SMALL: dict[str, Any] = {
    "MODEL.NAME": "resnet18",
    "MODEL.BACKBONE_EMB_SIZE": 512,
    "MODEL.PRETRAINED": False,
    "INPUT.SIZE_TRAIN": [32, 16],
    "INPUT.SIZE_TEST": [32, 16],
    "INPUT.PADDING": 2,
    "SOLVER.IMS_PER_BATCH": 3,
    "SOLVER.MAX_EPOCHS": 2,
    "SOLVER.EVAL_PERIOD": 1,
    "SOLVER.WARMUP_EPOCHS": 2,
    "SOLVER.LR_STEPS": (3,),
    "TEST.IMS_PER_BATCH": 32,
    "DATALOADER.NUM_WORKERS": 0,
    "USE_MIXED_PRECISION": False,
    "GPU_IDS": [],
    "REPRODUCIBLE": True,
    "REPRODUCIBLE_NUM_RUNS": 1,
    "TRAINER.PROGRESS_BAR": False,
    "LOGGING.MLFLOW": False,
}


def small_options(**overrides: Any) -> list[Any]:
    """KEY, VALUE, ... as load_config and the scripts take them; ``**{"SOLVER.MARGIN": 0.5}`` replaces a value."""
    return [part for pair in (SMALL | overrides).items() for part in pair]


def small_config(**overrides: Any) -> CfgNode:
    """The same as a configuration of its own, checked as a user's is."""
    return load_config("", small_options(**overrides))
