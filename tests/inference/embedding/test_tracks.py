"""Embeddings of tracks against those of their crops, one by one."""

import numpy as np
import pytest
import torch
from PIL import Image

from inference.embedding.inputs import as_sequence
from tests.support import assert_close
from utils.aggregation import AGGREGATIONS, aggregate
from utils.errors import UserError


@pytest.fixture
def tracks(pictures):
    rng = np.random.default_rng(0)
    arrays = rng.integers(0, 256, (5, 40, 20, 3), dtype=np.uint8)
    files = sorted(pictures.glob("*.png"))
    return {7: arrays, "left": [str(path) for path in files[:4]], ("cam", 2): Image.open(files[4]), 8: [arrays[0]]}


@pytest.mark.parametrize("how", AGGREGATIONS)
def test_each_is_that_of_its_crops_whatever_the_batches(embedder, tracks, how):
    found, names = embedder.embed_tracks(tracks, how)
    assert names == list(tracks)
    assert (found.dtype, found.shape) == (np.float32, (4, embedder.dimension))
    expected = [aggregate(embedder.embed(crops), how) for crops in tracks.values()]
    assert_close(found, torch.stack(expected))
    assert_close(embedder.embed_tracks(tracks, how, batch_size=2)[0], found)


def test_all_crops_of_all_tracks_go_through_the_network_in_the_same_batches(embedder, tracks, monkeypatch):
    sizes = []
    embed_pixels = embedder.embed_pixels
    monkeypatch.setattr(embedder, "embed_pixels", lambda pixels: sizes.append(len(pixels)) or embed_pixels(pixels))
    embedder.embed_tracks(tracks, batch_size=8)
    assert sizes == [8, 3]


def test_normalised_tensors_and_no_tracks(embedder):
    crops = {"a": torch.rand(3, 3, 64, 32), "b": list(torch.rand(2, 3, 64, 32))}
    found, _ = embedder.embed_tracks(crops)
    assert_close(found[1], embedder.embed(as_sequence(crops["b"])).mean(0))
    empty, names = embedder.embed_tracks({})
    assert (empty.shape, names) == ((0, embedder.dimension), [])


def test_errors_name_the_track_and_the_crop(embedder, tracks):
    refused = [
        ({**tracks, "gone": []}, "the track 'gone' has no crops"),
        ({**tracks, "gone": np.empty((0, 4, 4, 3), np.uint8)}, "the track 'gone' has no crops"),
        (
            {**tracks, "cut": [np.ones((4, 4, 3), np.uint8), np.empty((0, 4, 3), np.uint8)]},
            r"^the track 'cut', crop 1 \(from 0\): an image without pixels",
        ),
        ({**tracks, 3: ["no.jpg"]}, r"^the track 3, crop 0 \(from 0\): Image no.jpg does not exist"),
    ]
    for given, message in refused:
        with pytest.raises(UserError, match=message):
            embedder.embed_tracks(given)
    with pytest.raises(UserError, match="the aggregation is 'best'; valid: mean, medoid, robust"):
        embedder.embed_tracks(tracks, "best")
