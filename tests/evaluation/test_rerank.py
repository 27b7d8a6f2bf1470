"""Re-ranking and query expansion against dense implementations that follow the papers line by line."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation import rerank
from evaluation.metrics import evaluate_embeddings
from evaluation.rerank import QueryExpansion, Rerank, RerankedDistances, expand_queries
from tests.evaluation import oracle
from utils.errors import UserError


def dense_rerank(query, gallery, k1, k2, lambda_value, distance):
    """Zhong et al. 2017 with matrices of all pairs."""
    nodes = np.concatenate((query, gallery))
    total, m = len(nodes), len(query)
    original = distance(nodes, nodes).astype(np.float32)
    original = (original / np.max(original, axis=0)).T
    rank = np.argsort(original, axis=1, kind="stable")
    encoding = np.zeros((total, total), np.float32)

    def k_reciprocal(i, k):
        forward = rank[i, : k + 1]
        return forward[(rank[forward, : k + 1] == i).any(1)]

    for i in range(total):
        mutual = expanded = k_reciprocal(i, k1)
        for candidate in mutual:
            others = k_reciprocal(candidate, int(np.around(k1 / 2)))
            if len(np.intersect1d(others, mutual)) > 2 / 3 * len(others):
                expanded = np.append(expanded, others)
        expanded = np.unique(expanded)
        weight = np.exp(-original[i, expanded])
        encoding[i, expanded] = weight / weight.sum()
    if k2 != 1:
        encoding = np.stack([encoding[rank[i, :k2]].mean(0) for i in range(total)])
    jaccard = np.empty((m, len(gallery)), np.float32)
    for i in range(m):
        for j in range(len(gallery)):
            overlap = np.minimum(encoding[i], encoding[m + j]).sum()
            jaccard[i, j] = 1 - overlap / (2 - overlap)
    return jaccard * (1 - lambda_value) + original[:m, m:] * lambda_value


def draw(seed, m, n, dim=8, ids=6):
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(ids, dim))
    return tuple(
        (centers[rng.integers(0, ids, k)] + 0.6 * rng.normal(size=(k, dim))).astype(np.float32) for k in (m, n)
    )


def tensors(*arrays):
    return tuple(torch.from_numpy(array) for array in arrays)


@settings(max_examples=25)
@given(
    seed=st.integers(0, 10_000),
    m=st.integers(1, 15),
    n=st.integers(1, 40),
    k1=st.sampled_from([1, 2, 5, 7, 20, 100]),
    k2=st.sampled_from([1, 2, 6, 30]),
    lambda_value=st.sampled_from([0.0, 0.3, 1.0]),
    metric=st.sampled_from(["euclidean", "cosine"]),
)
def test_equals_dense_implementation(seed, m, n, k1, k2, lambda_value, metric):
    query, gallery = draw(seed, m, n)
    distance = oracle.squared_euclidean if metric == "euclidean" else oracle.cosine
    expected = dense_rerank(query, gallery, k1, k2, lambda_value, distance)
    distances = RerankedDistances(*tensors(query, gallery), Rerank(k1, k2, lambda_value), metric)
    np.testing.assert_allclose(distances(0, m), expected, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("seed", range(3))
def test_duplicates_and_ties_equal_dense_implementation(seed):
    rng = np.random.default_rng(seed)
    nodes = rng.integers(0, 3, (45, 2)).astype(np.float32)  # exact distances, 9 places for 45 nodes
    expected = dense_rerank(nodes[:10], nodes[10:], 6, 3, 0.3, oracle.squared_euclidean)
    distances = RerankedDistances(*tensors(nodes[:10], nodes[10:]), Rerank(6, 3, 0.3))
    np.testing.assert_allclose(distances(0, 10), expected, rtol=1e-5, atol=1e-6)


def test_parts_and_blocks_do_not_matter(monkeypatch):
    query, gallery = tensors(*draw(0, 40, 60))
    expected = RerankedDistances(query, gallery, Rerank())(0, 40).clone()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(rerank, "ENTRIES_AT_ONCE", 50)
    monkeypatch.setattr("evaluation.neighbours.PAIR_BYTES", 64)
    monkeypatch.setattr("evaluation.ranking.SEARCH_BYTES", 4000)
    distances = RerankedDistances(query, gallery, Rerank())
    assert torch.equal(distances(0, 40), expected)
    assert torch.equal(distances(distances.distances.tile * 0, 17), expected[:17])


def test_scaled_to_unit_length_first():
    query, gallery = tensors(*draw(3, 9, 30))
    scaled = [x / x.norm(dim=1, keepdim=True) for x in (query, gallery)]
    expected = RerankedDistances(*scaled, Rerank())(0, 9)
    torch.testing.assert_close(RerankedDistances(query, gallery, Rerank(), feat_norm=True)(0, 9), expected)


def test_the_scale_of_the_embeddings_does_not_matter():
    query, gallery = tensors(*draw(4, 9, 30))
    expected = RerankedDistances(query, gallery, Rerank())(0, 9)
    small = RerankedDistances(query / 64, gallery / 64, Rerank())(0, 9)  # all distances far below 1
    torch.testing.assert_close(small, expected)


def test_everything_in_one_place():
    distances = RerankedDistances(torch.zeros(3, 4), torch.zeros(50, 4), Rerank(5, 2))(0, 3)
    assert distances.isfinite().all()


def test_improves_clustered_embeddings():
    rng = np.random.default_rng(5)
    centers = rng.normal(size=(20, 16))
    pids = rng.integers(0, 20, 340)
    nodes = (centers[pids] + 1.3 * rng.normal(size=(340, 16))).astype(np.float32)
    arguments = (nodes[:40], nodes[40:], pids[:40], pids[40:], np.zeros(40), np.ones(300))
    plain = evaluate_embeddings(*arguments)
    assert evaluate_embeddings(*arguments, rerank=Rerank()).mAP > plain.mAP + 0.05
    assert evaluate_embeddings(*arguments, query_expansion=QueryExpansion(), feat_norm=True).mAP > plain.mAP + 0.02


@pytest.mark.parametrize("feat_norm", [True, False])
@pytest.mark.parametrize(("k", "alpha"), [(1, 0.0), (3, 3.0), (100, 0.5)])
def test_expansion_equals_plain_loop(k, alpha, feat_norm):
    query, gallery = draw(1, 12, 30)
    unscaled = {} if feat_norm else {"feat_norm": False}  # unit length is the default
    result = expand_queries(*tensors(query, gallery), QueryExpansion(k, alpha), **unscaled, block_bytes=1)
    similarity = 1 - oracle.cosine(query, gallery)
    if feat_norm:
        query, gallery = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (query, gallery))
    for i, row in enumerate(similarity):
        nearest = np.argsort(-row, kind="stable")[:k]
        weight = np.maximum(row[nearest], 0) ** alpha
        expected = (query[i] + (weight[:, None] * gallery[nearest]).sum(0)) / (1 + weight.sum())
        np.testing.assert_allclose(result[i], expected, rtol=1e-4, atol=1e-5)


def test_the_settings_are_those_of_the_papers_unless_given():
    assert Rerank() == Rerank(k1=20, k2=6, lambda_value=0.3)
    assert QueryExpansion() == QueryExpansion(k=5, alpha=3.0)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Rerank(k1=0), "k1 0"),
        (lambda: Rerank(k2=0), "k2 0"),
        (lambda: Rerank(lambda_value=1.5), "lambda in"),
        (lambda: Rerank(lambda_value=float("nan")), "lambda in"),
        (lambda: QueryExpansion(k=0), "k of 1 or more"),
        (lambda: QueryExpansion(alpha=-1), "alpha from 0 to 1000000"),
        (lambda: QueryExpansion(alpha=float("nan")), "alpha from 0 to 1000000"),
    ],
)
def test_bad_settings(build, message):
    with pytest.raises(UserError, match=message):
        build()
