"""The names that other programs import, even from inside this folder: ``from inference_utils import run_inference``.

They are defined in :mod:`inference.embedding.loaders`, :mod:`inference.embedding.images` and
:mod:`inference.galleries.identities`.
"""

import sys
from pathlib import Path

if __package__ in (None, ""):  # imported as "inference_utils": the packages are one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from inference.embedding.images import get_all_images
from inference.embedding.loaders import (
    ImageDataset,
    ImageFolderWithPaths,
    _inference,
    make_inference_data_loader,
    run_inference,
)
from inference.galleries.identities import calculate_centroids, create_pid_path_index
from utils.image import IMAGE_SUFFIXES as IMG_EXTENSIONS
from utils.image import pil_loader

__all__ = [
    "IMG_EXTENSIONS",
    "ImageDataset",
    "ImageFolderWithPaths",
    "_inference",
    "calculate_centroids",
    "create_pid_path_index",
    "get_all_images",
    "make_inference_data_loader",
    "pil_loader",
    "run_inference",
]
