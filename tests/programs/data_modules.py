"""Data sets written in 2021's style: fills its lists in setup(self), restarts the fourth entry for the gallery.

Prints:
    subset .* ids .* images .* cameras
    train .* 18 .* 108 .* 3
    files in any order: ok
    loaders: ok
    refused: ok
    all right
"""
import glob
import os.path as osp
import random
import re
import sys
from collections import defaultdict

import torch

from config import cfg
from datasets.bases import (
    BaseDatasetLabelled,
    BaseDatasetLabelledPerPid,
    COCODatasetBase,
    ReidBaseDataModule,
    collate_fn_alternative,
    pil_loader,
)
from datasets.samplers import get_names, get_sampler
from datasets.samplers.distributed_pids_sampler import RandomIdentitySampler
from datasets.transforms import ReidTransforms
from datasets.transforms.random_erasing import RandomErasing


class Shop(ReidBaseDataModule):
    dataset_dir = "market1501"

    def __init__(self, cfg, shuffle_files=False, **kwargs):
        super().__init__(cfg, **kwargs)
        self.shuffle_files = shuffle_files
        self.calls = 0
        self.dataset_dir = osp.join(cfg.DATASETS.ROOT_DIR, self.dataset_dir)
        self.train_dir = osp.join(self.dataset_dir, "bounding_box_train")
        self.query_dir = osp.join(self.dataset_dir, "query")
        self.gallery_dir = osp.join(self.dataset_dir, "bounding_box_test")

    def setup(self):
        self.calls += 1
        self._check_before_run()
        transforms_base = ReidTransforms(self.cfg)
        train, train_dict = self._process_dir(self.train_dir, relabel=True)
        query, query_dict = self._process_dir(self.query_dir, relabel=False)
        gallery, gallery_dict = self._process_dir(self.gallery_dir, relabel=False)
        self.train_dict, self.train_list, self.query_list, self.gallery_list = train_dict, train, query, gallery
        self.train = BaseDatasetLabelledPerPid(
            train_dict, transforms_base.build_transforms(is_train=True), self.num_instances, self.cfg.DATALOADER.USE_RESAMPLING
        )
        self.val = BaseDatasetLabelled(query + gallery, transforms_base.build_transforms(is_train=False))
        self._print_dataset_statistics(train, query, gallery)
        self.num_query = len(query)
        self.num_classes, num_imgs, num_cams = self._get_imagedata_info(train)
        assert num_imgs == len(train) and num_cams == 3

    def _process_dir(self, dir_path, relabel):
        paths = glob.glob(osp.join(dir_path, "*.jpg"))
        if self.shuffle_files:
            random.Random(3).shuffle(paths)
        else:
            paths.sort()
        pattern = re.compile(r"([-\d]+)_c(\d)")
        pids = sorted({int(pattern.search(path).group(1)) for path in paths} - {-1})
        pid2label = {pid: label for label, pid in enumerate(pids)}
        dataset, dataset_dict = [], defaultdict(list)
        for idx, path in enumerate(p for p in paths if not osp.basename(p).startswith("-1")):
            pid, camid = map(int, pattern.search(path).groups())
            pid = pid2label[pid] if relabel else pid
            dataset.append((path, pid, camid - 1, idx))
            dataset_dict[pid].append((path, pid, camid - 1, idx))
        return dataset, dataset_dict


class Adrift(Shop):
    def setup(self):
        super().setup()
        self.train_dict = {pid + 1000: [(p, pid + 1000, c, i) for p, _, c, i in rows] for pid, rows in self.train_dict.items()}


class Empty(ReidBaseDataModule):
    def setup(self):
        self.train_list = []


class Trainer:  # as Lightning 1.1 told the place of a process
    distributed_backend, root_gpu, local_rank, num_nodes, num_processes = "ddp", None, 1, 1, 2


def refusal(call):
    try:
        call()
    except Exception as error:
        return error
    raise AssertionError("no error")


if __name__ == "__main__":
    cfg.merge_from_list(["DATASETS.ROOT_DIR", sys.argv[1], "INPUT.SIZE_TRAIN", [64, 32], "INPUT.SIZE_TEST", [64, 32],
                         "SOLVER.IMS_PER_BATCH", 4, "DATALOADER.NUM_WORKERS", 0])  # fmt: skip
    shop = Shop(cfg, num_workers=0, anything="goes")
    for stage in ((), ("fit",), ("test",), ()):
        shop.setup(*stage)
    shop.setup(stage="validate")
    assert shop.calls == 1
    assert shop.has_cameras and len(shop.train_pids) == 18 and shop.num_classes == 18
    assert shop.num_instances == 4 and Shop(cfg, num_instances=3).num_instances == 3
    assert shop.num_workers == 0 and Shop(cfg).num_workers == cfg.DATALOADER.NUM_WORKERS and shop.cfg is cfg
    assert shop.gallery_list[0][3] == 0
    assert shop.val.samples == shop.query_list + shop.gallery_list and shop.train.samples is shop.train_dict

    mixed = Shop(cfg, shuffle_files=True)
    mixed.setup()
    assert sorted(mixed.train_list)[0][:3] == shop.train_list[0][:3] and mixed.train_list != shop.train_list
    images, pids, camids, is_real = next(iter(mixed.train_dataloader()))
    assert images.shape == (16, 3, 64, 32) and is_real.dtype == torch.bool
    print("files in any order: ok")

    numbers = torch.cat([batch[3] for batch in shop.val_dataloader()])
    assert numbers.tolist() == list(range(len(shop.query_list) + len(shop.gallery_list)))
    paths = BaseDatasetLabelled(shop.query_list, ReidTransforms(cfg).build_transforms(False), return_paths=True)
    assert paths[2][3] == shop.query_list[2][0]
    plain = BaseDatasetLabelled(shop.query_list)
    assert plain[0][0].size == pil_loader(shop.query_list[0][0]).size == (32, 64)
    rows = BaseDatasetLabelledPerPid(shop.train_dict, None, num_instances=8)[0]
    assert len(rows) == 8 and [row[4] for row in rows] == [True] * 6 + [False] * 2
    assert rows[7][0].size == (32, 64) and rows[7][0].getextrema() == ((0, 0),) * 3 and rows[7][1] == 0
    assert shop.train.prepare_img(shop.train_list[0][0]).shape == (3, 64, 32)
    loader = shop.train_dataloader(cfg, Trainer(), sampler_name="random_identity", drop_last=True, num_workers=0)
    assert (loader.sampler.world_size, loader.sampler.rank, loader.drop_last) == (2, 1, True)
    loader = shop.train_dataloader(cfg, Trainer(), "random_identity", pin_memory=False, num_workers=1)
    assert loader.num_workers == 1 and loader.batch_size == 4 and loader.collate_fn is collate_fn_alternative
    assert get_names() == ["random_identity"]
    sampler = get_sampler(name="random_identity", data_source=shop.train_dict, batch_size=4, num_instances=4, world_size=1, rank=0)
    assert type(sampler) is RandomIdentitySampler
    print("loaders: ok")

    shop.query_dir = osp.join(shop.dataset_dir, "nowhere")
    try:
        shop._check_before_run()
    except RuntimeError as error:
        assert "nowhere" in str(error)
    else:
        raise AssertionError("no error")
    assert "has not set train_dict, query_list, gallery_list, train, val" in str(refusal(Empty(cfg).setup))
    assert "expected 0 to 17" in str(refusal(Adrift(cfg).setup))
    assert "market1501" in str(refusal(COCODatasetBase(cfg)._check_before_run)) or osp.isdir(sys.argv[1])
    assert isinstance(refusal(lambda: COCODatasetBase(cfg)._load_json(osp.join(sys.argv[1], "none.json"))), OSError)
    print("refused: ok")

    erased = RandomErasing(1.0, 0.02, 0.4, 0.3, [0.1, 0.2, 0.3])(torch.zeros(3, 40, 20))
    assert set(erased[1].unique().tolist()) == {0.0, float(torch.tensor(0.2))}
    erased = RandomErasing(probability=1, sl=0.02, sh=0.4, r1=0.3, mean=(0.5, 0.5, 0.5))(torch.zeros(3, 40, 20))
    assert erased.max() == 0.5
    print("all right")
