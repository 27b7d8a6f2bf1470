"""Evaluation, re-ranking, search and embedding on the device, beside the CPU."""

import numpy as np
import pytest
import torch

from evaluation.metrics import evaluate_embeddings
from evaluation.rerank import QueryExpansion, Rerank
from inference.embedding.embedder import Embedder
from inference.searching.search import search_gallery

OPTIONS = {
    "instances": {},
    "cosine": {"metric": "cosine"},
    "unit length": {"feat_norm": True},
    "centroids": {"protocol": "centroid"},
    "strict": {"protocol": "centroid_strict"},
    "query expansion": {"query_expansion": QueryExpansion(3)},
    "re-ranking": {"rerank": Rerank(8, 3)},
}


def rows(exact):
    """Queries and gallery, pids and camids. ``exact``: whole numbers, whose float32 distances no device rounds."""
    generator = torch.Generator().manual_seed(0)
    pids = torch.randint(0, 40, (600,), generator=generator)
    means = torch.randn(40, 32, generator=generator)
    embeddings = means[pids] + torch.randn(600, 32, generator=generator)
    embeddings = embeddings.mul(4).round() if exact else embeddings
    camids = torch.randint(0, 3, (600,), generator=generator)
    return embeddings[:200], embeddings[200:], pids[:200], pids[200:], camids[:200], camids[200:]


@pytest.mark.parametrize("exact", [True, False], ids=["whole numbers", "real numbers"])
@pytest.mark.parametrize("name", OPTIONS)
def test_metrics_equal_those_of_the_cpu(device, name, exact):
    """Equal for distances that are not rounded; else to 1e-3, since a near tie may swap two ranks."""
    query, gallery, *labels = rows(exact)
    expected = evaluate_embeddings(query, gallery, *labels, **OPTIONS[name])
    found = evaluate_embeddings(query.to(device), gallery.to(device), *labels, **OPTIONS[name])
    tolerance = 1e-12 if exact and name == "instances" else 1e-3
    assert found.mAP == pytest.approx(expected.mAP, abs=tolerance)
    assert found.mINP == pytest.approx(expected.mINP, abs=tolerance)
    np.testing.assert_allclose(found.cmc, expected.cmc, rtol=0, atol=max(tolerance, 1e-6))


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_search_finds_the_same_items(device, metric):
    query, gallery, *_ = rows(exact=False)
    expected, distances = search_gallery(query, gallery, metric=metric, topk=20)
    found, near = search_gallery(query.to(device), gallery.to(device), metric=metric, topk=20, block_bytes=1 << 16)
    np.testing.assert_allclose(near, distances, rtol=1e-4, atol=1e-4)
    assert (found == expected).mean() > 0.995


@pytest.mark.parametrize(
    ("precision", "least", "error"),
    [
        ("32-true", 0.99999, 1e-4),
        ("bf16-true", 0.99, 0.1),
        pytest.param("16-true", 0.999, 0.02, marks=pytest.mark.needs_cuda),  # which no CPU computes in
    ],
)
def test_embeddings_equal_those_of_the_cpu(device, model, recorded_images, precision, least, error):
    expected = Embedder(model, "cpu").embed_folder(recorded_images / "query")[0]
    embedder = Embedder(model, device, precision, batch_size=16)
    found, _ = embedder.embed_folder(recorded_images / "query")
    cosine = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosine.min() >= least
    assert np.abs(found - expected).max() <= error * np.abs(expected).max()
