"""Programs written against the original, each run as its user runs it: ``PYTHONPATH=ROOT python PROGRAM TOY``.

A program of tests/programs checks what it got by itself, and exits with 0 only if all of it is right. The lines that it
must print are those after "Prints:" in its docstring, as regular expressions.
"""

import ast
import re

import pytest

from tests import launch
from tests.support import ROOT

FOLDER = ROOT / "tests" / "programs"
PROGRAMS = sorted(path.name for path in FOLDER.glob("*.py"))


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """24 identities in Market-1501's layout."""
    folder = tmp_path_factory.mktemp("programs") / "toy"
    options = ("--ids", 24, "--cameras", 3, "--images-per-id", 6, "--size", 64, 32)
    done = launch.run_script("scripts/make_toy_dataset.py", folder, *options)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("name", PROGRAMS)
def test_program(name, toy, tmp_path):
    done = launch.run_python(FOLDER / name, toy, cwd=tmp_path, env=launch.REPOSITORY_FIRST, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    for line in expected_lines(name):
        assert re.search(line, done.stdout + done.stderr), f"{line!r} is missing in:\n{done.stdout}{done.stderr}"


def expected_lines(name):
    docstring = ast.get_docstring(ast.parse((FOLDER / name).read_text(encoding="utf-8"))) or ""
    return [line.strip() for line in docstring.partition("Prints:")[2].splitlines() if line.strip()]
