# encoding: utf-8
import os.path as osp

from .market1501 import Market1501


class DukeMTMCreID(Market1501):
    dataset_dir = "DukeMTMC-reID"

    def setup(self, stage=None):
        assert osp.basename(self.dataset_dir) == "DukeMTMC-reID"
        super().setup()
