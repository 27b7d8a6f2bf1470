"""What the scripts in this folder share: options, and the model that a configuration names.

Imports nothing heavy, so that ``--help`` and wrong options are answered at once.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from yacs.config import CfgNode

from config.cli import whole_number
from config.origins import was_set
from config.recorded import NETWORK, SCALING_IN_TESTS, adopt, differences
from config.switches import Facts, find_foreign, find_unused
from inference.galleries.team import ALONE, Team, divide_cores, find_team
from utils.devices import DEFAULT_WORKERS, choose_devices, count_workers
from utils.errors import MissingPathError, NotACtlCheckpointError, UserError

if TYPE_CHECKING:
    from inference.embedding.embedder import Embedder
    from inference.embedding.engines import Model

logger = logging.getLogger(__name__)

# The keys, or beginnings of keys, that the scripts look at; and those that tell a data set, for --split.
KEYS = (
    *("MODEL.PRETRAIN_PATH", "MODEL.PRETRAIN_MIN_SHARE", "MODEL.USE_CENTROIDS"),
    *("DATASETS.NAMES", "DATASETS.ROOT_DIR", "DATALOADER.NUM_WORKERS", "SOLVER.DISTANCE_FUNC"),
    *("SOLVER.DIST_BACKEND", "TEST.IMS_PER_BATCH", "TRAINER.ACCELERATOR", "TRAINER.PRECISION", "TRAINER.PROGRESS_BAR"),
    *("GPU_IDS", "OUTPUT_DIR", *NETWORK, *SCALING_IN_TESTS),
)
KEYS_OF_GALLERIES = ("GALLERY.DTYPE", "GALLERY.ROWS_PER_FILE")
KEYS_OF_SETS = ("DATASETS.JSON_TRAIN_PATH", "DATASETS.CSV_PATH", "DATASETS.CAMERA_FROM")


def add_input_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --images-in-subfolders, --print_freq and --engine."""
    parser.add_argument(
        "--images-in-subfolders",
        "--images_in_subfolders",
        action="store_true",
        help="take the images in and below the subfolders of DATASETS.ROOT_DIR, not those in the folder itself",
    )
    parser.add_argument(
        "--print_freq",
        "--print-freq",
        type=whole_number(1),
        metavar="N",
        help="batches between two updates of the progress bar; default: several updates a second",
    )
    parser.add_argument(
        "--engine",
        choices=("torch", "onnxruntime", "openvino", "auto"),
        default="torch",
        help="what computes the network; onnxruntime and openvino do on the CPU, and auto takes the fastest that is "
        "installed; default: torch",
    )


def devices_of_children(cfg: CfgNode) -> list[str]:
    """The devices of which each gets a process that this one starts; none if it computes itself.

    Raises:
        UserError: this machine lacks one of them.
    """
    if len(cfg.GPU_IDS) < 2 or find_team() != ALONE:
        return []
    _, devices = choose_devices(cfg.TRAINER.ACCELERATOR, cfg.GPU_IDS, cfg.SOLVER.DIST_BACKEND)
    if isinstance(devices, list):
        return [f"cuda:{device}" for device in devices]
    return [f"the CPU, number {number}" for number in range(devices)] if devices > 1 else []


def embedder_from_config(
    cfg: CfgNode,
    compared: Sequence[str] = (),
    used: Sequence[str] = (),
    engine: str = "torch",
    team: Team = ALONE,
) -> "Embedder":
    """Load MODEL.PRETRAIN_PATH, with the device and the precision of the configuration.

    Image size, scaling and flip are those of the checkpoint where nobody set them.

    Args:
        cfg: the configuration.
        compared: further keys that the program uses: it says where their default is not the value in the checkpoint.
        used: further keys that the program looks at, besides KEYS.
        engine: as for :class:`inference.embedding.embedder.Embedder`.
        team: the processes that share the devices of this machine.

    An exported network (.onnx) keeps its image size and scaling, whatever was set.
    A file that holds weights of MODEL.NAME instead of a CTL checkpoint is taken as it is, with a warning.

    Raises:
        UserError: the checkpoint or the device does not exist, or inference does not have the precision.
    """
    path = cfg.MODEL.PRETRAIN_PATH
    if not path or not Path(path).exists():
        raise MissingPathError(f"MODEL.PRETRAIN_PATH is {path!r}, which does not exist; expected a CTL checkpoint.")
    from inference.embedding.embedder import Embedder
    from inference.embedding.engines import ExportedModel

    accelerator, devices = choose_devices(cfg.TRAINER.ACCELERATOR, cfg.GPU_IDS, cfg.SOLVER.DIST_BACKEND)
    device = f"cuda:{_own_device(devices, team)}" if isinstance(devices, list) else accelerator
    divide_cores(team, accelerator == "cpu")
    # A default for worker processes says nothing about threads; how many of those help depends on the device.
    workers = cfg.DATALOADER.NUM_WORKERS
    threads = -1 if workers in (-1, DEFAULT_WORKERS) else count_workers(workers)
    model = _read_model(cfg)
    # The weights fit their own network only; image size and scaling can be chosen, unless they are part of a file.
    fixed = (*NETWORK, *SCALING_IN_TESTS) if isinstance(model, ExportedModel) else NETWORK
    keys = [key for key in (*NETWORK, *SCALING_IN_TESTS) if was_set(cfg, key)]
    keys += [key for key in compared if not was_set(cfg, key)]
    lines = differences(cfg, model.hparams, keys, from_checkpoint=fixed) + find_foreign(cfg, (*KEYS, *used))
    for line in lines + find_unused(cfg, Facts(accelerator), "GPU_IDS"):
        logger.warning(line)
    if isinstance(devices, list) and len(devices) > 1 and team == ALONE:
        logger.warning("GPU_IDS is %s; inference computes on the first of them only.", devices)
    options = {"engine": engine, "batch_size": cfg.TEST.IMS_PER_BATCH, "num_workers": threads}
    precision = cfg.TRAINER.PRECISION or "32-true"
    if isinstance(model, ExportedModel):
        return Embedder(model, device, precision, **options)
    cfg = adopt(cfg, model.hparams)
    model.hparams.MODEL.NECK_FEAT = cfg.MODEL.NECK_FEAT
    scaling = {"size": cfg.INPUT.SIZE_TEST, "mean": cfg.INPUT.PIXEL_MEAN, "std": cfg.INPUT.PIXEL_STD}
    embedder = Embedder(model, device, precision, **options, **scaling)
    embedder.exif_orientation, embedder.draft_decoding = cfg.INPUT.EXIF_ORIENTATION, cfg.INPUT.DRAFT_DECODING
    embedder.resize, embedder.flip = cfg.INPUT.RESIZE, bool(cfg.TEST.FLIP)
    return embedder


def _read_model(cfg: CfgNode) -> "Model":
    from inference.embedding.engines import ExportedModel, is_exported
    from modelling.bases import ModelBase
    from modelling.from_weights import model_of_weights

    path = cfg.MODEL.PRETRAIN_PATH
    if is_exported(path):
        return ExportedModel(path)
    try:
        return ModelBase.load_from_checkpoint(path, cfg={"MODEL": {"NAME": cfg.MODEL.NAME}})
    except NotACtlCheckpointError as refusal:
        return model_of_weights(ModelBase, path, cfg, refusal, num_classes=1)


def _own_device(devices: Sequence[int], team: Team) -> int:
    import torch

    if team.count > len(devices) < torch.cuda.device_count():
        raise UserError(
            f"{team.launcher} started {team.count} processes on a machine, but GPU_IDS {list(devices)} has "
            f"{len(devices)} devices: list {team.count} devices in GPU_IDS, or start {len(devices)} processes."
        )
    return devices[team.place % len(devices)]
