"""Training and testing in several real processes: gradients, draws, logs, running statistics, evaluation."""

import pytest
import torch

from tests import workers
from tests.launch import run_processes
from tests.modelling.test_computation import make_model
from tests.modelling.test_optimization import TOGETHER, batches, plain_loop
from tests.support import assert_close

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


def test_groups_of_batches_equal_the_joint_ones_and_are_reduced_once(tmp_path):
    """Each process has batches of its own; the mean is over the processes and the batches of a group."""
    options = TOGETHER | {"SOLVER.ACCUMULATE": 2, "SOLVER.BASE_LR": 0.01, "SOLVER.CENTER_LOSS_WEIGHT": 0.25}
    one, two = run_processes(workers.train_in_groups, 2, tmp_path / "run", options)
    for number, (ours, theirs) in enumerate(zip(one[0], two[0], strict=True)):
        assert torch.equal(ours, theirs) is (number % 5 in (1, 3, 4))
    joint = [batch for pair in zip(batches(5), batches(5, first=10), strict=True) for batch in pair]
    expected, average = plain_loop(make_model(**options | {"SOLVER.ACCUMULATE": 4}), joint, epochs=2)
    parameters = dict(make_model().named_parameters())
    for _, model, checkpoint in (one, two):
        assert checkpoint["global_step"] == 2 * 2 * 3  # epochs, optimisers, groups
        for name in parameters:  # the running statistics of each process are of its own batches
            assert_close(checkpoint[workers.PLAIN][name], expected[name].detach(), "weights")
            assert_close(model[name], average[name].detach(), "weights")
            assert torch.equal(model[name], one[1][name]) and torch.equal(model[name], checkpoint["state_dict"][name])


def test_one_process_looks_for_own_images(tmp_path):
    """The others may not see the files, or see them late, and must rank the same."""
    found = run_processes(workers.find_own_images, 2, tmp_path / "run", ["q/0", "q/1", "g/0", "q/1"])
    assert found == [[([-1, 0], [-1, 0])] * 2] * 2
