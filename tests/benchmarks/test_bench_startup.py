"""The benchmark of the start runs: both programs reach a step with the same number of images."""

import pytest

from benchmarks import bench_startup


def test_turns_leave_the_first_round_out():
    calls = []
    found = bench_startup.in_processes(["a", "b"], lambda name: calls.append(name) or len(calls), 2)
    assert "".join(calls) == "abbaab"
    assert found == {"a": [4, 5], "b": [3, 6]}


@pytest.mark.by_hand
def test_first_batch(run_benchmark, check_table):
    report = run_benchmark("bench_startup", "--parts", "first_batch", "--repeats", 1, "--threads", 1)
    rows = report["first_batch"]
    bare = rows["bare"]["seconds"]["median"]
    for row in rows.values():
        assert row["times_bare"]["median"] == pytest.approx(row["seconds"]["median"] / bare)
    check_table("startup", report)


@pytest.mark.by_hand
def test_imports(run_benchmark, check_table):
    report = run_benchmark("bench_startup", "--parts", "imports", "costs", "--repeats", 1, "--threads", 1)
    assert report["imports"]["this_project"]["modules"] > report["imports"]["bare"]["modules"] > 1000
    costs = [row["own_ms"]["median"] for row in report["costs"]]
    assert len(costs) == bench_startup.LISTED
    assert costs == sorted(costs, reverse=True)
    assert not {"torch", "torchvision", "pytorch_lightning"} & {row["module"] for row in report["costs"]}
    check_table("startup_imports", report)
    check_table("startup_costs", report)
