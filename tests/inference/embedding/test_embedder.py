"""Images to embeddings: against the recorded ones, for every kind of input, and what cannot be read."""

import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.datasets import ImageFolder

from datasets.transforms import ReidTransforms
from datasets.transforms.pixels import Normalise, ResizedPlanes
from inference import Embedder
from inference.embedding.images import find_images, get_all_images, holds_images, read_pixels
from inference.embedding.loaders import (
    ImageDataset,
    ImageFolderWithPaths,
    make_inference_data_loader,
    run_inference,
)
from inference.galleries.gallery import ABOUT, EMBEDDINGS, PATHS, SKIPPED
from inference.galleries.parts import RUN
from tests.inference.conftest import draw_picture
from tests.launch import run_code
from tests.support import golden
from utils.devices import find_device
from utils.errors import MissingPathError, UserError
from utils.image import IMAGE_SUFFIXES, pil_loader

# Pictures are decoded by another Pillow than when the numbers were recorded: a grey level here and there.
DECODED_ELSEWHERE = 5e-4


@pytest.fixture(scope="module")
def paths(recorded_images):
    return get_all_images(recorded_images / "query")[:9]


@pytest.fixture(scope="module")
def expected(model, paths):
    """The plain model on the test transforms."""
    transform = ReidTransforms(model.hparams).build_transforms(is_train=False)
    images = torch.stack([transform(pil_loader(path)) for path in paths])
    with torch.inference_mode():
        return images, model(images).numpy()


def assert_same(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_recorded_gallery(embedder, recorded_images, monkeypatch):
    monkeypatch.chdir(recorded_images.parent)
    recorded = golden("e2e_s0")
    embeddings, paths = embedder.embed_folder("market1501/bounding_box_test")
    assert paths == recorded["gallery_paths"].tolist()
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(embeddings[:, ::4], recorded["gallery_embeddings"], rtol=0, atol=DECODED_ELSEWHERE)
    queries, paths = embedder.embed_folder("market1501/query/")
    assert paths == recorded["query_paths"].tolist()
    np.testing.assert_allclose(queries[:, ::4], recorded["query_embeddings"], rtol=0, atol=DECODED_ELSEWHERE)


def test_everything_that_stands_for_pictures(embedder, paths, expected):
    images, embeddings = expected
    pictures = [pil_loader(path) for path in paths]
    arrays = [np.asarray(picture) for picture in pictures]
    planes = torch.stack([read_pixels(path, ResizedPlanes(embedder.size)) for path in paths])
    same_size = planes.permute(0, 2, 3, 1).contiguous().numpy()
    for given in (paths, tuple(paths), np.array(paths), iter(paths), pictures, arrays, images, list(images)):
        assert_same(embedder.embed(given), embeddings)
    assert_same(embedder.embed(same_size), embeddings)
    assert_same(embedder.embed(torch.from_numpy(same_size)), embeddings)
    assert_same(embedder.embed([paths[0], pictures[1], arrays[2]]), embeddings[:3])
    for one in (paths[4], pictures[4], arrays[4], images[4]):
        assert_same(embedder.embed(one), embeddings[4:5])
    assert embedder.embed([]).shape == (0, 512)
    assert embedder.dimension == 512


def test_pixels_are_those_of_the_test_transforms(embedder, paths, expected):
    pixels = torch.stack([read_pixels(path, ResizedPlanes(embedder.size)) for path in paths])
    assert torch.equal(Normalise(embedder.mean, embedder.std)(pixels), expected[0])
    assert_same(embedder.embed_pixels(pixels), expected[1])


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("batch_size", [1, 4, 9, 50])
def test_batches_and_workers_change_nothing(model, paths, expected, workers, batch_size):
    embedder = Embedder(model, "cpu", batch_size=batch_size, num_workers=workers)
    assert_same(embedder.embed(paths), expected[1])
    assert_same(embedder.embed(paths, batch_size=2), expected[1])


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "I;16"])
def test_other_modes_are_converted(embedder, tmp_path, mode):
    picture = Image.effect_noise((40, 60), 50)
    deep = np.asarray(picture, np.uint16) * 257
    converted = Image.fromarray(deep) if mode == "I;16" else picture.convert(mode)
    assert converted.mode == mode
    path = tmp_path / "p.tif"
    converted.save(path)
    expected = embedder.embed((picture if mode == "I;16" else converted).convert("RGB"))
    assert_same(embedder.embed(converted), expected)
    assert_same(embedder.embed(path), expected)


def test_options_of_the_checkpoint_and_others(legacy_checkpoint, paths):
    embedder = Embedder.from_checkpoint(legacy_checkpoint, device="cpu")
    assert (embedder.size, embedder.batch_size) == ((64, 32), 16)
    assert embedder.mean == (0.485, 0.456, 0.406)
    other = Embedder.from_checkpoint(legacy_checkpoint, device="cpu", size=(32, 32), std=(1, 1, 1), batch_size=2)
    assert other.weights_digest == embedder.weights_digest
    assert other.identity != embedder.identity
    assert abs(other.embed(paths[0]) - embedder.embed(paths[0])).max() > 0.1


def test_precisions(model, paths, expected):
    for precision in ("bf16-true", "bf16-mixed"):
        found = Embedder(model, "cpu", precision, num_workers=0).embed(paths)
        assert found.dtype == np.float32
        cosine = (found * expected[1]).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected[1], axis=1)
        assert 0.9998 < cosine.min() < 1 - 1e-7
    assert_same(Embedder(model, "cpu", "64-true", num_workers=0).embed(paths), expected[1])


def test_embeddings_that_are_not_finite_are_refused(model, paths):
    """A gallery of them would be refused only when it is searched."""
    broken = Embedder(model, "cpu", num_workers=0)
    broken.network.shift[3] = torch.inf
    text = (
        r"^9 of 9 embeddings of a batch are not finite, the first that of its image 0 \(from 0\): the weights .* "
        r"too large for float32; try the precision 32-true"
    )
    with pytest.raises(UserError, match=text):
        broken.embed(paths)
    broken.network.forward = lambda _: torch.tensor([[1.0], [2.0], [torch.nan]])
    with pytest.raises(UserError, match="1 of 3 embeddings of a batch are not finite, the first that of its image 2"):
        broken.embed(torch.zeros(3, 3, 64, 32))


@pytest.mark.parametrize("size", [1, 3, 7])
def test_a_broken_picture_stops_or_is_skipped(embedder, pictures, size):
    paths = get_all_images(pictures)
    assert len(paths) == 7
    whole = embedder.embed(paths)
    for broken in (paths[2], paths[6]):
        (pictures / broken).write_bytes(b"cut off")
    with pytest.raises(UserError, match=paths[2]):
        list(embedder.embed_batches(paths, batch_size=size))
    batches = list(embedder.embed_batches(paths, "skip", batch_size=size))
    assert [batch.start for batch in batches] == list(range(0, 7, size))
    assert [place for batch in batches for place in batch.kept] == [0, 1, 3, 4, 5]
    assert [place for batch in batches for place in batch.errors] == [2, 6]
    assert_same(np.concatenate([batch.embeddings for batch in batches]), whole[[0, 1, 3, 4, 5]])
    _, kept = embedder.embed_folder(pictures, on_error="skip")
    assert kept == [path for i, path in enumerate(paths) if i not in (2, 6)]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ("nothing.jpg", "nothing.jpg does not exist"),
        (np.zeros((4, 4, 3)), r"ndarray of float64 with shape \[4, 4, 3\]"),
        (np.zeros((4, 4, 2), np.uint8), r"shape \[4, 4, 2\]"),
        ([np.zeros((4, 4, 5), np.uint8)], r"shape \[4, 4, 5\]"),
        (torch.zeros(2, 4, 8, 8), r"expected \[B, 3, H, W\]"),
        ([3], "a int"),
    ],
)
def test_what_is_no_picture(embedder, images, message):
    with pytest.raises(UserError, match=message):
        embedder.embed(images)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cuda:99"}, "cuda:99.*does not have"),
        ({"device": "abacus"}, "expected auto, cpu, cuda"),
        ({"precision": "8-bit"}, "8-bit.*bf16-true"),
        ({"precision": "16-true"}, "does not work on the device cpu"),
        ({"batch_size": 0}, "batch_size"),
        ({"size": (64,)}, "size is"),
        ({"mean": (0.5,)}, r"mean is \(0.5,\), std .*; expected three numbers each"),
        ({"mean": (0.5, 0.5, float("nan"))}, "mean is"),
        ({"std": (1, 1, 0)}, r"std \(1, 1, 0\); expected three numbers each, of std above 0"),
    ],
)
def test_options_that_cannot_be(model, options, message):
    with pytest.raises(UserError, match=message):
        Embedder(model, **{"device": "cpu", **options})


@pytest.mark.parametrize("size", [0, -1])
def test_batches_without_images(embedder, paths, size):
    for images in (paths, torch.zeros(2, 3, 8, 4)):
        with pytest.raises(UserError, match=f"batch_size is {size}; expected 1 or more, or None for {16}"):
            embedder.embed(images, batch_size=size)
    with pytest.raises(UserError, match="batch_size is"):
        next(embedder.embed_batches(paths, batch_size=size))


def test_auto_is_some_device_of_this_machine():
    assert find_device("auto").type in ("cpu", "cuda", "mps")
    assert find_device(torch.device("cpu")) == torch.device("cpu")


def test_errors_of_checkpoints(tmp_path):
    with pytest.raises(MissingPathError, match=r"no\.ckpt"):
        Embedder.from_checkpoint(tmp_path / "no.ckpt")
    (tmp_path / "cut.ckpt").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(UserError, match=r"cut\.ckpt"):
        Embedder.from_checkpoint(tmp_path / "cut.ckpt")


# ------------------------------------------------------------------------------------------------------------- folders


def test_which_files_of_a_folder_count(pictures, tmp_path):
    shutil.copy(pictures / "a_0.png", pictures / "D.PNG")
    (pictures / "folder.jpg").mkdir()
    names = ["D.PNG", "a_0.png", "a_3.png", "a_6.png", "b_1.png", "b_4.png", "c_2.png", "c_5.png"]
    assert get_all_images(f"{pictures}/") == [f"{pictures}/{name}" for name in names]
    assert get_all_images(pictures / "a_0.png") == [str(pictures / "a_0.png")]
    with pytest.raises(MissingPathError, match="nowhere"):
        get_all_images(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert get_all_images(tmp_path / "empty") == []
    with pytest.raises(UserError, match="empty.*holds no images"):
        find_images(tmp_path / "empty")
    with pytest.raises(UserError, match="holds no images.*--images-in-subfolders"):
        find_images(tmp_path)
    with pytest.raises(UserError, match="no subfolder with images"):
        find_images(pictures, in_subfolders=True)


@pytest.fixture
def mixed(tmp_path):
    """A folder with images of many suffixes, other files, what programs write, and images below it."""
    folder = tmp_path / "mixed"
    names = ("a.jpg", "b.JFIF", "c.gif", "d.Jpe", "e.webp", "sub/f.png", "sub/deep/g.bmp", ".hidden/h.png", "._a.jpg")
    for number, name in enumerate(names):
        path = draw_picture(tmp_path / "drawn.png", number)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).save(folder / name, format={".jpg": "JPEG"}.get((folder / name).suffix))
    for name in (
        *("notes.txt", "list.csv", "photo.HEIC", "sub/more.txt"),  # the user's
        *(
            ".DS_Store",
            "Thumbs.db",
            "desktop.ini",
            EMBEDDINGS,
            PATHS,
            ABOUT,
            SKIPPED,
            RUN,
            "00000012.npy",
            "00000012.json",
        ),
        *("query_embeddings.npy", "query_paths.npy", "embeddings.ivf-unit.faiss", "embeddings.flat.faiss.json"),
        *("results.npy", "results.jsonl", "results.csv", "results.html"),
    ):
        (folder / name).write_bytes(b"no image")
    return folder


SUFFIXES = "(" + ", ".join(IMAGE_SUFFIXES) + ")"


def test_what_a_folder_holds_besides_is_said_once(embedder, mixed, caplog):
    expected = (
        f"Passed over in '{mixed}': 3 files, such as '{mixed}/list.csv', without the name of an image {SUFFIXES}; "
        f"2 images, such as '{mixed}/sub/f.png', in subfolders: --images-in-subfolders takes those."
    )
    names = [f"{mixed}/{name}" for name in ("a.jpg", "b.JFIF", "c.gif", "d.Jpe", "e.webp")]
    assert get_all_images(mixed) == find_images(str(mixed)) == names
    assert [record.getMessage() for record in caplog.records] == [expected] * 2
    caplog.clear()
    embeddings, paths = embedder.embed_folder(mixed)
    assert (paths, embeddings.shape) == (names, (5, 512))
    assert [record.getMessage() for record in caplog.records] == [expected]


def test_what_lies_beside_the_subfolders_is_said_once(mixed, caplog):
    (mixed / "sub" / "deep" / "g.bmp").unlink()
    names = [f"{mixed}/.hidden/h.png", f"{mixed}/sub/f.png"]
    assert find_images(mixed, in_subfolders=True) == names
    expected = (
        f"Passed over in '{mixed}': 1 file, '{mixed}/sub/more.txt', without the name of an image {SUFFIXES}; 5 images, "
        f"such as '{mixed}/a.jpg', in the folder itself: only its subfolders were wanted."
    )
    assert [record.getMessage() for record in caplog.records] == [expected]
    caplog.clear()
    assert [path for _, _, path in ImageFolderWithPaths(mixed)] == names
    assert [record.getMessage() for record in caplog.records] == [expected]


def test_a_folder_of_images_alone_says_nothing(mixed, caplog):
    for name in ("notes.txt", "list.csv", "photo.HEIC"):
        (mixed / name).unlink()
    shutil.rmtree(mixed / "sub")
    assert len(get_all_images(mixed)) == len(ImageDataset(mixed)) == 5
    assert len(get_all_images(mixed / "a.jpg")) == 1
    assert not caplog.records


def test_a_folder_with_other_files_only(tmp_path):
    (tmp_path / "photo.heic").write_bytes(b"")
    with pytest.raises(UserError, match=r"holds no images .*; it holds 1 other file, '.*photo.heic',\.$"):
        find_images(tmp_path)
    draw_picture(tmp_path / "a.png", 1)
    with pytest.raises(UserError, match="no subfolder with images.*; the folder itself does: leave out --images-in-su"):
        find_images(tmp_path, in_subfolders=True)


def test_classes_of_torchvision_take_the_same_suffixes(mixed, caplog):
    (mixed / "sub" / "deep" / "g.bmp").rename(mixed / "sub" / "deep" / "g.gif")
    assert [path for _, _, path in ImageFolderWithPaths(mixed)] == get_all_images(mixed, in_subfolders=True)
    caplog.clear()
    only = ImageFolderWithPaths(mixed, is_valid_file=lambda path: path.endswith("f.png"), allow_empty=True)
    assert [path for _, _, path in only] == [f"{mixed}/sub/f.png"]
    assert not caplog.records  # what passes is the caller's own choice


def test_a_link_to_nowhere_is_an_image_that_cannot_be_read(embedder, pictures):
    (pictures / "gone.png").symlink_to("nowhere.png")
    assert f"{pictures}/gone.png" in get_all_images(pictures)
    with pytest.raises(MissingPathError, match=r"gone\.png does not exist"):
        embedder.embed_folder(pictures)
    assert len(embedder.embed_folder(pictures, on_error="skip")[1]) == 7


def test_subfolders_in_the_order_of_torchvision(tmp_path):
    for number, name in enumerate(("b/2.png", "b/1.png", "b-c/9.png", "a/z/1.png", "a/5.png", "a/k/7.png")):
        draw_picture(tmp_path / name, number)
    draw_picture(tmp_path / "above.png", 9)
    found = get_all_images(tmp_path, in_subfolders=True)
    assert found == [path for path, _ in ImageFolder(tmp_path).samples]
    assert len(found) == 6


@pytest.mark.parametrize(
    ("link", "target"), [("a/up", ".."), ("a/top", "../.."), ("a/b/self", "."), ("here", "."), ("a/x", "../../away")]
)
def test_links_in_circles_are_not_followed(link, target, tmp_path, monkeypatch):
    if target.endswith("away"):  # a circle over another folder
        (tmp_path / "away").mkdir()
        (tmp_path / "away" / "back").symlink_to(tmp_path / "pictures" / "a")
    for number, name in enumerate(("a/1.png", "a/b/2.png")):
        draw_picture(tmp_path / "pictures" / name, number)
    (tmp_path / "pictures" / link).symlink_to(target)
    monkeypatch.chdir(tmp_path)
    for top in ("pictures", "./pictures/", str(tmp_path / "pictures"), str(tmp_path / "pictures" / ".." / "pictures")):
        assert get_all_images(top, True) == [f"{top.rstrip('/')}/{name}" for name in ("a/1.png", "a/b/2.png")]


def test_links_to_other_folders_are_followed(tmp_path):
    draw_picture(tmp_path / "pictures" / "a" / "1.png", 1)
    draw_picture(tmp_path / "elsewhere" / "b" / "2.png", 2)
    (tmp_path / "pictures" / "other").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "pictures" / "twice").symlink_to(tmp_path / "elsewhere" / "b")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "pictures" / "a")  # beside it, not above
    found = get_all_images(tmp_path / "pictures", in_subfolders=True)
    assert [path.removeprefix(f"{tmp_path}/pictures/") for path in found] == [
        *("a/1.png", "other/b/2.png", "other/back/1.png", "twice/2.png")
    ]


def test_a_folder_with_a_circle_but_without_images_is_read_once(tmp_path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "up").symlink_to("..")
    read, original = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: read.append(path) or original(path))
    assert not holds_images(tmp_path)
    assert len(read) == 3
    draw_picture(tmp_path / "a" / "b" / "1.png", 1)
    assert holds_images(tmp_path / "a")


def test_importing_the_package_is_light():
    code = (
        "import sys, inference, inference.searching.search, inference.command_line\n"
        "assert not {'torch', 'numpy', 'pytorch_lightning'} & set(sys.modules), 'heavy'\n"
        "assert 'Embedder' in inference.__all__"
    )
    done = run_code(code)
    assert done.returncode == 0, done.stderr
    with pytest.raises(ImportError, match="Embeddr"):
        from inference import Embeddr  # noqa: F401


def test_folders_that_cannot_be_listed(pictures, monkeypatch):
    with pytest.raises(MissingPathError, match="'' does not exist"):
        get_all_images("")
    (pictures / "below" / "closed").mkdir(parents=True)
    original = os.scandir

    def refusing(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return original(path)

    monkeypatch.setattr(os, "scandir", refusing)
    for folder, deep in ((pictures / "below" / "closed", False), (pictures, True)):
        with pytest.raises(UserError, match="closed' cannot be listed .Permission denied"):
            get_all_images(folder, deep)


# -------------------------------------------------------------------------------------------------- ways to the network


def test_flip_averages_both_views(model, paths):
    one = Embedder(model, "cpu", num_workers=0)
    both = Embedder(model, "cpu", num_workers=0)
    assert (both.flip, both.identity["flip"]) == (False, False)
    both.flip = True
    assert both.identity == one.identity | {"flip": True}
    images = [np.asarray(pil_loader(path).resize((32, 64), Image.Resampling.BILINEAR)) for path in paths]
    mirrored = one.embed([np.ascontiguousarray(image[:, ::-1]) for image in images])
    expected = (one.embed(images) + mirrored) / 2
    assert_same(both.embed(images), expected)
    assert_same(both.embed(paths), expected)
    assert abs(expected - mirrored).max() > 0.1


def test_padding_keeps_the_shape_of_an_image(model, tmp_path):
    path = draw_picture(tmp_path / "wide.png", 0)
    Image.open(path).resize((60, 30)).save(path)
    stretched = Embedder(model, "cpu", num_workers=0)
    padded = Embedder(model, "cpu", num_workers=0)
    assert (padded.resize, padded.identity["resize"]) == ("stretch", "stretch")
    padded.resize = "pad"
    assert padded.identity == stretched.identity | {"resize": "pad"}
    border = tuple(round(255 * part) for part in padded.mean)
    expected = ImageOps.pad(pil_loader(path), (32, 64), Image.Resampling.BILINEAR, border)
    assert_same(padded.embed(path), stretched.embed(expected))
    assert abs(padded.embed(path) - stretched.embed(path)).max() > 0.1
    padded.resize = "crop"
    with pytest.raises(ValueError, match="the resize is 'crop'; expected 'stretch' or 'pad'"):
        padded.embed(path)


@pytest.fixture
def views_on(model):
    model.hparams.INPUT.RESIZE, model.hparams.TEST.FLIP = "pad", True
    yield model
    model.hparams.INPUT.RESIZE, model.hparams.TEST.FLIP = "stretch", False


def test_resize_and_flip_are_those_of_the_model(views_on, paths):
    found = Embedder(views_on, "cpu", num_workers=0)
    assert (found.resize, found.flip) == ("pad", True)
    transform = ReidTransforms(views_on.hparams).build_transforms(is_train=False)
    with torch.inference_mode():
        assert_same(found.embed(paths), views_on(torch.stack([transform(pil_loader(path)) for path in paths])).numpy())


def test_programs_with_loaders_of_this_project_get_both_views(views_on, paths, tmp_path):
    for path in paths:
        shutil.copy(path, tmp_path)
    loader = make_inference_data_loader(views_on.hparams, tmp_path)
    found, _ = run_inference(views_on, loader, views_on.hparams, use_cuda=False)
    assert_same(found, Embedder(views_on, "cpu", num_workers=0).embed(paths))
