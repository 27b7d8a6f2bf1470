import logging

import pytest
import torch
from pytorch_lightning.loggers import TensorBoardLogger

from callbacks import SafeMLFlowLogger, SafeTensorBoardLogger
from config.cli import load_config
from engine.loggers import build_loggers
from engine.trainer import check_launch, choose_precision, choose_strategy
from utils.devices import choose_devices
from utils.errors import UserError


def cfg_of(*opts):
    return load_config("", opts)


def devices(*opts):
    cfg = cfg_of(*opts)
    return choose_devices(cfg.TRAINER.ACCELERATOR, cfg.GPU_IDS, cfg.SOLVER.DIST_BACKEND)


def precision(accelerator, *opts):
    cfg = cfg_of(*opts)
    return choose_precision(cfg.TRAINER.PRECISION, cfg.USE_MIXED_PRECISION, accelerator)


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


def test_loggers(tmp_path, monkeypatch):
    cfg = cfg_of("OUTPUT_DIR", str(tmp_path))
    cfg.LOG_DIR = str(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///from_environment.db")
    board, flow = build_loggers(cfg, "name")
    assert isinstance(board, TensorBoardLogger)
    assert board.log_dir == str(tmp_path / "name" / "version_0")
    assert isinstance(flow, SafeMLFlowLogger)
    assert flow.tracking_uri == "sqlite:///from_environment.db"
    cfg.LOGGING.MLFLOW_URI = "sqlite:///from_key.db"
    assert build_loggers(cfg, "name")[1].tracking_uri == "sqlite:///from_key.db"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    cfg.LOGGING.MLFLOW_URI = ""
    assert build_loggers(cfg, "name")[1].tracking_uri == "sqlite:///mlflow.db"
    cfg.LOGGING.MLFLOW = False
    assert len(build_loggers(cfg, "name")) == 1


def test_a_tracking_place_that_mlflow_refuses_is_named(tmp_path):
    cfg = cfg_of("LOGGING.MLFLOW_URI", "nonsense://place")
    cfg.LOG_DIR = str(tmp_path)
    with pytest.raises(UserError, match="LOGGING.MLFLOW_URI.*'nonsense://place'.*sqlite:///mlflow.db"):
        build_loggers(cfg, "name")


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


def test_only_the_first_process_opens_the_tracking_database(tmp_path, monkeypatch):
    cfg = cfg_of("LOGGING.MLFLOW_URI", f"sqlite:///{tmp_path / 'runs.db'}")
    cfg.LOG_DIR = str(tmp_path)
    monkeypatch.setenv("RANK", "1")
    assert [type(logger) for logger in build_loggers(cfg, "name")] == [SafeTensorBoardLogger]
    assert not (tmp_path / "runs.db").exists()
