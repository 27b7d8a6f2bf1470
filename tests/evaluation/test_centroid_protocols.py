"""Centroids of identities and cameras against the recordings and against a plain loop."""

import numpy as np
import pytest
import torch

from evaluation.centroid_protocols import create_centroids, strict_centroids
from tests.support import assert_close, golden
from utils.errors import UserError


@pytest.mark.parametrize("name", ["eval_a_s0", "eval_a_s1", "eval_b_s0", "eval_b_s1"])
@pytest.mark.parametrize("respect_camids", [True, False])
def test_published_centroids_as_recorded(name, respect_camids):
    recorded = golden(name)
    prefix = "cent_camids" if respect_camids else "cent_plain"
    embeddings, labels, cameras = create_centroids(
        torch.from_numpy(recorded["feats"]),
        recorded["pids"],
        recorded["camids"],
        int(recorded["num_query"]),
        respect_camids,
    )
    assert_close(embeddings, recorded[f"{prefix}_emb"])
    np.testing.assert_array_equal(labels, recorded[f"{prefix}_labels"])
    if respect_camids:
        np.testing.assert_array_equal([len(item) for item in cameras], recorded["cent_camids_camids_len"])
        np.testing.assert_array_equal(np.concatenate(cameras), recorded["cent_camids_camids_flat"])
    else:
        np.testing.assert_array_equal(cameras, recorded["cent_plain_camids"])


def published_by_loop(feats, pids, camids, m):
    """The published construction, written out: cameras are read from the start of queries + gallery."""
    rows = []
    for p in sorted(set(pids.tolist())):
        seen = []
        for c in sorted({int(camids[i]) for i in range(m) if pids[i] == p}):
            used = [i for i in range(len(pids) - m) if pids[m + i] == p and camids[i] != c]
            cameras = sorted({int(camids[i]) for i in used})
            if used and cameras not in seen:
                seen.append(cameras)
                rows.append((p, cameras, feats[m:][used].astype(np.float64).mean(0)))
    return rows


@pytest.mark.parametrize("seed", range(8))
def test_published_centroids_equal_plain_loop(seed):
    rng = np.random.default_rng(seed)
    m, n = rng.integers(1, 20), rng.integers(1, 60)
    feats = rng.normal(size=(m + n, 5)).astype(np.float32)
    pids, camids = rng.choice([-1, 0, 8, 900], m + n), rng.choice([0, 3, 17], m + n)
    embeddings, labels, cameras = create_centroids(torch.from_numpy(feats), pids, camids, int(m), True)
    rows = published_by_loop(feats, pids, camids, m)
    assert labels[m:].tolist() == [row[0] for row in rows]
    assert [item.tolist() for item in cameras[m:]] == [row[1] for row in rows]
    np.testing.assert_array_equal(embeddings[:m], feats[:m])
    np.testing.assert_allclose(embeddings[m:], np.array([row[2] for row in rows]).reshape(-1, 5), rtol=1e-5, atol=1e-6)


def test_identity_without_images_of_a_camera_has_the_same_centroid_with_and_without_it():
    rng = np.random.default_rng(0)
    gallery = torch.from_numpy(rng.normal(size=(9, 4)).astype(np.float32))
    pids, camids = np.repeat([3, 5, 6], 3), np.tile([0, 1, 2], 3)
    strict = strict_centroids(gallery, pids, camids, np.array([5, 5, 9]), np.array([7, 1, 0]), True)
    assert strict.own.tolist() == [1, 1, -1]
    assert strict.relevant.tolist() == [4, 3, -1]
    assert torch.equal(strict.embeddings[4], strict.embeddings[1])
    assert_close(strict.embeddings[3], gallery[[3, 5]].mean(0))
    assert_close(strict.embeddings[:3], gallery.view(3, 3, 4).mean(1))


def test_lengths_that_do_not_agree():
    with pytest.raises(UserError, match="labels has 2 entries"):
        create_centroids(torch.zeros(3, 4), [1, 2], [0, 0, 0], 1)
    with pytest.raises(UserError, match="num_query is 4, but there are 3"):
        create_centroids(torch.zeros(3, 4), [1, 2, 3], [0, 0, 0], 4)
