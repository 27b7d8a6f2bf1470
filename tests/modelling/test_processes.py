"""Training and testing in several real processes: gradients, draws, logs, running statistics, evaluation."""

import pytest
import torch

from tests import workers
from tests.launch import run_processes

IBN = {"MODEL.NAME": "resnet50_ibn_a", "MODEL.BACKBONE_EMB_SIZE": 2048}


@pytest.mark.parametrize(
    ("method", "options", "gather"),
    [
        pytest.param("CTLModel", IBN, False, marks=pytest.mark.slow, id="IBN"),
        pytest.param("BaseModel", {}, False, id="baseline"),
        pytest.param("CTLModel", {}, True, id="gathered"),
        pytest.param("CTLModel", {"SOLVER.QUERY_CONTRASTIVE_WEIGHT": 0.0}, True, id="gathered centroids"),
        pytest.param("CTLModel", {"LOSSES.EXTRA": ["arcface", "circle"]}, False, id="losses of a package"),
    ],
)
def test_gradients_are_the_mean_over_the_processes_and_no_parameter_is_unused(tmp_path, method, options, gather):
    if "LOSSES.EXTRA" in options:
        pytest.importorskip("pytorch_metric_learning")
    one, two = run_processes(workers.average_gradients, 2, tmp_path / "run", method, options, gather)
    (found, expected), (other, _) = one, two
    different = 0.0
    for name, gradient in found.items():
        assert torch.equal(gradient, other[name]), name
        scale = expected[name].abs().max().item()
        if gather:
            different = max(different, (gradient - expected[name]).abs().max().item() / (scale + 1e-9))
        else:
            torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-4 * scale + 1e-7)
    assert (different > 1e-3) is gather


def test_one_process_looks_for_own_images(tmp_path):
    """The others may not see the files, or see them late, and must rank the same."""
    found = run_processes(workers.find_own_images, 2, tmp_path / "run", ["q/0", "q/1", "g/0", "q/1"])
    assert found == [([-1, 0], [-1, 0])] * 2
