"""A small evaluation for the tests of what is written about it."""

import numpy as np
import pytest


@pytest.fixture
def data():
    """Embeddings, pids and camids of 12 queries, the last without a match, and of 40 gallery images."""
    rng = np.random.default_rng(1)
    pids, camids = np.r_[rng.integers(0, 5, 11), 77, rng.integers(0, 5, 40)], rng.integers(0, 3, 52)
    feats = (rng.normal(size=(78, 4))[pids] + 0.7 * rng.normal(size=(52, 4))).astype(np.float32)
    return feats[:12], feats[12:], pids[:12], pids[12:], camids[:12], camids[12:]
