"""Distances of rankings and of losses: values, types and how they are called."""

import warnings

import numpy as np
import pytest
import torch

from tests.support import assert_close
from utils.distances import cosine_dist, cosine_similarity, euclidean_dist, get_cosine, get_dist_func

X = torch.tensor([[3.0, 4], [0, 2], [0, 0]])
Y = torch.tensor([[4.0, 3], [0, -1]])
SQUARES = torch.tensor([[2.0, 34], [17, 9], [25, 1]])
SIMILARITIES = torch.tensor([[0.96, -0.8], [0.6, -1], [0, 0]])


def test_cosine_similarity_row_by_row():
    assert_close(cosine_similarity(X, Y), SIMILARITIES)
    assert_close(cosine_similarity(x=X, y=Y, eps=1e-6), SIMILARITIES)
    assert_close(cosine_similarity(X[:1], Y), SIMILARITIES[:1])
    # Rows shorter than eps are divided by eps.
    assert_close(cosine_similarity(torch.tensor([[0.5, 0]]), torch.tensor([[1.0, 0]]), eps=1.0), [[0.5]])


@pytest.mark.parametrize("func", [cosine_similarity, get_cosine])
@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (torch.float64, torch.float64, torch.float64),
        (torch.float32, torch.float64, torch.float64),
        (torch.float32, torch.float32, torch.float32),
        (torch.float16, torch.float16, torch.float32),
        (torch.int64, torch.float32, torch.float32),
    ],
)
def test_float64_stays_and_everything_else_is_float32(func, x, y, expected):
    assert func(X.to(x), Y.to(y)).dtype == func(Y.to(y), X.to(x)).dtype == expected
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert func(X.to(x), Y.to(y)).dtype == expected


def test_float64_is_computed_in_float64():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((5, 7)), rng.standard_normal((4, 7))
    lengths = np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(y, axis=1)
    found = get_cosine(torch.from_numpy(x), torch.from_numpy(y)).numpy()
    np.testing.assert_allclose(found, 1 - x @ y.T / lengths, rtol=1e-13)


def test_cosine_distances_stay_above_their_lower_bound():
    x = torch.randn(200, 64, generator=torch.Generator().manual_seed(0))
    own = get_cosine(x, x).diagonal()
    assert own.min() == np.float32(1e-12)
    assert (1 - cosine_similarity(x, x)).diagonal().min() < 0  # or this tests nothing
    assert own.max() < 1e-6
    assert get_cosine(x, x, 0.25).min() == get_cosine(x, x, eps=0.25).min() == 0.25
    assert_close(get_cosine(X, Y), 1 - SIMILARITIES)


def test_the_losses_compute_in_float32():
    for func in (euclidean_dist, cosine_dist):
        assert func(X.double(), Y.double()).dtype == torch.float32
    assert torch.equal(cosine_dist(X.double(), Y.double()), get_cosine(X, Y))
    assert_close(euclidean_dist(X.double(), Y), SQUARES.sqrt())


def test_every_distance_can_be_called_alike():
    expected = SQUARES.tolist()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert get_dist_func("euclidean")(x=X, y=Y).tolist() == expected
        assert get_dist_func()(X.double(), Y.double()).dtype == torch.float64
        assert get_dist_func("euclidean")(X[:1], Y).tolist() == expected[:1]
        assert_close(get_dist_func("cosine")(x=X, y=Y, eps=1e-8), 1 - SIMILARITIES)
    with pytest.warns(UserWarning, match="ignores the keywords eps, squared") as caught:
        assert get_dist_func("euclidean")(X, Y, eps=1e-8, squared=False).tolist() == expected
    assert caught[0].filename == __file__
