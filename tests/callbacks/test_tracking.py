"""MLflow's records: kept until the first metrics, then delivered in order."""

import logging
import pickle
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

from mlflow.tracking import MlflowClient

from callbacks import SafeMLFlowLogger
from tests.support import ROOT


def the_run(uri):
    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("default").experiment_id])
    return client, run


def test_hyperparameters_come_with_the_first_metrics(tmp_path):
    uri = f"sqlite:///{tmp_path / 'runs.db'}"
    flow = SafeMLFlowLogger("default", uri)
    flow.log_hyperparams({"MODEL": {"NAME": "resnet18"}})
    assert flow.undelivered == 1
    assert flow.version is None
    assert not (tmp_path / "runs.db").exists()
    flow.log_metrics({"mAP": 0.5}, step=3)
    flow.log_metrics({"mAP": 0.75}, step=4)
    assert flow.undelivered == 0
    client, run = the_run(uri)
    assert run.info.run_id == flow.version
    assert run.data.params == {"MODEL/NAME": "resnet18"}
    assert [(m.value, m.step) for m in client.get_metric_history(flow.version, "mAP")] == [(0.5, 3), (0.75, 4)]
    flow.finalize("success")
    assert the_run(uri)[1].info.status == "FINISHED"


def test_a_run_that_fails_after_its_first_metrics_is_recorded_as_failed(tmp_path):
    uri = f"sqlite:///{tmp_path / 'runs.db'}"
    flow = SafeMLFlowLogger("default", uri)
    flow.log_hyperparams({"SEED": 7})
    flow.log_metrics({"mAP": 0.5}, step=0)
    flow.finalize("failed")
    _, run = the_run(uri)
    assert (run.data.params, run.info.status) == ({"SEED": "7"}, "FAILED")


def test_a_run_that_ends_before_its_first_metrics_creates_no_database(tmp_path):
    """A process that is being stopped has seconds; a database that it leaves half created refuses all later runs."""
    flow = SafeMLFlowLogger("default", f"sqlite:///{tmp_path / 'runs.db'}")
    flow.log_hyperparams({"SEED": 7})
    flow.finalize("failed")
    assert flow.undelivered == 0
    assert not list(tmp_path.iterdir())


def test_a_run_imports_mlflow_only_with_its_first_metrics(tmp_path):
    program = (
        "import sys; from config.load import load_config; from engine.loggers import build_loggers\n"
        f"cfg = load_config('', ['LOGGING.MLFLOW_URI', 'sqlite:///{tmp_path}/runs.db'])\n"
        f"cfg.LOG_DIR = {str(tmp_path)!r}\n"
        "_, flow = build_loggers(cfg, 'run'); flow.log_hyperparams({'A': 1}); print('mlflow' in sys.modules)\n"
        "flow.log_metrics({'mAP': 0.5}); print('mlflow' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


def test_a_copy_goes_on_with_the_run_of_the_first(tmp_path):
    """ddp_spawn sends copies to its processes."""
    uri = f"sqlite:///{tmp_path / 'runs.db'}"
    flow = SafeMLFlowLogger("default", uri)
    flow.log_hyperparams({"SEED": 7})
    copy = pickle.loads(pickle.dumps(flow))
    copy.log_metrics({"mAP": 0.5}, step=0)
    _, run = the_run(uri)
    assert (run.data.params, run.data.metrics) == ({"SEED": "7"}, {"mAP": 0.5})
    assert flow.version == copy.version == run.info.run_id


class Forbidding(BaseHTTPRequestHandler):
    def answer(self):
        self.send_error(403, "a password is needed")

    do_GET = do_POST = answer  # noqa: N815

    def log_message(self, *args):
        pass


def test_records_that_a_server_refuses_count_as_not_delivered(caplog):
    with HTTPServer(("127.0.0.1", 0), Forbidding) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        uri = f"http://127.0.0.1:{server.server_port}"
        flow = SafeMLFlowLogger("default", uri)
        flow.check()  # it answers
        flow.log_hyperparams({"SEED": 7})
        flow.log_metrics({"mAP": 0.5}, step=0)
        assert flow.undelivered == 2
        server.shutdown()
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"MLflow at {uri} accepts no records (") and "Error code: 403" in line
    assert line.endswith("). Training continues without them.")


def test_a_database_is_tried_once_and_without_a_word_of_mlflow(tmp_path, caplog, capfd):
    """MLflow tries ten times in two minutes. A URI of this form is one that only MLflow understands."""
    flow = SafeMLFlowLogger("default", f"sqlite:///file:{tmp_path}/missing/runs.db?uri=true&mode=rw")
    start = time.monotonic()
    flow.log_metrics({"mAP": 0.5}, step=0)
    assert time.monotonic() - start < 30
    (line,) = [record.getMessage() for record in caplog.records]
    assert "unable to open database file" in line
    assert capfd.readouterr().err.strip() in ("", line)


def test_the_logging_of_the_process_is_as_before(tmp_path):
    """MLflow 2.10 sets it up anew when it makes a database, and later lines of ours would vanish."""
    root = logging.getLogger()
    before = root.handlers[:], root.level, logging.root.manager.disable
    flow = SafeMLFlowLogger("default", f"sqlite:///{tmp_path / 'runs.db'}")
    connect = flow.connect

    def set_up_anew():
        root.handlers[:] = [logging.NullHandler()]
        root.setLevel(logging.ERROR)
        return connect()

    flow.connect = set_up_anew
    flow.log_metrics({"mAP": 0.5}, step=0)
    assert (root.handlers, root.level, logging.root.manager.disable) == before
    assert flow.undelivered == 0
