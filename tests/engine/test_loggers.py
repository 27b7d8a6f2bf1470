"""Where TensorBoard and MLflow write, and what is said where they cannot."""

import contextlib
import re
import sqlite3
import sys

import pytest
from mlflow.tracking import MlflowClient
from pytorch_lightning.loggers import TensorBoardLogger

from callbacks import SafeMLFlowLogger, SafeTensorBoardLogger, tracking
from engine import loggers
from engine.loggers import build_loggers
from engine.noise import quiet_libraries
from tests.small import small_config
from utils.errors import UserError


@pytest.fixture(autouse=True)
def _quiet():
    quiet_libraries()  # as every run does


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


def cfg_for(folder, **overrides):
    cfg = small_config(**{"LOGGING.MLFLOW": True, "MODEL.PRETRAIN_PATH": "x.ckpt"} | overrides)
    cfg.LOG_DIR = str(folder / "out")
    return cfg


@contextlib.contextmanager
def broken(kind, folder, monkeypatch):
    """A place where MLflow cannot record a run: its URI, and the reason as it is said."""
    file = folder / "runs.db"
    uri = f"sqlite:///{file}"
    if kind == "a file in the way of the folder":
        (folder / "taken").write_text("")
        yield f"sqlite:///{folder}/taken/below/runs.db", f"[Errno 20] Not a directory: '{folder}/taken/below'"
    elif kind == "a folder that takes no files":
        yield "sqlite:////proc/runs.db", "[Errno 2] No such file or directory: '/proc'"
    elif kind == "damaged":
        file.write_bytes(b"not a database, only a text that is long enough to be read as one. " * 20)
        yield uri, "file is not a database"
    elif kind == "a folder in the place of the file":
        file.mkdir()
        yield uri, "unable to open database file"
    elif kind == "locked":
        monkeypatch.setattr(tracking, "LOCK_SECONDS", 0.1)
        with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            yield uri, "database is locked"
    elif kind == "a server that is down":
        yield "http://127.0.0.1:1", "[Errno 111] Connection refused"
    elif kind == "mlflow is missing":
        monkeypatch.setattr(tracking, "is_installed", lambda name: False)
        yield (
            uri,
            "the package mlflow is not installed: pip install 'centroids-reid[train]', or set LOGGING.MLFLOW False",
        )
    elif kind == "a database without its driver":
        monkeypatch.setitem(sys.modules, "psycopg2", None)
        yield "postgresql+psycopg2://u:secret@127.0.0.1:1/runs", "import of psycopg2 halted; None in sys.modules"


BROKEN = (
    *("a file in the way of the folder", "a folder that takes no files", "damaged", "locked", "mlflow is missing"),
    *("a folder in the place of the file", "a server that is down", "a database without its driver"),
)


@pytest.mark.parametrize("kind", BROKEN)
def test_a_place_that_takes_no_records_is_said_in_one_line_at_the_start(kind, tmp_path, monkeypatch, caplog):
    with broken(kind, tmp_path, monkeypatch) as (uri, reason):
        flow = build_loggers(cfg_for(tmp_path, **{"LOGGING.MLFLOW_URI": uri}), "name")[1]
        uri = uri.replace("u:secret", "***")
        lacking = kind in ("mlflow is missing", "a database without its driver")
        outlook = " without them." if lacking else "; the records are sent once it does."
        line = f"MLflow at {uri} accepts no records ({reason}). Training continues{outlook}"
        assert [record.getMessage() for record in caplog.records] == [line]
        flow.log_metrics({"mAP": 0.5}, step=0)
        assert len(caplog.records) == 1  # once
    assert flow.undelivered == 1


@pytest.mark.parametrize("kind", BROKEN)
def test_such_a_place_ends_the_run_with_on_error_stop(kind, tmp_path, monkeypatch, caplog):
    with broken(kind, tmp_path, monkeypatch) as (uri, reason):
        shown = uri.replace("u:secret", "***")
        line = f"MLflow at {shown} accepts no records ({reason}), and LOGGING.ON_ERROR is 'stop': fix it, or "
        with pytest.raises(UserError, match=re.escape(line)):
            build_loggers(cfg_for(tmp_path, **{"LOGGING.MLFLOW_URI": uri, "LOGGING.ON_ERROR": "stop"}), "name")
    assert not caplog.records


def test_a_run_without_tensorboard_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(loggers, "is_installed", lambda name: False)
    with pytest.raises(UserError, match=r"TensorBoard, which is not installed: pip install 'centroids-reid\[train\]'$"):
        build_loggers(cfg_for(tmp_path), "name")


def test_records_arrive_once_the_database_is_free(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "PAUSE_SECONDS", 0.0)
    with broken("locked", tmp_path, monkeypatch) as (uri, _):
        flow = build_loggers(cfg_for(tmp_path, **{"LOGGING.MLFLOW_URI": uri}), "name")[1]
        flow.log_metrics({"mAP": 0.5}, step=0)
    flow.log_metrics({"mAP": 0.75}, step=1)
    history = MlflowClient(uri).get_metric_history(flow.version, "mAP")
    assert [(metric.step, metric.value) for metric in history] == [(0, 0.5), (1, 0.75)]


def test_on_error_stop_starts_the_run_before_the_training(tmp_path):
    uri = f"sqlite:///{tmp_path / 'new folder' / 'runs.db'}"
    _, flow = build_loggers(cfg_for(tmp_path, **{"LOGGING.MLFLOW_URI": uri, "LOGGING.ON_ERROR": "stop"}), "name")
    assert MlflowClient(uri).get_run(flow.version).info.status == "RUNNING"
    assert list((tmp_path / "out/name/version_0").glob("events.*"))


def test_a_database_of_another_version_of_mlflow_is_left_as_it_is(tmp_path, caplog):
    """Only mlflow can tell; with "stop" it is asked before the training."""
    SafeMLFlowLogger("default", f"sqlite:///{tmp_path / 'first.db'}").start()
    file = (tmp_path / "first.db").rename(tmp_path / "runs.db")  # under a name that this process has not opened
    with contextlib.closing(sqlite3.connect(file)) as database:
        database.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")
        database.commit()
    caplog.clear()
    place = {"LOGGING.MLFLOW_URI": f"sqlite:///{file}"}
    with pytest.raises(UserError, match=r"MLflow at .*out-of-date database schema .*, and LOGGING.ON_ERROR is 'stop'"):
        build_loggers(cfg_for(tmp_path, **place, **{"LOGGING.ON_ERROR": "stop"}), "name")
    flow = build_loggers(cfg_for(tmp_path, **place), "name")[1]
    assert not caplog.records
    flow.log_metrics({"mAP": 0.5}, step=0)
    (record,) = caplog.records
    assert re.match(r"MLflow at .*out-of-date database schema .*\)\. Training continues", record.getMessage())


@pytest.mark.parametrize("on_error", ["continue", "stop"])
def test_a_training_needs_the_folder_of_its_records_for_its_checkpoints(tmp_path, on_error):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "name").write_text("")
    with pytest.raises(UserError, match="OUTPUT_DIR: cannot write to '.*/out/name/version_0' .*choose a folder"):
        build_loggers(cfg_for(tmp_path, **{"LOGGING.MLFLOW": False, "LOGGING.ON_ERROR": on_error}), "name")


def test_a_test_goes_on_without_that_folder(tmp_path, caplog):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "name").write_text("")
    only_test = {"LOGGING.MLFLOW": False, "TEST.ONLY_TEST": True}
    (board,) = build_loggers(cfg_for(tmp_path, **only_test), "name")
    board.log_hyperparams({"A": 1})
    board.log_metrics({"mAP": 0.5}, 0)
    board.finalize("success")
    folder = f"{tmp_path}/out/name/version_0"
    line = f"TensorBoard cannot write to {folder} ([Errno 20] Not a directory: '{folder}'). Training continues."
    assert [record.getMessage() for record in caplog.records] == [line]
    with pytest.raises(UserError, match=r"TensorBoard cannot write to .*, and LOGGING.ON_ERROR is 'stop'"):
        build_loggers(cfg_for(tmp_path, **only_test, **{"LOGGING.ON_ERROR": "stop"}), "name")
