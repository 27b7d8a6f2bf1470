# mypy: ignore-errors
"""Embeds a folder as a script of 2021 does: it lies in inference/, is run from there, and uses inference_utils."""

import argparse
import logging
import os
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.append(".")
sys.path.append("..")

from inference_utils import (
    ImageDataset,
    ImageFolderWithPaths,
    calculate_centroids,
    create_pid_path_index,
    make_inference_data_loader,
    run_inference,
)

from config import cfg
from train_ctl_model import CTLModel

logging.basicConfig(level=logging.INFO, stream=sys.stdout)
log = logging.getLogger(__name__)

parser = argparse.ArgumentParser(description="Create embeddings for images that will serve as the database (gallery)")
parser.add_argument("--config_file", default="", help="path to config file", type=str)
parser.add_argument("--images-in-subfolders", help="if images are stored in the subfloders", action="store_true")
parser.add_argument("--print_freq", help="number of batches the logging message is printed", type=int, default=10)
parser.add_argument("opts", help="Modify config options using the command-line", default=None, nargs=argparse.REMAINDER)
args = parser.parse_args()
if args.config_file != "":
    cfg.merge_from_file(args.config_file)
cfg.merge_from_list(args.opts)


def extract_func(path):
    return path.rsplit("/", 2)[1]


log.info("Preparing data using %s type of dataset", ImageFolderWithPaths if args.images_in_subfolders else ImageDataset)
val_loader = make_inference_data_loader(
    cfg, cfg.DATASETS.ROOT_DIR, ImageFolderWithPaths if args.images_in_subfolders else ImageDataset
)
if len(val_loader) == 0:
    raise RuntimeError("Length of dataloader = 0")
model = CTLModel.load_from_checkpoint(cfg.MODEL.PRETRAIN_PATH)
use_cuda = True if torch.cuda.is_available() and cfg.GPU_IDS else False  # noqa: SIM210
embeddings, paths = run_inference(model, val_loader, cfg, print_freq=args.print_freq, use_cuda=use_cuda)

if cfg.MODEL.USE_CENTROIDS:
    pid_path_index = create_pid_path_index(paths=paths, func=extract_func)
    embeddings, paths = calculate_centroids(embeddings, pid_path_index)

SAVE_DIR = Path(cfg.OUTPUT_DIR)
SAVE_DIR.mkdir(exist_ok=True, parents=True)
np.save(os.path.join(str(SAVE_DIR), "embeddings.npy"), embeddings)  # noqa: PTH118
np.save(os.path.join(str(SAVE_DIR), "paths.npy"), paths)  # noqa: PTH118
log.info("Saved %d embeddings", len(paths))
