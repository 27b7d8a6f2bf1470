"""Faults while a run trains: trackers that die, killed workers, damaged images, losses that explode."""

import json
import logging
import shutil
import signal
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psutil
import pytest
import torch

from callbacks import tracking
from engine.run import run_main
from tests.e2e import faults
from tests.e2e.faults import fault
from train_ctl_model import CTLModel
from utils.errors import UserError


class Sabotaged(CTLModel):
    """Does ``deed(model)`` at the start of the second epoch."""

    deed = staticmethod(lambda model: None)

    def on_train_epoch_start(self):
        super().on_train_epoch_start()
        if self.current_epoch == 1:
            type(self).deed(self)


@pytest.fixture
def sabotage():
    return lambda deed: type("Saboteur", (Sabotaged,), {"deed": staticmethod(deed)})


class TrackingServer(ThreadingHTTPServer):
    """As much of MLflow's server as a run needs; it can be told to hang, to refuse connections, and to come back."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), TrackingHandler)
        self.mode, self.asked, self.batches = "answers", 0, []
        self.uri = f"http://127.0.0.1:{self.server_port}"
        self.released = threading.Event()
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def die(self):
        self.mode = "dead"
        self.shutdown()
        self.server_close()

    def metrics(self):
        return [(metric["key"], metric["step"]) for batch in self.batches for metric in batch.get("metrics", ())]


class TrackingHandler(BaseHTTPRequestHandler):
    def answer(self):
        server = self.server
        if server.mode != "answers":
            server.asked += 1
            server.released.wait(30)
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        info = {"run_id": "1", "run_uuid": "1", "experiment_id": "0", "status": "RUNNING", "artifact_uri": "x"}
        info |= {"start_time": 1, "lifecycle_stage": "active"}
        experiment = {"experiment_id": "0", "name": "default", "lifecycle_stage": "active", "artifact_location": "x"}
        if self.path.endswith("log-batch"):
            server.batches.append(json.loads(body))
        reply = json.dumps({"run": {"info": info, "data": {}}, "run_info": info, "experiment": experiment}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    do_GET = do_POST = do_PATCH = answer  # noqa: N815

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    for name in tracking.MLFLOW_REQUESTS:
        monkeypatch.delenv(name, raising=False)  # what a run before has set
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    started = TrackingServer()
    yield started
    started.released.set()
    started.die()


def trackers(server):
    return {"LOGGING.MLFLOW": True, "LOGGING.MLFLOW_URI": server.uri}


def said(caplog, start):
    return [record.getMessage() for record in caplog.records if record.getMessage().startswith(start)]


@fault(
    "MLflow cannot record a run from its start",
    "the database is damaged, locked, of another version of MLflow, or its folder cannot be written to; the server is "
    "down; mlflow is not installed (`tests/engine/test_loggers.py`, `tests/e2e/test_output.py`)",
    "one line before the training, or where only MLflow can tell, after the first epoch; training goes on, and the "
    "number of records that were lost is said at the end. With `LOGGING.ON_ERROR stop`: exit status 2 and one line "
    "before the training",
)
@pytest.mark.parametrize("on_error", ["continue", "stop"])
def test_mlflow_has_a_damaged_database(on_error, tiny_cfg, caplog, capfd, tmp_path):
    database = tmp_path / "runs.db"
    database.write_bytes(b"not a database, only a text that is long enough to be read as one. " * 20)
    place = {"LOGGING.MLFLOW": True, "LOGGING.MLFLOW_URI": f"sqlite:///{database}", "LOGGING.ON_ERROR": on_error}
    cfg = tiny_cfg(**place, **{"SOLVER.MAX_EPOCHS": 1})
    if on_error == "stop":
        with pytest.raises(UserError, match=r"accepts no records \(file is not a database\), and LOGGING.ON_ERROR is"):
            run_main(cfg, CTLModel, "run")
        return
    run_main(cfg, CTLModel, "run")
    assert len(said(caplog, "MLflow at")) == 1
    assert "records were not delivered to MLflow" in caplog.text
    assert "Traceback" not in capfd.readouterr().err
    assert (tmp_path / "out/run/version_0/auto_checkpoints/checkpoint_0.pth").is_file()


@fault(
    "the MLflow server stops answering",
    "a local HTTP server that takes connections and never replies, from the second epoch on",
    "one warning; training goes on. A request waits 4 s at most (MLFLOW_HTTP_REQUEST_TIMEOUT), and after one in vain "
    "none is tried for 20 s",
)
def test_mlflow_hangs(server, tiny_cfg, caplog, sabotage, tmp_path):
    model = sabotage(lambda model: setattr(server, "mode", "hangs"))
    with caplog.at_level(logging.WARNING):
        run_main(tiny_cfg(**trackers(server), **{"SOLVER.MAX_EPOCHS": 4, "SOLVER.EVAL_PERIOD": 2}), model, "run")
    assert len(said(caplog, "MLflow at")) == 1
    assert {step for _, step in server.metrics()} == {0}
    # One during training, and one when each of fit and test closes the run.
    assert 1 <= server.asked <= 3
    assert (tmp_path / "out/run/version_0/auto_checkpoints/checkpoint_3.pth").is_file()


@fault(
    "the MLflow server dies",
    "the server's socket is closed in the second epoch",
    "one warning; training goes on, and the number of records that were lost is said at the end",
)
def test_mlflow_dies(server, tiny_cfg, caplog, sabotage):
    with caplog.at_level(logging.WARNING):
        run_main(tiny_cfg(**trackers(server)), sabotage(lambda model: server.die()), "run")
    assert len(said(caplog, "MLflow at")) == 1
    assert any("records were not delivered to MLflow" in record.getMessage() for record in caplog.records)


@fault("the MLflow server comes back", "it hangs for one epoch", "all records arrive, in order")
def test_mlflow_comes_back(server, tiny_cfg, caplog, monkeypatch):
    monkeypatch.setattr(tracking, "PAUSE_SECONDS", 0.0)
    modes = {1: "hangs", 2: "answers"}

    class Away(CTLModel):
        def on_train_epoch_start(self):
            super().on_train_epoch_start()
            server.mode = modes.get(self.current_epoch, server.mode)

    run_main(tiny_cfg(**trackers(server), **{"SOLVER.MAX_EPOCHS": 3, "SOLVER.EVAL_PERIOD": 3}), Away, "run")
    assert server.asked >= 1
    assert [step for key, step in server.metrics() if key == "lr"] == [0, 1, 2]
    assert not said(caplog, "0 records")
    assert "records were not delivered" not in caplog.text


def test_mlflow_that_never_answers(server, tiny_cfg, caplog):
    server.mode = "hangs"
    run_main(tiny_cfg(**trackers(server), **{"SOLVER.MAX_EPOCHS": 1}), CTLModel, "run")
    assert len(said(caplog, "MLflow at")) == 1
    assert "records were not delivered to MLflow" in caplog.text


@fault(
    "TensorBoard's folder cannot be written to",
    "the event file becomes a link to /dev/full in the second epoch",
    "one warning; training goes on, and so do the event files when the folder takes them again",
)
def test_tensorboard_cannot_write(tiny_cfg, caplog, capfd, sabotage, tmp_path):
    def fill(model):
        (events,) = (tmp_path / "out/run/version_0").glob("events.*")
        events.unlink()
        events.symlink_to("/dev/full")

    run_main(tiny_cfg(), sabotage(fill), "run")
    assert len(said(caplog, "TensorBoard cannot write to")) == 1
    assert "No space left on device" in caplog.text
    assert "Traceback" not in capfd.readouterr().err
    assert (tmp_path / "out/run/version_0/auto_checkpoints/checkpoint_1.pth").is_file()


@fault(
    "the folder of a run cannot be written to at its start",
    "a file is in the way of `OUTPUT_DIR/SCRIPT`",
    "exit status 2 and one line before the training, since the checkpoints belong there too; `TEST.ONLY_TEST` goes on "
    "with one line, unless `LOGGING.ON_ERROR` is `stop`",
)
def test_the_folder_of_a_run_is_a_file(tiny_cfg, tmp_path, caplog):
    run_main(tiny_cfg(**{"SOLVER.MAX_EPOCHS": 1}), CTLModel, "run")
    (checkpoint,) = (tmp_path / "out/run/version_0/auto_checkpoints").iterdir()
    (tmp_path / "out/other").write_text("")
    with pytest.raises(UserError, match="OUTPUT_DIR: cannot write to '.*/out/other/version_0'"):
        run_main(tiny_cfg(), CTLModel, "other")
    only_test = {"TEST.ONLY_TEST": True, "MODEL.PRETRAIN_PATH": str(checkpoint)}
    (metrics,) = run_main(tiny_cfg(**only_test), CTLModel, "other")
    assert 0 < metrics["instances"]["mAP"] <= 1
    assert len(said(caplog, "TensorBoard cannot write to")) == 1


@fault(
    "a data-loader worker is killed",
    "`kill -9` of a worker process in the second epoch",
    "an error that names the worker and the last whole epoch",
)
def test_worker_is_killed(tiny_cfg, sabotage):
    killed = []

    def kill(model):
        this = psutil.Process()
        for child in this.children():
            if child.cmdline() == this.cmdline():  # a fork, not a server that other tests start programs from
                killed.append(child.pid)
                child.send_signal(signal.SIGKILL)

    with pytest.raises(
        UserError, match=r"DataLoader worker \d+, (was killed|ended).*checkpoint_0.pth.*continues"
    ) as error:
        run_main(tiny_cfg(**{"DATALOADER.NUM_WORKERS": 1}), sabotage(kill), "run")
    assert any(str(pid) in str(error.value) for pid in killed)


def damage(*paths):
    for path in paths:
        path.write_bytes(path.read_bytes()[:300])


@fault(
    "an image is damaged while training runs",
    "the training images are cut off in the second epoch",
    "an error that names the file and the last whole epoch",
)
def test_image_is_damaged(tiny_cfg, toy, tmp_path, sabotage):
    root = shutil.copytree(toy, tmp_path / "data")
    model = sabotage(lambda model: damage(*(root / "market1501" / "bounding_box_train").iterdir()))
    with pytest.raises(UserError, match=r"bounding_box_train/\d+_c.*cannot be read.*checkpoint_0.pth.*continues"):
        run_main(tiny_cfg(**{"DATASETS.ROOT_DIR": str(root)}), model, "run")


@fault(
    "damaged images, with `DATASETS.ON_ERROR skip`",
    "three training images, a query and a gallery image are cut off",
    "one warning per file and process; another image of the identity takes the place of each in training, and the "
    "evaluation says how many it left out",
)
def test_damaged_images_are_skipped(tiny_cfg, toy, tmp_path, caplog):
    root = shutil.copytree(toy, tmp_path / "data")
    chosen = [
        *sorted((root / "market1501" / "bounding_box_train").iterdir())[:3],
        sorted((root / "market1501" / "query").iterdir())[0],
        sorted((root / "market1501" / "bounding_box_test").iterdir())[-1],
    ]
    damage(*chosen)
    with caplog.at_level(logging.INFO):
        (metrics,) = run_main(
            tiny_cfg(**{"DATASETS.ROOT_DIR": str(root), "DATASETS.ON_ERROR": "skip"}), CTLModel, "run"
        )
    warnings = said(caplog, "skipped: ")
    assert sorted(str(path) for path in chosen) == sorted(line.split()[2] for line in warnings)
    assert "2 of 26 images could not be read and were left out (queries: 1, gallery: 1)" in caplog.text
    assert 0 < metrics["instances"]["mAP"] <= 1
    rows = (tmp_path / "out/evaluation/per_query.csv").read_text()
    assert chosen[3].name not in rows


@pytest.mark.parametrize(("split", "what"), [("query", "12 queries"), ("bounding_box_test", "14 gallery images")])
def test_a_split_without_a_readable_image(split, what, tiny_cfg, toy, tmp_path):
    root = shutil.copytree(toy, tmp_path / "data")
    damage(*(root / "market1501" / split).iterdir())
    with pytest.raises(UserError, match=f"None of the {what} could be read: .*DATASETS.ROOT_DIR"):
        run_main(tiny_cfg(**{"DATASETS.ROOT_DIR": str(root), "DATASETS.ON_ERROR": "skip"}), CTLModel, "run")


@fault(
    "the loss becomes NaN",
    "a loss is multiplied by NaN in the second epoch",
    "an error with step, all parts of the loss, the identities of the batch and the last whole epoch",
)
def test_loss_is_nan(tiny_cfg):
    class Explodes(CTLModel):
        def optimize(self, losses, statistics):
            if self.current_epoch == 1 and self.trainer.global_step > 10:
                losses = losses | {"query_xent": losses["query_xent"] * torch.nan}
            return super().optimize(losses, statistics)

    with pytest.raises(
        UserError,
        match=r"The loss is nan at step \d of epoch 1: query_xent nan, query_triplet [\d.]+, query_center .*"
        r"centroid_triplet [\d.]+; identities of the batch: \d+, \d+, \d+\..*checkpoint_0.pth.*continues",
    ):
        run_main(tiny_cfg(), Explodes, "run")


@fault(
    "the weights become NaN in the last step of an epoch",
    "a weight is set to NaN after it",
    "an error that names the weight; that epoch is not saved",
)
def test_weights_are_nan(tiny_cfg, tmp_path):
    class Spoiled(CTLModel):
        def on_validation_epoch_end(self):
            super().on_validation_epoch_end()
            if self.current_epoch == 1:
                with torch.no_grad():
                    self.fc_query.weight[0, 0] = torch.inf

    with pytest.raises(
        UserError, match=r"weights became NaN .* epoch 1 \(the first is fc_query.weight\).*checkpoint_0"
    ):
        run_main(tiny_cfg(), Spoiled, "run")
    assert [path.name for path in (tmp_path / "out/run/version_0/auto_checkpoints").iterdir()] == ["checkpoint_0.pth"]


@pytest.mark.parametrize("reproducible", [True, False])
def test_reproducible_runs_take_deterministic_algorithms(tiny_cfg, reproducible):
    seen = []

    class Looks(CTLModel):
        def training_step(self, batch, batch_idx):
            seen.append((torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark))
            return super().training_step(batch, batch_idx)

    run_main(tiny_cfg(**{"REPRODUCIBLE": reproducible, "SOLVER.MAX_EPOCHS": 1}), Looks, "run")
    assert set(seen) == {(reproducible, False)}


def test_seeds_draw_identities_in_different_orders(tiny_cfg, tmp_path):
    orders = {}

    class Looks(CTLModel):
        def training_step(self, batch, batch_idx):
            orders.setdefault(self.hparams.data_seed, []).append(batch[1].tolist())
            return super().training_step(batch, batch_idx)

    run_main(tiny_cfg(**{"REPRODUCIBLE_NUM_RUNS": 2, "SOLVER.MAX_EPOCHS": 1}), Looks, "run")
    assert sorted(orders) == [0, 1]
    assert orders[0] != orders[1]


def test_the_documented_matrix_is_that_of_these_tests():
    text = faults.DOCUMENT.read_text(encoding="utf-8")
    assert faults.replaced(text, faults.render()) == text
