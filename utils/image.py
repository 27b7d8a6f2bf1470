"""The one place that opens image files."""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike, fspath

import numpy as np
from PIL import Image

from utils.errors import MissingPathError, UserError

# Suffixes that mark a file as an image when a folder is searched, in upper or lower case.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")

# What Pillow raises for damaged files: mostly OSError; the PNG and TIFF parsers raise the others.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


def pil_loader(path: str | PathLike[str]) -> Image.Image:
    """Read an image file completely, as RGB.

    Args:
        path: a file in any format that Pillow reads. Grey, palette and transparent images are converted to RGB, and 16
            bits a pixel are reduced to the upper eight.

    Returns:
        An RGB image that no longer holds the file open.

    Raises:
        MissingPathError: there is no such file.
        UserError: the file is not an image, is cut off or damaged, or may not be read; the message names it.
    """
    with _opened(path) as image:
        return to_rgb(image)


def read_image_size(path: str | PathLike[str]) -> tuple[int, int]:
    """Read width and height from the header of an image file, without decoding its pixels.

    Raises:
        MissingPathError, UserError: as for :func:`pil_loader`; a file that is cut off after its header is accepted.
    """
    with _opened(path) as image:
        return image.size


def read_jpeg_comment(path: str | PathLike[str]) -> bytes:
    """The comment in a JPEG file; empty if it has none, is not an image, or does not exist."""
    try:
        with _opened(path) as image:
            comment = image.info.get("comment", b"")
    except UserError:
        return b""
    return comment if isinstance(comment, bytes) else b""


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an open image to RGB, as :func:`pil_loader` does for a file."""
    return _in_8_bits(image).convert("RGB")


def _in_8_bits(image: Image.Image) -> Image.Image:
    """Reduce 16-bit grey, which Pillow would clip to white, to 8 bits; other images pass unchanged."""
    if not image.mode.startswith("I;16") and (image.mode, image.format) not in (("I", "PNG"), ("I", "PPM")):
        return image
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))


@contextmanager
def _opened(path: str | PathLike[str]) -> Iterator[Image.Image]:
    """Open an image, and turn whatever Pillow raises until it is closed into errors that name the file."""
    try:
        with Image.open(path) as image:
            yield image
    except FileNotFoundError:
        raise MissingPathError(f"Image {fspath(path)} does not exist.") from None
    except _DAMAGED as error:
        raise UserError(
            f"Image {fspath(path)} cannot be read ({type(error).__name__}: {error}); replace the file, or remove it "
            "from the data set."
        ) from error
