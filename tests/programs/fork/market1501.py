# encoding: utf-8
import glob
import os.path as osp
import re
from collections import defaultdict

from .bases import BaseDatasetLabelled, BaseDatasetLabelledPerPid, ReidBaseDataModule
from .transforms import ReidTransforms


class Market1501(ReidBaseDataModule):
    dataset_dir = "market1501"

    def __init__(self, cfg, **kwargs):
        super().__init__(cfg, **kwargs)
        self.dataset_dir = osp.join(cfg.DATASETS.ROOT_DIR, self.dataset_dir)
        self.train_dir = osp.join(self.dataset_dir, "bounding_box_train")
        self.query_dir = osp.join(self.dataset_dir, "query")
        self.gallery_dir = osp.join(self.dataset_dir, "bounding_box_test")

    def setup(self):
        self._check_before_run()
        builder = ReidTransforms(self.cfg)
        train, train_dict = self._process_dir(self.train_dir, relabel=True)
        query, _ = self._process_dir(self.query_dir)
        gallery, _ = self._process_dir(self.gallery_dir)
        self.train_list, self.query_list, self.gallery_list = train, query, gallery
        self.train_dict = train_dict
        self.train = BaseDatasetLabelledPerPid(
            train_dict, builder.build_transforms(is_train=True), self.num_instances, self.cfg.DATALOADER.USE_RESAMPLING
        )
        self.val = BaseDatasetLabelled(query + gallery, builder.build_transforms(is_train=False))
        self._print_dataset_statistics(train, query, gallery)
        self.num_query = len(query)
        self.num_classes, _, _ = self._get_imagedata_info(train)

    def _process_dir(self, dir_path, relabel=False):
        pattern = re.compile(r"([-\d]+)_c(\d)")
        rows = []
        for path in sorted(glob.glob(osp.join(dir_path, "*.jpg"))):
            pid, camid = map(int, pattern.search(osp.basename(path)).groups())
            if pid != -1:
                rows.append((path, pid, camid - 1))
        label = {pid: n for n, pid in enumerate(sorted({pid for _, pid, _ in rows}))}
        dataset, dataset_dict = [], defaultdict(list)
        for pid in sorted(label):
            for path, _, camid in [row for row in rows if row[1] == pid]:
                number = label[pid] if relabel else pid
                dataset_dict[number].append((path, number, camid, len(dataset)))
                dataset.append((path, number, camid, len(dataset)))
        return dataset, dataset_dict
