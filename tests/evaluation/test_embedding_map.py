"""Which images a map shows, and where it puts them."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from evaluation.embedding_map import draw_map
from evaluation.retrieval import RetrievalSet


def random_set(num_query, num_gallery, identities=5, width=6, seed=0):
    rng = np.random.default_rng(seed)
    pids = rng.integers(0, identities, num_query + num_gallery)
    feats = (rng.normal(size=(identities, width))[pids] + rng.normal(size=(len(pids), width))).astype(np.float32)
    cameras = np.zeros(len(pids), dtype=int)
    parts = [values[rows] for values in (feats, pids, cameras) for rows in (slice(num_query), slice(num_query, None))]
    return RetrievalSet(*parts), feats, pids


@pytest.mark.parametrize("width", [6, 200])
@pytest.mark.parametrize("feat_norm", [False, True])
def test_points_are_the_principal_components(width, feat_norm):
    retrieval, feats, _ = random_set(10, 30, width=width)
    drawn = draw_map(retrieval, feat_norm)
    assert drawn.images.tolist() == list(range(40)) and drawn.method == "PCA"
    x = feats.astype(np.float64)
    x = x / np.linalg.norm(x, axis=1, keepdims=True) if feat_norm else x
    x = x - x.mean(axis=0)
    _, values, directions = np.linalg.svd(x, full_matrices=False)
    projected = x @ directions[:2].T
    projected *= np.sign(projected[np.abs(projected).argmax(axis=0), [0, 1]])
    extent = np.ptp(projected, axis=0).max()
    expected = (projected - projected.min(axis=0) - np.ptp(projected, axis=0) / 2) / extent + 0.5
    np.testing.assert_allclose(drawn.points, expected, atol=1e-5)
    np.testing.assert_allclose(drawn.explained, values[:2] ** 2 / (values**2).sum(), rtol=1e-5)
    assert drawn.points.min() >= -1e-9 and drawn.points.max() <= 1 + 1e-9


def test_whole_identities_are_drawn_by_a_seed():
    retrieval, _, pids = random_set(100, 900, identities=200)
    drawn = draw_map(retrieval, most=120)
    assert len(drawn.images) == 120 and (np.diff(drawn.images) > 0).all()
    shown = np.bincount(pids[drawn.images], minlength=200)
    whole = shown == np.bincount(pids, minlength=200)
    assert (whole | (shown == 0)).sum() >= 199  # all but the last one that had room
    np.testing.assert_array_equal(draw_map(retrieval, most=120).points, drawn.points)
    assert draw_map(retrieval, most=120, seed=1).images.tolist() != drawn.images.tolist()


def test_an_identity_of_many_images_leaves_room_for_others():
    retrieval, _, pids = random_set(3, 900, identities=1)
    assert len(draw_map(retrieval).images) == 40
    retrieval, _, pids = random_set(30, 900, identities=3)
    shown = np.bincount(pids[draw_map(retrieval).images])
    assert shown.tolist() == [40, 40, 40]


def test_umap_draws_where_it_is_installed(monkeypatch):
    made = {}

    class UMAP:
        def __init__(self, **options):
            made.update(options)

        def fit_transform(self, x):
            made["x"] = x
            return torch.tensor([[float(i), 3.0] for i in range(len(x))])

    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=UMAP))
    retrieval, feats, _ = random_set(20, 30)
    drawn = draw_map(retrieval, seed=4)
    assert drawn.method == "UMAP" and np.isnan(drawn.explained).all() and made["random_state"] == 4
    np.testing.assert_array_equal(made["x"], feats)
    np.testing.assert_allclose(drawn.points[:, 0], np.arange(50) / 49)
    np.testing.assert_allclose(drawn.points[:, 1], 0.5)
    assert draw_map(random_set(20, 29)[0]).method == "PCA"  # too few for its graph
    monkeypatch.setitem(sys.modules, "umap", None)
    assert draw_map(retrieval).method == "PCA"


@pytest.mark.parametrize("row", [[1.0], [1.0, 1.0]])
def test_equal_embeddings_lie_in_one_place(row):
    drawn = draw_map(RetrievalSet([row], [row, row], [7], [7, 8], [0], [1, 1]))
    np.testing.assert_array_equal(drawn.points, 0.5)
    assert drawn.explained == (0.0, 0.0)
