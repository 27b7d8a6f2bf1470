"""Trains with old data modules: a loader built by the subclass, a data set of its own class, a mixin, two sets joined.

Prints:
    called with None None 0 1 1
    epochs in order
    joined: 36 identities
"""
import os.path as osp
import sys
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

from config import cfg
from datasets.bases import (
    BaseDatasetLabelled,
    BaseDatasetLabelledPerPid,
    ReidBaseDataModule,
    collate_fn_alternative,
    pil_loader,
)
from datasets.samplers import get_sampler
from datasets.transforms import ReidTransforms

epochs = []


class Lists:  # a mixin
    def setup(self):
        root = Path(self.cfg.DATASETS.ROOT_DIR) / "market1501"
        read = lambda name: [(str(p), int(p.name[:4]), int(p.name[6]) - 1, name) for p in sorted((root / name).glob("0*.jpg"))]  # noqa: E731
        self.train_list, self.query_list, self.gallery_list = map(read, ("bounding_box_train", "query", "bounding_box_test"))
        own = sorted({row[1] for row in self.train_list})
        self.train_dict = {n: [(r[0], n, r[2], "train") for r in self.train_list if r[1] == pid] for n, pid in enumerate(own)}
        self.make_datasets()


class Seen(BaseDatasetLabelledPerPid):
    def prepare_img(self, path):
        assert osp.isfile(path)
        return super().prepare_img(path)


class OwnLoader(Lists, ReidBaseDataModule):
    def make_datasets(self):
        transforms = ReidTransforms(self.cfg)
        self.train = Seen(self.train_dict, transforms.build_transforms(), self.num_instances, resample=True)
        self.val = BaseDatasetLabelled(self.query_list + self.gallery_list, transforms.build_transforms(is_train=False))

    def train_dataloader(self, cfg, trainer, sampler_name="random_identity", **kwargs):
        print("called with", trainer.distributed_backend, trainer.root_gpu, trainer.local_rank, trainer.num_nodes, trainer.num_processes)
        assert trainer.max_epochs == 2
        sampler = get_sampler(
            sampler_name,
            data_source=self.train_dict,
            batch_size=cfg.SOLVER.IMS_PER_BATCH,
            num_instances=self.num_instances,
            world_size=trainer.num_nodes * trainer.num_processes,
            rank=trainer.local_rank,
        )
        set_epoch = sampler.set_epoch
        sampler.set_epoch = lambda epoch: (epochs.append(epoch), set_epoch(epoch))
        return DataLoader(self.train, self.cfg.SOLVER.IMS_PER_BATCH, num_workers=self.num_workers, sampler=sampler,
                          collate_fn=collate_fn_alternative, **kwargs)  # fmt: skip


class Rows(Dataset):
    def __init__(self, train_dict, transform, num):
        self.train_dict, self.transform, self.num = train_dict, transform, num

    def __len__(self):
        return len(self.train_dict)

    def __getitem__(self, pid):
        rows = self.train_dict[pid][: self.num]
        return [(self.transform(pil_loader(p)), pid, camid, mode, True) for p, pid, camid, mode in rows]


class Items(Dataset):
    def __init__(self, rows, transform):
        self.rows, self.transform = rows, transform

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        path, pid, camid, mode = self.rows[index]
        return self.transform(pil_loader(path)), pid, camid, mode


class OwnDatasets(Lists, ReidBaseDataModule):
    def make_datasets(self):
        transforms = ReidTransforms(self.cfg)
        self.train = Rows(self.train_dict, transforms.build_transforms(), self.num_instances)
        self.val = Items(self.query_list + self.gallery_list, transforms.build_transforms(is_train=False))


class Twin(OwnLoader):
    def make_datasets(self):
        self.train_list = [(row[0].replace("/market1501/", "/./market1501/"), *row[1:]) for row in self.train_list]
        super().make_datasets()


if __name__ == "__main__":
    from datasets import init_dataset, register_dataset
    from train_ctl_model import CTLModel
    from utils.misc import run_main

    root = Path(sys.modules["config"].__file__).parents[1]
    cfg.merge_from_file(str(root / "configs/toy_resnet18_cpu.yml"))
    cfg.merge_from_list(["DATASETS.ROOT_DIR", sys.argv[1], "INPUT.SIZE_TRAIN", [32, 16], "INPUT.SIZE_TEST", [32, 16], "SOLVER.WARMUP_EPOCHS", 1,
                         "SOLVER.IMS_PER_BATCH", 6, "DATALOADER.NUM_WORKERS", 0, "LOGGING.MLFLOW", False,
                         "TRAINER.PROGRESS_BAR", False])  # fmt: skip
    for name, kind in (("own_loader", OwnLoader), ("own_datasets", OwnDatasets)):
        register_dataset(name, kind)
        cfg.merge_from_list(["DATASETS.NAMES", name, "OUTPUT_DIR", "out_" + name, "SOLVER.MAX_EPOCHS", 2 if name == "own_loader" else 1,
                             "SOLVER.EVAL_PERIOD", 1 if name != "own_loader" else 2])  # fmt: skip
        (metrics,) = run_main(cfg, CTLModel, "train")
        assert 0 < metrics["instances"]["mAP"] <= 1
    assert set(epochs) == {0, 1} and epochs == sorted(epochs), epochs
    print("epochs in order")
    register_dataset("twin", Twin)
    joined = init_dataset("own_datasets+twin", cfg=cfg, num_workers=0)
    joined.setup()
    assert next(iter(joined.train_dataloader()))[0].shape == (24, 3, 32, 16)
    print("joined:", joined.num_classes, "identities")
