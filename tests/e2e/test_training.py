"""Training through the real scripts: what is written, that it resumes exactly, that nothing is deprecated."""

import ast
import random
import warnings

import mlflow
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from checkpoints.run_files import find_newest
from engine.run import run_main
from modelling.averaging import PLAIN
from tests.launch import REPOSITORY_FIRST, run_code
from tests.thin import RESNET18
from train_base_model import BaseModel
from train_ctl_model import CTLModel
from utils.errors import UserError

EPOCH_METRICS = {
    *("epoch_train_loss", "query_xent", "query_triplet", "query_center", "centroid_triplet"),
    *("epoch_dist_ap", "epoch_dist_an", "l2_mean_centroid", "lr"),
    *("epoch_seconds", "images_per_second", "peak_memory_mib"),
}
VALIDATION_METRICS = {"mAP", "mINP", *(f"Top-{k}" for k in (1, 5, 10, 20, 50))}


def newest(folder):
    (path,) = folder.glob("*/version_0/auto_checkpoints/*.pth")
    return path


def assert_same_state(path, other):
    """Weights, optimiser and schedule of two checkpoint files, bit for bit."""
    one, two = (torch.load(p, weights_only=True) for p in (path, other))
    assert one["epoch"] == two["epoch"]
    assert one["lr_schedulers"] == two["lr_schedulers"]
    for weights in {"state_dict", PLAIN} & one.keys():
        for name, value in one[weights].items():
            assert torch.equal(value, two[weights][name]), name
    for ours, theirs in zip(one["optimizer_states"], two["optimizer_states"], strict=True):
        assert ours["param_groups"] == theirs["param_groups"]
        for number, state in ours["state"].items():
            # Older versions of torch keep an empty momentum of the centres' optimiser.
            tensors = {name: value for name, value in state.items() if value is not None}
            assert all(torch.equal(value, theirs["state"][number][name]) for name, value in tensors.items())


def test_ctl_script_writes_checkpoints_tensorboard_and_mlflow(run_script, tiny, tmp_path):
    uri = f"sqlite:///{tmp_path / 'runs.db'}"
    options = tiny(**{"LOGGING.MLFLOW": True, "LOGGING.MLFLOW_URI": uri})
    done = run_script("train_ctl_model.py", *options)
    assert done.returncode == 0, done.stderr
    assert "validation, single images" in done.stderr
    assert "strict protocol" in done.stderr
    version = tmp_path / "out" / "train_ctl_model" / "version_0"
    assert [p.name for p in (version / "auto_checkpoints").iterdir()] == ["checkpoint_1.pth"]
    (best,) = (version / "checkpoints").iterdir()
    assert best.name in {"epoch=0.ckpt", "epoch=1.ckpt"}
    torch.load(best, weights_only=True)  # plain containers and tensors only

    events = EventAccumulator(str(version))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    # The test of centroids after the last epoch logs nothing as mAP, which a validation of single images has logged.
    tested = {f"test_centroids/{name}" for name in ("mAP", "Top-1", "strict_mAP", "strict_Top-1")}
    assert tags >= EPOCH_METRICS | VALIDATION_METRICS | tested
    assert not tags & {"strict_mAP", "test_centroids/lr"}
    assert [event.step for event in events.Scalars("epoch_train_loss")] == [0, 1]
    assert [event.step for event in events.Scalars("mAP")] == [0, 1]
    assert [event.step for event in events.Scalars("test_centroids/mAP")] == [1]
    assert [event.value for event in events.Scalars("lr")] == pytest.approx([5e-5, 1e-4])

    client = mlflow.MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("default").experiment_id])
    assert run.data.params["SOLVER/IMS_PER_BATCH"] == "3"
    assert run.data.metrics.keys() >= EPOCH_METRICS | VALIDATION_METRICS | tested
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "lr")] == [0, 1]


@pytest.mark.slow
def test_a_number_before_training_changes_nothing_else(tiny_cfg, tmp_path):
    """Metrics at step -1 of every logger; weights, optimisers, metrics and the best epoch are as without it."""
    draws = []

    class Recorded(CTLModel):
        def on_fit_start(self):
            draws.append((torch.rand(1).item(), np.random.rand(), random.random()))

    uri = f"sqlite:///{tmp_path / 'runs.db'}"
    tracked = {"LOGGING.MLFLOW": True, "LOGGING.MLFLOW_URI": uri}
    with_number = {"TEST.BEFORE_TRAINING": True, "OUTPUT_DIR": str(tmp_path / "with"), **tracked}
    (before,) = run_main(tiny_cfg(**with_number), Recorded, "run")
    (without,) = run_main(tiny_cfg(OUTPUT_DIR=str(tmp_path / "without")), Recorded, "run")
    assert draws[0] == draws[1]
    assert_same_state(newest(tmp_path / "with"), newest(tmp_path / "without"))
    bests = [[p.name for p in (tmp_path / n / "run/version_0/checkpoints").iterdir()] for n in ("with", "without")]
    assert len(bests[0]) == 1 and bests[0] == bests[1]
    number = before.pop("before training")["mAP"]
    seconds = {"epoch_seconds", "images_per_second", "peak_memory_mib"}
    for kind, metrics in without.items():
        assert before[kind].keys() == metrics.keys()
        assert all(before[kind][name] == value for name, value in metrics.items() if name not in seconds)

    events = EventAccumulator(str(tmp_path / "with" / "run" / "version_0"))
    events.Reload()
    scalars = events.Scalars("mAP")
    assert [event.step for event in scalars] == [-1, 0, 1]
    assert scalars[0].value == pytest.approx(number)
    client = mlflow.MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("default").experiment_id])
    history = {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, "mAP")}
    assert history[-1] == pytest.approx(number) and history.keys() == {-1, 0, 1}


def test_the_average_of_the_weights_is_validated_saved_and_tested(tiny_cfg, tmp_path):
    (trained,) = run_main(tiny_cfg(**{"SOLVER.EMA_DECAY": 0.5, "SOLVER.BASE_LR": 0.01}), CTLModel, "run")
    checkpoint = newest(tmp_path / "out")
    weights = torch.load(checkpoint, weights_only=True)
    assert not torch.equal(*(weights[name]["backbone.base.0.weight"] for name in ("state_dict", PLAIN)))
    options = {"TEST.ONLY_TEST": True, "MODEL.PRETRAIN_PATH": str(checkpoint)}
    (tested,) = run_main(tiny_cfg(**options), CTLModel, "test")
    for kind in ("instances", "centroids"):  # the last validation, and the test after the training
        assert tested[kind]["mAP"] > 0
        assert tested[kind] == pytest.approx({name: trained[kind][name] for name in tested[kind]}, abs=1e-6)


def test_a_continued_run_has_no_number_before_training(tiny_cfg, tmp_path, caplog):
    run_main(tiny_cfg(**{"SOLVER.MAX_EPOCHS": 1}), CTLModel, "run")
    resume = {"MODEL.RESUME_TRAINING": True, "MODEL.PRETRAIN_PATH": "auto", "TEST.BEFORE_TRAINING": True}
    with caplog.at_level("INFO"):
        (metrics,) = run_main(tiny_cfg(**resume), CTLModel, "run")
    assert "before training" not in metrics
    line = "TEST.BEFORE_TRAINING True has no effect: this run continues a training, or only tests."
    assert caplog.text.count(line) == 1


def test_scripts_resume_and_test_on_another_data_set(run_script, tiny, tmp_path, other_toy):
    assert run_script("train_base_model.py", *tiny(**{"SOLVER.MAX_EPOCHS": 1})).returncode == 0
    folder = tmp_path / "out" / "train_base_model" / "version_0"
    checkpoint = folder / "auto_checkpoints" / "checkpoint_0.pth"
    resume = {"MODEL.RESUME_TRAINING": True, "MODEL.PRETRAIN_PATH": str(checkpoint)}
    done = run_script("train_base_model.py", *tiny(**resume))
    assert done.returncode == 0, done.stderr
    assert "checkpoint_1.pth" in {path.name for path in (folder / "auto_checkpoints").iterdir()}  # the same folder
    only_test = {"TEST.ONLY_TEST": True, "MODEL.PRETRAIN_PATH": str(folder / "auto_checkpoints" / "checkpoint_1.pth")}
    done = run_script("train_base_model.py", *tiny(**only_test, **{"DATASETS.ROOT_DIR": str(other_toy)}))
    assert done.returncode == 0, done.stderr
    assert "test, single images" in done.stderr
    assert "strict protocol" in done.stderr


def test_base_model_trains_and_logs_no_centroid_loss(tiny_cfg, tmp_path):
    (metrics,) = run_main(tiny_cfg(), BaseModel, "train_base_model")
    assert metrics.keys() == {"instances", "centroids"}
    events = EventAccumulator(str(tmp_path / "out/train_base_model/version_0"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert "query_triplet" in tags
    assert not tags & {"centroid_triplet", "l2_mean_centroid"}


@pytest.mark.parametrize(
    ("source", "seed"),
    [
        ("auto_checkpoints", 0),
        ("checkpoints", 5),
        pytest.param("auto_checkpoints", 5, marks=pytest.mark.by_hand),
        pytest.param("checkpoints", 0, marks=pytest.mark.by_hand),
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tiny_cfg, tmp_path, source, seed):
    # The monitored metric falls, so that the best checkpoint is that of the last epoch before the interruption.
    common = {"REPRODUCIBLE_SEED": seed, "DATALOADER.USE_RESAMPLING": False, "SOLVER.MONITOR_METRIC_NAME": "lr"}
    whole, part, rest = (str(tmp_path / name) for name in ("whole", "part", "rest"))
    run_main(tiny_cfg(**common, **{"SOLVER.MAX_EPOCHS": 4, "OUTPUT_DIR": whole}), CTLModel, "run")
    run_main(tiny_cfg(**common, **{"SOLVER.MAX_EPOCHS": 2, "OUTPUT_DIR": part}), CTLModel, "run")
    (checkpoint,) = (tmp_path / "part/run/version_0" / source).iterdir()
    resumed = {"MODEL.RESUME_TRAINING": True, "MODEL.PRETRAIN_PATH": str(checkpoint), "OUTPUT_DIR": rest}
    run_main(tiny_cfg(**common, **resumed, **{"SOLVER.MAX_EPOCHS": 4}), CTLModel, "run")
    assert_same_state(newest(tmp_path / "whole"), newest(tmp_path / "rest"))


EVERY_GROUP = {
    **RESNET18,
    "SOLVER.OPTIMIZER_NAME": "SGD",
    "SOLVER.BASE_LR": 0.01,
    "SOLVER.BIAS_LR_FACTOR": 2.0,
    "SOLVER.BIAS_DECAY_FACTOR": 0.5,
    "SOLVER.HEAD_LR_FACTOR": 3.0,
    "SOLVER.LAYER_DECAY": 0.75,
    "SOLVER.FREEZE_EPOCHS": 2,
    "MODEL.FREEZE_AT": ["backbone.base.conv1.*", "backbone.base.*bn1.*"],
    "SOLVER.WARMUP_STEPS": 11,
    "SOLVER.LABEL_SMOOTHING": 0.0,  # an epoch has 8 steps
}


def test_groups_frozen_parts_and_a_warm_up_by_steps_resume_bit_for_bit(tiny_cfg, tmp_path):
    """With SGD, from a checkpoint in the frozen phase and from one at its end; the groups must be the same."""
    common = {**EVERY_GROUP, "DATALOADER.USE_RESAMPLING": False, "SOLVER.EVAL_PERIOD": 3}

    def run(name, epochs, **options):
        folder = {"OUTPUT_DIR": str(tmp_path / name), "SOLVER.MAX_EPOCHS": epochs}
        run_main(tiny_cfg(**common | folder | options), CTLModel, "run")
        return newest(tmp_path / name)

    whole = run("whole", 3)
    for epochs in (1, 2):
        start = {"MODEL.RESUME_TRAINING": True, "MODEL.PRETRAIN_PATH": str(run(f"part{epochs}", epochs))}
        assert_same_state(whole, run(f"rest{epochs}", 3, **start))
    groups = torch.load(whole, weights_only=True)["optimizer_states"][0]["param_groups"]
    assert len(groups) == 2 * 9 + 1  # stem and eight blocks, each with biases apart; the head has none that learns
    before, after = (torch.load(p, weights_only=True)["state_dict"] for p in (newest(tmp_path / "part1"), whole))
    for name in ("conv1.weight", "bn1.weight", "bn1.running_mean", "layer2.0.bn1.running_var"):
        assert not torch.equal(before[f"backbone.base.{name}"], after[f"backbone.base.{name}"]), name
    at_release = torch.load(newest(tmp_path / "part2"), weights_only=True)["state_dict"]
    for name in ("conv1.weight", "bn1.weight", "bn1.running_mean", "layer2.0.bn1.running_var"):
        assert torch.equal(before[f"backbone.base.{name}"], at_release[f"backbone.base.{name}"]), name
    start = {"MODEL.RESUME_TRAINING": True, "MODEL.PRETRAIN_PATH": str(whole)}
    with pytest.raises(
        UserError, match=r"cannot continue: the checkpoint has SGD with \d+ group\(s\) of .*HEAD_LR_FACTOR"
    ):
        run("other", 4, **start, **{"SOLVER.BIAS_LR_FACTOR": 1.0, "SOLVER.BIAS_DECAY_FACTOR": 1.0})
    with pytest.raises(UserError, match=r"has SGD with .* makes Adam or AdamW with .*SOLVER.OPTIMIZER_NAME"):
        run("other", 4, **start, **{"SOLVER.OPTIMIZER_NAME": "AdamW"})


def test_a_run_that_goes_back_gets_a_folder_of_its_own(tiny_cfg, tmp_path):
    """What came after the epoch that it goes back to stays, and "auto" takes the run that was written last."""
    run_main(tiny_cfg(**{"SOLVER.MAX_EPOCHS": 1}), CTLModel, "run")
    runs = tmp_path / "out/run"
    first = newest(tmp_path / "out")
    (earlier,) = (runs / "version_0/checkpoints").iterdir()
    later = first.rename(first.with_name("checkpoint_5.pth"))
    back = {"MODEL.RESUME_TRAINING": True, "MODEL.PRETRAIN_PATH": str(earlier), "SOLVER.MAX_EPOCHS": 2}
    run_main(tiny_cfg(**back), CTLModel, "run")
    assert [path.name for path in later.parent.iterdir()] == ["checkpoint_5.pth"]
    assert find_newest(runs, lambda hparams: True) == runs / "version_1/auto_checkpoints/checkpoint_1.pth"


def test_an_unseeded_run_goes_on_with_its_own_draws(tiny_cfg, tmp_path):
    """Its seed is in the checkpoint, so that what is left of the run does not depend on where it was interrupted."""
    unseeded = {"REPRODUCIBLE": False, "OUTPUT_DIR": str(tmp_path / "part")}
    run_main(tiny_cfg(**unseeded), CTLModel, "run")
    checkpoint = newest(tmp_path / "part")
    again = {"MODEL.RESUME_TRAINING": True, "MODEL.PRETRAIN_PATH": str(checkpoint), "SOLVER.MAX_EPOCHS": 3}
    for name in ("one", "two"):
        run_main(tiny_cfg(**unseeded | again | {"OUTPUT_DIR": str(tmp_path / name)}), CTLModel, "run")
    assert_same_state(newest(tmp_path / "one"), newest(tmp_path / "two"))


def test_nothing_of_ours_is_deprecated(tiny_cfg):
    ours = r"(train_|modelling|losses|solver|callbacks|datasets|utils|config)"
    with warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning, PendingDeprecationWarning):
            warnings.filterwarnings("error", category=category, module=ours)
        run_main(tiny_cfg(**{"SOLVER.MAX_EPOCHS": 1}), CTLModel, "run")


def test_seeds_give_different_runs_and_equal_seeds_equal_ones(tiny_cfg, tmp_path):
    one_epoch = {"SOLVER.MAX_EPOCHS": 1, "REPRODUCIBLE_NUM_RUNS": 2}
    results = run_main(tiny_cfg(**one_epoch), CTLModel, "run")
    assert len(results) == 2
    first, second = sorted((tmp_path / "out" / "run").glob("version_*/auto_checkpoints/*.pth"))
    weights = [torch.load(path, weights_only=True)["state_dict"]["fc_query.weight"] for path in (first, second)]
    assert not torch.equal(*weights)
    run_main(tiny_cfg(**{"SOLVER.MAX_EPOCHS": 1, "OUTPUT_DIR": str(tmp_path / "again")}), CTLModel, "run")
    assert_same_state(first, newest(tmp_path / "again"))


@pytest.mark.slow
def test_two_processes_without_a_seed_train_validate_and_save_once(run_script, tiny, tmp_path):
    two = {"SOLVER.DIST_BACKEND": "ddp_cpu", "GPU_IDS": "[0,1]", "REPRODUCIBLE": False, "SOLVER.EVAL_PERIOD": 2}
    done = run_script("train_ctl_model.py", *tiny(**two))
    assert done.returncode == 0, done.stderr
    assert "sync_dist" not in done.stderr  # every process has the first one's metrics
    assert newest(tmp_path / "out").name == "checkpoint_1.pth"
    assert done.stderr.count("auto_checkpoints") == 1  # said by one process


@pytest.mark.by_hand
def test_spawned_processes_train_and_test(tiny, tmp_path):
    """ddp_spawn, which only devices ask for, with CPU processes in their place."""
    program = (
        "import sys; from config.load import load_config; from engine import run, trainer\n"
        "from train_ctl_model import CTLModel\n"
        "trainer.choose_devices = lambda *_: ('cpu', 2)\n"
        "print(run.run_main(load_config('', sys.argv[1:]), CTLModel, 'run'))\n"
    )
    options = tiny(**{"SOLVER.DIST_BACKEND": "ddp_spawn", "SOLVER.MAX_EPOCHS": 1, "LOGGING.MLFLOW": True})
    done = run_code(program, *options, cwd=tmp_path, env=REPOSITORY_FIRST, timeout=300)
    assert done.returncode == 0, done.stderr
    (metrics,) = ast.literal_eval(done.stdout.splitlines()[-1])
    assert 0 < metrics["instances"]["mAP"] <= 1
    assert 0 < metrics["centroids"]["strict_mAP"] <= 1
    assert newest(tmp_path / "out").name == "checkpoint_0.pth"
    (events,) = (tmp_path / "out/run").glob("version_*")  # of training and of test
    accumulator = EventAccumulator(str(events))
    accumulator.Reload()
    assert {"epoch_seconds", "test_centroids/strict_mAP"} <= set(accumulator.Tags()["scalars"])
