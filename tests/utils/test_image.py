"""Reading pictures, whole and broken ones."""

import io
import struct
import time
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps, features

from tests.support import UPRIGHT, save_turned, stored_pixels
from utils.errors import MissingPathError, UserError
from utils.image import IMAGE_SUFFIXES, pil_loader, read_image_size, read_orientation, to_rgb


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


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_32_bits_that_do_not_fit_into_8_are_refused(tmp_path, kind):
    """Pillow clips them: 0 to 1 would become black, and depths in millimetres white."""
    grey = np.arange(256, dtype=kind).reshape(16, 16)
    Image.fromarray(grey).save(tmp_path / "fits.tiff")
    np.testing.assert_array_equal(np.asarray(pil_loader(tmp_path / "fits.tiff"))[..., 1], grey)
    for wrong, span in ((grey * 8, "0 to 2040"), (grey - 9, "-9 to 246")):
        Image.fromarray(wrong).save(tmp_path / "deep.tiff")
        text = rf"deep\.tiff cannot be read .*32 bits a pixel, values from {span}; expected .* save it with 8 or 16"
        with pytest.raises(UserError, match=text):
            pil_loader(tmp_path / "deep.tiff")
    if kind is np.float32:
        for wrong in (grey / 255, np.full_like(grey, np.nan)):
            with pytest.raises(ValueError, match="32 bits a pixel"):
                to_rgb(Image.fromarray(wrong))


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


# --------------------------------------------------------------------------------------------------------- orientation


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_images_are_turned_upright(tmp_path, suffix, orientation):
    path = save_turned(tmp_path / f"turned{suffix}", orientation)
    with Image.open(path) as image:
        stored = stored_pixels() if suffix == ".tif" else np.asarray(image)  # TIFF files are upright from Pillow
    expected = UPRIGHT[orientation](stored)
    found = pil_loader(path)
    np.testing.assert_array_equal(np.asarray(found), expected)
    assert read_image_size(path) == found.size == expected.shape[1::-1]
    if suffix != ".tif":
        assert pil_loader(path, exif_orientation=False).tobytes() == stored.tobytes()
        assert read_image_size(path, exif_orientation=False) == (16, 24)
    for again in (to_rgb(found), ImageOps.exif_transpose(found)):  # it is not turned once more
        assert again.tobytes() == found.tobytes()
    if suffix == ".jpg":  # another decoder: a few grey levels
        with_cv2 = cv2.imread(str(path))[:, :, ::-1].astype(int)
        assert abs(with_cv2 - expected).max() <= 6
    with Image.open(path) as image:
        assert to_rgb(image).tobytes() == found.tobytes()


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_orientation_of_png_is_that_of_cv2(tmp_path, orientation):
    path = save_turned(tmp_path / "turned.png", orientation)
    np.testing.assert_array_equal(np.asarray(pil_loader(path)), cv2.imread(str(path))[:, :, ::-1])


def test_orientation_behind_the_pixels_of_a_png(tmp_path):
    whole = save_turned(tmp_path / "before.png", 6).read_bytes()
    start = whole.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(whole[start : start + 4], "big")
    without, chunk = whole[:start] + whole[end:], whole[start:end]
    path = tmp_path / "behind.png"
    path.write_bytes(without[:-12] + chunk + without[-12:])  # IEND is last
    np.testing.assert_array_equal(np.asarray(pil_loader(path)), UPRIGHT[6](stored_pixels()))
    assert read_image_size(path) == (24, 16)
    path.write_bytes(without[:60])  # cut off behind the header
    assert read_image_size(path) == (16, 24)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "I;16"])
def test_other_modes_are_turned(tmp_path, mode):
    grey = stored_pixels()[..., 0]
    image = Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(grey).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 6
    for suffix in (".png", ".tif"):  # Pillow garbles TIFF files of these modes that it maps into memory
        path = tmp_path / f"turned{suffix}"
        image.save(path, exif=exif)
        found = pil_loader(path)
        np.testing.assert_array_equal(np.asarray(found)[..., 1], UPRIGHT[6](grey))
        assert pil_loader(path.read_bytes()).tobytes() == found.tobytes()
        assert read_image_size(path) == found.size
        with Image.open(path) as opened:
            assert to_rgb(opened).tobytes() == found.tobytes()
            assert opened.filename == str(path)


def _tiff_header(order, *entries):
    """EXIF data with these entries: tag, type, count, value."""
    body = b"".join(struct.pack(f"{order}HHIHH", *entry, 0) for entry in entries)
    return b"Exif\0\0" + {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}IH", 8, len(entries)) + body


@pytest.mark.parametrize(
    ("exif", "orientation"),
    [
        (_tiff_header("<", (0x0112, 3, 1, 6)), 6),
        (_tiff_header(">", (0x0110, 3, 1, 1), (0x0112, 3, 1, 8)), 8),
        (_tiff_header(">", (0x0112, 3, 1, 6))[6:], 6),
        (_tiff_header("<", (0x0112, 3, 1, 0)), 1),
        (_tiff_header("<", (0x0112, 3, 1, 9)), 1),
        (_tiff_header("<", (0x0112, 4, 1, 6)), 6),  # 32 bits
        (_tiff_header("<", (0x0112, 2, 2, ord("6"))), 1),  # text rather than a number
        (_tiff_header("<", (0x0111, 3, 1, 6)), 1),
        (_tiff_header("<", (0x0112, 3, 1, 6))[:20], 1),
        (_tiff_header("<", (0x0112, 3, 1, 6)).replace(b"II", b"XX"), 1),
        (b"Exif\0\0II*\0\xff\xff\xff\xff", 1),
        (b"Exif\0\0", 1),
        (b"", 1),
    ],
)
@pytest.mark.filterwarnings("error")
def test_broken_exif_data_is_no_orientation(exif, orientation):
    image = Image.fromarray(stored_pixels())
    image.info["exif"] = exif
    assert read_orientation(image) == orientation
    np.testing.assert_array_equal(np.asarray(to_rgb(image)), UPRIGHT[orientation](stored_pixels()))
    assert image.size == (16, 24)  # the given image stays as it was


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff"]
)
def test_a_file_with_broken_exif_data_is_read(tmp_path, suffix, exif):
    path = save_turned(tmp_path / f"broken{suffix}", b"Exif\0\0" + exif)
    assert pil_loader(path).size == read_image_size(path) == (16, 24)


# ------------------------------------------------------------------------------------------- files that are no paths


class _Unseekable(io.RawIOBase):
    def __init__(self, data):
        self.stream = io.BytesIO(data)

    def readable(self):
        return True

    def readinto(self, buffer):
        return self.stream.readinto(buffer)


class _Slow(io.BytesIO):
    """Lets other threads run between going to the start and reading."""

    def seek(self, *where):
        place = super().seek(*where)
        time.sleep(0.001)
        return place


def test_bytes_and_open_files(tmp_path):
    path = save_turned(tmp_path / "turned.jpg", 6)
    expected = pil_loader(path).tobytes()
    data = path.read_bytes()
    written = io.BytesIO()
    written.write(data)  # its position is the end
    for source in (data, bytearray(data), memoryview(data), io.BytesIO(data), written, _Unseekable(data)):
        assert pil_loader(source).tobytes() == expected
    with path.open("rb") as stream:
        assert pil_loader(stream).tobytes() == pil_loader(stream).tobytes() == expected
        assert not stream.closed
    shared = _Slow(data)
    with ThreadPoolExecutor(8) as pool:  # one file, given many times
        assert set(pool.map(lambda _: pil_loader(shared).tobytes(), range(32))) == {expected}


def test_one_image_that_is_not_read_yet_in_many_threads(tmp_path):
    path = save_turned(tmp_path / "turned.jpg", 6)
    with Image.open(path) as image:
        load, inside = image.load, []

        def slow_load():
            if image.tile:  # it is not read yet
                inside.append(None)
                time.sleep(0.001)
                assert len(inside) == 1
            return load()

        image.load = slow_load
        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(lambda _: to_rgb(image).tobytes(), range(32))) == {pil_loader(path).tobytes()}
    assert len(inside) == 1


def test_bytes_and_open_files_that_are_no_images(tmp_path):
    with pytest.raises(UserError, match=r"The image in the given BytesIO cannot be read \(UnidentifiedImageError"):
        pil_loader(io.BytesIO(b"no image"))
    with pytest.raises(UserError, match="The image in the given bytes cannot be read"):
        pil_loader(b"")
    (tmp_path / "a.txt").write_text("text")
    stream = (tmp_path / "a.txt").open()
    with pytest.raises(UserError, match=r"a\.txt gives str when read; expected bytes: open files with mode 'rb'"):
        pil_loader(stream)
    stream.close()
    stream.close()
    with pytest.raises(UserError, match=r"the open file .*a\.txt cannot be read \(ValueError: .*closed file"):
        pil_loader(stream)


# --------------------------------------------------------------------------------------------------------- formats


def test_of_an_animation_the_first_image(tmp_path):
    frames = [Image.new("RGB", (5, 7), colour) for colour in ("red", "blue", "green")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert pil_loader(tmp_path / "a.gif").getpixel((2, 2)) == (255, 0, 0)


def test_avif_without_support_is_named(tmp_path, monkeypatch):
    path = tmp_path / "a.avif"
    path.write_bytes(b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miafMA1A")
    Image.init()
    monkeypatch.setattr(Image, "ID", [name for name in Image.ID if name != "AVIF"])
    with pytest.raises(UserError, match=r"a\.avif cannot be read \(Unidentified.*; AVIF needs Pillow 11\.3 or newer"):
        pil_loader(path)


# Of a Pillow without AVIF, the test above says what becomes of such a file.
READABLE = [suffix for suffix in IMAGE_SUFFIXES if suffix != ".avif" or features.check("avif")]


@pytest.mark.parametrize("suffix", READABLE)
def test_every_suffix_is_one_that_pillow_knows(tmp_path, suffix):
    mode = "L" if suffix == ".pgm" else "RGB"
    Image.new(mode, (16, 24), 255 if mode == "L" else "white").save(tmp_path / f"a{suffix}")
    assert np.asarray(pil_loader(tmp_path / f"a{suffix}")).min() > 250
