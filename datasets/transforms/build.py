"""What happens to an image between the file and the network."""

from collections.abc import Sequence
from typing import Any

from torchvision import transforms
from yacs.config import CfgNode

from .pixels import Normalise, RandomFlipAndShift, ResizedPlanes
from .random_erasing import RandomErasing


def train_transforms(
    size: Sequence[int],
    flip_probability: float,
    padding: int,
    erase_probability: float,
    mean: Sequence[float],
    std: Sequence[float],
) -> transforms.Compose:
    """Resize, flip, pad, crop back to size, normalise, erase; draws from Python's and torch's global generators.

    Args:
        size: height and width of the result, pixels.
        flip_probability: chance of a horizontal flip, 0 to 1.
        padding: black border added on each side before the crop, pixels, >= 0.
        erase_probability: chance of filling a rectangle with ``mean``, 0 to 1.
        mean: of each channel of pixels scaled to 0..1.
        std: of each channel, > 0.

    Returns:
        A function from an RGB PIL image, or one already resized (uint8 [3, H, W]), to a float32 tensor [3, H, W].
    """
    return transforms.Compose(
        [
            ResizedPlanes(size),
            RandomFlipAndShift(flip_probability, padding),
            Normalise(mean, std),
            RandomErasing(erase_probability, mean=mean),
        ]
    )


def eval_transforms(size: Sequence[int], mean: Sequence[float], std: Sequence[float]) -> transforms.Compose:
    """Resize and normalise. Args and Returns as for :func:`train_transforms`."""
    return transforms.Compose([ResizedPlanes(size), Normalise(mean, std)])


class ReidTransforms:
    """Builds the transforms of a configuration.

    Args:
        cfg: the whole configuration; its section INPUT is read.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = cfg

    def build_transforms(self, is_train: bool = True) -> transforms.Compose:
        """The training transforms (random), or those of validation, test and inference (not random)."""
        options = self.cfg.INPUT
        if not is_train:
            return eval_transforms(options.SIZE_TEST, options.PIXEL_MEAN, options.PIXEL_STD)
        return train_transforms(
            options.SIZE_TRAIN,
            flip_probability=options.PROB,
            padding=options.PADDING,
            erase_probability=options.RE_PROB,
            mean=options.PIXEL_MEAN,
            std=options.PIXEL_STD,
        )


def input_size(transform: Any) -> tuple[int, ...] | None:
    """Height and width to which a transform resizes first of all, as ours do, so that it takes cached images."""
    while isinstance(transform, transforms.Compose) and transform.transforms:
        transform = transform.transforms[0]
    return transform.size if isinstance(transform, ResizedPlanes) else None
