"""Reading images: the one place that opens picture files."""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike, fspath

import numpy as np
from PIL import Image

from utils.errors import MissingPathError, UserError

# File names that count as images where a folder is searched, in any case.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")

# What Pillow raises on damaged files, by format: most are OSError; PNG and TIFF parsers leak the others.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


def pil_loader(path: str | PathLike[str]) -> Image.Image:
    """Read a picture file whole, as RGB.

    Args:
        path: any format that Pillow reads; grey, palette and transparent pictures are converted, and of 16 bits a
            pixel the upper eight are kept.

    Returns:
        An RGB picture that no longer holds the file open.

    Raises:
        MissingPathError: no such file.
        UserError: the file is not a picture, is cut off or damaged, or may not be read; the message names it.
    """
    with _opened(path) as image:
        return to_rgb(image)


def read_image_size(path: str | PathLike[str]) -> tuple[int, int]:
    """Width and height that a picture file states, without decoding its pixels.

    Raises:
        MissingPathError, UserError: as :func:`pil_loader`; a file that is cut off passes, since its start is whole.
    """
    with _opened(path) as image:
        return image.size


def read_jpeg_comment(path: str | PathLike[str]) -> bytes:
    """The comment in a JPEG file; empty if it has none, or is no picture, or does not exist."""
    try:
        with _opened(path) as image:
            comment = image.info.get("comment", b"")
    except UserError:
        return b""
    return comment if isinstance(comment, bytes) else b""


def to_rgb(image: Image.Image) -> Image.Image:
    """An open picture of any kind as RGB, as :func:`pil_loader` converts a file."""
    return _in_8_bits(image).convert("RGB")


def _in_8_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits, which Pillow would clip to white, as grey of 8."""
    if not image.mode.startswith("I;16") and (image.mode, image.format) not in (("I", "PNG"), ("I", "PPM")):
        return image
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))


@contextmanager
def _opened(path: str | PathLike[str]) -> Iterator[Image.Image]:
    """The picture, with what Pillow raises until it is closed turned into errors that name the file."""
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
