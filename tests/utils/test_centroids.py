"""Mean embeddings of identities against the recordings and against plain means."""

import numpy as np
import pytest
import torch

from tests.support import assert_close, golden
from utils.centroids import divide, identity_centroids, segment_sums
from utils.errors import UserError


@pytest.mark.parametrize("name", ["inference_s0", "inference_s1"])
def test_identity_centroids_as_recorded(name):
    recorded = golden(name)
    ids = [path.split("/")[-2] for path in recorded["paths"]]
    centroids, names = identity_centroids(torch.from_numpy(recorded["emb"]), ids)
    assert names == recorded["centroid_ids"].tolist()
    assert_close(centroids, recorded["centroids"])
    assert centroids.dtype == torch.float32


def test_identities_that_are_numbers_and_half_precision(monkeypatch):
    monkeypatch.setattr("utils.centroids.CHUNK_BYTES", 7 * 6 * 8)
    rng = np.random.default_rng(0)
    embeddings = torch.from_numpy(rng.normal(size=(50, 6)).astype(np.float16))
    ids = rng.integers(0, 5, 50)
    centroids, names = identity_centroids(embeddings, ids)
    assert names == list(dict.fromkeys(ids.tolist()))
    expected = np.stack([embeddings.numpy()[ids == name].astype(np.float64).mean(0) for name in names])
    assert_close(centroids, expected)


def test_no_embeddings_give_no_centroids():
    centroids, names = identity_centroids(torch.zeros(0, 4), [])
    assert centroids.shape == (0, 4)
    assert names == []


def test_lengths_that_do_not_agree():
    with pytest.raises(UserError, match="ids has 2 entries but embeddings has 3: index 2"):
        identity_centroids(torch.zeros(3, 4), ["a", "b"])


def test_rows_of_no_segment_are_left_out_and_an_empty_segment_is_zero():
    rows = torch.arange(8, dtype=torch.float32).reshape(4, 2)
    sums, counts = segment_sums(rows, np.array([2, -1, 0, 2]), 3)
    assert sums.tolist() == [[4, 5], [0, 0], [6, 8]]
    assert counts.tolist() == [1, 0, 2]
    assert divide(sums, counts).tolist() == [[4, 5], [0, 0], [3, 4]]
