"""Batches of P identities with K images each: told from others, and handled as they are."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from losses.layout import batch_layout, identity_table, regular_size


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([7, 7, 3, 3, 5, 5], 2),
        ([7, 3, 5], 1),
        ([4, 4, 4], 3),
        ([7, 7, 3, 3, 7, 7], 0),  # an identity comes twice
        ([7, 3, 7, 3], 0),  # not one after the other
        ([7, 7, 3], 0),
        ([7, 7, 3, 5], 0),
        ([], 0),
    ],
    ids=str,
)
def test_regular_batches_are_told(labels, expected):
    assert regular_size(torch.tensor(labels, dtype=torch.int64)) == expected


@settings(max_examples=40)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 1000))
def test_layout_of_a_regular_batch_is_the_general_one(identities, per_identity, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randperm(50, generator=generator)[:identities].repeat_interleave(per_identity)
    is_real = torch.rand(len(labels), generator=generator) > 0.3
    layout = batch_layout(labels, is_real)
    rows, present = identity_table(labels)
    assert layout.regular and layout.present is None and present.all()
    assert torch.equal(layout.rows, rows)
    values = torch.randn(len(labels), 3, generator=generator)
    assert torch.equal(layout.by_identity(values), values[rows])
    assert torch.equal(layout.only_real(values), values[is_real])


def test_real_rows_are_none_where_all_are_real():
    labels = torch.tensor([1, 1, 2])
    assert batch_layout(labels).real is None
    assert batch_layout(labels, torch.ones(3, dtype=torch.bool)).real is None
    assert batch_layout(labels, torch.tensor([True, False, True])).real.tolist() == [0, 2]
    assert not batch_layout(labels).regular


@pytest.mark.parametrize("labels", [[1, 1, 2, 2], [1, 1, 2]], ids=["regular", "irregular"])
def test_the_layout_is_on_the_device_asked_for(labels):
    device = torch.device("meta")
    layout = batch_layout(torch.tensor(labels), torch.arange(len(labels)) > 0, device)
    tensors = [tensor for tensor in (layout.rows, layout.present, layout.real) if tensor is not None]
    assert len(tensors) == 2 + (len(labels) == 3)
    assert all(tensor.device == device for tensor in tensors)
