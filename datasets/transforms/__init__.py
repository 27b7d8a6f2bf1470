"""Image transforms. The imports are relative: a copy of this folder may be part of another package."""

from .build import ReidTransforms
from .random_erasing import RandomErasing

__all__ = ["RandomErasing", "ReidTransforms"]
