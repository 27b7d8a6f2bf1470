"""What other tests rest on: how programs are started, and that a forbidden module ends one."""

import subprocess
import time

import pytest

from tests.launch import forbid_modules, run_code, run_module, run_script

PROGRAM = """
import os, sys
import numpy as np
import beside
print(__name__, sys.argv[1:], os.getcwd(), os.environ["MARK"], np.random.rand(), sys.stdin.read())
print("said", file=sys.stderr)
raise SystemExit({end})
"""


def write_program(folder, end):
    (folder / "beside.py").touch()
    (folder / "program.py").write_text(PROGRAM.format(end=end))
    return folder / "program.py"


def test_a_forbidden_module_ends_the_program(tmp_path):
    done = run_code("import torch", cwd=tmp_path.parent, env=forbid_modules(tmp_path, "torch"))
    assert (done.returncode, done.stderr) == (1, "torch was imported\n")


@pytest.mark.parametrize(("end", "status", "also"), [("", 0, ""), (3, 3, ""), ("'no'", 1, "no\n"), (None, 0, "")])
def test_a_program_runs_as_in_a_fresh_interpreter(end, status, also, tmp_path):
    path = write_program(tmp_path, repr(end) if end is None else end)
    draws = set()
    for start in ({}, {}, {"fresh": True}):
        for run, name in ((run_script, path), (run_module, "program")):
            done = run(name, "a", "b c", cwd=tmp_path, env={"MARK": "x"}, **start)
            assert (done.returncode, done.stderr) == (status, f"said\n{also}")
            first, _, draw = done.stdout.strip().rpartition(" ")
            assert first == f"__main__ ['a', 'b c'] {tmp_path} x"
            draws.add(draw)
    assert len(draws) == 6


def test_an_error_and_a_signal_end_a_program(tmp_path):
    path = tmp_path / "program.py"
    path.write_text("import os, sys\nos.kill(os.getpid(), 9) if sys.argv[1:] else 1 / 0")
    done = run_script(path)
    assert done.returncode == 1 and done.stderr.splitlines()[-1] == "ZeroDivisionError: division by zero"
    assert run_script(path, "kill").returncode == -9


def test_a_program_that_takes_too_long_is_killed(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(f"import time; print(1, flush=True); time.sleep(5); open({str(tmp_path / 'late')!r}, 'w')")
    with pytest.raises(subprocess.TimeoutExpired) as error:
        run_script(path, timeout=1)
    assert error.value.stdout == "1\n"
    time.sleep(5)
    assert not (tmp_path / "late").exists()
