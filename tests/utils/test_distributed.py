"""Passing rows between real processes, evaluating together, mining in all batches; what is known of a launch."""

import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.retrieval import RetrievalSet
from losses.triplet_loss import TripletLoss
from modelling.evaluation import evaluate_protocols
from tests import workers
from tests.launch import run_processes, start_python
from utils.distributed import Processes, find_launcher, is_first_process, mean_over_processes, running_processes
from utils.errors import UserError

LAUNCH_VARIABLES = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_JOB_NAME", "WORLD_SIZE")


@pytest.mark.parametrize("counts", [(5, 0, 2), (3, 4)])
def test_rows_and_errors_pass_between_processes(tmp_path, counts):
    total = sum(counts)
    expected = torch.tensor([[i, i + 0.5, -i] for i in range(total)], dtype=torch.float64)
    for rank, seen in enumerate(run_processes(workers.pass_rows_around, len(counts), tmp_path / "run", counts)):
        assert torch.equal(seen["gathered"], expected)
        assert seen["numbers"].tolist() == list(range(total))
        assert seen["ordered"].tolist() == [10 * i for i in range(total)]
        assert f"2 of {total + 2} samples" in seen["missing"]
        assert f"the first is number {total}." in seen["missing"]
        assert seen["first"] == ("of", 0)
        assert seen["refused"] == "refused by 0"
        assert seen["is first"] is (rank == 0)
        assert seen["buffer"].tolist() == [0, 0, 0]


def test_means_are_taken_by_name_over_those_who_have_it(tmp_path):
    values = [{"a": 1.0, "b": 2.0, "c": 6.0}, {"d": 5.0, "c": 3.0, "a": 4.0}, {}]
    found = run_processes(workers.average_by_name, 3, tmp_path / "run", values)
    assert found == [([("a", 2.5), ("b", 2.0), ("c", 4.5), ("d", 5.0)], {})] * 3
    alone = {name: torch.tensor(number) for name, number in values[0].items()}
    assert (mean_over_processes(alone), mean_over_processes({})) == (values[0], {})


@cache
def evaluated_alone(case):
    rows, num_query, hparams = workers.small_evaluation(*workers.EVALUATIONS[case])
    try:
        return evaluate_protocols(RetrievalSet.of_rows(*rows, num_query), hparams)
    except UserError as error:
        return str(error)


@pytest.mark.parametrize("count", [2, 3])
def test_processes_evaluate_together_as_one_does_alone(tmp_path, count):
    cases = list(workers.EVALUATIONS)
    for found in run_processes(workers.evaluate_together, count, tmp_path / "run", cases):
        for case, results in zip(cases, found, strict=True):
            alone = evaluated_alone(case)
            if isinstance(alone, str):
                assert case == "no match"
                assert results == alone
                continue
            assert results.keys() == alone.keys()
            for protocol, result in results.items():
                for name, value in vars(alone[protocol]).items():
                    assert np.array_equal(getattr(result, name), value), (case, protocol, name)


@pytest.mark.parametrize("counts", [(6, 6), (7, 2, 9)])
def test_mining_in_all_batches_has_the_gradient_of_the_joint_loss(tmp_path, counts):
    """The oracle: each process' loss computed from the joint batch, with all rows but its own masked as anchors."""
    weight, rows, labels, real = workers.joint_rows(sum(counts))
    ends = np.cumsum(counts)
    losses = []
    for end, count in zip(ends, counts, strict=True):
        own = (torch.arange(len(rows)) >= end - count) & (torch.arange(len(rows)) < end)
        losses.append(TripletLoss(0.3)(rows @ weight, labels, mask=own & real)[0])
    torch.stack(losses).mean().backward()
    found = run_processes(workers.mine_everywhere, len(counts), tmp_path / "run", counts)
    for (gradient, loss, anchors), expected, end, count in zip(found, losses, ends, counts, strict=True):
        assert torch.allclose(gradient, weight.grad, atol=1e-6)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
        assert anchors == real[end - count : end].sum()


@settings(max_examples=30)
@given(st.integers(0, 40), st.integers(1, 7))
def test_shares_are_contiguous_and_differ_by_one_at_most(items, count):
    shares = [Processes(rank, count, torch.clone).share(items) for rank in range(count)]
    assert shares[0][0] == 0
    assert shares[-1][1] == items
    assert all(stop == start for (_, stop), (start, _) in pairwise(shares))
    sizes = [stop - start for start, stop in shares]
    assert max(sizes) - min(sizes) <= 1


def test_a_process_alone_is_no_group():
    assert running_processes() is None


@pytest.fixture
def launched(monkeypatch):
    """Environment variables as a launcher sets them."""

    def set_variables(**variables):
        for name in (*LAUNCH_VARIABLES, "TORCHELASTIC_RUN_ID"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_variables


@pytest.mark.parametrize(
    ("variables", "first", "launcher"),
    [
        ({}, True, None),
        ({"TORCHELASTIC_RUN_ID": "a", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "4"}, True, ("torchrun", 4)),
        ({"TORCHELASTIC_RUN_ID": "a", "RANK": "2", "LOCAL_RANK": "0", "WORLD_SIZE": "4"}, False, ("torchrun", 4)),
        ({"RANK": ""}, True, None),
        ({"LOCAL_RANK": "0", "NODE_RANK": "0", "WORLD_SIZE": "2"}, True, None),  # Lightning starts its own
        ({"LOCAL_RANK": "1", "NODE_RANK": "0", "WORLD_SIZE": "2"}, False, None),
        ({"NODE_RANK": "1"}, False, None),
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "train"}, True, ("SLURM", 8)),
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "5", "SLURM_JOB_NAME": "train"}, False, ("SLURM", 8)),
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "interactive"}, True, None),
    ],
)
def test_what_the_environment_tells_of_a_launch(launched, variables, first, launcher):
    launched(**variables)
    assert is_first_process() is first
    assert find_launcher() == launcher


FIRST_AND_SECOND = """
import os, subprocess, sys, time
from utils.distributed import end_with_first_process
end_with_first_process(0.1)
if os.environ.get("LOCAL_RANK") != "1":
    second = subprocess.Popen([sys.executable, "-c", sys.argv[1], sys.argv[1]], env=os.environ | {"LOCAL_RANK": "1"})
    print("started", flush=True)
    second.wait()
else:
    print("ready", flush=True)
    time.sleep(100)
"""


def test_a_process_that_lightning_started_ends_with_the_first(launched):
    launched()
    first = start_python("-c", FIRST_AND_SECOND, FIRST_AND_SECOND, stdout=subprocess.PIPE)
    assert [first.stdout.readline() for _ in range(2)] == ["started\n", "ready\n"]
    first.kill()
    assert first.wait() == -signal.SIGKILL
    with ThreadPoolExecutor() as pool:  # the end of the second closes the pipe
        assert pool.submit(first.stdout.read).result(timeout=60) == ""
