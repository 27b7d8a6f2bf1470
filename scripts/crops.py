"""Crops, fits and saves images. A file that an earlier run made in the same way is not made again."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image

from scripts.conversion import parallel
from utils.errors import UserError
from utils.files import write_bytes
from utils.image import pil_loader, read_jpeg_comment

Size = tuple[int, int]
Box = tuple[int, int, int, int]

CROP_QUALITY = 75  # JPEG quality: Pillow's default, as in the original's crops
COPY_QUALITY = 95  # JPEG quality of images that will be cropped later

_RECIPE = re.compile(rb" of \d+ bytes, .*fitted into ")  # in the comment of every file made here, by any version


@dataclass(frozen=True)
class Crop:
    """One file to make: which part of which image it shows, and where it goes."""

    source: Path
    target: Path
    box: Box | None = None  # left, top, right, bottom in pixels; None: the whole image


def fit(image: Image.Image, size: Size) -> Image.Image:
    """Shrink the image, but never enlarge it, to fit ``size`` (width, height), centred on a white canvas."""
    image = image.copy()
    image.thumbnail(size, Image.Resampling.LANCZOS)
    canvas = Image.new("RGB", size, "white")
    canvas.paste(image, ((size[0] - image.width) // 2, (size[1] - image.height) // 2))
    return canvas


def make_crops(
    crops: Sequence[Crop], size: Size | None, workers: int, label: str, keep_others: bool = False
) -> list[str]:
    """Make the files, in parallel.

    Args:
        crops: what to make; no target occurs twice.
        size: width and height to fit each into; None keeps their size, and compresses them less.
        workers: how many are made at once.
        label: text before the progress bar.
        keep_others: keep a target that holds a complete image not made here, and give that as the reason.

    Returns:
        For each crop "", or the reason why it could not be made, which names the image.

    Raises:
        UserError: a target's folder cannot be written to.
    """
    return parallel(lambda crop: make_crop(crop, size, keep_others), crops, workers, label)


def make_crop(crop: Crop, size: Size | None, keep_others: bool = False) -> str:
    """Make one file (see :func:`make_crops`), unless its comment says that it was made in exactly this way."""
    try:
        recipe = _recipe(crop, size)
        comment = read_jpeg_comment(crop.target)
        if comment == recipe:
            return ""
        if keep_others and not _RECIPE.search(comment) and _is_whole(crop.target):
            return f"Image {crop.source}: {crop.target} is another image, not made from this one; move it away first."
        image = pil_loader(crop.source, exif_orientation=False)  # boxes refer to the pixels as they are stored
    except FileNotFoundError:
        return f"Image {crop.source} does not exist."
    except UserError as error:
        return str(error)
    except OSError as error:
        return f"Image {crop.source} cannot be read ({error.strerror})."
    if crop.box is not None:
        left, top, right, bottom = crop.box
        clipped = (max(left, 0), max(top, 0), min(right, image.width), min(bottom, image.height))
        if clipped[0] >= clipped[2] or clipped[1] >= clipped[3]:
            return f"Image {crop.source} of {image.width} x {image.height} pixels: the box {crop.box} lies outside."
        image = image.crop(clipped)
    if size is not None:
        image = fit(image, size)
    data = BytesIO()
    image.save(data, "JPEG", quality=COPY_QUALITY if size is None else CROP_QUALITY, comment=recipe)
    write_bytes(crop.target, data.getvalue())
    return ""


def _recipe(crop: Crop, size: Size | None) -> bytes:
    """Describe how the file is made, in words that change with the source's bytes, the box and the size.

    They do not depend on the source's modification time: copies of a data set often lose it, and another image may have
    the same.
    """
    with crop.source.open("rb") as stream:
        digest = hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
        length = stream.tell()
    text = f"{crop.source.name} of {length} bytes, blake2b {digest}, box {crop.box}, fitted into {size}"
    return text.encode("utf-8", "backslashreplace")


def _is_whole(path: Path) -> bool:
    """Whether the file is an image that can be read to its end."""
    try:
        pil_loader(path)
    except UserError:
        return False
    return True
