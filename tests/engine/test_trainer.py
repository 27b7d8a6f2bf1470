"""What the Trainer is given for a configuration: strategy, precision, and processes that somebody else has started."""

import logging

import pytest

from callbacks import EpochStatistics
from config.load import load_config
from engine import trainer as built
from engine.trainer import build_trainer, check_launch, choose_precision, choose_strategy, choose_sync_batchnorm
from utils.errors import UserError


def cfg_of(*opts):
    return load_config("", opts)


def precision(accelerator, *opts):
    cfg = cfg_of(*opts)
    return choose_precision(cfg.TRAINER.PRECISION, cfg.USE_MIXED_PRECISION, accelerator)


@pytest.mark.parametrize(
    ("backend", "processes", "expected"),
    [
        ("ddp", 1, "auto"),
        ("ddp", 2, "ddp"),
        ("ddp_spawn", 2, "ddp_spawn"),
        ("ddp_cpu", 2, "ddp"),
        ("ddp_cpu", 1, "auto"),
    ],
)
def test_strategies(backend, processes, expected):
    assert choose_strategy(backend, processes) == expected


@pytest.mark.parametrize(
    ("backend", "processes", "expected"),
    [("ddp_cpu", 1, "auto"), ("ddp_cpu", 2, "ddp"), ("ddp", 2, "ddp"), ("ddp_spawn", 2, "ddp_spawn")],
)
def test_strategies_that_allow_parameters_without_gradient(backend, processes, expected):
    suffix = "_find_unused_parameters_true" if processes > 1 else ""
    assert choose_strategy(backend, processes, find_unused=True) == expected + suffix


@pytest.mark.parametrize("backend", ["dp", "ddp2"])
def test_strategies_that_no_longer_exist_name_ddp(backend):
    with pytest.raises(UserError, match=f"{backend}.*use ddp"):
        choose_strategy(backend, 2)


@pytest.mark.parametrize(
    ("opts", "accelerator", "expected"),
    [
        ([], "gpu", "16-mixed"),
        ([], "cpu", "32-true"),
        (["USE_MIXED_PRECISION", "False"], "gpu", "32-true"),
        (["TRAINER.PRECISION", "bf16-mixed"], "cpu", "bf16-mixed"),
    ],
)
def test_precision(opts, accelerator, expected):
    assert precision(accelerator, *opts) == expected


def test_mixed_precision_off_cuda_says_so_in_one_line(caplog):
    with caplog.at_level(logging.INFO):
        precision("cpu")
    assert [record.message for record in caplog.records] == [
        "USE_MIXED_PRECISION True needs a CUDA device; computing in 32-true on cpu."
    ]


@pytest.mark.parametrize(
    ("opts", "accelerator", "processes", "expected"),
    [
        ([], "gpu", 2, False),
        (["TRAINER.SYNC_BATCHNORM", True], "gpu", 2, True),
        (["TRAINER.SYNC_BATCHNORM", True], "gpu", 1, False),
        (["TRAINER.SYNC_BATCHNORM", True], "cpu", 1, False),
        (["TRAINER.SYNC_BATCHNORM", True, "TEST.ONLY_TEST", True, "MODEL.PRETRAIN_PATH", "a.ckpt"], "cpu", 2, False),
    ],
)
def test_batch_norm_over_the_processes(opts, accelerator, processes, expected):
    assert choose_sync_batchnorm(cfg_of(*opts), accelerator, processes) is expected


def test_batch_norm_over_processes_on_the_cpu_is_refused():
    message = (
        "TRAINER.SYNC_BATCHNORM is True, but torch.nn.SyncBatchNorm computes on CUDA only, and this run trains with 2 "
        "processes on cpu: set it False, or train on CUDA devices."
    )
    cfg = cfg_of("TRAINER.SYNC_BATCHNORM", True, "SOLVER.DIST_BACKEND", "ddp_cpu", "GPU_IDS", "[0, 1]")
    with pytest.raises(UserError) as raised:
        build_trainer(cfg, [])
    assert str(raised.value) == message


def test_batch_norm_over_the_processes_is_left_to_lightning(monkeypatch):
    given = {}
    monkeypatch.setattr(built, "Trainer", lambda **options: given.update(options))
    monkeypatch.setattr(built, "choose_devices", lambda *_: ("gpu", [0, 1]))
    for value in (True, False):
        build_trainer(cfg_of("TRAINER.SYNC_BATCHNORM", value), [])
        assert given["sync_batchnorm"] is value


def launched_by(monkeypatch, launcher, processes):
    variables = {"torchrun": {"TORCHELASTIC_RUN_ID": "a", "RANK": "0", "WORLD_SIZE": processes}}
    variables["SLURM"] = {"SLURM_NTASKS": processes, "SLURM_JOB_NAME": "train"}
    for name, value in variables[launcher].items():
        monkeypatch.setenv(name, str(value))


@pytest.mark.parametrize("launcher", ["torchrun", "SLURM"])
def test_processes_that_were_started_agree_with_the_configuration(monkeypatch, launcher):
    launched_by(monkeypatch, launcher, 4)
    check_launch(cfg_of("TRAINER.NUM_NODES", 2, "GPU_IDS", "[0, 1]"), 2)
    with pytest.raises(UserError, match=rf"{launcher} started 4 process.*asks for 1: .*NUM_NODES 1 .*GPU_IDS \[0\]"):
        check_launch(cfg_of(), 1)
    with pytest.raises(UserError, match=f"'ddp_spawn', but {launcher} starts the processes; use ddp"):
        check_launch(cfg_of("TRAINER.NUM_NODES", 2, "SOLVER.DIST_BACKEND", "ddp_spawn"), 2)


@pytest.mark.parametrize(
    ("bar", "stdout", "stderr", "lines"),
    [(True, True, True, False), (True, False, True, True), (True, True, False, True), (False, True, True, True)],
)
def test_epochs_are_reported_in_lines_where_no_progress_bar_is_watched(monkeypatch, bar, stdout, stderr, lines):
    monkeypatch.setattr(built.sys.stdout, "isatty", lambda: stdout)
    monkeypatch.setattr(built.sys.stderr, "isatty", lambda: stderr)
    reports = []
    monkeypatch.setattr(
        built, "EpochStatistics", lambda report: reports.append(report) or EpochStatistics(report=report)
    )
    build_trainer(cfg_of("TRAINER.PROGRESS_BAR", bar, "GPU_IDS", "[]"), [])
    assert reports == [lines]
