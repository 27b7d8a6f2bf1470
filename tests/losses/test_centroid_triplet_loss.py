"""The centroid triplet loss against the recorded masks and a plain loop."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from losses.centroid_triplet_loss import CentroidTripletLoss, create_masks_train
from losses.triplet_loss import TripletLoss
from tests.support import assert_close, golden


@pytest.mark.parametrize("recording", ["masks_s0", "masks_s1"])
def test_masks_equal_the_recorded(recording):
    data = golden(recording)
    for i in range(sum(name.startswith("labels") for name in data)):
        masks, lists = create_masks_train(torch.from_numpy(data[f"labels{i}"]))
        np.testing.assert_array_equal(masks.numpy(), data[f"masks{i}"])
        assert [row for identity in lists for row in identity] == data[f"lists{i}"].tolist()


def plain_loop(features, labels, is_real, margin, dist_func, groups=None):
    """The contract word by word: K rounds, one identity (or group of its rows) after another."""
    masks, lists = create_masks_train(labels if groups is None else groups)
    losses, aps, ans, norms = [], [], [], []
    for i, mask in enumerate(masks):
        t_i = torch.zeros_like(is_real)
        for rows in lists:
            if i < len(rows):
                t_i[rows] = is_real[rows[i]]
        t_i &= is_real
        queries, centroids, y = [], [], []
        for rows in lists:
            allowed = [row for row in rows if mask[row] and t_i[row]]
            if i < len(rows) and t_i[rows[i]] and allowed:
                centroid = features[allowed].mean(0)
                if centroid.abs().sum() > 1e-7:
                    queries.append(features[rows[i]])
                    centroids.append(centroid)
                    y.append(labels[rows[i]])
        if len({int(pid) for pid in y}) <= 1:
            continue
        y = torch.stack(y)
        loss, ap, an = TripletLoss(margin, dist_func)(torch.stack(queries + centroids), torch.cat((y, y)))
        losses.append(loss)
        aps.append(ap.mean())
        ans.append(an.mean())
        norms.append(torch.stack(centroids).norm(dim=1).mean())
    if not losses:
        return [torch.zeros(())] * 4
    return [torch.stack(values).mean() for values in (losses, aps, ans, norms)]


@settings(max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=5),
    margin=st.sampled_from([None, 0.3]),
    dist=st.sampled_from(["euclidean", "cosine"]),
    shuffled=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_equals_a_plain_loop_on_irregular_batches(sizes, margin, dist, shuffled, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.repeat_interleave(torch.randperm(40, generator=generator)[: len(sizes)], torch.tensor(sizes))
    if shuffled:
        labels = labels[torch.randperm(len(labels), generator=generator)]
    is_real = torch.rand(len(labels), generator=generator) < 0.7
    features = torch.randn(len(labels), 6, generator=generator)
    ours, theirs = features.clone().requires_grad_(), features.clone().requires_grad_()
    result = CentroidTripletLoss(margin, dist)(ours, labels, is_real)
    expected = plain_loop(theirs, labels, is_real, margin, dist)
    for value, plain in zip(result, expected, strict=True):
        assert_close(value, plain.detach())
    result.loss.backward()
    if expected[0].requires_grad:
        expected[0].backward()
        assert_close(ours.grad, theirs.grad)
    else:
        assert not ours.grad.any()


def test_without_any_round_the_loss_is_zero_and_harmless():
    features = torch.randn(4, 3, requires_grad=True)
    result = CentroidTripletLoss(0.3)(features, torch.zeros(4, dtype=torch.long))
    result.loss.backward()
    assert result.loss == 0
    assert not features.grad.any()


def test_an_identity_of_zero_embeddings_is_left_out():
    features = torch.randn(8, 3)
    features[:4] = 0
    labels = torch.arange(2).repeat_interleave(4)
    assert CentroidTripletLoss(0.3)(features, labels).loss == 0  # one identity is left


def test_lengths_that_differ_are_named():
    with pytest.raises(ValueError, match="8, 6 and 6 rows"):
        CentroidTripletLoss(0.3)(torch.randn(8, 3), torch.zeros(6, dtype=torch.long))
