"""The functions that programs import from inference_utils, against the recordings."""

import numpy as np
import pytest
import torch

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
    run_inference,
)
from tests.inference.conftest import draw_picture
from tests.support import assert_close, golden
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
    assert calculate_centroids(embeddings, {})[0].shape == (0, 2)


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


def test_folders_without_images(tmp_path, cfg, model, pictures):
    with pytest.raises(UserError, match="holds no images"):
        make_inference_data_loader(cfg, tmp_path / "pictures" / "..", ImageDataset)
    with pytest.raises(MissingPathError, match="nowhere"):
        make_inference_data_loader(cfg, tmp_path / "nowhere", ImageDataset)
    with pytest.raises(MissingPathError, match="no subfolder with images"):
        make_inference_data_loader(cfg, pictures, ImageFolderWithPaths)
    with pytest.raises(UserError, match="gave no images"):
        run_inference(model, [], cfg)


def test_the_names_that_programs_import():
    assert {
        *("get_all_images", "ImageDataset", "ImageFolderWithPaths", "make_inference_data_loader", "_inference"),
        *("run_inference", "create_pid_path_index", "calculate_centroids"),
    } <= set(inference_utils.__all__)
    assert all(hasattr(inference_utils, name) for name in inference_utils.__all__)
