"""Random erasing."""

import math
import random
from collections.abc import Sequence

import torch
from torch import Tensor


class RandomErasing:
    """Fill a random rectangle of an image with one colour ("Random Erasing Data Augmentation", arXiv:1708.04896).

    Draws from Python's global ``random``: first whether to erase, then area and aspect for each try, then the corner.

    Args:
        probability: chance that an image is changed, 0 to 1.
        value: colour of the rectangle, one number for each channel, on the scale of the (normalised) image.
        area: least and greatest share of the image that the rectangle covers, 0 to 1.
        min_aspect: least ratio of height to width; the greatest is its inverse.
        tries: how many rectangles are drawn, until one fits, before the image is left unchanged.
    """

    def __init__(
        self,
        probability: float,
        value: Sequence[float],
        area: tuple[float, float] = (0.02, 0.4),
        min_aspect: float = 0.3,
        tries: int = 100,
    ) -> None:
        self.probability = probability
        self.area = area
        self.min_aspect = min_aspect
        self.value = value
        self.tries = tries

    def __call__(self, image: Tensor) -> Tensor:
        """Erase in place.

        Args:
            image: [C, H, W] floating, C = len(value).

        Returns:
            The same tensor.
        """
        if random.uniform(0, 1) >= self.probability:
            return image
        height, width = image.shape[-2:]
        for _ in range(self.tries):
            target = random.uniform(*self.area) * height * width
            aspect = random.uniform(self.min_aspect, 1 / self.min_aspect)
            h, w = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
            if h < height and w < width:
                top, left = random.randint(0, height - h), random.randint(0, width - w)
                colour = torch.tensor(self.value, dtype=image.dtype, device=image.device)
                image[:, top : top + h, left : left + w] = colour[:, None, None]
                return image
        return image

    def __repr__(self) -> str:
        return f"RandomErasing(probability={self.probability}, area={self.area}, min_aspect={self.min_aspect})"
