"""Tests of what users run on a GPU: ``make test-cuda``. ``--device cpu`` tries most of them without one."""

from pathlib import Path

import pytest
import torch

from tests.inference.conftest import legacy_checkpoint, model, recorded_images

__all__ = ["legacy_checkpoint", "model", "recorded_images"]


HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.cuda)


def pytest_runtest_setup(item):
    if HERE not in item.path.parents:
        return
    device = item.config.getoption("--device")
    if device.startswith("cuda") and not torch.cuda.is_available():
        pytest.skip("no CUDA device: make test-cuda runs these where there is one")
    if not device.startswith("cuda") and item.get_closest_marker("needs_cuda"):
        pytest.skip("needs a CUDA device itself")


@pytest.fixture(scope="session")
def device(request):
    """The device that is tested."""
    return torch.device(request.config.getoption("--device"))


@pytest.fixture(scope="session")
def accelerator(device):
    """Lightning's name of it."""
    return "gpu" if device.type == "cuda" else device.type


@pytest.fixture(autouse=True)
def exact(device):
    """Float32 without TF32, as a run has it unless TRAINER.FAST_MATH is True."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]
