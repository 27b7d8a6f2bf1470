"""A summary of several runs in TensorBoard and, as the parent of the runs, in MLflow."""

import json

from mlflow.tracking import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks import SafeMLFlowLogger
from engine.summary import conclude, record
from tests.small import small_config

TOGETHER = {"summary/instances/mAP_mean": 0.5, "summary/instances/mAP_std": 0.25}
SCALARS = [TOGETHER, {"summary/instances/mAP": 0.25}, {"summary/instances/mAP": 0.75}]


def configuration(folder):
    cfg = small_config(OUTPUT_DIR=str(folder))
    cfg.LOG_DIR = str(folder)
    return cfg


def test_the_summary_is_the_parent_of_its_runs(tmp_path):
    uri = f"sqlite:///{tmp_path / 'runs.db'}"
    runs = [SafeMLFlowLogger("default", uri) for _ in range(3)]
    for value, run in enumerate(runs):
        run.log_metrics({"mAP": value}, step=0)
        run.finalize("success")
    *summarised, other = runs
    record(configuration(tmp_path), "train", SCALARS, summarised, tmp_path / "summary.json")
    client = MlflowClient(uri)
    found = {
        run.info.run_id: run for run in client.search_runs([client.get_experiment_by_name("default").experiment_id])
    }
    (parent,) = set(found) - {run.version for run in runs}
    assert found[parent].data.metrics == TOGETHER | SCALARS[-1]
    history = client.get_metric_history(parent, "summary/instances/mAP")
    assert [(entry.step, entry.value) for entry in history] == [(0, 0.25), (1, 0.75)]
    assert found[parent].info.run_name == "train: 2 runs"
    assert found[parent].data.params["MODEL/NAME"] == "resnet18"
    assert found[parent].info.status == "FINISHED"
    tags = [found[run.version].data.tags.get("mlflow.parentRunId") for run in (*summarised, other)]
    assert tags == [parent, parent, None]
    events = EventAccumulator(str(tmp_path / "train" / "summary"))
    events.Reload()
    assert {name: events.Scalars(name)[0].value for name in events.Tags()["scalars"]} == TOGETHER | SCALARS[1]
    assert [event.value for event in events.Scalars("summary/instances/mAP")] == [0.25, 0.75]


def test_mlflow_that_takes_nothing_costs_one_line(tmp_path, caplog):
    (tmp_path / "taken").write_text("")
    down = SafeMLFlowLogger("default", f"sqlite:///{tmp_path}/taken/runs.db")
    record(configuration(tmp_path), "train", SCALARS, [down], tmp_path / "summary.json")
    (line,) = caplog.messages
    assert line.startswith(f"MLflow at sqlite:///{tmp_path}/taken/runs.db accepts no records (")
    assert line.endswith(f"). The summary is in {tmp_path / 'summary.json'} alone.")
    assert list((tmp_path / "train" / "summary").glob("events.*"))


def test_without_mlflow_there_is_no_parent(tmp_path, monkeypatch):
    monkeypatch.setattr("engine.summary.SafeMLFlowLogger.connect", lambda self: 1 / 0)
    record(configuration(tmp_path), "train", SCALARS, [], tmp_path / "summary.json")


def write_runs(top, *numbers):
    for number in numbers:
        folder = top / "evaluation" / f"run_{number}"
        folder.mkdir(parents=True)
        details = {"mAP": 0.5, "mINP": 0.5, "topk": {"1": 0.5}}
        document = {"protocols": {"instance": details}, "run": {"number": number, "seed": None}}
        (folder / "metrics.json").write_text(json.dumps(document))


def test_a_run_without_an_evaluation_is_named_and_a_single_run_has_no_summary(tmp_path, caplog):
    caplog.set_level("INFO")
    cfg = configuration(tmp_path)
    write_runs(tmp_path, 0, 2)
    conclude(cfg, "train", [0], [])
    assert not caplog.messages
    cfg.REPRODUCIBLE_NUM_RUNS = 3
    conclude(cfg, "train", [0, 1, 2], [])
    assert caplog.messages == [
        "2 runs, single images (mean ± standard deviation):\n    mAP 50.00 ± 0.00%  Top-1 50.00 ± 0.00%  mINP 50.00 ± "
        "0.00%",
        "    mAP of each run: 50.00%, 50.00%",
        "2 runs: without run 1, which left no metrics.json",
        f"summary: {tmp_path / 'evaluation' / 'summary.json'}",
    ]


def test_one_file_that_is_tested_again_has_no_spread(tmp_path, caplog):
    caplog.set_level("INFO")
    cfg = configuration(tmp_path)
    cfg.REPRODUCIBLE_NUM_RUNS, cfg.TEST.ONLY_TEST, cfg.MODEL.PRETRAIN_PATH = 2, True, "model.ckpt"
    write_runs(tmp_path, 0, 1)
    conclude(cfg, "train", [0, 1], [])
    assert not caplog.messages and not (tmp_path / "evaluation" / "summary.json").exists()
