"""create_embeddings.py by several processes: its own children, or those of torchrun or SLURM."""

import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from config.load import load_config
from inference import command_line, create_embeddings
from inference.command_line import devices_of_children, embedder_from_config
from inference.galleries import team as teams
from inference.galleries.team import Team, run_children
from tests.inference.conftest import draw_picture
from tests.launch import REPOSITORY_FIRST, run_python, run_script, start_python
from tests.support import ROOT
from utils.errors import UserError

IMAGES = 90
SCRIPT = ROOT / "inference" / "create_embeddings.py"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for number in range(IMAGES):
        draw_picture(folder / f"p_{number:03d}.png", number)
    return folder


@pytest.fixture(scope="module")
def given(images, legacy_checkpoint):
    keys = ("DATASETS.ROOT_DIR", images, "MODEL.PRETRAIN_PATH", legacy_checkpoint, "INPUT.SIZE_TEST", "[64, 32]")
    more = ("TEST.IMS_PER_BATCH", "2", "TRAINER.ACCELERATOR", "cpu", "TRAINER.PROGRESS_BAR", "False")
    return ["--chunk-size", "4", *map(str, (*keys, *more))]


@pytest.fixture(scope="module")
def alone(given, tmp_path_factory):
    """The gallery that one process makes."""
    out = tmp_path_factory.mktemp("alone")
    create_embeddings.main([*given, "OUTPUT_DIR", str(out)])
    return content(out)


def content(out):
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name != ".embeddings.launch"}


def last_line(out):
    return f"{out}: {IMAGES} images, {IMAGES} images embedded now"


def worker_of(out):
    for path in (out / "embeddings.parts").glob("*.claim"):
        if found := re.search(r"process (\d+)", path.read_text()):
            return int(found[1])
    return None


def test_a_child_is_killed_and_another_takes_over_its_work(given, alone, tmp_path):
    out = tmp_path / "out"
    given = [*given, "OUTPUT_DIR", out, "SOLVER.DIST_BACKEND", "ddp_cpu", "GPU_IDS", "[0, 1]"]
    with start_python(SCRIPT, *given, cwd=tmp_path, stderr=subprocess.PIPE) as running:
        end = time.monotonic() + 120
        while (victim := worker_of(out)) is None:
            assert running.poll() is None and time.monotonic() < end, running.stderr.read()
            time.sleep(0.005)
        os.kill(victim, signal.SIGKILL)
        said = running.stderr.read()
    assert running.returncode == 0, said
    assert content(out) == alone
    assert len(re.findall(r"^The process on the CPU, number [01] ended with SIGKILL\.$", said, re.M)) == 1
    assert re.search(rf"^machine \S+ \(process {victim}\) ended without finishing chunk \d+; it is taken ", said, re.M)
    assert said.splitlines().count(last_line(out)) == 1


@pytest.mark.slow
def test_torchrun(given, alone, tmp_path):
    out = tmp_path / "out"
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", SCRIPT)
    done = run_python(*launch, *given, "OUTPUT_DIR", out, cwd=tmp_path, env=REPOSITORY_FIRST)
    assert done.returncode == 0, done.stderr
    assert content(out) == alone
    assert done.stderr.splitlines().count(last_line(out)) == 1


def test_slurm(given, alone, tmp_path):
    out = tmp_path / "out"
    variables = {"SLURM_NTASKS": "2", "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_TASKS_PER_NODE": "2"}

    def run(rank):
        env = {**variables, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}
        return run_script(SCRIPT, *given, "OUTPUT_DIR", out, env=env)

    with ThreadPoolExecutor() as executor:
        done = list(executor.map(run, range(2)))
    said = "".join(each.stderr for each in done)
    assert [each.returncode for each in done] == [0, 0], said
    assert content(out) == alone
    assert said.splitlines().count(last_line(out)) == 1


# ------------------------------------------------------------------------------------------------------------ children


@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        ("pass", 0, ""),
        ("raise SystemExit(int(os.environ['RANK']) and 3)", 0, ""),  # one comes to a good end
        ("raise SystemExit(3)", 3, "error: all processes have died. What they have finished is kept: --resume"),
        ("os.kill(os.getpid(), 9)", 137, "error: all processes have died."),
        ("import time; time.sleep(0 if os.environ['RANK'] == '1' else 60); raise SystemExit(2)", 2, ""),
    ],
)
def test_status_of_the_children(tmp_path, capfd, caplog, code, status, said):
    started = time.monotonic()
    try:
        run_children([sys.executable, "-c", f"import os; {code}"], ["a", "b"])
        found = 0
    except SystemExit as ended:
        found = ended.code
    assert found == status
    assert capfd.readouterr().err.startswith(said)
    assert time.monotonic() - started < 50
    named = {3: ["status 3"], 137: ["SIGKILL"]}.get(status, ["status 3"] if "RANK" in code and "3" in code else [])
    assert {line.split(" ended with ")[1].rstrip(".") for line in caplog.messages} == set(named)


def test_an_error_that_all_have_is_said_once():
    code = "from inference.galleries.team import errors_to_parent; from utils.errors import UserError\n"
    code += "with errors_to_parent(): raise UserError('the folder \\udcff is empty.')"
    with pytest.raises(UserError, match=r"^the folder \udcff is empty\.$"):
        run_children([sys.executable, "-c", code], ["a", "b"])


def test_an_interrupt_and_the_death_of_the_parent_end_the_children(tmp_path):
    """By Ctrl-C with one line; by SIGKILL within a second or two."""
    child = "import os, time; from inference.galleries.team import follow_parent; follow_parent()\n"
    child += f"open(os.path.join({str(tmp_path)!r}, str(os.getpid())), 'w'); time.sleep(100)"
    parent = "import sys; from config.cli import clean_exit; from inference.galleries.team import run_children\n"
    parent += f"with clean_exit(): run_children([sys.executable, '-c', {child!r}], ['a', 'b'])"
    for sent, status, said in ((signal.SIGINT, 130, "interrupted\n"), (signal.SIGKILL, -signal.SIGKILL, "")):
        with start_python("-c", parent, stderr=subprocess.PIPE) as running:
            end = time.monotonic() + 60
            while len(children := [int(path.name) for path in tmp_path.iterdir()]) < 2:
                assert running.poll() is None and time.monotonic() < end
                time.sleep(0.01)
            time.sleep(0.2)
            running.send_signal(sent)
            assert running.stderr.read() == said
        assert running.returncode == status
        while any(is_running(process) for process in children):
            assert time.monotonic() < end
            time.sleep(0.05)
        for path in tmp_path.iterdir():
            path.unlink()


def is_running(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().split(") ")[1][0] != "Z"
    except OSError:
        return False


def test_each_process_has_a_device_of_its_own(legacy_checkpoint, monkeypatch):
    monkeypatch.setattr(command_line, "choose_devices", lambda *_: ("gpu", [97, 98, 99]))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 100)
    cfg = load_config("", ["MODEL.PRETRAIN_PATH", str(legacy_checkpoint), "GPU_IDS", "[97, 98, 99]"])
    assert devices_of_children(cfg) == ["cuda:97", "cuda:98", "cuda:99"]
    with pytest.raises(UserError, match="cuda:98"):
        embedder_from_config(cfg, team=Team("a", place=1, count=3))
    with pytest.raises(UserError, match=r"torchrun started 4 processes on a machine, but GPU_IDS \[97, 98, 99\] has 3"):
        embedder_from_config(cfg, team=Team("a", place=1, count=4, launcher="torchrun"))
    monkeypatch.setenv(teams.LAUNCH, "a")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert devices_of_children(cfg) == []  # it is a child


@pytest.mark.parametrize(("variable", "launcher", "threads"), [(None, "", 4), ("3", "", 7), ("1", "torchrun", 4)])
def test_processes_of_a_machine_divide_its_cores(monkeypatch, variable, launcher, threads):
    chosen = [7]
    monkeypatch.setattr("torch.set_num_threads", chosen.append)
    monkeypatch.setattr(teams, "count_cpus", lambda: 9)
    monkeypatch.delenv("OMP_NUM_THREADS") if variable is None else monkeypatch.setenv("OMP_NUM_THREADS", variable)
    teams.divide_cores(Team("a", count=2, launcher=launcher), on_cpu=True)
    teams.divide_cores(Team("a", count=2), on_cpu=False)
    assert chosen[-1] == threads
