"""Image transforms."""

from datasets.transforms.build import ReidTransforms
from datasets.transforms.random_erasing import RandomErasing

__all__ = ["RandomErasing", "ReidTransforms"]
