# mypy: ignore-errors
"""Searches a gallery as a script of 2021 does: it lies in inference/, is run from there, and uses inference_utils."""

import argparse
import os
import sys

import numpy as np
import torch

sys.path.append("..")

from inference_utils import ImageDataset, _inference, make_inference_data_loader

from config import cfg
from train_ctl_model import CTLModel
from utils.reid_metric import get_dist_func

parser = argparse.ArgumentParser(description="Find the most similar images of the gallery")
parser.add_argument("--config_file", default="", type=str)
parser.add_argument("--gallery_data", type=str, required=True)
parser.add_argument("--normalize_features", action="store_true")
parser.add_argument("--topk", type=int, default=100)
parser.add_argument("opts", default=None, nargs=argparse.REMAINDER)
args = parser.parse_args()
if args.config_file != "":
    cfg.merge_from_file(args.config_file)
cfg.merge_from_list(args.opts)

gallery = torch.from_numpy(np.load(os.path.join(args.gallery_data, "embeddings.npy"), allow_pickle=True))  # noqa: PTH118
gallery_paths = np.load(os.path.join(args.gallery_data, "paths.npy"), allow_pickle=True)  # noqa: PTH118

model = CTLModel.load_from_checkpoint(cfg.MODEL.PRETRAIN_PATH)
use_cuda = torch.cuda.is_available() and len(cfg.GPU_IDS) > 0
loader = make_inference_data_loader(cfg, cfg.DATASETS.ROOT_DIR, ImageDataset)
embeddings, paths = [], []
for pos, batch in enumerate(loader):
    embedding, path = _inference(model, batch, use_cuda)
    embeddings.append(embedding.detach().cpu())
    paths.extend(path)
    if pos % 10 == 0:
        print("Number of processed images:", pos * cfg.TEST.IMS_PER_BATCH)
queries = torch.cat(embeddings)
if args.normalize_features:
    queries = torch.nn.functional.normalize(queries, dim=1, p=2)
    gallery = torch.nn.functional.normalize(gallery, dim=1, p=2)

distances = get_dist_func(cfg.SOLVER.DISTANCE_FUNC)(x=queries, y=gallery).cpu().numpy()
indices = np.argsort(distances, axis=1)
topk = args.topk if args.topk else len(gallery)
out = {
    path: {
        "indices": indices[n, :topk],
        "paths": gallery_paths[indices[n, :topk]],
        "distances": distances[n, indices[n, :topk]],
    }
    for n, path in enumerate(paths)
}
os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)  # noqa: PTH103
np.save(os.path.join(cfg.OUTPUT_DIR, "results.npy"), out)  # noqa: PTH118
