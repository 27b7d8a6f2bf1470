"""Reading pictures, whole and broken ones."""

import numpy as np
import pytest
from PIL import Image

from utils.errors import MissingPathError, UserError
from utils.image import pil_loader


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK"])
def test_every_kind_of_picture_becomes_rgb(tmp_path, mode):
    path = tmp_path / ("picture.jpg" if mode == "CMYK" else "picture.png")
    Image.new("RGB", (5, 7), (255, 255, 255)).convert(mode).save(path)
    image = pil_loader(path)
    assert (image.mode, image.size) == ("RGB", (5, 7))
    assert np.asarray(image).min() > 250


@pytest.mark.parametrize("name", ["grey.png", "grey.tiff", "grey.pgm"])
def test_of_16_bits_the_upper_8_are_kept(tmp_path, name):
    grey = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)  # 0x0000, 0x0101 ... 0xffff
    if name == "grey.pgm":
        (tmp_path / name).write_bytes(b"P5 16 16 65535\n" + grey.astype(">u2").tobytes())
    else:
        Image.fromarray(grey).save(tmp_path / name)
    expected = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    np.testing.assert_array_equal(np.asarray(pil_loader(tmp_path / name)), expected)


def _whole(path, kind):
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, kind)
    return path.read_bytes()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: b"",
        lambda whole: b"<html>not found</html>",
        lambda whole: whole[: len(whole) // 2],
        lambda whole: whole[:30],
    ],
    ids=["empty", "web page", "cut in the middle", "cut in the header"],
)
@pytest.mark.parametrize("kind", ["jpeg", "png", "tiff", "webp"])
def test_a_broken_picture_is_named(tmp_path, kind, damage):
    path = tmp_path / "broken picture.jpg"
    path.write_bytes(damage(_whole(path, kind)))
    with pytest.raises(UserError, match=r"broken picture\.jpg cannot be read"):
        pil_loader(path)


def test_a_picture_too_large_to_decode_is_named(tmp_path, monkeypatch):
    path = tmp_path / "bomb.png"
    Image.new("L", (100, 100)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UserError, match=r"bomb\.png cannot be read"):
        pil_loader(str(path))


def test_a_missing_picture_is_named(tmp_path):
    with pytest.raises(MissingPathError, match=r"gone\.jpg does not exist"):
        pil_loader(str(tmp_path / "gone.jpg"))


def test_a_folder_is_no_picture(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        pil_loader(tmp_path)
