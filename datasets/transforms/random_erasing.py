"""Random erasing."""

import math
import random
from collections.abc import Sequence

import torch
from torch import Tensor


class RandomErasing:
    """Fill a random rectangle of an image ("Random Erasing Data Augmentation", arXiv:1708.04896).

    Draws from Python's global ``random``: first whether to erase, then area and aspect for each try, then the corner;
    the noise of ``mode`` "pixel" comes from torch's global generator.

    Args:
        probability: chance that an image is changed, 0 to 1.
        sl: least share of the image that the rectangle covers, 0 to 1.
        sh: greatest share.
        r1: least ratio of height to width; the greatest is its inverse.
        mean: colour of the rectangle, one number for each channel or one for all, on the scale of the (normalised)
            image.
        tries: how many rectangles are drawn, until one fits, before the image is left unchanged.
        mode: what fills the rectangle: "mean" (the colour ``mean``) or "pixel" (noise from a standard normal
            distribution, for each pixel and channel).
    """

    def __init__(
        self,
        probability: float = 0.5,
        sl: float = 0.02,
        sh: float = 0.4,
        r1: float = 0.3,
        mean: Sequence[float] = (0.0,),
        tries: int = 100,
        mode: str = "mean",
    ) -> None:
        self.probability = probability
        self.sl = sl
        self.sh = sh
        self.r1 = r1
        self.mean = mean
        self.tries = tries
        self.mode = mode

    def __call__(self, image: Tensor) -> Tensor:
        """Erase in place.

        Args:
            image: [C, H, W] floating, C = len(mean) unless that is 1.

        Returns:
            The same tensor.
        """
        if random.uniform(0, 1) >= self.probability:
            return image
        height, width = image.shape[-2:]
        for _ in range(self.tries):
            target = random.uniform(self.sl, self.sh) * height * width
            aspect = random.uniform(self.r1, 1 / self.r1)
            h, w = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
            if h < height and w < width:
                top, left = random.randint(0, height - h), random.randint(0, width - w)
                rectangle = image[:, top : top + h, left : left + w]
                if self.mode == "pixel":
                    rectangle.normal_()
                else:
                    rectangle[:] = torch.tensor(self.mean, dtype=image.dtype, device=image.device)[:, None, None]
                return image
        return image

    def __repr__(self) -> str:
        return (
            f"RandomErasing(probability={self.probability}, sl={self.sl}, sh={self.sh}, r1={self.r1}, "
            f"mode={self.mode!r})"
        )
