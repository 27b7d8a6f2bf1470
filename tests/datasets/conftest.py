"""Small drawn data sets in both layouts, and a configuration that fits them."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from yacs.config import CfgNode

from tests.small import small_config

MARKET_FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
# Images by subset and identity: the camera of each, in order.
MARKET = {
    "train": {2: [1, 1, 2], 7: [1, 2, 3, 3, 1, 2, 2, 1, 5], 11: [4, 5], 30: [6], 31: [1, 2, 3, 4], 44: [2, 1, 2, 1, 1]},
    "query": {5: [1], 6: [2, 3]},
    "gallery": {0: [4], 5: [1, 2], 6: [1], 9: [3]},
}

# Every augmentation and resize that is off by default.
AUGMENTED = {
    "INPUT.RESIZE": "pad",
    "INPUT.RAND_AUGMENT": [2, 9],
    "INPUT.COLOR_JITTER": [0.3, 0.2, 0.4, 0.1],
    "INPUT.COLOR_JITTER_PROB": 0.6,
    "INPUT.GRAY_PROB": 0.3,
    "INPUT.RE_MODE": "pixel",
    "INPUT.RE_AREA": [0.1, 0.2],
}


def write_image(path: Path, seed: int = 0, size: tuple[int, int] = (12, 24)) -> Path:
    """A noise picture, width then height."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def write_folders(root: Path, subsets: Mapping[str, Mapping[int, Sequence[int]]]) -> Path:
    """ROOT_DIR/market1501 or ROOT_DIR/DukeMTMC-reID; returns the folder given."""
    number = 0
    for subset, identities in subsets.items():
        (root / MARKET_FOLDERS[subset]).mkdir(parents=True, exist_ok=True)
        for pid, cameras in identities.items():
            for camera in cameras:
                number += 1
                write_image(root / MARKET_FOLDERS[subset] / f"{pid:04d}_c{camera}s1_{number:06d}_01.jpg", number)
    return root


@pytest.fixture
def market(tmp_path: Path) -> Path:
    """A Market-1501 layout; returns ROOT_DIR."""
    write_folders(tmp_path / "market1501", MARKET)
    return tmp_path


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """A COCO layout under a folder that is itself called train; returns ROOT_DIR."""
    root = tmp_path / "train_data"
    # pair_id of each image
    subsets = {"train": [9, 4, 9, 5, 4, 9, 12, 12], "query": [3, 8], "gallery": [8, 3, 3, 40]}
    for subset, pids in subsets.items():
        images, annotations = [], []
        for i, pid in enumerate(pids):
            write_image(root / subset / f"{subset}_{i}.jpg", i)
            images.append({"id": 100 + i, "file_name": f"{subset}_{i}.jpg"})
            annotations.append({"id": i, "image_id": 100 + i, "pair_id": pid})
        # The order of images need not be that of annotations.
        content = {"images": images[::-1], "annotations": annotations}
        (root / f"{subset}_reid.json").write_text(json.dumps(content))
    return root


@pytest.fixture
def make_cfg() -> Callable[..., CfgNode]:
    """make_cfg(root, "KEY", value, ...): small_config for images of 16 x 8 pixels, in batches of 2 x 2."""
    even_smaller = {"INPUT.SIZE_TRAIN": [16, 8], "INPUT.SIZE_TEST": [16, 8], "TEST.IMS_PER_BATCH": 4}
    batches = {"SOLVER.IMS_PER_BATCH": 2, "DATALOADER.NUM_INSTANCE": 2}

    def make(root: Path, *options: Any) -> CfgNode:
        given = dict(zip(options[::2], options[1::2], strict=True))
        return small_config(**{**even_smaller, **batches, "DATASETS.ROOT_DIR": str(root), **given})

    return make
