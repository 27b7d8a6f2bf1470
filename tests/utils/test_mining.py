"""The hardest positive and negative of each anchor against a plain loop."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.mining import mine_hardest


def by_loop(dist, anchor_labels, candidate_labels, valid):
    """Rows of (dist_ap, column or None, dist_an, column or None); max and min take the first of equal ones."""
    for row, label in zip(dist, anchor_labels, strict=True):
        allowed = [j for j in range(len(candidate_labels)) if valid[j]]
        positives = [j for j in allowed if candidate_labels[j] == label]
        negatives = [j for j in allowed if candidate_labels[j] != label]
        farthest = max(positives, key=lambda j: row[j], default=None)
        nearest = min(negatives, key=lambda j: row[j], default=None)
        yield (
            -torch.inf if farthest is None else row[farthest],
            farthest,
            torch.inf if nearest is None else row[nearest],
            nearest,
        )


def assert_as_by_loop(found, dist, anchor_labels, candidate_labels, valid):
    expected = list(by_loop(dist.tolist(), anchor_labels, candidate_labels, valid))
    for ours, theirs in zip(zip(*(part.tolist() for part in found), strict=True), expected, strict=True):
        dist_ap, dist_an, positive, negative = ours
        assert (dist_ap, dist_an) == (theirs[0], theirs[2])
        assert theirs[1] in (positive, None)
        assert theirs[3] in (negative, None)


@settings(max_examples=100)
@given(
    anchors=st.lists(st.integers(0, 3), min_size=1, max_size=6),
    candidates=st.lists(st.integers(0, 3), min_size=1, max_size=9),
    levels=st.integers(1, 6),
    masked=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_rectangles_with_ties_and_masks_equal_a_plain_loop(anchors, candidates, levels, masked, seed):
    generator = torch.Generator().manual_seed(seed)
    dist = torch.randint(0, levels, (len(anchors), len(candidates)), generator=generator).float()
    valid = torch.rand(len(candidates), generator=generator) < 0.6 if masked else None
    found = mine_hardest(dist, torch.tensor(anchors), torch.tensor(candidates), valid)
    assert_as_by_loop(found, dist, anchors, candidates, [True] * len(candidates) if valid is None else valid.tolist())


def test_in_a_square_batch_each_anchor_is_a_positive_of_itself():
    dist = torch.tensor([[0.0, 3.0, 1.0], [3.0, 0.0, 2.0], [1.0, 2.0, 0.0]])
    labels = torch.tensor([7, 7, 5])
    dist_ap, dist_an, positives, negatives = mine_hardest(dist, labels, labels)
    assert (dist_ap.tolist(), positives.tolist()) == ([3, 3, 0], [1, 0, 2])
    assert (dist_an.tolist(), negatives.tolist()) == ([1, 2, 1], [2, 2, 0])


def test_several_matrices_have_masks_of_their_own():
    generator = torch.Generator().manual_seed(4)
    anchors, candidates = [0, 1, 2], [0, 1, 1, 2, 0]
    dist = torch.randint(0, 4, (6, 3, 5), generator=generator).float()
    valid = torch.rand(6, 5, generator=generator) < 0.5
    found = mine_hardest(dist, torch.tensor(anchors), torch.tensor(candidates), valid)
    assert found[0].shape == found[3].shape == (6, 3)
    for i in range(6):
        assert_as_by_loop([part[i] for part in found], dist[i], anchors, candidates, valid[i].tolist())


def test_the_gradient_goes_to_one_of_equal_distances():
    dist = torch.tensor([[2.0, 2.0, 1.0, 1.0]], requires_grad=True)
    dist_ap, dist_an, _, _ = mine_hardest(dist, torch.tensor([0]), torch.tensor([0, 0, 1, 1]))
    (dist_ap - dist_an).sum().backward()
    assert dist.grad is not None
    assert dist.grad.tolist() == [[1, 0, -1, 0]]


@pytest.mark.parametrize("valid", [None, [False, False]])
def test_without_a_candidate_the_distances_are_infinite(valid):
    mask = None if valid is None else torch.tensor(valid)
    dist_ap, dist_an, _, _ = mine_hardest(torch.ones(2, 2), torch.tensor([3, 4]), torch.tensor([5, 5]), mask)
    assert dist_ap.tolist() == [-torch.inf, -torch.inf]
    assert dist_an.tolist() == ([1, 1] if valid is None else [torch.inf, torch.inf])
