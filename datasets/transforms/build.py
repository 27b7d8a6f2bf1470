"""What happens to an image between the file and the network."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torchvision import transforms
from yacs.config import CfgNode

from .pixels import Normalise, RandomFlipAndShift, ResizedPlanes
from .random_erasing import RandomErasing


def eval_transforms(
    size: Sequence[int], mean: Sequence[float], std: Sequence[float], resize: str = "stretch", draft: bool = False
) -> transforms.Compose:
    """Resize and normalise.

    Args:
        size: height and width of the result, pixels.
        mean: of each channel of pixels scaled to 0..1.
        std: of each channel, > 0.
        resize, draft: see :meth:`ResizedPlanes.of_mode`.

    Returns:
        A function from an RGB PIL image, or one already resized (uint8 [3, H, W]), to a float32 tensor [3, H, W].
    """
    return transforms.Compose([ResizedPlanes.of_mode(size, resize, mean, draft), Normalise(mean, std)])


def colour_transforms(
    rand_augment: Sequence[int], jitter: Sequence[float], jitter_probability: float, gray_probability: float
) -> list[Callable[[Tensor], Tensor]]:
    """torchvision's augmentations of resized images (uint8 [3, H, W]); all draw from torch's global generator.

    Args:
        rand_augment: number of operations, >= 1, and their magnitude, 0 to 30; empty for none.
        jitter: how far brightness, contrast, saturation and hue may change; empty for none.
        jitter_probability: chance that they do, 0 to 1.
        gray_probability: chance of turning an image grey, 0 to 1.
    """
    if not (rand_augment or jitter or gray_probability):
        return []
    from torchvision.transforms import v2

    steps: list[Callable[[Tensor], Tensor]] = []
    if rand_augment:
        operations, magnitude = rand_augment
        steps.append(v2.RandAugment(operations, magnitude, interpolation=v2.InterpolationMode.BILINEAR))
    if jitter:
        steps.append(v2.RandomApply([v2.ColorJitter(*jitter)], jitter_probability))
    if gray_probability:
        steps.append(v2.RandomGrayscale(gray_probability))
    return steps


class ReidTransforms:
    """Builds the transforms of a configuration.

    Args:
        cfg: the whole configuration; its section INPUT is read.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = cfg

    def build_transforms(self, is_train: bool = True) -> transforms.Compose:
        """The training transforms, or those of validation, test and inference.

        Both take an RGB PIL image, or one already resized (uint8 [3, H, W]), and return a float32 tensor [3, H, W].
        Training draws from Python's and torch's global generators: it resizes, changes colours, flips, shifts,
        normalises and erases. The others resize and normalise.
        """
        options = self.cfg.INPUT
        mean, std = options.PIXEL_MEAN, options.PIXEL_STD
        # Configurations of other programs, and of older versions, may lack the newer keys.
        resize = options.RESIZE if hasattr(options, "RESIZE") else "stretch"
        draft = bool(getattr(options, "DRAFT_DECODING", False))
        if not is_train:
            return eval_transforms(options.SIZE_TEST, mean, std, resize, draft)
        jitter = (options.COLOR_JITTER, options.COLOR_JITTER_PROB)
        least, greatest = options.RE_AREA
        return transforms.Compose(
            [
                ResizedPlanes.of_mode(options.SIZE_TRAIN, resize, mean, draft),
                *colour_transforms(options.RAND_AUGMENT, *jitter, options.GRAY_PROB),
                RandomFlipAndShift(options.PROB, options.PADDING),
                Normalise(mean, std),
                RandomErasing(options.RE_PROB, least, greatest, mean=mean, mode=options.RE_MODE),
            ]
        )


def first_resize(transform: Any) -> ResizedPlanes | None:
    """How a transform resizes first of all, as ours do, so that it takes cached images; None if it does not."""
    while isinstance(transform, transforms.Compose) and transform.transforms:
        transform = transform.transforms[0]
    return transform if isinstance(transform, ResizedPlanes) else None
