"""INPUT.DRAFT_DECODING: large JPEG files decoded small, near the pixels of the whole image, wherever files are read."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from datasets import init_dataset
from datasets.caching.cache import ImageCache, image_loaders
from datasets.caching.folders import disk_folder
from datasets.transforms.pixels import ResizedPlanes
from inference.embedding.embedder import Embedder
from inference.embedding.images import read_pixels
from inference.embedding.loaders import make_inference_data_loader
from modelling.bases import ModelBase
from tests.small import small_config
from tests.support import UPRIGHT
from utils.image import image_loader, pil_loader

SIZE = (64, 32)
WHOLE, DRAFT = ResizedPlanes(SIZE), ResizedPlanes(SIZE, draft=True)


def photo(width, height, seed=0, mode="RGB"):
    """Smooth colours with grain, as a camera's."""
    rng = np.random.default_rng(seed)
    smooth = Image.fromarray(rng.integers(30, 220, (8, 6, 3), dtype=np.uint8)).resize((width, height), Image.BICUBIC)
    pixels = np.asarray(smooth).astype(int) + rng.normal(0, 6, (height, width, 1)).astype(int)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert(mode)


def save(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=92, **options)
    return str(path)


def exif(orientation):
    data = Image.Exif()
    data[0x0112] = orientation
    return data


@pytest.mark.parametrize(
    ("width", "height", "decoded"),
    [
        (128, 256, (32, 64)),  # exactly four times
        (64, 128, (32, 64)),
        (130, 255, (65, 128)),  # 3.98 times as high: half, rounded up
        (63, 400, (63, 400)),  # not twice as wide
        (400, 127, (400, 127)),
        (32, 64, (32, 64)),
        (600, 1200, (75, 150)),  # an eighth at most
    ],
)
def test_decoded_at_the_smallest_scale_that_is_large_enough(tmp_path, width, height, decoded):
    path = save(tmp_path / "a.jpg", photo(width, height))
    assert pil_loader(path, least=SIZE).size == decoded
    assert pil_loader(path).size == (width, height)
    whole, draft = WHOLE(pil_loader(path)).int(), DRAFT(pil_loader(path, least=SIZE)).int()
    assert (whole - draft).abs().float().mean() < 2.5
    assert (whole - draft).abs().max() < 24
    assert torch.equal(whole, draft) == (decoded == (width, height))


@pytest.mark.parametrize("upright", [True, False])
@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("stored", [(64, 144), (144, 64)])
def test_turned_files_are_measured_as_they_will_stand(tmp_path, stored, orientation, upright):
    path = save(tmp_path / "a.jpg", photo(*stored), exif=exif(orientation))
    whole, found = pil_loader(path, upright), pil_loader(path, upright, SIZE)
    assert whole.size == (stored[::-1] if upright and orientation >= 5 else stored)
    assert found.size == ((32, 72) if whole.size == (64, 144) else whole.size)
    assert (WHOLE(found).int() - WHOLE(whole).int()).abs().float().mean() < 2.5


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_cmyk(tmp_path, mode):
    path = save(tmp_path / "a.jpg", photo(256, 512, mode=mode))
    found = pil_loader(path, least=SIZE)
    assert (found.mode, found.size) == ("RGB", (32, 64))
    assert (DRAFT(found).int() - WHOLE(pil_loader(path)).int()).abs().float().mean() < 2.5


@pytest.mark.parametrize("suffix", ["png", "webp", "bmp", "tif", "gif"])
def test_other_formats_keep_their_pixels(tmp_path, suffix):
    path = str(tmp_path / f"a.{suffix}")
    photo(256, 512).save(path)
    assert pil_loader(path, least=SIZE).tobytes() == pil_loader(path).tobytes()


def test_without_the_key_nothing_changes(tmp_path):
    assert small_config().INPUT.DRAFT_DECODING is False
    assert image_loader(exif_orientation=True) is pil_loader
    assert ResizedPlanes.of_mode(SIZE, "stretch", (0, 0, 0)) == WHOLE
    assert (WHOLE.least, DRAFT.least) == (None, SIZE)


@pytest.fixture
def large(market):
    """The set of the fixture with large images in place of its own; the path of one of them."""
    for seed, path in enumerate(sorted(market.rglob("*.jpg"))):
        photo(64, 128, seed).save(path, quality=92)
    return market


@pytest.mark.parametrize("cache", ["none", "disk"])
@pytest.mark.parametrize("draft", [True, False])
def test_training_and_validation(large, make_cfg, tmp_path, cache, draft):
    options = ["INPUT.DRAFT_DECODING", draft, "DATALOADER.CACHE", cache, "DATALOADER.CACHE_DIR", str(tmp_path / "c")]
    cfg = make_cfg(large, *options)
    module = init_dataset("market1501", cfg=cfg)
    module.setup()
    size = tuple(cfg.INPUT.SIZE_TRAIN)
    for part, path in ((module.train, module.train_list[0][0]), (module.val, module.val.data[0][0])):
        part.transform = part.transform.transforms[0]  # only the resizing
        for _ in range(2):  # the second time from the cache
            expected = ResizedPlanes(size)(pil_loader(path, least=size if draft else None))
            assert torch.equal(part.prepare_img(path), expected)
            assert torch.equal(expected, ResizedPlanes(size)(pil_loader(path))) != draft


def test_a_set_with_transforms_of_its_own_says_that_the_key_has_no_effect(large, make_cfg):
    module = init_dataset("market1501", cfg=make_cfg(large, "INPUT.DRAFT_DECODING", True))
    module.setup()
    module.val.transform = torch.nn.Identity()
    with pytest.warns(UserWarning, match=r"INPUT\.DRAFT_DECODING True \(val\) has no effect"):
        module._apply_settings(None)


@pytest.mark.parametrize("kind", ["none", "ram", "disk"])
def test_runs_with_and_without_the_key_share_a_cache(tmp_path, kind):
    path = save(tmp_path / "a.jpg", photo(256, 512))
    for resize in (DRAFT, WHOLE, DRAFT):
        (load,) = image_loaders(kind, 1.0, str(tmp_path / "cache"), [([path], resize)])
        for _ in range(2):
            assert torch.equal(resize(load(path)), WHOLE(pil_loader(path, least=resize.least)))
    entries = [ImageCache(disk_folder(str(tmp_path)), [path], resize).entry_of(path) for resize in (DRAFT, WHOLE)]
    assert entries[0] != entries[1]


def test_inference_reads_as_training_does_and_records_it(tmp_path):
    path = save(tmp_path / "images" / "a.jpg", photo(256, 512))
    content = (tmp_path / "images" / "a.jpg").read_bytes()
    expected = WHOLE(pil_loader(path, least=SIZE))
    for source in (path, content, io.BytesIO(content)):
        assert torch.equal(read_pixels(source, DRAFT), expected)
    with Image.open(path) as image:  # the caller's own, which stays as it is
        assert torch.equal(read_pixels(image, DRAFT), WHOLE(pil_loader(path)))
    cfg = small_config(**{"INPUT.SIZE_TEST": list(SIZE), "INPUT.DRAFT_DECODING": True})
    model = ModelBase(cfg, num_classes=2).eval()
    embedder = Embedder(model, "cpu", num_workers=0)
    assert embedder.identity["draft_decoding"] is True
    drafted = embedder.embed(path)
    assert np.array_equal(drafted, embedder.embed_pixels(expected[None]))
    (batch,) = make_inference_data_loader(cfg, str(tmp_path / "images"))
    with torch.no_grad():
        np.testing.assert_allclose(model(batch[0]), drafted, rtol=1e-3, atol=1e-4)
    embedder.draft_decoding = False
    assert embedder.identity["draft_decoding"] is False
    assert np.array_equal(embedder.embed(path), embedder.embed_pixels(WHOLE(pil_loader(path))[None]))
