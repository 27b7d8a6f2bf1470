"""Imports run one way through the rooms, never in a circle, and never through a door."""

import ast
from functools import cache

import pytest

from tests.launch import forbid_modules, run_code, run_script
from tests.support import ROOT

# From the top downwards; a room may import those below it. docs/ARCHITECTURE.md tells what is in them.
LEVELS = (
    ("benchmarks", "examples"),
    ("scripts",),
    ("centroids_reid",),
    ("train_ctl_model", "train_base_model"),
    ("engine",),
    ("inference",),
    ("modelling",),
    ("evaluation",),
    ("datasets",),
    ("losses", "solver", "callbacks"),
    ("checkpoints",),
    ("config",),
    ("utils",),
)
LEVEL_OF = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
# The original's files over the rooms of today, and the command that was published as utils.evaluate.
DOORS = {"utils.misc", "utils.eval_reid", "utils.reid_metric", "utils.visrank", "utils.evaluate"}
DOORS |= {"callbacks.chechpointer_callback", "datasets.hand_filled", "datasets.samplers.distributed_pids_sampler"}
DOOR_LEVEL = -1  # above everything
PROGRAMS = ("train_base_model", "train_ctl_model")
# Calls of programs that have arrays rather than a RetrievalSet.
FRONTS = {"evaluate_embeddings", "rank_for_display"}


def module_files():
    yield from (path for path in sorted(ROOT.glob("*.py")) if path.stem in LEVEL_OF)
    for room in LEVEL_OF:
        yield from sorted((ROOT / room).rglob("*.py"))


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in module_files()}


def level_of(module):
    return DOOR_LEVEL if module in DOORS else LEVEL_OF[module.split(".")[0]]


@cache
def imported_modules(module):
    """The project's modules that a module imports, anywhere in its text."""
    path = MODULES[module]
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            prefix = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*prefix, *([node.module] if node.module else [])])
            # "from utils import misc" imports the module utils.misc
            names = [f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base for alias in node.names]
        else:
            continue
        found.update(name for name in names if name in MODULES)
    return frozenset(found - {module})


@pytest.mark.parametrize("module", list(MODULES))
def test_arrows_point_down(module):
    here, room = level_of(module), module.split(".")[0]
    for other in imported_modules(module):
        assert other not in DOORS, f"{module} imports the door {other}"
        if other.split(".")[0] == room and module not in DOORS:
            continue
        assert level_of(other) > here, f"{module} imports {other}, which is not below it"


def test_there_are_no_circles():
    """Also not through imports that are made when a function runs."""
    done, path = set(), []

    def visit(module):
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module in done:
            return
        path.append(module)
        for other in imported_modules(module):
            visit(other)
        path.pop()
        done.add(module)

    for module in MODULES:
        visit(module)


def test_every_room_and_every_door_is_walked():
    assert {module.split(".")[0] for module in MODULES} == set(LEVEL_OF)
    assert set(MODULES) >= DOORS
    python_folders = {path.parent.name for path in ROOT.glob("*/*.py")}
    assert python_folders - {"tests"} == {room for room in LEVEL_OF if (ROOT / room).is_dir()}


@pytest.mark.parametrize(
    "statement", ["import config", "import config.cli", "import utils.errors", "import evaluation"]
)
def test_light_modules_stay_light(statement):
    heavy = "{'torch', 'pytorch_lightning', 'mlflow', 'cv2', 'numpy'}"
    code = f"{statement}; import sys; sys.exit(len({heavy} & set(sys.modules)))"
    assert run_code(code).returncode == 0


@pytest.mark.parametrize(
    ("modules", "forbidden"),
    [
        ("inference.embedding.embedder inference.galleries.creation inference.searching.search", "engine mlflow cv2"),
        ("inference.command_line inference.embedding.exporting", "engine scripts mlflow cv2 faiss onnx onnxruntime"),
        ("train_ctl_model engine.run", "mlflow tensorboard cv2 onnx faiss pandas"),
        ("evaluation.metrics evaluation.tables", "pytorch_lightning mlflow cv2"),
        ("losses.centroid_triplet_loss", "pytorch_lightning torchvision mlflow cv2"),
    ],
)
def test_what_is_not_used_is_not_imported(modules, forbidden):
    def imported(names):
        done = run_code(f"import sys, {', '.join(names)}; print(*({set(forbidden.split())} & set(sys.modules)))")
        assert done.returncode == 0, done.stderr
        return set(done.stdout.split())

    found = imported(modules.split())
    # Lightning and torch import more or less of other packages, depending on their version.
    assert not found or found <= imported(("torch", "torchvision", "pytorch_lightning")) - {"pytorch_lightning"}


def test_every_module_can_be_imported_without_what_only_some_runs_need():
    """Doors and programs too. OpenCV serves the tests alone; a run may log to neither MLflow nor TensorBoard."""
    code = """if True:
        import importlib, sys, traceback
        names, missing = sys.argv[1:], sys.argv[-3:]

        class Missing:
            @staticmethod
            def find_spec(name, path=None, target=None):
                if name.partition(".")[0] in missing:  # as where it is not installed: who can do without it goes on
                    raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        sys.meta_path.insert(0, Missing)
        for name in names:
            try:
                importlib.import_module(name)
            except ImportError:
                traceback.print_exc()
                print(name)
    """
    missing = ["cv2", "mlflow", "tensorboard"]
    done = run_code(code, *MODULES, *missing)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == missing, done.stderr


def test_opencv_is_not_used():
    """Also not by an import that is made when a function runs."""
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert "cv2" not in {name.partition(".")[0] for name in names}, f"{module}, line {node.lineno}"


@pytest.mark.parametrize("script", [f"{name}.py" for name in PROGRAMS])
def test_help_needs_no_torch(script, tmp_path):
    done = run_script(script, "--help", cwd=tmp_path, env=forbid_modules(tmp_path, "torch"))
    assert done.returncode == 0, done.stderr
    assert "SOLVER.BASE_LR" in done.stdout
    assert "--config_file" in done.stdout


def test_nothing_is_moved_to_cuda_by_name():
    """No method ``cuda`` is called: tensors follow the modules, wherever these are."""
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
            assert not (is_call and node.func.attr == "cuda"), f"{module}, line {node.lineno}"


def functions():
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                yield module, node


def test_no_function_is_longer_than_a_screen():
    for module, node in functions():
        assert node.end_lineno - node.lineno < 60, f"{module}: {node.name}"


def test_no_signature_has_more_than_eight_parameters():
    for module, node in functions():
        named = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
        names = [argument.arg for argument in named if argument is not None and argument.arg not in ("self", "cls")]
        assert len(names) <= 8 or node.name in FRONTS, f"{module}: {node.name} has {len(names)} parameters"
