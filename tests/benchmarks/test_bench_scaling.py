"""The benchmark of several processes runs with two."""

import pytest


@pytest.mark.by_hand
def test_two_processes(run_benchmark, check_table):
    report = run_benchmark("bench_scaling", "--epochs", 1, "--identities", 4, timeout=500)
    assert report["images_of_a_step"] == 16
    for name in ("training", "evaluation"):
        one, two = (report[f"{count}_processes"] for count in (1, 2))
        rates = [part[f"{name}_images_per_s"]["median"] for part in (one, two)]
        assert two[f"{name}_efficiency"] == pytest.approx(rates[1] / (2 * rates[0]))
    check_table("scaling", report)


@pytest.mark.by_hand
def test_embedding_by_two_processes(run_benchmark):
    report = run_benchmark("bench_scaling", "--part", "embedding", "--images", 64, "--chunk", 8, "--repeats", 1)
    one, two = (report[f"{count}_processes"]["embedding_images_per_s"]["median"] for count in (1, 2))
    assert report["2_processes"]["embedding_efficiency"] == pytest.approx(two / (2 * one))
