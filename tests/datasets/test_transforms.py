"""Transforms against the recorded pixels, and the rectangle that random erasing fills."""

import random

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms as tv

from config import cfg as shared_cfg
from datasets.transforms import RandomErasing, ReidTransforms
from datasets.transforms.build import input_size
from datasets.transforms.pixels import resize_to_planes
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
    assert input_size(ours) == input_size(tv.Compose([ours, tv.RandomRotation(3)])) == (16, 8)
    for other in (None, tv.Compose([]), tv.Compose([tv.Resize((16, 8)), tv.ToTensor()])):
        assert input_size(other) is None
