"""Where the project computes, in what precision, and with how many cores."""

import os

import pytest
import torch

from config.load import load_config
from utils.devices import (
    DEFAULT_WORKERS,
    INFERENCE_DTYPES,
    choose_devices,
    count_cpus,
    count_workers,
    find_device,
    inference_dtype,
)
from utils.errors import UserError


def devices(*opts):
    cfg = load_config("", opts)
    return choose_devices(cfg.TRAINER.ACCELERATOR, cfg.GPU_IDS, cfg.SOLVER.DIST_BACKEND)


@pytest.fixture
def cuda(monkeypatch):
    """A machine with two CUDA devices."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.parametrize(
    ("opts", "expected"),
    [
        ([], ("gpu", [0])),
        (["GPU_IDS", "[0, 1]"], ("gpu", [0, 1])),
        (["GPU_IDS", "[]"], ("cpu", 1)),
        (["TRAINER.ACCELERATOR", "cpu"], ("cpu", 1)),
        (["SOLVER.DIST_BACKEND", "ddp_cpu", "GPU_IDS", "[0, 1, 2]"], ("cpu", 3)),
    ],
)
def test_devices_with_cuda(cuda, opts, expected):
    assert devices(*opts) == expected


def test_devices_that_are_not_there_are_named(cuda):
    with pytest.raises(UserError, match=r"GPU_IDS names \[5\].*devices 0 to 1"):
        devices("GPU_IDS", "[0, 5]")
    with pytest.raises(UserError, match="TRAINER.ACCELERATOR is 'gpu'"):
        devices("TRAINER.ACCELERATOR", "gpu", "GPU_IDS", "[]")


def test_without_cuda_it_is_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices() == ("cpu", 1)
    with pytest.raises(UserError, match="0 CUDA devices"):
        devices("TRAINER.ACCELERATOR", "gpu")


def test_a_machine_with_mps_uses_it_when_asked(monkeypatch):
    with pytest.raises(UserError, match="'mps', but this machine has no MPS device"):
        devices("TRAINER.ACCELERATOR", "mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert devices("TRAINER.ACCELERATOR", "mps") == ("mps", 1)


@pytest.mark.parametrize(
    ("has_cuda", "has_mps", "expected"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_auto_is_the_best_device_there_is(monkeypatch, has_cuda, has_mps, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: has_mps)
    assert find_device("auto") == torch.device(expected)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpu0", "the device is 'gpu0'; expected auto, cpu, cuda, cuda:N or mps"),
        ("cuda:2", r"'cuda:2', which this machine does not have \(2 CUDA devices\)"),
        ("mps", "'mps', which this machine does not have"),
        ("meta", "the device 'meta' cannot be used"),
    ],
)
def test_devices_that_cannot_compute_are_named(cuda, name, message):
    with pytest.raises(UserError, match=message):
        find_device(name)


def test_the_cpu_is_found_by_name_and_by_device():
    assert find_device("cpu") == find_device(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.parametrize("precision", INFERENCE_DTYPES)
def test_mixed_and_true_precisions_are_one_in_inference(precision):
    bits = {"32": torch.float32, "64": torch.float64, "bf16": torch.bfloat16, "16": torch.float16}
    assert inference_dtype(precision, torch.device("cuda")) == bits[precision.split("-")[0]]


@pytest.mark.parametrize(
    ("precision", "device", "message"),
    [
        ("8-true", "cpu", "the precision is '8-true'; valid: 32-true"),
        ("16-mixed", "cpu", "the precision 16-mixed does not work on the device cpu; use 32-true"),
        ("64-true", "mps", "the precision 64-true does not work on the device mps"),
    ],
)
def test_precisions_that_a_device_lacks(precision, device, message):
    with pytest.raises(UserError, match=message):
        inference_dtype(precision, torch.device(device))


def test_cores_are_those_that_this_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 5}, raising=False)
    assert count_cpus() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert count_cpus() == 7
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert count_cpus() == 1


@pytest.mark.parametrize(
    ("wanted", "processes", "expected"),
    [
        (0, 1, 0),
        (3, 1, 3),
        (8, 1, 8),
        (30, 1, 8),
        (-1, 1, 8),
        (-1, 3, 2),
        (30, 3, 2),
        (1, 16, 0),
        (-1, 16, 0),
        (5, 0, 5),
    ],
)
def test_workers_are_no_more_than_the_cores_of_a_process(monkeypatch, wanted, processes, expected):
    monkeypatch.setattr("utils.devices.count_cpus", lambda: 8)
    assert count_workers(wanted, processes) == expected
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert count_workers(wanted) == expected
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    assert count_workers(wanted) == count_workers(wanted, 1)


def test_a_chosen_number_that_is_lowered_is_told_once(monkeypatch, caplog):
    monkeypatch.setattr("utils.devices.count_cpus", lambda: 5)
    for wanted in (-1, 0, 5, DEFAULT_WORKERS):  # the default does not disturb anybody
        count_workers(wanted)
    assert not [record for record in caplog.records if record.levelname != "DEBUG"]
    assert [count_workers(97) for _ in range(3)] == [5, 5, 5]
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "NUM_WORKERS is 97" in record.getMessage() and "5 CPU cores" in record.getMessage()
    monkeypatch.setenv("RANK", "1")  # the first process speaks for all
    assert count_workers(98) == 5
    assert "98" not in caplog.text
