"""Runs that are killed, terminated or meet a full disk: started again by the same command, they lose nothing."""

import os
import random
import signal
import time

import pytest
import torch

from tests.e2e import forked
from tests.e2e.faults import fault
from tests.e2e.test_training import assert_same_state
from tests.small import small_options
from tests.thin import THIN

EPOCHS = 3
AUTO = {
    "SOLVER.MAX_EPOCHS": EPOCHS,
    "MODEL.RESUME_TRAINING": True,
    "MODEL.PRETRAIN_PATH": "auto",
    "DATALOADER.USE_RESAMPLING": False,
    "REPRODUCIBLE_SEED": 5,
}
TWO = {"SOLVER.DIST_BACKEND": "ddp_cpu", "GPU_IDS": [0, 1]}


def auto_checkpoints(folder):
    return sorted(path.name for path in folder.glob(f"{forked.NAME}/version_*/auto_checkpoints/*"))


def newest(folder):
    (path,) = folder.glob(f"{forked.NAME}/version_*/auto_checkpoints/checkpoint_{EPOCHS - 1}.pth")
    return path


@pytest.fixture(scope="module")
def whole(toy, tmp_path_factory):
    """The options of a run, and runs that nothing interrupts: whole(processes, more) -> (options, folder)."""
    done = {}

    def uninterrupted(processes, more=()):
        options = small_options(**THIN, **AUTO, **{"DATASETS.ROOT_DIR": str(toy)}, **(TWO if processes == 2 else {}))
        options += more
        if (processes, more) not in done:
            folder = tmp_path_factory.mktemp("whole")
            assert set(forked.run([*options, "OUTPUT_DIR", str(folder)], folder / "log", processes=processes)) == {0}
            done[processes, more] = folder
        return options, done[processes, more]

    return uninterrupted


@pytest.fixture
def check(whole, tmp_path):
    """Start once, meet the fault, start again by the same command: check(point, statuses) -> output."""

    def interrupted(point, processes=1, statuses=(-signal.SIGKILL,), more=()):
        options, expected = whole(processes, more)
        options = [*options, "OUTPUT_DIR", str(tmp_path)]
        assert forked.run(options, tmp_path / "log", point, processes)[-1] in statuses
        said = (tmp_path / "log").read_text()
        assert set(forked.run(options, tmp_path / "log", processes=processes)) == {0}
        assert_same_state(newest(expected), newest(tmp_path))
        assert auto_checkpoints(tmp_path) == [f"checkpoint_{EPOCHS - 1}.pth"]
        (best,) = tmp_path.glob(f"{forked.NAME}/version_*/checkpoints/*")  # nothing half-written, no copies
        (expected_best,) = expected.glob(f"{forked.NAME}/version_*/checkpoints/*")
        assert best.name == expected_best.name
        return said

    return interrupted


@fault(
    "the process dies",
    "`kill -9` in a training step, in a validation, while a checkpoint is written, between writing one and removing "
    "the older one",
    "the same command (`MODEL.RESUME_TRAINING True MODEL.PRETRAIN_PATH auto`) continues after the last whole epoch; "
    "final weights and optimiser states equal the uninterrupted run's bit for bit",
)
@pytest.mark.parametrize("point", ["step:3", "step:20", "validation:2", "write:1", "write:4", "removal:1"])
def test_killed_at_a_moment(check, point):
    check(point)


@fault(
    "one of two processes dies",
    "`kill -9` of one rank in a step, in a validation (gloo; the other is killed with it, as clusters do)",
    "as above",
)
@pytest.mark.parametrize("point", ["step:11", "validation:1"])
def test_one_of_two_processes_killed(check, point):
    check(point, processes=2)


@pytest.mark.parametrize("processes", [1, 2])
def test_killed_within_a_group_of_batches_whose_weights_are_averaged(check, processes):
    """Three batches to a step, which leaves a shorter group at the end of each epoch."""
    more = ("SOLVER.ACCUMULATE", 3, "SOLVER.CLIP_GRAD_NORM", 0.5, "SOLVER.EMA_DECAY", 0.9)
    check("validation:2", processes, more=more)


@fault("the process dies again and again", "`kill -9` at random times, four times in one run", "as above")
def test_killed_at_random_times(whole, tmp_path):
    """How far a run gets in a given time differs from machine to machine; KILL_SEED=N draws other times."""
    seed = int(os.environ.get("KILL_SEED", "0"))
    print(f"times drawn from KILL_SEED={seed}")
    options, expected = whole(1)
    options = [*options, "OUTPUT_DIR", str(tmp_path)]
    draw = random.Random(seed)
    moments = [draw.uniform(0.1, 1.0) for _ in range(4)]
    for moment in moments:
        started = forked.start(options, tmp_path / "log")
        time.sleep(moment)
        forked.kill(started)
    assert forked.run(options, tmp_path / "log") == [0], (seed, moments)
    assert auto_checkpoints(tmp_path)[-1] == newest(tmp_path).name
    assert_same_state(newest(expected), newest(tmp_path))


@fault(
    "SIGTERM",
    "`kill -TERM` in a step of the second epoch; of both of two processes",
    "exit status 0 after that step; the last whole epoch is on disk, and the same command continues after it, "
    "bit for bit",
)
@pytest.mark.parametrize(("processes", "step"), [(1, 10), (2, 6)])  # an epoch has 8 steps, or 4 of two processes
def test_sigterm(check, processes, step):
    said = check(f"SIGTERM:{step}", processes, statuses=(0,))
    assert "SIGTERM: stopped. The last whole epoch is in" in said
    assert "checkpoint_0.pth" in said
    assert "Traceback" not in said


def test_sigterm_before_the_first_epoch_is_done(check):
    assert "SIGTERM: stopped. No epoch was finished: start again." in check("SIGTERM:1", statuses=(0,))


@fault(
    "the disk is full",
    "no file may grow beyond 1 MiB (RLIMIT_FSIZE) from the second epoch's checkpoint on",
    "exit status 2 and one line that names file and reason; the older checkpoint is as it was, and with space the run "
    "continues after it, bit for bit",
)
def test_full_disk(check, tmp_path):
    said = check("full disk:3", statuses=(2,))
    assert "Traceback" not in said
    (line,) = (line for line in said.splitlines() if line.startswith("error: "))
    assert "cannot be written (File too large)" in line
    assert "checkpoint_0.pth (or auto) continues after it" in line


def test_a_finished_run_that_is_started_again_only_tests(whole, tmp_path):
    options, folder = whole(1)
    before = newest(folder).stat().st_mtime_ns
    log = tmp_path / "log"
    assert forked.run([*options, "OUTPUT_DIR", str(folder)], log) == [0]
    said = log.read_text()
    assert f"has finished all {EPOCHS} epochs: only the tests are left" in said
    assert said.count("test, single images") == 1
    assert newest(folder).stat().st_mtime_ns == before
    assert [path.name for path in (folder / forked.NAME).iterdir()] == ["version_0"]


def test_the_same_command_twice_gives_the_same_weights(whole, tmp_path):
    options, folder = whole(1)
    more = ["DATALOADER.NUM_WORKERS", 1, "OUTPUT_DIR", str(tmp_path)]
    assert forked.run([*options, *more], tmp_path / "log") == [0]
    assert_same_state(newest(folder), newest(tmp_path))
    weights = torch.load(newest(tmp_path), weights_only=True)["state_dict"].values()
    assert all(value.isfinite().all() for value in weights)
