"""Everything that stands for an image: taken as the file of such an image is, or named with its place if it is none."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.transforms.pixels import ResizedPlanes
from inference.embedding.images import get_all_images, read_pixels
from inference.embedding.inputs import as_rgb
from tests.support import UPRIGHT, save_turned, stored_pixels
from utils.errors import UserError
from utils.image import pil_loader

NONE = r"not an image: None \(a file that cv2.imread could not read\?\)"
FRAME = np.full((480, 640, 3), 120, np.uint8)


def saved(pixels, path):
    Image.fromarray(pixels).save(path)
    return pil_loader(path)


# ---------------------------------------------------------------------------------------------------------------- kinds


@pytest.mark.parametrize(
    "pixels",
    [
        stored_pixels()[..., 0],
        stored_pixels(),
        np.dstack([stored_pixels(), stored_pixels()[..., 1]]),
        stored_pixels()[..., 0].astype(np.uint16) * 250,
    ],
    ids=["grey", "rgb", "rgba", "16 bits"],
)
def test_arrays_are_taken_as_files_of_their_kind_are(tmp_path, pixels):
    expected = saved(pixels, tmp_path / "a.png").tobytes()
    given = [pixels, pixels[..., None]] if pixels.ndim == 2 else [pixels]
    given += [np.asfortranarray(array) for array in given] + [array[::-1][::-1] for array in given]
    if hasattr(torch, "uint16") or pixels.dtype == np.uint8:
        given += [torch.from_numpy(array.copy()) for array in given]
    for array in given:
        assert as_rgb(array).tobytes() == expected


def test_embeddings_of_grey_and_transparent_images(embedder, tmp_path):
    grey = stored_pixels()[..., 0]
    rgba = np.dstack([stored_pixels(), grey])
    for pixels in (grey, rgba, grey.astype(np.uint16) * 250):
        Image.fromarray(pixels).save(tmp_path / "a.png")
        expected = embedder.embed(tmp_path / "a.png")
        np.testing.assert_array_equal(embedder.embed(pixels), expected)
        np.testing.assert_array_equal(embedder.embed([pixels]), expected)
    np.testing.assert_array_equal(embedder.embed(grey[..., None]), embedder.embed(grey))
    several = np.stack([stored_pixels(), stored_pixels()[::-1]])  # an array of N images stays that
    assert embedder.embed(several).shape == (2, 512)
    assert embedder.embed(several[:0]).shape == (0, 512)


def test_bytes_and_open_files_are_one_image_each(embedder, pictures):
    paths = get_all_images(pictures)
    expected = embedder.embed(paths)
    data = [open(path, "rb").read() for path in paths]  # noqa: SIM115, PTH123
    for one in (data[3], bytearray(data[3]), io.BytesIO(data[3])):
        np.testing.assert_allclose(embedder.embed(one), expected[3:4], rtol=1e-4, atol=1e-4)
    mixed = [io.BytesIO(part) if i % 2 else part for i, part in enumerate(data)]
    np.testing.assert_array_equal(embedder.embed(mixed), expected)
    with open(paths[0], "rb") as stream:  # noqa: PTH123
        np.testing.assert_array_equal(embedder.embed([stream] * 7), embedder.embed([paths[0]] * 7))


# --------------------------------------------------------------------------------------------------------- orientation


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_one_file_has_one_embedding(embedder, tmp_path, suffix):
    """By path, as bytes, as a PIL image before and after conversion: that of the upright pixels."""
    for value in UPRIGHT:
        path = save_turned(tmp_path / f"{value}{suffix}", value)
        with Image.open(path) as image:
            stored = np.asarray(image)
        expected = embedder.embed(np.ascontiguousarray(UPRIGHT[value](stored)))
        for given in (path, path.read_bytes(), Image.open(path), Image.open(path).convert("RGB"), pil_loader(path)):
            np.testing.assert_array_equal(embedder.embed(given), expected)
    _, paths = embedder.embed_folder(tmp_path)
    assert len(paths) == 8


def test_orientation_can_be_switched_off(model, tmp_path):
    from inference import Embedder

    path = save_turned(tmp_path / "turned.png", 6)
    embedder = Embedder(model, "cpu")
    assert embedder.identity["exif_orientation"] is True
    upright = embedder.embed(path)
    embedder.exif_orientation = False
    assert embedder.identity["exif_orientation"] is False
    for given in (path, Image.open(path)):
        found = embedder.embed(given)
        np.testing.assert_array_equal(found, embedder.embed(stored_pixels()))
        assert abs(found - upright).max() > 0.1


def test_orientation_is_that_of_the_model(model, tmp_path):
    from inference import Embedder

    model.hparams.INPUT.EXIF_ORIENTATION = False
    try:
        assert not Embedder(model, "cpu").exif_orientation
    finally:
        model.hparams.INPUT.EXIF_ORIENTATION = True


def test_pixels_of_each_orientation(tmp_path):
    for value in UPRIGHT:
        path = save_turned(tmp_path / f"{value}.png", value)
        for upright in (True, False):
            expected = Image.fromarray(np.ascontiguousarray(UPRIGHT[value if upright else 1](stored_pixels())))
            resize = ResizedPlanes((16, 8))
            assert torch.equal(read_pixels(path, resize, upright), read_pixels(expected, resize))


# ----------------------------------------------------------------------------------------------------- what is no image


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (FRAME[100:300, 650:700], r"an image without pixels: a ndarray of uint8 with shape \[200, 0, 3\]; a crop that"),
        (FRAME[-20:60, 10:50], r"an image without pixels: a ndarray of uint8 with shape \[0, 40, 3\]"),
        (FRAME[10:60, -5:50], r"an image without pixels: a ndarray of uint8 with shape \[50, 0, 3\]"),
        (FRAME[10:10, :, 0], r"an image without pixels: a ndarray of uint8 with shape \[0, 640\]"),
        (FRAME[..., :1][:, 700:], r"an image without pixels: a ndarray of uint8 with shape \[480, 0, 1\]"),
        (torch.from_numpy(FRAME)[500:], r"an image without pixels: a Tensor of torch.uint8 with shape \[0, 640, 3\]"),
        (Image.new("RGB", (0, 7)), "an image without pixels: a PIL image of 0 x 7 pixels"),
        (Image.new("L", (7, 0)), "an image without pixels: a PIL image of 7 x 0 pixels"),
        (None, NONE),
        (SimpleNamespace(read=5), "cannot embed a SimpleNamespace; expected a path"),
        (3, "cannot embed a int; expected a path, an open file or its bytes, a PIL image, an array of uint8"),
        (np.zeros((4, 4, 2), np.uint8), r"cannot embed a ndarray of uint8 with shape \[4, 4, 2\]"),
        (np.zeros((4, 4, 3), np.uint16), r"cannot embed a ndarray of uint16 with shape \[4, 4, 3\]"),
        (np.zeros((4, 4, 3)), r"cannot embed a ndarray of float64 with shape \[4, 4, 3\]"),
        (np.zeros((4, 4), bool), r"cannot embed a ndarray of bool with shape \[4, 4\]"),
        (b"no image", r"The image in the given bytes cannot be read \(UnidentifiedImageError"),
    ],
)
def test_what_is_no_image_is_named_with_its_place(embedder, source, message):
    with pytest.raises(UserError, match=f"^{message}"):
        embedder.embed(source)
    with pytest.raises(UserError, match=f"^{message}"):
        embedder.embed([source])
    given = [FRAME, FRAME, source, FRAME]
    for size in (1, 2, 4):
        with pytest.raises(UserError, match=f"^image 2 of 4, counted from 0: {message}"):
            embedder.embed(given, batch_size=size)
        batches = list(embedder.embed_batches(given, "skip", batch_size=size))
        assert [place for batch in batches for place in batch.kept] == [0, 1, 3]
        ((place, error),) = [pair for batch in batches for pair in batch.errors.items()]
        assert place == 2
        assert str(error).startswith("image 2 of 4, counted from 0: ")
        rows = np.concatenate([batch.embeddings for batch in batches])
        np.testing.assert_array_equal(rows[0], rows[2])


def test_empty_crops_from_one_array(embedder):
    with pytest.raises(UserError, match=r"^image 0 of 3.*shape \[0, 4, 3\]"):
        embedder.embed(np.zeros((3, 0, 4, 3), np.uint8))
    with pytest.raises(UserError, match=r"shape \[2, 3, 0, 4\]; expected \[B, 3, H, W\], not empty"):
        embedder.embed(torch.zeros(2, 3, 0, 4))


def test_normalised_images_of_different_shapes(embedder):
    with pytest.raises(UserError, match=r"\[3, 8, 4\] at position 0, \[3, 4, 8\] at position 2; expected one shape"):
        embedder.embed([torch.zeros(3, 8, 4), torch.zeros(3, 8, 4), torch.zeros(3, 4, 8)])


def test_a_broken_pil_image_can_be_skipped(embedder, tmp_path):
    """Pillow decodes an image only when its pixels are asked for."""
    path = save_turned(tmp_path / "cut.png", 1, np.random.default_rng(0).integers(0, 255, (60, 40, 3), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(UserError, match=r"^The PIL image .*cut\.png cannot be read \(OSError"):
        embedder.embed(Image.open(path))
    (batch,) = embedder.embed_batches([FRAME, Image.open(path)], "skip")
    assert (batch.kept, list(batch.errors)) == ([0], [1])


def test_the_position_counts_over_all_batches_and_threads(model):
    from inference import Embedder

    given = [FRAME[:, i:] if i % 7 else FRAME[:, 640:] for i in range(1, 30)]
    batches = list(Embedder(model, "cpu", batch_size=4, num_workers=3).embed_batches(given, "skip"))
    errors = {place: str(error) for batch in batches for place, error in batch.errors.items()}
    assert list(errors) == [6, 13, 20, 27]
    assert all(text.startswith(f"image {place} of 29, counted from 0: ") for place, text in errors.items())
