"""What a run starts from: nothing, weights, a checkpoint that it continues, or one that it only tests."""

from typing import Any

import pytest
import torch

from checkpoints.reading import load_checkpoint
from checkpoints.writing import atomic_save
from config.load import load_config
from config.paths import is_auto
from engine.run import run_main, run_single
from engine.start import Start, find_start, start_weights
from tests.checkpoints.run_states import STATE, save
from tests.small import small_config
from train_ctl_model import CTLModel
from utils.errors import UserError

ADAM: dict[str, Any] = {"state": {}, "param_groups": [{"params": []}]}


@pytest.mark.parametrize(
    ("path", "auto", "weights"),
    [("auto", True, ""), ("auto:a/b.pth", True, "a/b.pth"), ("auto.pth", False, ""), ("", False, "")],
)
def test_auto(path, auto, weights):
    assert is_auto(path) == auto
    if auto:
        assert start_weights(path) == weights


def options(tmp_path, *more):
    values = ["MODEL.RESUME_TRAINING", True, "OUTPUT_DIR", str(tmp_path), *more]
    cfg = load_config("", values)
    cfg.LOG_DIR = str(tmp_path)
    return cfg


def test_a_fresh_start_needs_weights_to_start_from(tmp_path):
    with pytest.raises(UserError, match=r"no checkpoint of this run.*auto:FILE, or set MODEL.PRETRAINED False"):
        run_single(options(tmp_path, "MODEL.PRETRAIN_PATH", "auto"), CTLModel, "run")
    cfg = options(tmp_path, "MODEL.PRETRAIN_PATH", "auto:w.pth")
    start = find_start(cfg, tmp_path / "run", 0, 0)
    assert (start.kind, start.path, start.ckpt_path) == (Start.FROM_WEIGHTS, "w.pth", None)
    settled = start.settle(cfg)
    assert (settled.MODEL.RESUME_TRAINING, settled.MODEL.PRETRAIN_PATH) == (False, "w.pth")
    assert cfg.MODEL.PRETRAIN_PATH == "auto:w.pth"


@pytest.mark.parametrize(
    ("path", "pretrained", "origin"),
    [
        ("auto:w.pth", True, "w.pth"),
        ("auto:w.pth", False, "random weights, not from w.pth: MODEL.PRETRAINED is False"),
        ("auto", False, "random weights"),
    ],
)
def test_a_run_without_a_checkpoint_says_what_it_starts_from(tmp_path, caplog, path, pretrained, origin):
    caplog.set_level("INFO")
    find_start(options(tmp_path, "MODEL.PRETRAIN_PATH", path, "MODEL.PRETRAINED", pretrained), tmp_path / "run", 0, 0)
    assert [record.getMessage() for record in caplog.records] == [
        f"MODEL.PRETRAIN_PATH auto: no checkpoint of this run in {tmp_path / 'run'}; training from {origin}"
    ]


@pytest.mark.parametrize(("reproducible", "seed", "run", "expected"), [(True, 8, 0, 1), (False, 8, 1, 0)])
def test_each_of_several_runs_finds_its_own(tmp_path, reproducible, seed, run, expected):
    paths = [save(tmp_path / "run", number, 0, data_seed=7 + number, run_number=1 - number) for number in range(2)]
    cfg = options(tmp_path, "MODEL.PRETRAIN_PATH", "auto", "REPRODUCIBLE", reproducible)
    start = find_start(cfg, tmp_path / "run", run, seed)
    assert start.kind is Start.CONTINUE
    assert start.path == start.ckpt_path == str(paths[expected])
    assert start.version == f"version_{expected}"
    assert start.keep == ""
    assert start.seed == (seed if reproducible else 7 + expected)
    assert start.settle(cfg).MODEL.RESUME_TRAINING


def test_what_a_run_starts_from(tmp_path):
    path = save(tmp_path / "run", 3, 1, data_seed=5)
    runs = tmp_path / "run"
    named = ("MODEL.PRETRAIN_PATH", str(path))

    def start(*more):
        return find_start(options(tmp_path, *more), runs, 0, 9)

    fresh = start("MODEL.RESUME_TRAINING", False, "MODEL.PRETRAINED", False)
    assert (fresh.kind, fresh.path, fresh.seed, fresh.trains) == (Start.FRESH, "", 9, True)
    weights = start("MODEL.RESUME_TRAINING", False, *named)
    assert (weights.kind, weights.path, weights.keep) == (Start.FROM_WEIGHTS, str(path), "")
    test = start("TEST.ONLY_TEST", True, *named)
    assert (test.kind, test.path, test.trains, test.tests_as_configured) == (Start.TEST, str(path), False, True)
    newest = start("TEST.ONLY_TEST", True, "MODEL.PRETRAIN_PATH", "auto")
    assert (newest.kind, newest.path) == (Start.TEST, str(path))
    resumed = start(*named, "REPRODUCIBLE_NUM_RUNS", 1)
    assert (resumed.kind, resumed.keep, resumed.seed, resumed.version) == (Start.CONTINUE, str(path), 5, "version_3")
    assert start(*named, "REPRODUCIBLE_NUM_RUNS", 2).version is None
    save(tmp_path / "run", 3, 2)
    assert start(*named, "REPRODUCIBLE_NUM_RUNS", 1).version is None  # it goes back behind a later epoch
    with pytest.raises(UserError, match=r"has finished 2 epoch\(s\) and SOLVER.MAX_EPOCHS is 2"):
        start(*named, "SOLVER.MAX_EPOCHS", 2, "SOLVER.LR_STEPS", (1,))
    finished = start("MODEL.PRETRAIN_PATH", "auto", "SOLVER.MAX_EPOCHS", 3)
    assert (finished.kind, finished.tests_as_configured) == (Start.FINISHED, True)
    with pytest.raises(UserError, match="'nothing.pth', which is not a file; MODEL.RESUME_TRAINING"):
        start("MODEL.PRETRAIN_PATH", "nothing.pth")


def test_data_and_network_of_another_run_are_refused(tmp_path):
    path = save(tmp_path / "run", 0, 1)
    start = find_start(options(tmp_path, "MODEL.PRETRAIN_PATH", str(path)), tmp_path / "run", 0, 0)
    start.check_data(2)
    with pytest.raises(UserError, match="trained on 2 identities, but the training set here has 3"):
        start.check_data(3)
    start.check_network(STATE["state_dict"], small_config())
    with pytest.raises(
        UserError, match=r"does not fit MODEL.NAME resnet18 \(.*backbone.a is only in the file.*\): continue"
    ):
        start.check_network({"another": torch.zeros(1)}, small_config())
    key, value = next(iter(STATE["state_dict"].items()))
    with pytest.raises(UserError, match=f"{key} .* in place of"):
        start.check_network(STATE["state_dict"] | {key: torch.zeros(*value.shape, 2)}, small_config())


def test_extra_losses_of_another_shape_are_refused(tmp_path):
    key = "extra_losses.arcface.loss.W"
    weights = STATE["state_dict"] | {key: torch.zeros(2, 3)}
    path = save(tmp_path / "run", 0, 1, LOSSES={"EXTRA": ["arcface"], "EXTRA_ARGS": []})
    atomic_save(load_checkpoint(path) | {"state_dict": weights}, path)
    start = find_start(options(tmp_path, "MODEL.PRETRAIN_PATH", str(path)), tmp_path / "run", 0, 0)
    start.check_network(weights, small_config())
    with pytest.raises(UserError, match=r"LOSSES.EXTRA \['arcface'\]: continue with the same\.$"):
        start.check_network(STATE["state_dict"], small_config())
    with pytest.raises(UserError, match=r"\['arcface'\] and LOSSES.EXTRA_ARGS \[\]: continue with the same\.$"):
        start.check_network(weights | {key: torch.zeros(2, 6)}, small_config())


def test_weights_alone_cannot_be_continued(tmp_path):
    path = tmp_path / "run" / "w.pth"
    atomic_save({key: STATE[key] for key in ("state_dict",)} | {"hyper_parameters": {}}, path)
    with pytest.raises(UserError, match="no optimiser and schedule states"):
        find_start(options(tmp_path, "MODEL.PRETRAIN_PATH", str(path)), tmp_path / "run", 0, 0)


def test_a_recorded_value_that_cannot_work_names_the_file(tmp_path):
    path = save(tmp_path / "run", 0, 1, MODEL={"NAME": "resnet18", "LAST_STRIDE": 3})
    cfg = options(tmp_path, "MODEL.PRETRAIN_PATH", str(path))
    with pytest.raises(UserError, match=rf"^{path} records a value that cannot work: MODEL.LAST_STRIDE is 3; allowed"):
        find_start(cfg, tmp_path / "run", 0, 0).settle(cfg)


def test_settings_that_nobody_set_are_the_checkpoints_but_code_elsewhere_is_not_named_by_a_file(tmp_path):
    stored = {"MODEL": {"NAME": "resnet18", "BACKBONE_EMB_SIZE": 512}, "INPUT": {"SIZE_TEST": [64, 32]}}

    def settled(number, name, *more):
        path = save(tmp_path / "run", number, 1, **stored | {"MODEL": stored["MODEL"] | {"NAME": name}})
        cfg = options(tmp_path, "MODEL.PRETRAIN_PATH", str(path), *more)
        cfg = find_start(cfg, tmp_path / "run", 0, 0).settle(cfg)
        return cfg.MODEL.NAME, cfg.MODEL.BACKBONE_EMB_SIZE, cfg.INPUT.SIZE_TEST

    assert settled(0, "resnet18") == ("resnet18", 512, [64, 32])
    assert settled(1, "resnet18", "TEST.ONLY_TEST", True) == ("resnet18", 512, [64, 32])
    assert settled(2, "mine:net") == ("resnet50", 2048, [64, 32])
    assert settled(3, "mine:net", "MODEL.NAME", "mine:net") == ("mine:net", 512, [64, 32])
    assert settled(4, "resnet18", "INPUT.SIZE_TEST", [256, 128]) == ("resnet18", 512, [256, 128])


def test_a_test_says_what_it_does_otherwise_than_the_checkpoint_without_being_told(tmp_path):
    stored = {"SOLVER": {"DISTANCE_FUNC": "cosine", "BASE_LR": 1.0}, "TEST": {"FEAT_NORM": False}}
    path = save(tmp_path / "run", 0, 1, **stored, MODEL={"NAME": "resnet50", "LAST_STRIDE": 2})

    def lines(*more):
        cfg = options(tmp_path, "TEST.ONLY_TEST", True, "MODEL.PRETRAIN_PATH", str(path), *more)
        start = find_start(cfg, tmp_path / "run", 0, 0)
        return start.describe_differences(start.settle(cfg))

    assert lines() == [
        "SOLVER.DISTANCE_FUNC: 'cosine' in the checkpoint, 'euclidean' here by default, which is used.",
        "TEST.FEAT_NORM: False in the checkpoint, True here by default, which is used.",
    ]
    told = ("SOLVER.DISTANCE_FUNC", "euclidean", "TEST.FEAT_NORM", True)
    assert lines(*told) == []
    assert lines(*told, "MODEL.LAST_STRIDE", 1) == ["MODEL.LAST_STRIDE: 2 in the checkpoint, 1 here, which is used."]


@pytest.mark.parametrize(("before", "here", "said"), [(0.9, 0.0, False), (0.0, 0.9, False), (0.9, 0.99, True)])
def test_another_average_of_the_weights_is_said_where_it_is_dropped_or_started(tmp_path, before, here, said):
    path = save(tmp_path / "run", 0, 1, SOLVER={"EMA_DECAY": before})
    cfg = options(tmp_path, "MODEL.PRETRAIN_PATH", str(path), "SOLVER.EMA_DECAY", here)
    start = find_start(cfg, tmp_path / "run", 0, 0)
    lines = [line for line in start.describe_differences(start.settle(cfg)) if "EMA_DECAY" in line]
    assert lines == ["SOLVER.EMA_DECAY: 0.9 in the checkpoint, 0.99 here, which is used."] * said


def test_a_run_that_continues_without_its_best_score_says_so(tmp_path):
    """Lightning keeps the score by metric, mode and period; of the original's checkpoint it knows none."""
    stored = {"SOLVER": {"MONITOR_METRIC_NAME": "mAP", "MONITOR_METRIC_MODE": "max", "EVAL_PERIOD": 5}}
    path = save(tmp_path / "run", 0, 1, **stored)

    def lines(*more):
        cfg = options(tmp_path, "MODEL.PRETRAIN_PATH", str(path), *more)
        start = find_start(cfg, tmp_path / "run", 0, 0)
        return [line for line in start.describe_differences(start.settle(cfg)) if "best" in line]

    said = "The best score so far is not continued ({}): the best checkpoint is that of the epochs to come."
    assert lines("SOLVER.BASE_LR", 1.0) == []
    assert lines("SOLVER.EVAL_PERIOD", 1) == [said.format("another SOLVER.EVAL_PERIOD")]
    both = ("SOLVER.MONITOR_METRIC_NAME", "Top-1", "SOLVER.MONITOR_METRIC_MODE", "min")
    assert lines(*both) == [said.format("another SOLVER.MONITOR_METRIC_NAME, SOLVER.MONITOR_METRIC_MODE")]
    assert lines("SOLVER.EVAL_PERIOD", 1, "TEST.ONLY_TEST", True) == []
    finished = ("MODEL.PRETRAIN_PATH", "auto", "SOLVER.MAX_EPOCHS", 2, "SOLVER.LR_STEPS", (1,))
    assert lines("SOLVER.EVAL_PERIOD", 1, *finished) == []
    content = load_checkpoint(path)
    del content["loops"]
    content |= {"epoch": 2, "global_step": 6, "pytorch-lightning_version": "1.1.4", "optimizer_states": [ADAM]}
    content["lr_schedulers"] = [{"base_lrs": [1.0], "_last_lr": [1.0]}]
    atomic_save(content, path)
    assert lines() == [said.format("the original wrote this checkpoint")]


@pytest.mark.parametrize(("runs", "path", "times"), [(3, "a.ckpt", 1), (1, "a.ckpt", 0), (3, "auto", 0)])
def test_several_tests_of_one_file_are_said(tmp_path, monkeypatch, caplog, runs, path, times):
    monkeypatch.setattr("engine.run.run_single", lambda *_, **__: {})
    cfg = options(tmp_path, "TEST.ONLY_TEST", True, "MODEL.PRETRAIN_PATH", path, "REPRODUCIBLE_NUM_RUNS", runs)
    with caplog.at_level("INFO"):
        assert run_main(cfg, CTLModel, "tests") == [{}] * runs
    line = (
        "TEST.ONLY_TEST: REPRODUCIBLE_NUM_RUNS 3 tests the same file 3 times, which says nothing of the spread: there "
        "is no summary. 1 tests it once."
    )
    assert [record.getMessage() for record in caplog.records].count(line) == times


def test_a_program_that_evaluates_nothing_has_no_summary_of_what_another_left(tmp_path, monkeypatch):
    kept = tmp_path / "evaluation"
    (kept / "run_0").mkdir(parents=True)
    (kept / "run_0" / "metrics.json").write_text('{"protocols": {}}')
    found = {"instances": {"loss": 1.0}}
    monkeypatch.setattr("engine.run.run_single", lambda *_, **__: found)
    cfg = options(tmp_path, "MODEL.RESUME_TRAINING", False, "REPRODUCIBLE_NUM_RUNS", 2, "LOGGING.MLFLOW", False)
    run_main(cfg, CTLModel, "runs")
    assert not (kept / "summary.json").exists()
    found["instances"]["mAP"] = 0.5
    run_main(cfg, CTLModel, "runs")
    assert (kept / "summary.json").exists()
