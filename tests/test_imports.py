"""Imports run one way: each room may use the rooms below it, never one beside or above it."""

import ast
import subprocess
import sys

import pytest

from tests.support import ROOT

ROOMS = (
    *("config", "utils", "losses", "solver", "callbacks"),
    *("datasets", "modelling", "scripts", "inference", "benchmarks"),
)
ENTRY_POINTS = ("train_ctl_model", "train_base_model")
BOTTOM = {"config", "utils"}
ALLOWED = {
    "config": set(),
    "utils": set(),
    "losses": BOTTOM,
    "solver": BOTTOM,
    "callbacks": BOTTOM,
    "datasets": BOTTOM,
    "modelling": BOTTOM | {"losses", "solver", "callbacks", "datasets"},
    "utils.misc": BOTTOM | {"losses", "solver", "callbacks", "datasets", "modelling"},
}
EVERYTHING = {*ROOMS, *ENTRY_POINTS, "utils.misc"}


def module_files():
    for path in sorted(ROOT.glob("*.py")):
        if path.stem in ENTRY_POINTS:
            yield path
    for room in ROOMS:
        yield from sorted((ROOT / room).rglob("*.py"))


def room_of(module):
    return "utils.misc" if module == "utils.misc" else module.split(".")[0]


def imported_modules(path):
    package = path.relative_to(ROOT).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            prefix = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            base = ".".join(part for part in (prefix, node.module) if part)
            # "from utils import misc" imports the module utils.misc
            yield from (
                f"{base}.{a.name}" if (ROOT / base.replace(".", "/") / f"{a.name}.py").is_file() else base
                for a in node.names
            )


@pytest.mark.parametrize("path", list(module_files()), ids=lambda p: str(p.relative_to(ROOT)))
def test_arrows_point_down(path):
    here = room_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
    allowed = ALLOWED.get(here, EVERYTHING)
    for module in imported_modules(path):
        room = room_of(module)
        if room in EVERYTHING and room != here:
            assert room in allowed, f"{path.relative_to(ROOT)} imports {module}"


def test_every_room_exists_and_is_walked():
    rooms = {path.relative_to(ROOT).parts[0] for path in module_files()}
    assert {"config", "utils", "losses", "solver", "callbacks", "datasets", "modelling"} <= rooms


@pytest.mark.parametrize("statement", ["import config", "import config.cli", "import utils.errors"])
def test_light_modules_stay_light(statement):
    heavy = "{'torch', 'pytorch_lightning', 'mlflow', 'cv2', 'numpy'}"
    code = f"{statement}; import sys; sys.exit(len({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("script", [f"{name}.py" for name in ENTRY_POINTS])
def test_help_needs_no_torch(script, tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    done = subprocess.run(
        [sys.executable, str(ROOT / script), "--help"],
        capture_output=True, text=True, check=False, env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "SOLVER.BASE_LR" in done.stdout
    assert "--config_file" in done.stdout


def test_the_tree_has_no_dot_cuda_calls():
    for path in module_files():
        assert ".cuda()" not in path.read_text(encoding="utf-8"), path


def test_no_function_is_longer_than_a_screen():
    for path in module_files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{path.relative_to(ROOT)}: {node.name}"
