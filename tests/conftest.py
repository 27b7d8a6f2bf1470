import os

# Workers of a parallel run share the cores; one thread each also makes float sums repeatable.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
