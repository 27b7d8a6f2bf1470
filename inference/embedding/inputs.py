"""What stands for an image: paths, files, PIL images and arrays, one or many."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from utils.errors import UserError
from utils.image import naming_damage, pil_loader, to_rgb

_CHANNELS = (1, 3, 4)  # grey; red, green, blue; the same and opacity
_EXPECTED = (
    "a path, an open file or its bytes, a PIL image, an array of uint8 [H, W], [H, W, 1], [H, W, 3] (in the order red, "
    "green, blue) or [H, W, 4], an array of uint16 [H, W] or [H, W, 1], or a normalised float tensor [B, 3, H, W]"
)


def as_sequence(images: Any) -> Sequence[Any] | Tensor:
    """The images as a sequence, or as one normalised batch [B, 3, H, W].

    Raises:
        UserError: a normalised batch has another shape or no pixels.
    """
    if _is_one(images):
        return [images]
    if not isinstance(images, Tensor):
        try:
            images = list(images)
        except TypeError:  # nothing to iterate over: as_rgb says what it is
            return [images]
        if not images or not all(_is_normalised(image) for image in images):
            return images
        shapes = [list(image.shape) for image in images]
        if odd := [place for place, shape in enumerate(shapes) if shape != shapes[0]]:
            raise UserError(
                f"the normalised images have different shapes: {shapes[0]} at position 0, {shapes[odd[0]]} at position "
                f"{odd[0]}; expected one shape [3, H, W] for all."
            )
        images = torch.stack(images)
    if not _is_normalised(images):
        return list(images)
    batch = images if images.ndim == 4 else images.unsqueeze(0)
    if batch.ndim != 4 or batch.shape[1] != 3 or 0 in batch.shape[2:]:
        raise UserError(f"a normalised batch has the shape {list(images.shape)}; expected [B, 3, H, W], not empty.")
    return batch


def as_rgb(source: Any, exif_orientation: bool = True, least: tuple[int, int] | None = None) -> Image.Image:
    """One image of any kind as RGB; other modes are converted as :func:`utils.image.pil_loader` does for files.

    Args:
        source: path of an image file, the bytes of one, or a file open for reading in binary mode; a PIL image; or an
            array or tensor: uint8 [H, W] or [H, W, 1] (grey), [H, W, 3] (red, green, blue), [H, W, 4] (and opacity,
            which is dropped), or uint16 [H, W] or [H, W, 1] (grey, of which the upper 8 bits are kept).
        exif_orientation: turn files and PIL images upright as their EXIF data says.
        least: for files and their bytes, as for :func:`utils.image.pil_loader`.

    Raises:
        MissingPathError: the file does not exist.
        UserError: the file cannot be read, or ``source`` is not an image or has no pixels.
    """
    if isinstance(source, str | os.PathLike) or _is_file(source):
        return pil_loader(source, exif_orientation, least)
    if isinstance(source, Image.Image):
        _require_pixels(source, source.size)
        with naming_damage(f"The PIL image {getattr(source, 'filename', '')}".rstrip()):  # decoded only now
            return to_rgb(source, exif_orientation)
    if source is None:
        raise UserError("not an image: None (a file that cv2.imread could not read?)")
    array = source.numpy() if isinstance(source, Tensor) and source.device.type == "cpu" else source
    is_deep = isinstance(array, np.ndarray) and array.dtype == np.uint16
    if not isinstance(array, np.ndarray) or not (is_deep or array.dtype == np.uint8) or not _is_layout(array, is_deep):
        raise UserError(f"cannot embed {_describe(source)}; expected {_EXPECTED}.")
    _require_pixels(source, array.shape)
    return to_rgb(Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array))


def _is_one(images: Any) -> bool:
    if isinstance(images, np.ndarray | Tensor):
        return images.ndim in (2, 3) and not _is_normalised(images)
    return images is None or isinstance(images, str | os.PathLike | Image.Image) or _is_file(images)


def _is_file(source: Any) -> bool:
    return isinstance(source, bytes | bytearray | memoryview) or callable(getattr(source, "read", None))


def _is_normalised(image: Any) -> bool:
    return isinstance(image, Tensor) and image.is_floating_point()


def _is_layout(array: np.ndarray, is_deep: bool) -> bool:
    return array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (_CHANNELS[:1] if is_deep else _CHANNELS))


def _require_pixels(source: Any, shape: Sequence[int]) -> None:
    if 0 in shape:
        raise UserError(
            f"an image without pixels: {_describe(source)}; a crop that lies beyond the border, or begins at a "
            "negative position, is empty."
        )


def _describe(source: Any) -> str:
    if isinstance(source, np.ndarray | Tensor):
        return f"a {type(source).__name__} of {source.dtype} with shape {list(source.shape)}"
    if isinstance(source, Image.Image):
        return f"a PIL image of {source.width} x {source.height} pixels"
    return f"a {type(source).__name__}"
