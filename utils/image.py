"""The one place that opens image files."""

import io
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from os import PathLike, fspath
from typing import IO, Any, TypeAlias

import numpy as np
import PIL
from PIL import Image, UnidentifiedImageError

from utils.errors import MissingPathError, UserError

# A path, the bytes of a file, or a file that is open for reading in binary mode, which is read from its start.
ImageFile: TypeAlias = str | PathLike[str] | bytes | bytearray | memoryview | IO[bytes]

# Suffixes that mark a file as an image when a folder is searched, in upper or lower case.
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif"),
    *(".avif", ".jp2"),
)

# What Pillow raises for damaged files: mostly OSError; the PNG and TIFF parsers raise the others.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)

# EXIF's orientation -> what turns the stored pixels upright; 1 is upright already.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112

# One open file, or one image that Pillow has not decoded yet, may be given twice, and two threads must not read it at
# the same time.
_LOCKS = tuple(threading.Lock() for _ in range(64))


def pil_loader(path: ImageFile, exif_orientation: bool = True, least: tuple[int, int] | None = None) -> Image.Image:
    """Read an image file completely, as RGB, upright.

    Args:
        path: a file in any format that Pillow reads, its bytes, or an open binary file. Grey, palette and transparent
            images are converted to RGB, 16 bits a pixel are reduced to the upper eight, 32 bits are taken if they hold
            whole numbers from 0 to 255, and of an animation, or of several pages, the first is taken.
        exif_orientation: turn and mirror the image as its EXIF data says (as cv2.imread does), or leave it as it is
            stored (False). TIFF files come from Pillow upright in either case.
        least: height and width that the caller will shrink the image to. A JPEG file that is at least twice as high and
            as wide is decoded at 1/2, 1/4 or 1/8 of its size, the smallest that is no less than this, which takes a
            fraction of the time (its DCT blocks are inverted at that scale). None decodes every pixel.

    Returns:
        An RGB image that no longer holds the file open.

    Raises:
        MissingPathError: there is no such file.
        UserError: the file is not an image, is cut off or damaged, or may not be read; the message names it.
    """
    with _opened(path) as image:
        if least is not None:
            is_on_its_side = exif_orientation and read_orientation(image) >= 5
            image.draft(None, least if is_on_its_side else least[::-1])  # width, height; only JPEG files heed it
        return to_rgb(image, exif_orientation)


def image_loader(exif_orientation: bool, least: tuple[int, int] | None = None) -> Callable[[str], Image.Image]:
    """:func:`pil_loader` with INPUT.EXIF_ORIENTATION and INPUT.DRAFT_DECODING as a configuration has them."""
    if exif_orientation and least is None:
        return pil_loader
    return partial(pil_loader, exif_orientation=exif_orientation, least=least)


def read_image_size(path: str | PathLike[str], exif_orientation: bool = True) -> tuple[int, int]:
    """Read width and height of an image as :func:`pil_loader` returns it, without decoding its pixels (except PNG).

    Raises:
        MissingPathError, UserError: as for :func:`pil_loader`; a file that is cut off after its header is accepted.
    """
    with _opened(path) as image:
        if image.format == "PNG" and exif_orientation:
            with suppress(*_DAMAGED):
                image.load()  # its EXIF data may come after the pixels
        width, height = image.size
        return (height, width) if exif_orientation and read_orientation(image) >= 5 else (width, height)


def read_jpeg_comment(path: str | PathLike[str]) -> bytes:
    """The comment in a JPEG file; empty if it has none, is not an image, or does not exist."""
    try:
        with _opened(path) as image:
            comment = image.info.get("comment", b"")
    except UserError:
        return b""
    return comment if isinstance(comment, bytes) else b""


def to_rgb(image: Image.Image, exif_orientation: bool = True) -> Image.Image:
    """Convert an open image to RGB, as :func:`pil_loader` does for a file; the given one is not changed."""
    _decode(image)
    rgb = _in_8_bits(image).convert("RGB")
    turn = _TURNS.get(read_orientation(image)) if exif_orientation else None  # once decoded: see read_image_size
    if turn is None:
        return rgb
    rgb = rgb.transpose(turn)
    rgb.info.clear()  # Pillow copies it; whoever reads an orientation there would turn the image once more
    return rgb


def read_orientation(image: Image.Image) -> int:
    """The orientation in the EXIF data of an image, 1 to 8; 1 (upright) if there is none, or it makes no sense.

    Pillow's own reader takes longer, warns of damaged data, and would also take the orientation from XMP data, which
    cv2 and browsers do not.
    """
    exif = image.info.get("exif")
    if not isinstance(exif, bytes):
        return 1
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return 1
    with suppress(struct.error):  # the data are cut off
        (start,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, start)
        for entry in range(count):
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", exif, start + 2 + 12 * entry)
            if tag == _ORIENTATION:  # of whatever type it says it is: some cameras write 32 bits, and cv2 reads these
                return value if value in _TURNS else 1
    return 1


def _decode(image: Any) -> None:
    """Load the pixels of an image that is open but not read."""
    with _lock_of(image):
        name = getattr(image, "filename", "")
        if name:
            image.filename = ""  # Pillow maps files of known names into memory, and garbles TIFF files that are turned
        try:
            image.load()
        finally:
            if name:
                image.filename = name


def _in_8_bits(image: Image.Image) -> Image.Image:
    """Reduce 16-bit grey to 8 bits, and refuse 32 bits a pixel that do not fit into 8: Pillow would clip both.

    Other images pass unchanged. Raises ValueError, to follow the name of the image.
    """
    if image.mode.startswith("I;16") or (image.mode, image.format) in (("I", "PNG"), ("I", "PPM")):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        pixels = np.asarray(image)
        if not (pixels == np.rint(pixels).clip(0, 255)).all():
            raise ValueError(
                f"it has 32 bits a pixel, values from {pixels.min():g} to {pixels.max():g}; expected whole numbers "
                "from 0 to 255: save it with 8 or 16 bits a pixel"
            )
    return image


@contextmanager
def naming_damage(name: str) -> Iterator[None]:
    """Turn whatever Pillow raises while it opens or decodes an image into errors that begin with ``name``."""
    try:
        yield
    except FileNotFoundError:
        is_url = "://" in name
        hint = "; URLs are read by create_embeddings.py --from, or hand over the bytes" if is_url else ""
        raise MissingPathError(f"{name} does not exist{hint}.") from None
    except UserError:
        raise
    except _DAMAGED as error:
        unknown = isinstance(error, UnidentifiedImageError) and name.lower().endswith(".avif")
        hint = f"; AVIF needs Pillow 11.3 or newer, this is {PIL.__version__}" if unknown else ""
        raise UserError(
            f"{name} cannot be read ({type(error).__name__}: {error}{hint}); replace the file, or remove it from the "
            "data set."
        ) from error


@contextmanager
def _opened(source: ImageFile) -> Iterator[Image.Image]:
    if isinstance(source, str | PathLike):
        name, opened = f"Image {fspath(source)}", source
    else:
        name, opened = f"The image in {_name_of(source)}", None
    with naming_damage(name), Image.open(io.BytesIO(_bytes_of(source)) if opened is None else opened) as image:
        yield image


def _bytes_of(source: Any) -> bytes | bytearray | memoryview:
    if isinstance(source, bytes | bytearray | memoryview):
        return source
    with _lock_of(source):
        if hasattr(source, "seekable") and source.seekable():
            source.seek(0)
        content = source.read()
    if not isinstance(content, bytes | bytearray | memoryview):
        raise UserError(
            f"{_name_of(source)} gives {type(content).__name__} when read; expected bytes: open files with mode 'rb'."
        )
    return content


def _lock_of(source: Any) -> threading.Lock:
    return _LOCKS[(id(source) >> 4) % len(_LOCKS)]


def _name_of(source: Any) -> str:
    name = getattr(source, "name", None)
    return f"the open file {name}" if isinstance(name, str) else f"the given {type(source).__name__}"
