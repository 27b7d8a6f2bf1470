"""The long training runs, and its verdict is that of its figures."""

import pytest

from benchmarks.soak import quarters


def test_quarters_leave_the_first_tenth_out():
    found = quarters([900, 900, *range(18)])
    assert found["first"]["values"] == [0, 1, 2, 3]
    assert found["last"]["values"] == [14, 15, 16, 17]
    assert (found["first"]["median"], found["last"]["median"], found["largest"]) == (1.5, 15.5, 17)


@pytest.mark.by_hand
def test_three_epochs(run_benchmark, check_table):
    report = run_benchmark("soak", "--epochs", 3, status=(0, 1))
    assert report["checkpoints_left"] == {"auto_checkpoints": 1, "checkpoints": 1}
    memory, files = report["memory_mib"], report["open_files"]
    assert memory["first"]["values"][0] > 100
    assert files["largest"] >= files["last"]["median"] > 0
    check_table("soak", report)
