"""Triplet loss, label smoothing and hard mining against the recordings and a plain loop."""

import numpy as np
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
from utils.errors import UserError

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


FEATURES, LABELS = torch.tensor([[0.0], [1], [3], [4]]), torch.tensor([7, 7, 8, 8])


@pytest.mark.parametrize(
    ("margin", "warmup", "expected"), [(2.0, None, 0.5), (2.0, 3.0, 1.5), (None, 2.0, 0.5), (2.0, 0.0, 0)]
)
def test_a_margin_for_one_call(margin, warmup, expected):
    triplet = TripletLoss(margin)
    for value in (warmup, None if warmup is None else torch.tensor(warmup)):
        loss, dist_ap, dist_an = triplet(FEATURES, LABELS, value)
        assert loss == expected
        assert (dist_ap.tolist(), dist_an.tolist()) == ([1, 1, 1, 1], [3, 2, 2, 3])
    assert triplet.margin == margin


def test_all_arguments_by_position(capsys):
    mask = torch.tensor([True, False, False, True])
    arguments = (FEATURES + 1, LABELS, 1.0, True, True, mask)
    loss, dist_ap, dist_an = TripletLoss(0.3)(*arguments)
    assert loss == 1.0  # all rows have the same direction
    assert dist_ap.shape == dist_an.shape == (2,)
    assert dist_ap.max() == dist_an.max() == np.float32(1e-6)  # the root of the smallest square
    assert capsys.readouterr().out == "mean dist_ap 0.0000, mean dist_an 0.0000, triplet loss 1.0000\n"


def test_what_is_printed_is_of_the_anchors_that_count(capsys):
    TripletLoss(2.0)(FEATURES, LABELS, mask=torch.tensor([0]))
    assert capsys.readouterr().out == ""
    TripletLoss(2.0)(FEATURES, LABELS, print_data=True, mask=torch.tensor([0]))
    assert capsys.readouterr().out == "mean dist_ap 1.0000, mean dist_an 3.0000, triplet loss 0.0000\n"


def test_a_mask_in_place_of_the_margin_is_refused():
    with pytest.raises(UserError, match=r"warmup_margin is a tensor of the shape \[4\].*mask="):
        TripletLoss(0.3)(FEATURES, LABELS, torch.ones(4, dtype=torch.bool))
