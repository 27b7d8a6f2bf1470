"""All that a run prints: the real scripts, and each line of stdout and stderr compared with what is expected."""

import re

import pytest

from tests.e2e.test_training import newest

# Of torch 2.1, where onnxscript is installed: said while torch is imported, before a script can do anything about it.
BEFORE_ALL = r"(.*onnxscript.*FutureWarning.*\n.*\n)*"
SEED = r"Seed set to 0"
# What the readers of the data say, in as many lines as they like.
DATA = r"Market1501: 98 of 32217 published images; taken for a subset, counts not checked\.\n"
DATA += r"Market1501:\nsubset .*\n-+\ntrain  .*\nquery  .*\ngallery  .*"
DEVICE = r"USE_MIXED_PRECISION True needs a CUDA device; computing in 32-true on cpu\.\nGPU available: (True|False).*"
FIGURES = r"loss \d+\.\d+, lr {rate}, \d+\.\d s, [\d.]+ images/s"
FIRST_OF_TWO = f"epoch 1/2: {FIGURES.format(rate='5.00e-05')}, (\\d+ min|less than a minute) left"  # of the warm-up
SECOND_OF_TWO, THIRD, ONLY_ONE = (
    f"epoch {epochs}: {FIGURES.format(rate=rate)}"
    for epochs, rate in (("2/2", "1.00e-04"), ("3/3", "1.00e-04"), ("1/1", "5.00e-05"))
)
# The lines of an evaluation belong to evaluation/, whose tests have their words.
VALIDATION, TEST = (rf"({stage}, .*\n(    .*\n)*)+" for stage in ("validation", "test"))
PLACES = r"(checkpoint: out/train_ctl_model/version_0/.*\n)*TensorBoardLogger: out/train_ctl_model/version_0"


def check(done, *lines):
    """Compare stderr with patterns of whole lines, in their order; stdout is empty without a progress bar."""
    expected = BEFORE_ALL + "".join(line if line in (VALIDATION, TEST) else f"{line}\n" for line in lines)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(expected, done.stderr), f"{done.stderr}\n--- is not ---\n{expected}"
    assert done.stdout == ""


@pytest.fixture
def run(run_script, tiny, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)  # mlflow sets it in a process that has named a server

    def run(env=None, **overrides):
        options = tiny(**{"USE_MIXED_PRECISION": True, "OUTPUT_DIR": "out"} | overrides)
        return run_script("train_ctl_model.py", *options, env=env, fresh=True)

    return run


@pytest.mark.slow
def test_a_run_a_run_that_goes_on_and_a_test(run, tmp_path):
    whole = run(**{"LOGGING.MLFLOW": True})
    check(
        whole, SEED, DATA, DEVICE, VALIDATION, FIRST_OF_TWO, VALIDATION, SECOND_OF_TWO, TEST, PLACES,
        r"MLFlowLogger: sqlite:///mlflow\.db",
    )  # fmt: skip
    auto = {"MODEL.RESUME_TRAINING": True, "MODEL.PRETRAIN_PATH": "auto"}
    further = run({"PYTHONWARNINGS": "default"}, **auto, **{"SOLVER.MAX_EPOCHS": 3})
    latest = r"out/train_ctl_model/version_0/auto_checkpoints/checkpoint_1\.pth"
    check(
        further, SEED, f"MODEL.PRETRAIN_PATH auto: continuing from {latest}", DATA,
        r"SOLVER\.MAX_EPOCHS: 2 in the checkpoint, 3 here, which is used\.",
        r"LOGGING\.MLFLOW: True in the checkpoint, False here, which is used\.", DEVICE,
        f"Restored all states from the checkpoint at {latest}", VALIDATION, THIRD, TEST, PLACES,
    )  # fmt: skip
    saved = {"TEST.ONLY_TEST": True, "MODEL.PRETRAIN_PATH": str(newest(tmp_path / "out"))}
    tested = run(**saved, OUTPUT_DIR="tested")
    header = (
        r"test of \S+\.(ckpt|pth) \(tests\.thin:Thin, \d epoch\(s\), weights [0-9a-f]{12}\), images 32x16, .*, torch .*"
    )
    check(tested, SEED, DATA, DEVICE, header, TEST, PLACES.replace("out/", "tested/"))


@pytest.mark.by_hand
def test_two_processes(run):
    done = run(**{"SOLVER.DIST_BACKEND": "ddp_cpu", "GPU_IDS": "[0,1]", "SOLVER.MAX_EPOCHS": 1})
    start = r"(Initializing distributed: GLOBAL_RANK: [01], MEMBER: [12]/2\n){2}"
    start += r"-+\ndistributed_backend=gloo\nAll distributed processes registered\. Starting with 2 processes\n-+\n"
    check(done, SEED, DATA, DEVICE, start, VALIDATION, ONLY_ONE, TEST, PLACES)


@pytest.mark.by_hand
def test_a_folder_that_takes_no_database_costs_one_line(run, tmp_path):
    """Two minutes of retries and 199 lines of MLflow's once. A file where the folder should be stops root as well."""
    (tmp_path / "taken").write_text("")
    place = {"LOGGING.MLFLOW": True, "LOGGING.MLFLOW_URI": "sqlite:///taken/mlflow.db", "SOLVER.MAX_EPOCHS": 1}
    line = r"MLflow at sqlite:///taken/mlflow\.db accepts no records \(\[Errno \d+\] .*: 'taken'\)"
    done = run(**place)
    check(
        done, SEED, DATA, line + r"\. Training continues; the records are sent once it does\.", DEVICE, VALIDATION,
        ONLY_ONE, TEST, PLACES, r"\d records were not delivered to MLflow\.", r"MLFlowLogger: sqlite:///taken/mlflow\.db",
    )  # fmt: skip
    stopped = run(**place, **{"LOGGING.ON_ERROR": "stop"})
    assert stopped.returncode == 2
    way_out = r"fix it, or set LOGGING\.ON_ERROR continue to train without its records\."
    end = rf"error: {line}, and LOGGING\.ON_ERROR is 'stop': {way_out}\n"
    assert re.fullmatch(f"{BEFORE_ALL}{SEED}\n{DATA}\n{end}", stopped.stderr), stopped.stderr
