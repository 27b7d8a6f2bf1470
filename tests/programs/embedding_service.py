r"""An embedding service: loads a checkpoint once, embeds folders, searches with its own sorting, saves arrays.

Prints:
itself is nearest for all \d+ images
saved \(\d+, 512\)
service done
"""
import argparse
import os

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from config import cfg
from datasets.transforms import ReidTransforms
from inference.inference_utils import IMG_EXTENSIONS, make_inference_data_loader, pil_loader, run_inference
from train_ctl_model import CTLModel
from utils.reid_metric import get_dist_func


class UploadedImages(Dataset):
    def __init__(self, folder, transform=None, loader=pil_loader):
        names = sorted(os.listdir(folder))
        self.images = [os.path.join(folder, name) for name in names if os.path.splitext(name)[1] in IMG_EXTENSIONS]
        self.transform, self.loader = transform, loader

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.transform(self.loader(self.images[i])), 0, self.images[i]


class EmbeddingService(object):
    def __init__(self, checkpoint, cfg):
        self.cfg = cfg
        self.use_cuda = torch.cuda.is_available() and len(cfg.GPU_IDS) > 0
        self.model = CTLModel.load_from_checkpoint(checkpoint, cfg=cfg)
        self.dist_func = get_dist_func(cfg.SOLVER.DISTANCE_FUNC)

    def embed(self, folder):
        loader = make_inference_data_loader(self.cfg, folder, UploadedImages)
        if len(loader) == 0:
            return np.zeros((0, self.cfg.MODEL.BACKBONE_EMB_SIZE), dtype=np.float32), np.array([])
        embeddings, paths = run_inference(self.model, loader, self.cfg, 10, self.use_cuda)
        embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
        return embeddings, paths

    def search(self, queries, gallery, topk):
        distances = self.dist_func(x=torch.from_numpy(queries), y=torch.from_numpy(gallery)).cpu().numpy()
        order = np.argsort(distances, axis=1)[:, :topk]
        return order, np.take_along_axis(distances, order, axis=1)


def make_checkpoint(path):
    """Stands in for a training: weights of one's own, the parameters beside them as Lightning 1.1 wrote them."""
    torch.manual_seed(0)
    model = CTLModel(cfg, num_classes=7, num_query=3)
    torch.save({"epoch": 1, "global_step": 2, "pytorch-lightning_version": "1.1.4", "state_dict": model.state_dict(),
                "hparams_name": "cfg", "hyper_parameters": dict(cfg, num_classes=7, num_query=3)}, path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("data")
    args = parser.parse_args()
    folder = os.path.join(args.data, "market1501", "query")

    cfg.merge_from_list(["MODEL.NAME", "resnet18", "MODEL.BACKBONE_EMB_SIZE", 512, "MODEL.PRETRAINED", False,
                         "INPUT.SIZE_TEST", [64, 32], "TEST.IMS_PER_BATCH", 8, "SOLVER.DISTANCE_FUNC", "cosine"])
    make_checkpoint("epoch=1.ckpt")
    cfg.merge_from_list(["TEST.ONLY_TEST", True, "MODEL.PRETRAIN_PATH", "epoch=1.ckpt"])
    cfg.freeze()
    assert cfg.DATALOADER.NUM_WORKERS >= 0, "torch's own loader takes no negative number"

    service = EmbeddingService("epoch=1.ckpt", cfg)
    embeddings, paths = service.embed(folder)
    order, distances = service.search(embeddings, embeddings, topk=5)
    assert order.shape == (len(paths), 5) and (np.diff(distances, axis=1) >= 0).all()
    assert (order[:, 0] == np.arange(len(paths))).all()
    print("itself is nearest for all", len(paths), "images")

    transform = ReidTransforms(cfg).build_transforms(is_train=False)
    loader = DataLoader(UploadedImages(folder, transform), batch_size=8, num_workers=cfg.DATALOADER.NUM_WORKERS)
    again, _ = run_inference(service.model, loader, cfg, 10, service.use_cuda)
    assert np.allclose(again / np.linalg.norm(again, axis=1, keepdims=True), embeddings, atol=1e-4)

    os.makedirs("uploads/nothing")
    assert service.embed("uploads/nothing")[0].shape == (0, 512)

    np.save("embeddings.npy", embeddings)
    np.save("paths.npy", paths)
    np.save("results.npy", {path: {"indices": o, "paths": paths[o], "distances": d} for path, o, d in zip(paths, order, distances)})
    print("saved", np.load("embeddings.npy").shape)
    results = np.load("results.npy", allow_pickle=True).item()
    assert results[paths[0]]["paths"][0] == paths[0]
    print("service done")
