"""Transforms against the recorded pixels, and the rectangle that random erasing fills."""

import random
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torchvision import transforms as tv
from torchvision.transforms import v2

from config import cfg as shared_cfg
from datasets.transforms import RandomErasing, ReidTransforms
from datasets.transforms.build import first_resize
from datasets.transforms.pixels import ResizedPlanes, resize_to_planes
from tests.datasets.conftest import AUGMENTED
from tests.small import small_config
from tests.support import assert_close, golden

RECORDED = golden("transforms_given")


def sized_config(size, **more):
    return small_config(**{"INPUT.SIZE_TRAIN": list(size), "INPUT.SIZE_TEST": list(size)}, **more)


@pytest.fixture
def transforms():
    return ReidTransforms(sized_config((64, 32), **{"INPUT.PADDING": 4}))


@pytest.mark.parametrize("number", range(3))
def test_test_transforms_as_recorded(transforms, number):
    image = Image.fromarray(RECORDED[f"img{number}"])
    assert_close(transforms.build_transforms(is_train=False)(image), RECORDED[f"test{number}"], "grey")


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("number", range(3))
def test_train_transforms_as_recorded(transforms, number, seed):
    image = Image.fromarray(RECORDED[f"img{number}"])
    random.seed(seed)
    torch.manual_seed(seed)
    output = transforms.build_transforms(is_train=True)(image)
    assert_close(output, RECORDED[f"train{number}_seed{seed}"], "grey")


def by_torchvision(image, size, padding, is_train):
    """The same from torchvision's parts."""
    mean, std = shared_cfg.INPUT.PIXEL_MEAN, shared_cfg.INPUT.PIXEL_STD
    steps = [tv.Resize(size)]
    if is_train:
        steps += [tv.RandomHorizontalFlip(0.5), tv.Pad(padding), tv.RandomCrop(size)]
    steps += [tv.ToTensor(), tv.Normalize(mean, std)]
    return tv.Compose([*steps, RandomErasing(0.5, mean=mean)] if is_train else steps)(image)


@settings(max_examples=60)
@given(
    *(st.tuples(st.integers(1, 40), st.integers(1, 40)), st.tuples(st.integers(1, 30), st.integers(1, 30))),
    *(st.integers(0, 50), st.booleans(), st.integers(0, 10**6)),
)
def test_pixels_and_draws_are_those_of_torchvision(file, size, padding, is_train, seed):
    image = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*file, 3), dtype=np.uint8))
    cfg = sized_config(size, **{"INPUT.PADDING": padding})
    outputs = []
    ours = ReidTransforms(cfg).build_transforms(is_train)
    for transform in (ours, lambda image: by_torchvision(image, list(size), padding, is_train)):
        random.seed(seed)
        torch.manual_seed(seed)
        outputs.append(transform(image))
        outputs.append(torch.rand(1) + random.random())  # as many numbers were drawn
    assert torch.equal(outputs[0], outputs[2])
    assert outputs[0].is_contiguous()
    assert torch.equal(outputs[1], outputs[3])


@pytest.mark.parametrize("size", [(1, 1), (7, 13), (256, 128), (320, 320), (1, 70_000)])
def test_planes_are_those_that_opencv_splits(size):
    """Also where a channel is larger than the 64 KiB that Pillow hands out at a time."""
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    planes = resize_to_planes(Image.fromarray(pixels), size)
    assert (planes.dtype, planes.shape, planes.is_contiguous()) == (torch.uint8, (3, *size), True)
    np.testing.assert_array_equal(planes, cv2.split(pixels))
    planes.add_(1)  # a user's transform may write to them
    np.testing.assert_array_equal(planes, pixels.transpose(2, 0, 1) + np.uint8(1))


def test_a_picture_in_planes_is_resized_already():
    image = Image.fromarray(RECORDED["img0"]).resize((32, 64), Image.Resampling.BILINEAR)
    planes = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
    kept = planes.clone()
    for is_train in (True, False):
        outputs = []
        for picture in (image, planes):
            random.seed(3)
            torch.manual_seed(3)
            outputs.append(ReidTransforms(sized_config((64, 32))).build_transforms(is_train)(picture))
        assert torch.equal(*outputs)
        assert torch.equal(planes, kept)


def test_the_recorded_seeds_cover_flipped_and_erased_images():
    # Otherwise the test above would pass without these steps.
    erased = [np.isclose(RECORDED[f"train0_seed{seed}"][0], 0.485).sum() > 20 for seed in range(4)]
    assert any(erased)
    assert not all(erased)


def test_sizes_and_constants_are_those_of_the_configuration():
    sizes = {"INPUT.SIZE_TRAIN": [20, 10], "INPUT.SIZE_TEST": [12, 14]}
    pixels = {"INPUT.PIXEL_MEAN": [1.0, 1.0, 1.0], "INPUT.PIXEL_STD": [0.5, 0.25, 0.125]}
    cfg = small_config(**sizes, **pixels, **{"INPUT.RE_PROB": 0.0})
    white = Image.new("RGB", (30, 50), "white")
    test = ReidTransforms(cfg).build_transforms(is_train=False)(white)
    assert test.shape == (3, 12, 14)
    assert torch.equal(test, torch.zeros(3, 12, 14))
    train = ReidTransforms(cfg).build_transforms(is_train=True)(white)
    assert train.shape == (3, 20, 10)
    # White is 0 after normalisation, the black border -1 / std.
    for channel, border in zip(train, (-2.0, -4.0, -8.0), strict=True):
        assert set(channel.unique().tolist()) <= {0.0, border}


@settings(max_examples=50)
@given(st.integers(0, 10**6))
def test_one_rectangle_within_the_bounds_is_filled_with_the_value(seed):
    random.seed(seed)
    image = RandomErasing(1.0, mean=(1.0, 2.0, 3.0))(torch.zeros(3, 40, 30))
    mask = image[0] == 1.0
    rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
    h, w = int(rows[-1] - rows[0] + 1), int(columns[-1] - columns[0] + 1)
    assert mask.sum() == h * w
    assert torch.equal(image, mask * torch.tensor([1.0, 2.0, 3.0])[:, None, None])
    # Sides are rounded to whole pixels.
    assert (h - 0.5) * (w - 0.5) <= 0.4 * 40 * 30
    assert (h + 0.5) * (w + 0.5) >= 0.02 * 40 * 30
    assert (h + 0.5) / (w - 0.5) >= 0.3
    assert (h - 0.5) / (w + 0.5) <= 1 / 0.3


@pytest.mark.parametrize(("probability", "touched"), [(0.0, 0), (1.0, 200), (0.3, 60)])
def test_images_are_erased_as_often_as_asked(probability, touched):
    random.seed(0)
    erase = RandomErasing(probability, mean=(1.0,))
    assert abs(sum(bool(erase(torch.zeros(1, 20, 20)).any()) for _ in range(200)) - touched) <= 20 * (0 < touched < 200)


def test_a_rectangle_as_large_as_the_image_does_not_count_as_fitting():
    erase = RandomErasing(1.0, mean=(1.0,), sl=1.0, sh=1.0, r1=1.0)
    assert not erase(torch.zeros(1, 8, 8)).any()


def test_an_image_too_small_for_any_rectangle_is_left_alone():
    assert not RandomErasing(1.0, mean=(1.0,))(torch.zeros(1, 1, 1)).any()


def test_the_colour_may_be_one_number_and_the_order_of_arguments_is_kept():
    random.seed(0)
    erase = RandomErasing(1.0, 0.1, 0.2, 0.5, (0.25,))
    assert (erase.sl, erase.sh, erase.r1) == (0.1, 0.2, 0.5)
    image = erase(torch.zeros(3, 20, 20))
    assert image.unique().tolist() == [0.0, 0.25]
    assert 0.08 < float((image[0] == 0.25).float().mean()) < 0.23
    assert not RandomErasing(1.0)(torch.ones(3, 20, 20)).all()


def test_how_a_transform_begins(make_cfg, tmp_path):
    ours = ReidTransforms(make_cfg(tmp_path)).build_transforms()
    assert first_resize(ours) == first_resize(tv.Compose([ours, tv.RandomRotation(3)])) == ResizedPlanes((16, 8))
    for other in (None, tv.Compose([]), tv.Compose([tv.Resize((16, 8)), tv.ToTensor()])):
        assert first_resize(other) is None
    padded = ReidTransforms(make_cfg(tmp_path, "INPUT.RESIZE", "pad")).build_transforms(is_train=False)
    assert first_resize(padded) == ResizedPlanes([16, 8], (124, 116, 104))


# ------------------------------------------------------------------------------------------------------ off by default


def augmented_by_torchvision(image, size, padding):
    """AUGMENTED from the parts of Pillow and torchvision."""
    mean, std = shared_cfg.INPUT.PIXEL_MEAN, shared_cfg.INPUT.PIXEL_STD
    border = tuple(round(255 * part) for part in mean)
    steps = [
        lambda image: ImageOps.pad(image, (size[1], size[0]), Image.Resampling.BILINEAR, border),
        v2.PILToTensor(),
        v2.RandAugment(2, 9, interpolation=v2.InterpolationMode.BILINEAR),
        v2.RandomApply([v2.ColorJitter(brightness=0.3, contrast=0.2, saturation=0.4, hue=0.1)], 0.6),
        v2.RandomGrayscale(0.3),
        *(tv.RandomHorizontalFlip(0.5), tv.Pad(padding), tv.RandomCrop(size)),
        *(tv.ConvertImageDtype(torch.float32), tv.Normalize(mean, std)),
        RandomErasing(0.5, 0.1, 0.2, mean=mean, mode="pixel"),
    ]
    return tv.Compose(steps)(image)


@settings(max_examples=60, deadline=None)
@given(
    *(st.tuples(st.integers(8, 40), st.integers(8, 40)), st.tuples(st.integers(8, 30), st.integers(8, 30))),
    *(st.integers(0, 50), st.integers(0, 10**6)),
)
def test_with_everything_on_pixels_and_draws_are_those_of_torchvision(file, size, padding, seed):
    image = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*file, 3), dtype=np.uint8))
    ours = ReidTransforms(sized_config(size, **{"INPUT.PADDING": padding}, **AUGMENTED)).build_transforms()
    outputs = []
    for transform in (ours, lambda image: augmented_by_torchvision(image, list(size), padding)):
        random.seed(seed)
        torch.manual_seed(seed)
        outputs.append(transform(image))
        outputs.append(torch.rand(1) + random.random())
    assert torch.equal(outputs[0], outputs[2])
    assert outputs[0].is_contiguous()
    assert torch.equal(outputs[1], outputs[3])


def test_by_default_there_is_no_further_step():
    steps = [type(step).__name__ for step in ReidTransforms(sized_config((64, 32))).build_transforms().transforms]
    assert steps == ["ResizedPlanes", "RandomFlipAndShift", "Normalise", "RandomErasing"]
    steps = ReidTransforms(sized_config((64, 32), **AUGMENTED)).build_transforms().transforms
    assert [type(step).__name__ for step in steps] == [
        *("ResizedPlanes", "RandAugment", "RandomApply", "RandomGrayscale", "RandomFlipAndShift", "Normalise"),
        "RandomErasing",
    ]


def trained_pixels(**options):
    """Training images of one noisy image as bytes again: without flip, shift and erasing."""
    plain = {"INPUT.PROB": 0.0, "INPUT.PADDING": 0, "INPUT.RE_PROB": 0.0}
    plain |= {"INPUT.PIXEL_MEAN": [0.0] * 3, "INPUT.PIXEL_STD": [1.0] * 3}
    image = Image.fromarray(np.random.default_rng(5).integers(20, 200, (24, 12, 3), dtype=np.uint8))
    transform = ReidTransforms(sized_config((24, 12), **plain, **options)).build_transforms()
    torch.manual_seed(0)
    return image, torch.stack([(transform(image) * 255).round() for _ in range(200)])


def test_gray_images_are_as_many_as_asked_and_have_the_luma_of_pillow():
    image, pixels = trained_pixels(**{"INPUT.GRAY_PROB": 0.25})
    is_gray = (pixels[:, :1] == pixels).flatten(1).all(1)
    assert 35 <= int(is_gray.sum()) <= 65
    luma = torch.from_numpy(np.asarray(image.convert("L")).astype(np.float32))
    assert (pixels[is_gray][0, 0] - luma).abs().max() <= 1
    assert torch.equal(pixels[~is_gray][0], torch.from_numpy(np.array(image)).permute(2, 0, 1).float())


def test_the_jitter_stays_within_its_bounds_and_happens_as_often_as_asked():
    image, pixels = trained_pixels(**{"INPUT.COLOR_JITTER": [0.2, 0, 0, 0], "INPUT.COLOR_JITTER_PROB": 0.5})
    source = torch.from_numpy(np.array(image)).permute(2, 0, 1).float()
    factors = pixels.flatten(1).mean(1) / source.mean()
    assert 0.79 <= float(factors.min()) < 0.85
    assert 1.15 < float(factors.max()) <= 1.21
    assert 75 <= sum(torch.equal(changed, source) for changed in pixels) <= 125


@settings(max_examples=100)
@given(*(st.tuples(st.integers(1, 50), st.integers(1, 50)) for _ in range(2)), st.integers(0, 99))
def test_a_padded_image_is_that_of_pillow(file, size, seed):
    image = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*file, 3), dtype=np.uint8))
    colour = (9, 200, 31)
    found = resize_to_planes(image, size, colour)
    if min(size[0] / file[0], size[1] / file[1]) * min(file) <= 0.5:
        # A shape so extreme that Pillow leaves no pixel of it: here a line of one remains.
        is_border = (found == torch.tensor(colour)[:, None, None]).all(0)
        assert int((~is_border).sum()) in size
    else:
        expected = ImageOps.pad(image, (size[1], size[0]), Image.Resampling.BILINEAR, colour)
        np.testing.assert_array_equal(found.permute(1, 2, 0), np.asarray(expected))


def test_a_padded_image_keeps_its_shape_in_the_middle():
    white = Image.new("RGB", (10, 10), "white")
    planes = resize_to_planes(white, (40, 20), (1, 2, 3))
    assert (planes[:, 10:30] == 255).all()
    assert torch.equal(planes[:, :10], torch.tensor([1, 2, 3], dtype=torch.uint8)[:, None, None].expand(3, 10, 20))
    assert torch.equal(planes[:, 30:], planes[:, :10])
    # About 0 for the network.
    cfg = sized_config((40, 20), **{"INPUT.RESIZE": "pad"})
    assert ReidTransforms(cfg).build_transforms(is_train=False)(white)[:, :10].abs().max() < 0.01


def test_colours_of_a_mean_outside_the_range_are_cut_off():
    assert ResizedPlanes.of_mode((4, 2), "pad", [-1.0, 0.5, 2.0]).fill == (0, 128, 255)
    assert ResizedPlanes.of_mode((4, 2), "stretch", [-1.0, 0.5, 2.0]).fill is None
    with pytest.raises(ValueError, match="the resize is 'crop'; expected 'stretch' or 'pad'"):
        ResizedPlanes.of_mode((4, 2), "crop", [0.0] * 3)


def test_noise_fills_the_rectangle_that_the_mean_would():
    outputs = {}
    for mode in ("mean", "pixel"):
        random.seed(4)
        torch.manual_seed(4)
        outputs[mode] = RandomErasing(1.0, mean=(7.0,), mode=mode)(torch.zeros(3, 60, 40))
    mask = outputs["mean"] == 7
    assert torch.equal(outputs["pixel"] != 0, mask)
    noise = outputs["pixel"][mask]
    assert len(noise.unique()) == len(noise) > 100
    assert abs(float(noise.mean())) < 0.2
    assert abs(float(noise.std()) - 1) < 0.2


def test_programs_whose_configuration_lacks_the_newer_keys_get_their_test_images(transforms):
    options = shared_cfg.INPUT.clone()
    del options["RESIZE"]
    image = Image.fromarray(RECORDED["img0"])
    older = ReidTransforms(SimpleNamespace(INPUT=options)).build_transforms(is_train=False)
    assert torch.equal(older(image), ReidTransforms(shared_cfg).build_transforms(is_train=False)(image))
