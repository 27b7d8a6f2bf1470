"""Reading images: the one place that opens picture files."""

import struct
from os import PathLike, fspath

from PIL import Image

from utils.errors import MissingPathError, UserError

# What Pillow raises on damaged files, by format: most are OSError; PNG and TIFF parsers leak the others.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


def pil_loader(path: str | PathLike[str]) -> Image.Image:
    """Read a picture file whole, as RGB.

    Args:
        path: any format that Pillow reads; grey, palette and transparent pictures are converted.

    Returns:
        An RGB picture that no longer holds the file open.

    Raises:
        MissingPathError: no such file.
        UserError: the file is not a picture, is cut off or damaged, or may not be read; the message names it.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise MissingPathError(f"Image {fspath(path)} does not exist.") from None
    except _DAMAGED as error:
        raise UserError(
            f"Image {fspath(path)} cannot be read ({type(error).__name__}: {error}); replace the file, or remove it "
            "from the data set."
        ) from error
