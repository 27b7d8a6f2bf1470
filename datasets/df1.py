"""DeepFashion Consumer-to-Shop ("DeepFashion: Powering Robust Clothes Recognition and Retrieval", CVPR 2016)."""

from datasets.readers.coco import CocoDataModule


class DF1(CocoDataModule):
    """The COCO files and images that scripts/deep_fashion2reid.py writes."""
