"""Triplet loss, label smoothing and hard mining against the recordings and a plain loop."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from losses.triplet_loss import (
    CrossEntropyLabelSmooth,
    TripletLoss,
    cosine_dist,
    cosine_similarity,
    euclidean_dist,
    hard_example_mining,
    normalize,
)
from tests.support import assert_close, golden

SEEDS = ("losses_s0", "losses_s1")


@pytest.mark.parametrize("recording", SEEDS)
@pytest.mark.parametrize("func", [euclidean_dist, cosine_dist, cosine_similarity], ids=lambda f: f.__name__)
def test_distances_equal_the_recorded(recording, func):
    data = golden(recording)
    x = torch.from_numpy(data["x"])
    ours, recorded = func(x, x), torch.from_numpy(data[func.__name__])
    if func is euclidean_dist:  # of a row to itself only rounding is left, and its root
        for matrix in (ours, recorded):
            assert matrix.diagonal().max() < 0.02
            matrix.fill_diagonal_(0)
    assert_close(ours, recorded)


@pytest.mark.parametrize("recording", SEEDS)
def test_normalize_and_mining_equal_the_recorded(recording):
    data = golden(recording)
    x, labels = torch.from_numpy(data["x"]), torch.from_numpy(data["labels"])
    assert_close(normalize(x), data["normalize"])
    mined = hard_example_mining(torch.from_numpy(data["euclidean_dist"]), labels, return_inds=True)
    for value, name in zip(mined, ("dist_ap", "dist_an", "p_inds", "n_inds"), strict=True):
        assert_close(value, data[name])


@pytest.mark.parametrize("recording", SEEDS)
@pytest.mark.parametrize("margin", [0.3, 0.5, None])
@pytest.mark.parametrize("dist", ["euclidean", "cosine"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("normalized", [False, True])
def test_triplet_loss_and_gradient_equal_the_recorded(recording, margin, dist, masked, normalized):
    data = golden(recording)
    x = torch.from_numpy(data["x"]).requires_grad_()
    mask = torch.from_numpy(data["mask"]) if masked else None
    loss, dist_ap, dist_an = TripletLoss(margin, dist)(
        x, torch.from_numpy(data["labels"]), mask=mask, normalize_feature=normalized
    )
    loss.backward()
    prefix = f"triplet_m{margin}_{dist}_{'masked' if masked else 'all'}_{'norm' if normalized else 'raw'}_"
    for value, name in ((loss, "loss"), (dist_ap, "ap"), (dist_an, "an"), (x.grad, "grad")):
        assert_close(value, data[prefix + name])


@pytest.mark.parametrize("recording", SEEDS)
def test_label_smoothing_equals_the_recorded(recording):
    data = golden(recording)
    logits = torch.from_numpy(data["logits"]).requires_grad_()
    loss = CrossEntropyLabelSmooth(logits.shape[1])(logits, torch.from_numpy(data["labels"]))
    loss.backward()
    assert_close(loss, data["xent"])
    assert_close(logits.grad, data["xent_grad"])


@settings(max_examples=40)
@given(
    labels=st.lists(st.integers(0, 4), min_size=2, max_size=12),
    levels=st.integers(1, 5),
    seed=st.integers(0, 1000),
)
def test_mining_equals_a_plain_loop_also_with_ties(labels, levels, seed):
    n = len(labels)
    dist = torch.randint(0, levels, (n, n), generator=torch.Generator().manual_seed(seed)).float()
    dist_ap, dist_an, p_inds, n_inds = hard_example_mining(dist, torch.tensor(labels), return_inds=True)
    for anchor, row in enumerate(dist.tolist()):
        positives = [j for j in range(n) if labels[j] == labels[anchor]]
        negatives = [j for j in range(n) if labels[j] != labels[anchor]]
        farthest = max(positives, key=lambda j: row[j])  # max and min take the first of equal ones
        assert (dist_ap[anchor], p_inds[anchor]) == (row[farthest], farthest)
        if negatives:
            nearest = min(negatives, key=lambda j: row[j])
            assert (dist_an[anchor], n_inds[anchor]) == (row[nearest], nearest)
        else:
            assert dist_an[anchor] == torch.inf


def test_mining_refuses_a_matrix_that_is_not_square():
    with pytest.raises(ValueError, match=r"\(3, 4\)"):
        hard_example_mining(torch.zeros(3, 4), torch.zeros(3))


def test_unknown_distance_lists_the_valid_ones():
    with pytest.raises(KeyError, match="cosine, euclidean"):
        TripletLoss(0.3, "manhattan")


def test_distances_are_float32_under_autocast():
    x = torch.randn(6, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for func in (euclidean_dist, cosine_dist, cosine_similarity):
            assert func(x, x).dtype == torch.float32
            assert_close(func(x, x), func(x.double(), x.double()))


@pytest.mark.parametrize("func", [euclidean_dist, cosine_dist], ids=lambda f: f.__name__)
def test_batched_distances_equal_the_single_ones(func):
    x, y = torch.randn(3, 5, 7), torch.randn(3, 4, 7)
    for i in range(3):
        assert_close(func(x, y)[i], func(x[i], y[i]))
