"""An Embedder travels: to copies, to files, to processes, with equal embeddings bit for bit."""

import copy
import multiprocessing
import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import inference.embedding.folding
from inference import Embedder
from inference.embedding.folding import fuses
from inference.embedding.images import get_all_images
from modelling.bases import ModelBase


class Embedded(Dataset):
    """Items are embeddings, computed by the worker of a loader."""

    def __init__(self, embedder, paths):
        self.embedder, self.paths = embedder, paths

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        return self.embedder.embed(self.paths[index])[0]


@pytest.fixture(params=["resnet18", "resnet50_ibn_a"])
def used(request, model):
    """An embedder that has computed, as one that is sent elsewhere usually has."""
    if request.param == "resnet50_ibn_a":
        cfg = {"MODEL": {"NAME": request.param, "PRETRAINED": False}, "INPUT": {"SIZE_TEST": [64, 32]}}
        torch.manual_seed(0)
        model = ModelBase(cfg, num_classes=2)
    embedder = Embedder(model, "cpu", num_workers=1)
    embedder.embed(np.zeros((3, 8, 4, 3), np.uint8))
    return embedder


def test_copies_and_pickles(used, pictures):
    paths = get_all_images(pictures)
    expected = used.embed(paths)
    assert np.isfinite(expected).all() and expected.std() > 0
    for other in (pickle.loads(pickle.dumps(used)), copy.deepcopy(used)):
        np.testing.assert_array_equal(other.embed(paths[0]), used.embed(paths[0]))  # its first batch is of one image
        np.testing.assert_array_equal(other.embed(paths), expected)
        assert other.identity == used.identity
    np.testing.assert_array_equal(used.embed(paths), expected)


def test_a_copy_lays_out_its_weights_for_the_same_first_batch(used, monkeypatch):
    asked = []
    original = inference.embedding.folding.pack_convolution
    monkeypatch.setattr(
        inference.embedding.folding, "pack_convolution", lambda *given: asked.append(given[2]) or original(*given)
    )
    used_copy = pickle.loads(pickle.dumps(used))
    used_copy.embed(np.zeros((8, 4, 3), np.uint8))
    assert {shape[0] for shape in asked} == ({3} if fuses(torch.float32) else set())  # where ReLUs join convolutions


def test_workers_of_a_loader(embedder, pictures):
    paths = get_all_images(pictures)
    expected = np.stack([embedder.embed(path)[0] for path in paths])
    loader = DataLoader(Embedded(embedder, paths), batch_size=None, num_workers=1)
    np.testing.assert_array_equal(np.stack([np.asarray(row) for row in loader]), expected)


def test_spawned_processes(embedder, pictures):
    paths = get_all_images(pictures)
    expected = embedder.embed(paths)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        np.testing.assert_array_equal(pool.apply(embedder.embed, (paths,)), expected)
