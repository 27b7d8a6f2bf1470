"""Each operator of the mutator makes the change that it says, and a changed line is caught or not as its test is."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import mutate
from scripts.mutants import TESTS, draw, mutants
from tests.support import ROOT


def changes(source):
    """The sources that differ from one by a change."""
    return {mutant.apply(source.encode()).decode() for mutant in mutants("a.py", source.encode())}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a < b", {"(a <= b)", "pass"}),
        ("a == b", {"(a != b)", "pass"}),
        ("a is b", {"(a is not b)", "pass"}),
        ("a in b", {"(a not in b)", "pass"}),
        ("a < b >= c", {"(a <= b >= c)", "(a < b > c)", "pass"}),
        ("x = a + b * c", {"x = (a - b * c)", "x = a + (b / c)"}),
        ("x = a @ b ** c", {"x = (a * b ** c)", "x = a @ (b * c)"}),
        ("x = a & b", {"x = (a | b)"}),
        ("x += y", {"x -= y", "pass"}),
        ("x = a and not b", {"x = (a or not b)", "x = a and (b)"}),
        ("x = 2", {"x = (3)", "x = (1)"}),
        ("x = 0.5", {"x = (1.5)", "x = (-0.5)"}),
        ("x = True", {"x = False"}),
        ("x = None", {"x = True"}),
        ("x = f(a, b, c, d=e)", {"x = f(b, a, c, d=e)"}),
        ("x = max(a, b)", set()),  # the same, whichever comes first
        ("x = f(a, a)", set()),
        ("x = f(*a, b)", set()),
        ("x = v[a:b]", {"x = v[:b]", "x = v[a:]"}),
        ("x = v[:, a:]", {"x = v[:, :]"}),
        ("f(a)", {"pass"}),
        ("a.b = c", {"pass"}),
        ("a[b] = c", {"pass"}),
        ("raise a", {"pass"}),
        ("for a in b: break", {"for a in b: pass"}),
        ("def f(): return a", {"def f(): return None"}),
        ("def f():\n  if a:\n    return\n  g = b", {"def f():\n  return None\n  g = b"}),
        # What is left alone: texts, annotations, decorators, assertions, imports.
        ("'''text'''\nimport a", set()),
        ("x = 'text'", set()),
        ("x = f'{a + 1}'", set()),
        ("x: int | None = a", set()),
        ("@f(1, 2)\ndef g(a: int | None) -> int | None: a", {"@f(1, 2)\ndef g(a: int | None) -> int | None: pass"}),
        ("assert a == 1", set()),
        # Bytes and characters differ, and the change still finds its place.
        ("x = 'äöü', 1  # é", {"x = 'äöü', (2)  # é", "x = 'äöü', (0)  # é"}),
    ],
)
def test_each_operator_changes_what_it_says(source, expected):
    assert changes(source) == expected


def test_a_mutant_names_its_line():
    (mutant,) = mutants("a.py", b"x = a\ny = (\n    a - b\n)\n")
    assert (mutant.line, mutant.before, mutant.after) == (3, "a - b", "(a + b)")


def test_the_table_names_files_and_tests_that_there_are():
    for name, tests in TESTS.items():
        assert (ROOT / name).exists(), name
        for path in tests:
            assert (ROOT / path).exists(), path
        own = Path("tests", name).with_name(f"test_{Path(name).name}")  # the tests named after a file are among them
        if name.endswith(".py") and (ROOT / own).exists():
            assert any(own.as_posix().startswith(path) for path in tests), name


def test_a_draw_is_the_same_for_the_same_seed_and_of_the_files_asked_for():
    drawn = draw(20, 3, "losses/")
    assert drawn == draw(20, 3, "losses/") != draw(20, 4, "losses/")
    assert len(set(drawn)) == 20
    assert all(mutant.path.startswith("losses/") for mutant in drawn)


SOURCE = "def double(x):\n    return x * 2\n"
TEST = "from solver.build import double\n\n\ndef test_nothing_doubled():\n    assert double(0) == 0\n"


def test_a_run_tells_what_is_caught_and_what_survives(tmp_path):
    """A whole run over a project of one line, whose test sees that nothing is returned and nothing else."""
    for folder in ("solver", "tests/solver"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    # In place of what a run of our tests imports once, before it forks.
    for name in ("solver/__init__.py", "torch.py", "torchvision.py", "pytorch_lightning.py"):
        (tmp_path / name).touch()
    (tmp_path / "solver/build.py").write_text(SOURCE)
    (tmp_path / "tests/solver/test_build.py").write_text(TEST)
    command = [sys.executable, "scripts/mutate.py", "--only", "solver/", "--json", "found.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "solver/build.py:2\n  - x * 2\n  + (x / 2)\n" in done.stdout
    assert done.stdout.endswith("1 of 4 mutants caught (25.0%), 3 survive\n")
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["drawn"], found["caught"]) == (4, 1)
    assert sorted(mutant["after"] for mutant in found["survivors"]) == ["(1)", "(3)", "(x / 2)"]
    assert (tmp_path / "solver/build.py").read_text() == SOURCE


def test_tests_that_fail_without_any_change_end_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(mutate, "tests_pass", lambda *args, **kwargs: False)
    monkeypatch.setattr(mutate, "IMPORTED", ())
    for module in ("mutate", "mutants"):
        monkeypatch.setattr(f"scripts.{module}.ROOT", tmp_path)
    (tmp_path / "solver").mkdir()
    (tmp_path / "solver/build.py").write_text(SOURCE)
    with pytest.raises(SystemExit, match="tests/solver fail without any change"):
        mutate.main(["--only", "solver/"])
