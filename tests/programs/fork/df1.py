# encoding: utf-8
import os.path as osp
from collections import defaultdict

from .bases import BaseDatasetLabelled, BaseDatasetLabelledPerPid, COCODatasetBase
from .transforms import ReidTransforms


class DF1(COCODatasetBase):
    def __init__(self, cfg, **kwargs):
        super().__init__(cfg, **kwargs)
        self.dataset_dir = cfg.DATASETS.ROOT_DIR
        self.train_dir, self.query_dir, self.gallery_dir = [osp.join(self.dataset_dir, s) for s in ("train", "query", "gallery")]

    def setup(self):
        self._check_before_run()
        builder = ReidTransforms(self.cfg)
        train_dict, self.train_list = self._process_dir("train", relabel=True)
        _, self.query_list = self._process_dir("query")
        _, self.gallery_list = self._process_dir("gallery")
        self.train_dict = train_dict
        self.train = BaseDatasetLabelledPerPid(
            train_dict, builder.build_transforms(is_train=True), self.num_instances, self.cfg.DATALOADER.USE_RESAMPLING
        )
        self.val = BaseDatasetLabelled(self.query_list + self.gallery_list, builder.build_transforms(is_train=False))
        self._print_dataset_statistics(self.train_list, self.query_list, self.gallery_list)
        self.num_query = len(self.query_list)
        self.num_classes = len(train_dict)

    def _process_dir(self, mode, relabel=False):
        folder, name = osp.split(self.cfg.DATASETS.JSON_TRAIN_PATH)
        content = self._load_json(osp.join(folder, name.replace("train", mode)))
        files = {image["id"]: image["file_name"] for image in content["images"]}
        groups = defaultdict(list)
        for annotation in content["annotations"]:
            groups[annotation["pair_id"]].append(osp.join(self.dataset_dir, mode, files[annotation["image_id"]]))
        if relabel:
            kept = sorted(pid for pid, paths in groups.items() if len(paths) > 1)
            groups = {n: groups[pid] for n, pid in enumerate(kept)}
        camid = 1 if mode == "gallery" else 0
        rows = {pid: [(path, pid, camid, mode) for path in groups[pid]] for pid in groups}
        return rows, [row for pid in rows for row in rows[pid]]
