"""The functions that programs import from inference_utils, against the recordings."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from inference import inference_utils
from inference.galleries.identities import pid_function
from inference.inference_utils import (
    ImageDataset,
    ImageFolderWithPaths,
    _inference,
    calculate_centroids,
    create_pid_path_index,
    get_all_images,
    make_inference_data_loader,
    pil_loader,
    run_inference,
)
from tests.inference.conftest import draw_picture
from tests.support import UPRIGHT, assert_close, golden, save_turned, stored_pixels
from utils.errors import MissingPathError, UserError


@pytest.fixture
def cfg(model):
    cfg = model.hparams.clone()
    cfg.merge_from_list(["DATALOADER.NUM_WORKERS", 0, "TEST.IMS_PER_BATCH", 3, "TRAINER.PROGRESS_BAR", False])
    return cfg


# ----------------------------------------------------------------------------------------------------------- centroids


@pytest.mark.parametrize("as_tensor", [True, False])
@pytest.mark.parametrize("name", ["inference_s0", "inference_s1"])
def test_recorded_centroids(name, as_tensor):
    recorded = golden(name)
    index = create_pid_path_index(recorded["paths"])
    assert list(index) == recorded["centroid_ids"].tolist()
    embeddings = torch.from_numpy(recorded["emb"]) if as_tensor else recorded["emb"]
    centroids, ids = calculate_centroids(embeddings, index)
    assert centroids.dtype == np.float32
    assert ids.tolist() == recorded["centroid_ids"].tolist()
    assert_close(centroids, recorded["centroids"])


def test_index_by_any_function():
    paths = ["a/x_1.png", "b/y_2.png", "a/x_3.png"]
    assert create_pid_path_index(paths) == {"a": [0, 2], "b": [1]}
    assert create_pid_path_index(paths, lambda path: int(path[-5]) % 2) == {1: [0, 2], 0: [1]}
    embeddings = np.arange(6, dtype=np.float32).reshape(3, 2)
    centroids, ids = calculate_centroids(embeddings, {"z": [2, 0], 7: [1], "all": [0, 1, 2]})
    assert centroids.tolist() == [[2, 3], [2, 3], [2, 3]]
    assert ids.tolist() == ["z", "7", "all"]


def test_identities_of_centroids_are_strings():
    embeddings = torch.ones(3, 2, requires_grad=True)
    _, ids = calculate_centroids(embeddings, create_pid_path_index(["3_a", "12_b", "3_c"], lambda path: int(path[:-2])))
    assert (ids.dtype.kind, ids.tolist()) == ("U", ["3", "12"])
    _, ids = calculate_centroids(embeddings, {(1, "a"): [0]})
    assert ids.tolist() == ["(1, 'a')"]
    centroids, ids = calculate_centroids(embeddings, {})
    assert (centroids.shape, ids.shape, ids.dtype.kind) == ((0, 2), (0,), "U")


@pytest.mark.parametrize(
    ("index", "message"), [({"a": [3]}, "between 3 and 3"), ({"a": [-1]}, "-1"), ({"a": []}, "'a'")]
)
def test_index_of_other_embeddings(index, message):
    with pytest.raises(UserError, match=message):
        calculate_centroids(np.zeros((3, 2)), index)


@pytest.mark.parametrize(
    ("kind", "path", "pid"),
    [
        ("parent", "/data/0012/x.jpg", "0012"),
        ("filename", "/data/0012/shop_3_001.jpg", "shop_3"),
        (r"([-\d]+)_c\d", "/data/-1_c3s1_0.jpg", "-1"),
        (r"^\w+", "/data/0012/x.jpg", "0012"),  # below the root
        (r"^(\w+)/(\w+)", "/data/0012/x.jpg", "0012"),
    ],
)
def test_identities(kind, path, pid, tmp_path):
    root = tmp_path / "77_c1"  # an expression does not see it
    root.mkdir()
    assert pid_function(kind, root)(f"{root}{path.removeprefix('/data')}") == pid


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("filename", "plain.jpg: the file name has no '_'"),
        (r"(\d+)_c", "finds no identity"),
        ("(x", "is not a regular expression"),
    ],
)
def test_identities_that_cannot_be_told(kind, message):
    with pytest.raises(UserError, match=message):
        pid_function(kind)("a/plain.jpg")


def test_parent_of_a_file_in_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "someone").mkdir()
    monkeypatch.chdir(tmp_path / "someone")
    assert create_pid_path_index(["x.jpg", "./y.jpg"]) == {"someone": [0, 1]}


# ------------------------------------------------------------------------------------------------------------- loaders


def test_run_inference(model, embedder, pictures, cfg):
    loader = make_inference_data_loader(cfg, str(pictures), ImageDataset)
    assert [len(paths) for _, _, paths in loader] == [3, 3, 1]
    model.train()
    embeddings, paths = run_inference(model, loader, cfg, print_freq=2)
    assert not model.training
    assert embeddings.dtype == np.float32
    assert paths.tolist() == get_all_images(pictures)
    np.testing.assert_allclose(embeddings, embedder.embed(paths), rtol=1e-4, atol=1e-4)
    batch = next(iter(loader))
    features, names = _inference(model, batch)
    assert list(names) == paths[:3].tolist()
    np.testing.assert_allclose(features, embeddings[:3], rtol=1e-4, atol=1e-4)
    assert torch.equal(_inference(model, batch, use_cuda=False)[0], features)


@pytest.mark.parametrize("cls", [ImageDataset, ImageFolderWithPaths])
def test_one_image_file_as_a_folder(model, pictures, cfg, cls):
    loader = make_inference_data_loader(cfg, pictures / "a_0.png", cls)
    embeddings, paths = run_inference(model, loader, cfg, 1, use_cuda=False)
    assert embeddings.shape == (1, 512)
    assert paths.tolist() == [str(pictures / "a_0.png")]


def test_subfolders(tmp_path, cfg):
    for number, name in enumerate(("b/1.png", "a/k/2.png", "a/3.png")):
        draw_picture(tmp_path / name, number)
    (tmp_path / "empty").mkdir()
    dataset = ImageFolderWithPaths(tmp_path)
    assert dataset.classes == ["a", "b"]
    assert [item[1:] for item in dataset] == [
        *((0, f"{tmp_path}/a/3.png"), (0, f"{tmp_path}/a/k/2.png"), (1, f"{tmp_path}/b/1.png"))
    ]
    (batch,) = make_inference_data_loader(cfg, tmp_path, ImageFolderWithPaths)
    images, labels, paths = batch
    assert images.shape == (3, 3, 64, 32)
    assert labels.tolist() == [0, 0, 1]
    assert list(paths) == get_all_images(tmp_path, in_subfolders=True)


def test_image_dataset(pictures):
    paths = get_all_images(pictures)
    dataset = ImageDataset(paths, transform=lambda image: image.size)
    assert len(dataset) == 7
    assert dataset[1] == ((23, 47), -1, paths[1])
    assert ImageDataset(pictures).dataset == paths
    assert ImageDataset(paths, loader=lambda path: path.upper())[0][0] == paths[0].upper()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_picture_is_named(model, pictures, cfg, workers):
    (pictures / "b_4.png").write_bytes(b"cut off")
    cfg.DATALOADER.NUM_WORKERS = workers
    with pytest.raises(UserError, match=r"^Image .*b_4\.png"):
        run_inference(model, make_inference_data_loader(cfg, pictures, ImageDataset), cfg)


@pytest.mark.parametrize("path", [str, Path])
def test_folders_without_images(tmp_path, cfg, model, pictures, path):
    (tmp_path / "notes.txt").write_text("no picture")
    loader = make_inference_data_loader(cfg, path(tmp_path), ImageDataset)
    assert (len(loader), list(loader)) == (0, [])
    for empty in (loader, []):
        with pytest.raises(ValueError, match="gave no images"):
            run_inference(model, empty, cfg)
    with pytest.raises(MissingPathError, match="nowhere"):
        make_inference_data_loader(cfg, path(tmp_path / "nowhere"), ImageDataset)
    with pytest.raises(MissingPathError, match="no subfolder with images"):
        make_inference_data_loader(cfg, path(pictures), ImageFolderWithPaths)


@pytest.mark.parametrize("chosen", [None, lambda path: path.endswith(".jpg")])
def test_files_passed_over_are_said_unless_the_caller_chooses(tmp_path, caplog, chosen):
    (tmp_path / "a").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "a" / "1.jpg")
    (tmp_path / "a" / "notes.txt").write_text("text")
    assert len(ImageFolderWithPaths(tmp_path, is_valid_file=chosen)) == 1
    assert ("notes.txt" in caplog.text) == (chosen is None)


def test_a_missing_folder_is_an_error_whatever_the_class(cfg):
    for path in ("nowhere", ""):
        with pytest.raises(MissingPathError, match=f"'{path}' does not exist"):
            make_inference_data_loader(cfg, path, lambda path, transform: [])


class WithLoader(Dataset):
    """Four items; records what it was called with."""

    def __init__(self, root, transform=None, loader=None):
        self.called_with = (root, transform, loader)

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return torch.full((3, 4, 2), float(index)), "no label", f"/{index}"


class WithoutLoader(WithLoader):
    def __init__(self, root, transform):
        super().__init__(root, transform)


class AnyKeywords(WithLoader):
    def __init__(self, root, **kwargs):
        super().__init__(root, **kwargs)


class OtherName(WithLoader):
    def __init__(self, root, prepare):
        super().__init__(root, prepare)


@pytest.mark.parametrize("cls", [WithLoader, WithoutLoader, AnyKeywords, OtherName])
def test_a_class_of_ones_own_gets_the_path_itself(tmp_path, cfg, cls):
    folder = f"{tmp_path}/./"
    loader = make_inference_data_loader(cfg=cfg, path=folder, dataset_class=cls)
    root, transform, read = loader.dataset.called_with
    assert (root, read) == (folder, pil_loader if cls is WithLoader else None)
    assert transform(Image.new("RGB", (10, 10))).shape == (3, 64, 32)
    images, labels, paths = list(loader)[1]  # of 3 + 1
    assert images.flatten().tolist() == [3.0] * 24
    assert (tuple(labels), tuple(paths)) == (("no label",), ("/3",))


@pytest.mark.parametrize("upright", [True, False])
@pytest.mark.parametrize("cls", [ImageDataset, ImageFolderWithPaths])
def test_orientation_follows_the_configuration(tmp_path, cfg, cls, upright):
    path = save_turned(tmp_path / "below" / "turned.png", 6)
    cfg = cfg.clone()
    cfg.INPUT.EXIF_ORIENTATION = upright
    loader = make_inference_data_loader(cfg, tmp_path if cls is ImageFolderWithPaths else path.parent, cls)
    pixels = np.ascontiguousarray(UPRIGHT[6 if upright else 1](stored_pixels()))
    expected = loader.dataset.transform(Image.fromarray(pixels))
    assert torch.equal(next(iter(loader))[0][0], expected)


def test_a_configuration_may_be_any_object(model, pictures, monkeypatch):
    monkeypatch.setattr("utils.devices.count_cpus", lambda: 1)
    cfg = SimpleNamespace(
        INPUT=SimpleNamespace(SIZE_TEST=[64, 32], PIXEL_MEAN=[0.5, 0.5, 0.5], PIXEL_STD=[0.2, 0.2, 0.2]),
        TEST=SimpleNamespace(IMS_PER_BATCH=4),
        DATALOADER=SimpleNamespace(NUM_WORKERS=6),
    )
    loader = make_inference_data_loader(cfg, pictures)
    assert (len(loader), loader.num_workers) == (2, 1)
    image = Image.open(pictures / "a_0.png").convert("RGB").resize((32, 64), Image.Resampling.BILINEAR)
    expected = (np.asarray(image, np.float32) / 255 - 0.5) / 0.2
    found = next(iter(loader))[0][0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(found, expected, atol=0.02)
    only_size = SimpleNamespace(TEST=SimpleNamespace(IMS_PER_BATCH=4))
    embeddings, paths = run_inference(model, loader, only_size, 2, False)
    assert embeddings.shape == (7, 512) and len(paths) == 7
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)  # in place


# ----------------------------------------------------------------------------------------------------------- one batch


@pytest.fixture
def batch():
    return torch.randn(3, 3, 64, 32, generator=torch.Generator().manual_seed(4)), [0, 0, 0], ["a", "b", "c"]


def test_a_model_in_training_mode_is_put_into_eval_mode(model, batch):
    expected, _ = _inference(model, batch, False)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    model.train()
    found, paths = _inference(model, batch, False)
    assert not model.training and not model.bn.training and not model.backbone.base.layer1[0].bn1.training
    assert paths == ["a", "b", "c"]
    assert torch.equal(found, expected)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_with_and_without_the_neck(model, batch):
    with torch.no_grad():
        features = model.backbone(batch[0])[1]
        embeddings = model.bn(features)
    assert torch.equal(_inference(model, batch, False, True)[0], embeddings)
    assert torch.equal(_inference(model, batch, False, normalize_with_bn=False)[0], features)
    assert not torch.allclose(features, embeddings)


def test_results_may_be_changed_and_used_in_autograd(model, batch):
    found, _ = _inference(model, batch)
    assert not found.requires_grad and not found.is_inference()
    found /= found.norm(dim=1, keepdim=True)
    assert_close(found.norm(dim=1), np.ones(3))
    weight = torch.ones(512, requires_grad=True)
    (found * weight).sum().backward()
    assert torch.equal(weight.grad, found.sum(0))


class Somewhere(torch.nn.Module):
    """A model on the device "meta", which stands in for a CUDA device, and moves to the CPU when asked to."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1, device="meta"))
        self.bn = torch.nn.Identity()
        self.asked = []

    def to(self, device):
        self.asked.append(str(device))
        self.weight = torch.nn.Parameter(torch.ones(1, device=device))
        return self

    def backbone(self, images):
        return None, images * self.weight


def test_images_follow_the_model_unless_it_is_told_to_move():
    batch = (torch.ones(2, 3), None, ["a", "b"])
    for use_cuda, asked in ((None, []), (False, ["cpu"])):
        model = Somewhere()
        found, _ = _inference(model, batch, use_cuda)
        assert (model.asked, str(found.device)) == (asked, "cpu" if asked else "meta")
        _inference(model, batch, use_cuda)
        assert model.asked == asked  # it is there already


def test_the_cuda_device_is_the_first_of_gpu_ids(monkeypatch):
    monkeypatch.setattr("inference.embedding.loaders.find_device", lambda device: SimpleNamespace(name=device))
    monkeypatch.setattr(Somewhere, "to", lambda self, device: self.asked.append(device.name))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for cfg, use_cuda, asked in (
        (SimpleNamespace(GPU_IDS=[2, 0]), None, "cuda:2"),
        (SimpleNamespace(GPU_IDS=[]), None, "cpu"),
        (SimpleNamespace(GPU_IDS=[]), True, "cuda"),
        (SimpleNamespace(), None, "cuda"),
        (SimpleNamespace(GPU_IDS=[2]), False, "cpu"),
    ):
        model = Somewhere()
        with pytest.raises(UserError, match="no images"):
            run_inference(model, [], cfg, 10, use_cuda)
        assert model.asked == [asked]


def test_cuda_where_there_is_none(model, batch, cfg, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="'cuda', which this machine does not have"):
        _inference(model, batch, True)
    with pytest.raises(UserError, match="'cuda:0', which this machine does not have"):
        run_inference(model, [batch], cfg, 10, True)


@pytest.mark.parametrize("shown", [True, False])
def test_the_progress_bar_is_left_out_only_if_the_configuration_says_so(model, batch, capfd, shown):
    cfg = SimpleNamespace(**({} if shown else {"TRAINER": SimpleNamespace(PROGRESS_BAR=False)}))
    run_inference(model, [batch, batch], cfg, 1, False)
    assert ("6img" in capfd.readouterr().err) == shown


def test_the_names_that_programs_import():
    assert {
        *("get_all_images", "ImageDataset", "ImageFolderWithPaths", "make_inference_data_loader", "_inference"),
        *("run_inference", "create_pid_path_index", "calculate_centroids", "IMG_EXTENSIONS", "pil_loader"),
    } <= set(inference_utils.__all__)
    assert {".jpg", ".jpeg", ".png", ".webp"} <= set(inference_utils.IMG_EXTENSIONS)
    assert "photo.JPG".lower().endswith(inference_utils.IMG_EXTENSIONS)
    assert all(hasattr(inference_utils, name) for name in inference_utils.__all__)
