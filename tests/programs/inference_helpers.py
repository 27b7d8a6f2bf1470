r"""The functions of inference_utils, called one by one as notebooks did, over a folder of images.

Prints:
folder without images: 0 batches
centroids of \d+ identities
all helpers done
"""
import os
import sys
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

import config

sys.path.append(os.path.join(os.path.dirname(os.path.dirname(config.__file__)), "inference"))
from inference_utils import (
    IMG_EXTENSIONS,
    ImageDataset,
    _inference,
    calculate_centroids,
    create_pid_path_index,
    get_all_images,
    make_inference_data_loader,
    pil_loader,
    run_inference,
)

from config import cfg
from datasets.transforms import ReidTransforms
from train_ctl_model import CTLModel

GALLERY = os.path.join(sys.argv[1], "market1501", "bounding_box_test")
USE_CUDA = False

cfg.merge_from_list(["MODEL.NAME", "resnet18", "MODEL.BACKBONE_EMB_SIZE", 512, "MODEL.PRETRAINED", False,
                     "INPUT.SIZE_TEST", [64, 32], "TEST.IMS_PER_BATCH", 16, "DATALOADER.NUM_WORKERS", 1])
torch.manual_seed(0)
model = CTLModel(cfg, num_classes=5, num_query=2)
for module in model.modules():
    if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
        module.running_mean += 0.1


class Pictures(Dataset):
    """A data set of one's own, as programs had it: it lists the folder by itself."""

    def __init__(self, root, loader=None, transform=None):
        assert os.path.isdir(root), "the folder itself comes in, not a list"
        assert loader is pil_loader
        self.files = sorted(os.path.join(root, n) for n in os.listdir(root) if n.lower().endswith(tuple(IMG_EXTENSIONS)))
        self.loader = loader
        self.transform = transform

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        return self.transform(self.loader(self.files[index])), "", self.files[index]


class Bare(Pictures):
    def __init__(self, path, transform):
        super().__init__(path, pil_loader, transform)


paths_here = get_all_images(GALLERY)
assert paths_here
for dataset_class in (Pictures, Bare, ImageDataset):
    val_loader = make_inference_data_loader(cfg, path=GALLERY, dataset_class=dataset_class)
    embeddings, paths = run_inference(model, val_loader, cfg, 10, USE_CUDA)
    assert embeddings.shape == (len(paths_here), 512) and embeddings.dtype == np.float32
    assert list(paths) == sorted(paths_here)

# A loader and a configuration of one's own, made from the same keys.
transform = ReidTransforms(cfg).build_transforms(is_train=False)
own = DataLoader(Bare(GALLERY, transform), batch_size=7, num_workers=cfg.DATALOADER.NUM_WORKERS)
again, _ = run_inference(model, own, SimpleNamespace(TEST=SimpleNamespace(IMS_PER_BATCH=7)), print_freq=5, use_cuda=False)
assert np.allclose(again, embeddings, rtol=1e-4, atol=1e-4)

# One batch, from a model that somebody left in training mode.
model.train()
running = model.bn.running_mean.clone()
batch = next(iter(own))
emb, emb_paths = _inference(model, batch, USE_CUDA)
assert not model.training and torch.equal(model.bn.running_mean, running)
assert np.allclose(emb.cpu().numpy(), embeddings[:7], rtol=1e-4, atol=1e-4)
assert list(emb_paths) == list(paths[:7])
pooled, _ = _inference(model, batch, USE_CUDA, normalize_with_bn=False)
assert torch.allclose(model.bn(pooled), emb)
emb /= emb.norm(dim=1, keepdim=True)
head = torch.nn.Linear(512, 3)
head(emb).sum().backward()
assert head.weight.grad is not None

# Folders with nothing in them are common in services.
os.makedirs("empty")
with open(os.path.join("empty", "readme.txt"), "w") as stream:
    stream.write("nothing here")
nothing = make_inference_data_loader(cfg, "empty", ImageDataset)
print("folder without images:", len(nothing), "batches")
assert len(nothing) == 0
try:
    make_inference_data_loader(cfg, "nowhere", ImageDataset)
    raise SystemExit("a folder that does not exist")
except (OSError, ValueError) as error:
    assert "nowhere" in str(error)

# One image.
Image.open(paths_here[0]).save("one.png")
one, one_path = run_inference(model, make_inference_data_loader(cfg, "one.png", ImageDataset), cfg, 10, use_cuda=False)
assert one.shape == (1, 512) and list(one_path) == ["one.png"]

# Identities from file names, numbered by a program that has them as integers.
index = create_pid_path_index(paths, lambda path: int(os.path.basename(path).split("_")[0]))
assert sum(len(rows) for rows in index.values()) == len(paths)
centroids, ids = calculate_centroids(embeddings, index)
print("centroids of", len(ids), "identities")
assert ids.dtype.kind == "U" and [int(pid) for pid in ids] == list(index)
first = list(index.values())[0]
assert np.allclose(centroids[0], embeddings[first].mean(0), rtol=1e-4, atol=1e-5)
index = create_pid_path_index(paths=paths, func=lambda path: path.split(os.sep)[-2])
assert list(index) == ["bounding_box_test"]
print("all helpers done")
