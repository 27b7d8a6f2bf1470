"""Versions and the command line."""

import json
import platform
import shlex

import torch

from tests.launch import run_code
from utils.origin import versions


def test_versions():
    found = versions()
    assert found["torch"] == torch.__version__
    assert found["python"] == platform.python_version()
    assert found["centroids-reid"]


def test_a_package_that_is_not_installed_has_no_version(monkeypatch):
    monkeypatch.setattr("utils.origin.PACKAGES", ("no-such-package",))
    assert versions()["no-such-package"] is None


IN_ANOTHER_PROCESS = """
import json, multiprocessing
from utils.origin import command_line
if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(json.dumps([command_line(), pool.apply(command_line)]))
"""


def test_command_line(tmp_path):
    done = run_code(IN_ANOTHER_PROCESS, "a b", "--output", "http://me:secret@host/x")
    assert done.returncode == 0, done.stderr
    own, other = map(shlex.split, json.loads(done.stdout))
    assert own[1:] == ["-c", IN_ANOTHER_PROCESS, "a b", "--output", "http://***@host/x"]
    assert other[1:] == ["-c", "a b", "--output", "http://***@host/x"]
