"""Where TensorBoard and MLflow write, and what is said where they cannot."""

import pytest
from pytorch_lightning.loggers import TensorBoardLogger

from callbacks import SafeMLFlowLogger, SafeTensorBoardLogger
from engine.loggers import build_loggers
from tests.small import small_config
from utils.errors import UserError


def test_loggers(tmp_path, monkeypatch):
    cfg = small_config(**{"LOGGING.MLFLOW": True, "OUTPUT_DIR": str(tmp_path)})
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
    assert not list(tmp_path.glob("*.db"))  # made with the first metrics
    cfg.LOGGING.MLFLOW = False
    assert len(build_loggers(cfg, "name")) == 1


@pytest.mark.parametrize("place", ["nonsense://place", "sqlite:x.db", "sqlite:", "sqlite://host/x.db"])
def test_a_tracking_place_that_mlflow_refuses_is_named(tmp_path, place):
    cfg = small_config(**{"LOGGING.MLFLOW": True, "LOGGING.MLFLOW_URI": place})
    cfg.LOG_DIR = str(tmp_path)
    with pytest.raises(UserError, match=f"LOGGING.MLFLOW_URI.*'{place}'.*sqlite:///mlflow.db"):
        build_loggers(cfg, "name")


def test_only_the_first_process_opens_the_tracking_database(tmp_path, monkeypatch):
    cfg = small_config(**{"LOGGING.MLFLOW": True, "LOGGING.MLFLOW_URI": f"sqlite:///{tmp_path / 'runs.db'}"})
    cfg.LOG_DIR = str(tmp_path)
    monkeypatch.setenv("RANK", "1")
    assert [type(logger) for logger in build_loggers(cfg, "name")] == [SafeTensorBoardLogger]
    assert not (tmp_path / "runs.db").exists()
