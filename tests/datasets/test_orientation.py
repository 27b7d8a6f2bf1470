"""EXIF's orientation on the way of an image into training and validation: all eight values, and the key against it."""

import numpy as np
import pytest
import torch
from PIL import Image

from datasets import init_dataset, validate
from datasets.caching.cache import ImageCache, image_loaders
from datasets.caching.folders import disk_folder
from datasets.checking.scan import scan_images
from datasets.transforms.pixels import ResizedPlanes, resize_to_planes
from tests.support import UPRIGHT, save_turned, stored_pixels
from utils.image import pil_loader

SIZE = (16, 8)
RESIZE = ResizedPlanes(SIZE)


def planes(pixels):
    return resize_to_planes(Image.fromarray(np.ascontiguousarray(pixels)), SIZE)


@pytest.fixture
def turned(tmp_path):
    """Paths of a file for each orientation; the stored pixels are the same."""
    return [str(save_turned(tmp_path / "images" / f"{value}.png", value)) for value in UPRIGHT]


@pytest.fixture
def one_identity(market):
    """The set of the fixture, with one file for each orientation in place of the training images."""
    folder = market / "market1501"
    for path in (folder / "bounding_box_train").iterdir():
        path.unlink()
    for pid in (2, 7):
        for value in UPRIGHT:
            save_turned(folder / "bounding_box_train" / f"{pid:04d}_c1s1_00000{value}_01.jpg", value)
    save_turned(folder / "query" / "0005_c1s1_000001_01.jpg", 6)
    return market


@pytest.mark.filterwarnings("ignore:.*fewer than 2 images")
@pytest.mark.parametrize("upright", [True, False])
@pytest.mark.parametrize("cache", ["none", "disk"])
def test_training_and_validation(one_identity, make_cfg, tmp_path, upright, cache):
    options = ["INPUT.EXIF_ORIENTATION", upright, "DATALOADER.CACHE", cache, "DATALOADER.CACHE_DIR", str(tmp_path)]
    module = init_dataset("market1501", cfg=make_cfg(one_identity, *options))
    module.setup()
    for part in (module.train, module.val):
        part.transform = part.transform.transforms[0]  # only the resizing: the rest is random, or scales
    for path, *_ in module.train_list:
        value = int(path.split("_")[-2])
        with Image.open(path) as image:
            expected = planes(UPRIGHT[value if upright else 1](np.asarray(image)))
        for _ in range(2):  # the second time from the cache
            assert torch.equal(module.train.prepare_img(path), expected)
    number = next(i for i, sample in enumerate(module.val.data) if sample[0].endswith("0005_c1s1_000001_01.jpg"))
    with Image.open(module.val.data[number][0]) as image:
        assert torch.equal(module.val[number][0], planes(UPRIGHT[6 if upright else 1](np.asarray(image))))


@pytest.mark.parametrize("kind", ["none", "ram", "disk"])
def test_runs_with_and_without_orientation_share_a_cache(turned, tmp_path, kind):
    for upright in (True, False, True):
        (load,) = image_loaders(kind, 1.0, str(tmp_path / "cache"), [(turned, RESIZE)], upright)
        for path, value in zip(turned, UPRIGHT, strict=True):
            expected = planes(UPRIGHT[value if upright else 1](stored_pixels()))
            for _ in range(2):
                found = load(path)
                assert torch.equal(found if isinstance(found, torch.Tensor) else planes(np.asarray(found)), expected)


def test_neither_run_rewrites_the_entries_of_the_other(turned, tmp_path):
    folder = disk_folder(str(tmp_path / "cache"))
    upright, stored = (ImageCache(folder, turned, RESIZE, exif_orientation=value) for value in (True, False))
    assert not {upright.entry_of(path) for path in turned} & {stored.entry_of(path) for path in turned}


def test_entries_of_versions_without_orientation_are_written_anew(turned, tmp_path, monkeypatch):
    cache = ImageCache(disk_folder(str(tmp_path / "cache")), turned, RESIZE)
    with monkeypatch.context() as older:
        older.setattr("datasets.caching.cache._FORMAT", 1)
        older.setattr("datasets.caching.cache.pil_loader", lambda path, *_: pil_loader(path, exif_orientation=False))
        assert torch.equal(cache(turned[5]), planes(stored_pixels()))
    assert torch.equal(cache(turned[5]), planes(UPRIGHT[6](stored_pixels())))


def test_an_image_beyond_the_room_of_the_cache_is_turned_too(turned, tmp_path):
    folder = disk_folder(str(tmp_path / "cache"))
    for upright in (True, False):
        found = ImageCache(folder, [], RESIZE, exif_orientation=upright)(turned[5])
        np.testing.assert_array_equal(np.asarray(found), UPRIGHT[6 if upright else 1](stored_pixels()))


def test_sizes_of_a_check_are_those_of_upright_images(turned):
    for workers in (0, 2):
        facts = scan_images(turned, workers)
        assert [(facts[path].width, facts[path].height) for path in turned] == [(16, 24)] * 4 + [(24, 16)] * 4
        facts = scan_images(turned, workers, exif_orientation=False)
        assert {(fact.width, fact.height) for fact in facts.values()} == {(16, 24)}


def test_a_set_that_reads_its_images_itself_says_that_the_key_has_no_effect(one_identity, make_cfg, recwarn):
    module = init_dataset("market1501", cfg=make_cfg(one_identity, "INPUT.EXIF_ORIENTATION", False))
    module.setup()
    assert not [warning for warning in recwarn if "EXIF_ORIENTATION" in str(warning.message)]
    kind = type(module.val)
    module.val.__class__ = type("Own", (kind,), {"prepare_img": lambda self, path: Image.open(path)})
    with pytest.warns(UserWarning, match=r"INPUT\.EXIF_ORIENTATION False \(val\) has no effect"):
        module._apply_settings(None)


@pytest.mark.parametrize("upright", [True, False])
def test_a_check_sees_what_training_sees(market, tmp_path, upright):
    """All images are twice as high as wide, if this one is not turned."""
    name = "0005_c2s1_000025_01.jpg"
    save_turned(market / "market1501" / "bounding_box_test" / name, 6, stored_pixels(24, 12))
    options = ["DATASETS.ROOT_DIR", str(market), "INPUT.EXIF_ORIENTATION", str(upright)]
    validate.main(["--out", str(tmp_path / "out"), *options])
    report = (tmp_path / "out" / "report.txt").read_text()
    assert (f"{name} (24 x 12)" in report) == upright
