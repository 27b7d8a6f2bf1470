"""The one way from an image to the network's input, in training, validation, inference and export alike.

Images stay planes of bytes for as long as possible: those take a quarter of the memory of floats, and the cache stores
them. The steps draw and compute what torchvision's Resize, RandomHorizontalFlip, Pad, RandomCrop, ToTensor and
Normalize do, bit for bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

DecodedImage = Image.Image | Tensor
Colour = tuple[int, int, int]  # red, green, blue, 0 to 255


def resize_to_planes(image: Image.Image, size: Sequence[int], fill: Colour | None = None) -> Tensor:
    """Resize an image with Pillow's bilinear filter, which averages when it shrinks.

    Args:
        image: RGB.
        size: height and width, pixels.
        fill: None stretches the image to the size. A colour keeps its aspect ratio: it is as large as fits, in the
            middle, with borders of that colour, as PIL.ImageOps.pad does it.

    Returns:
        uint8 [3, height, width].
    """
    height, width = size
    inner = (width, height) if fill is None else _fitting(image, width, height)
    if image.size != inner:
        image = image.resize(inner, Image.Resampling.BILINEAR)
    if inner != (width, height):
        canvas = Image.new("RGB", (width, height), fill)
        canvas.paste(image, (round((width - inner[0]) * 0.5), round((height - inner[1]) * 0.5)))
        image = canvas
    # Pillow picks out a channel faster than NumPy or torch transpose the whole image.
    planes = bytearray().join(image.tobytes("raw", channel) for channel in "RGB")
    return torch.frombuffer(planes, dtype=torch.uint8).view(3, height, width)


def _fitting(image: Image.Image, width: int, height: int) -> tuple[int, int]:
    """The largest width and height of the image's aspect ratio that fit."""
    if image.width * height > width * image.height:
        return width, max(1, round(image.height / image.width * width))
    return max(1, round(image.width / image.height * height)), height


@dataclass(frozen=True)
class ResizedPlanes:
    """Like :func:`resize_to_planes`, but images that are planes already, such as those from the cache, pass unchanged.

    Attributes:
        size: height and width, pixels.
        fill: None stretches an image; with a colour, it keeps its aspect ratio between borders of that colour.
        draft: whether whoever reads files for this may decode them smaller, see :attr:`least`.
    """

    size: Sequence[int]
    fill: Colour | None = None
    draft: bool = False

    def __post_init__(self) -> None:
        height, width = self.size
        object.__setattr__(self, "size", (int(height), int(width)))  # equal sizes are equal, whatever holds them

    @property
    def least(self) -> tuple[int, int] | None:
        """What :func:`utils.image.pil_loader` takes: the height and width that an image needs; None for all it has."""
        return (self.size[0], self.size[1]) if self.draft else None

    @classmethod
    def of_mode(cls, size: Sequence[int], mode: str, mean: Sequence[float], draft: bool = False) -> "ResizedPlanes":
        """As INPUT.RESIZE says it.

        Args:
            size: height and width, pixels.
            mode: "stretch", or "pad" with borders of the colour ``mean``, which is about 0 once it is normalised.
            mean: of each channel of pixels scaled to 0..1.
            draft: INPUT.DRAFT_DECODING.
        """
        if mode not in ("stretch", "pad"):
            raise ValueError(f"the resize is {mode!r}; expected 'stretch' or 'pad'.")
        red, green, blue = (min(255, max(0, round(255 * value))) for value in mean)
        return cls(size, (red, green, blue) if mode == "pad" else None, draft)

    def __call__(self, image: DecodedImage) -> Tensor:
        return image if isinstance(image, Tensor) else resize_to_planes(image, self.size, self.fill)


class RandomFlipAndShift:
    """Flip at random; then pad with black and crop back to the size, which shifts the image.

    Draws from torch's global generator: one number for the flip, then, with padding, the crop's top and left.

    Args:
        flip_probability: 0 to 1.
        padding: greatest shift in each direction, pixels, >= 0.
    """

    def __init__(self, flip_probability: float, padding: int) -> None:
        self.flip_probability = flip_probability
        self.padding = padding

    def __call__(self, pixels: Tensor) -> Tensor:
        """[C, H, W], any type; not changed in place. Returns the same shape and type."""
        if torch.rand(1) < self.flip_probability:
            pixels = pixels.flip(-1)
        if not self.padding:
            return pixels
        (to_row, from_row), (to_column, from_column) = (self._draw_shift(side) for side in pixels.shape[-2:])
        shifted = torch.zeros_like(pixels)
        # NumPy copies parts of rows faster than torch.
        shifted.numpy()[:, to_row, to_column] = pixels.numpy()[:, from_row, from_column]
        return shifted

    def _draw_shift(self, side: int) -> tuple[slice, slice]:
        """Draw a shift along one side: where its pixels go, and which of them stay in the image."""
        start = int(torch.randint(0, 2 * self.padding + 1, size=(1,))) - self.padding
        before, after = min(max(0, -start), side), min(max(0, start), side)
        return slice(before, side - after), slice(after, side - before)

    def __repr__(self) -> str:
        return f"RandomFlipAndShift(flip_probability={self.flip_probability}, padding={self.padding})"


def normalise(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Normalise bytes: ``(value / 255 - mean) / std`` in each channel.

    Args:
        pixels: uint8 [..., C, H, W].
        mean: [C, 1, 1] float32, of each channel of pixels scaled to 0..1, on the device of the pixels.
        std: [C, 1, 1] float32, > 0.

    Returns:
        float32 of the same shape.
    """
    return pixels.to(torch.float32).div_(255).sub_(mean).div_(std)


class Normalise:
    """:func:`normalise` with a fixed mean and standard deviation.

    Args:
        mean: of each channel of pixels scaled to 0..1.
        std: of each channel, > 0.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean = torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1)
        self.std = torch.tensor(std, dtype=torch.float32).view(-1, 1, 1)

    def __call__(self, pixels: Tensor) -> Tensor:
        """uint8 [C, H, W] to float32 [C, H, W]."""
        return normalise(pixels, self.mean, self.std)

    def __repr__(self) -> str:
        return f"Normalise(mean={self.mean.flatten().tolist()}, std={self.std.flatten().tolist()})"
