"""The names of the installed package, as programs beside the repository's sources see them."""

import importlib
from importlib.metadata import version
from textwrap import dedent

import pytest

import centroids_reid
from centroids_reid.commands import PROGRAMS, attribute
from tests.launch import REPOSITORY_FIRST, run_code, run_module
from tests.support import ROOT


def test_each_name_is_that_of_the_repository():
    from config import cfg
    from evaluation.metrics import evaluate_embeddings
    from inference import Embedder
    from losses.centroid_triplet_loss import CentroidTripletLoss
    from train_ctl_model import CTLModel

    expected = {
        "CTLModel": CTLModel,
        "CentroidTripletLoss": CentroidTripletLoss,
        "Embedder": Embedder,
        "cfg": cfg,
        "evaluate_embeddings": evaluate_embeddings,
    }
    assert {name: getattr(centroids_reid, name) for name in centroids_reid.__all__} == expected
    assert set(dir(centroids_reid)) == {*expected, "__version__"}
    assert centroids_reid.__version__ == version("centroids-reid")


def test_an_unknown_name_is_answered_with_those_that_there_are():
    with pytest.raises(AttributeError, match=r"no attribute 'Embeder'; it offers CTLModel, .* evaluate_embeddings"):
        _ = centroids_reid.Embeder


@pytest.mark.parametrize("name", ["config", "datasets.bases", "losses.centroid_triplet_loss", "train_ctl_model"])
def test_a_module_has_two_names(name):
    module = importlib.import_module(name)
    assert importlib.import_module(f"centroids_reid.{name}") is module
    assert module.__name__ == module.__spec__.name == name


def test_a_module_that_nobody_has_imported_before():
    code = "import centroids_reid.datasets.bases as b; import datasets.bases as a; print(a is b, a.__spec__.name)"
    done = run_code(code)
    assert done.stdout == "True datasets.bases\n", done.stderr


@pytest.mark.parametrize("name", ["centroids_reid.nothing", "centroids_reid.config.nothing", "centroids_reid.docs"])
def test_what_is_nowhere_is_not_found(name):
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(name)


def test_importing_the_package_alone_imports_nothing_else():
    done = run_code(
        "import sys; import centroids_reid; print(len({'torch', 'numpy', 'yacs', 'config'} & set(sys.modules)))"
    )
    assert done.stdout == "0\n", done.stderr


def test_another_package_of_the_same_name_that_comes_first_is_named(tmp_path):
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "__init__.py").touch()
    path = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = run_code("from centroids_reid import Embedder", cwd=tmp_path, env=path)
    last = done.stderr.splitlines()[-1]
    assert last.startswith(
        f"ImportError: {ROOT}/datasets is a part of centroids_reid, but Python finds another module datasets first: "
        f"{tmp_path}/datasets/__init__.py. Put {ROOT} first in PYTHONPATH; or install the wheel"
    )


def test_the_repository_is_reached_by_a_link(tmp_path):
    (tmp_path / "link").symlink_to(ROOT)
    path = {"PYTHONPATH": f"{tmp_path / 'link'}"}
    done = run_code("from centroids_reid import cfg; print(cfg.MODEL.NAME)", cwd=tmp_path, env=path)
    assert done.returncode == 0, done.stderr


def test_a_folder_without_modules_that_comes_first_is_named(tmp_path):
    (tmp_path / "callbacks").mkdir()
    code = """
        import sys
        from importlib.machinery import PathFinder
        import centroids_reid.in_repository as names
        sys.path[:] = [sys.argv[1]]
        sys.meta_path[:] = [PathFinder]
        names.add_names()
    """
    done = run_code(dedent(code), tmp_path, cwd=tmp_path, env=REPOSITORY_FIRST)
    assert f"another module callbacks first: {tmp_path}/callbacks. Put" in done.stderr, done.stderr


def test_a_module_runs_as_a_program(tmp_path):
    done = run_module("centroids_reid.evaluation", "--help", cwd=tmp_path, env=REPOSITORY_FIRST)
    assert done.returncode == 0 and done.stdout.startswith("usage: python -m evaluation"), done.stderr


@pytest.mark.parametrize(
    ("command", "usage"),
    [
        ("ctl_train", "python train_ctl_model.py"),
        ("ctl_train_base", "python train_base_model.py"),
        ("ctl_embed", "python inference/create_embeddings.py"),
        ("ctl_search", "python inference/get_similar.py"),
        ("ctl_evaluate", "python -m evaluation"),
        ("ctl_export", "python -m inference.export"),
        ("ctl_validate", "python -m datasets.validate"),
        ("ctl_split", "python -m datasets.split"),
        ("ctl_toy", "python scripts/make_toy_dataset.py"),
    ],
)
def test_a_command_runs_its_program(command, usage, tmp_path):
    assert command in map(attribute, PROGRAMS)
    code = f"import sys; from centroids_reid.commands import {command} as run; sys.argv[1:] = ['--help']; run()"
    done = run_code(code, cwd=tmp_path, env=REPOSITORY_FIRST)
    assert done.returncode == 0 and done.stdout.startswith(f"usage: {usage} "), done.stdout + done.stderr


def test_there_is_no_other_command():
    from centroids_reid import commands

    with pytest.raises(AttributeError, match="ctl_nothing"):
        _ = commands.ctl_nothing
