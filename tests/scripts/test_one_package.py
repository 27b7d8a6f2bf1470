import ast

import pytest

from scripts.one_package import PACKAGE, PACKAGES, PREFIX, ROOT, _is_ours, package_folders, rewrite, root_modules
from tests.support import ROOT as REPOSITORY
from tests.test_imports import LEVEL_OF, PROGRAMS

MODULES = ("config", "config.load", "datasets", "datasets.bases", "evaluation", "utils", "train_ctl_model")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from config import cfg", "from centroids_reid.config import cfg"),
        ("from config.load import load_config as f", "from centroids_reid.config.load import load_config as f"),
        ("from datasets import (\n    bases,\n)", "from centroids_reid.datasets import (\n    bases,\n)"),
        ("import config as c, os", "import centroids_reid.config as c, os"),
        ("import os, config.load as f", "import os, centroids_reid.config.load as f"),
        ("if 1:\n    from utils import x; from config import y", None),
        ("from . import config\nfrom .config import cfg", "from . import config\nfrom .config import cfg"),
        ("from utils_of_mine import a\nimport configparser", "from utils_of_mine import a\nimport configparser"),
        ("from torch.utils import data", "from torch.utils import data"),
        ("å = 'é'; from config import cfg", "å = 'é'; from centroids_reid.config import cfg"),
    ],
)
def test_imports(source, expected):
    expected = expected or "if 1:\n    from centroids_reid.utils import x; from centroids_reid.config import y"
    assert rewrite(source, MODULES) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("see :mod:`config.load`", "see :mod:`centroids_reid.config.load`"),
        ("~datasets.bases.ReidDataModule", "~centroids_reid.datasets.bases.ReidDataModule"),
        ("datasets.bases2, my.datasets.bases, docs/config.load", None),
        ("the callbacks. of a datasets", None),
        ("python -m evaluation --roc.", "ctl-evaluate --roc."),
        ("run python -m evaluation.", "run ctl-evaluate."),
        ("python train_ctl_model.py --help", "ctl-train --help"),
        ("python3 inference/get_similar.py", "ctl-search"),
        ("python -m datasets.bases", "python -m centroids_reid.datasets.bases"),
        ("python my_program.py; python -m pip; visrank.py; config/load.py; my/train_ctl_model.py", None),
        ("a folder that create_embeddings.py wrote", "a folder that ctl-embed wrote"),
    ],
)
def test_texts(text, expected):
    for source in ('x = "{}"', "# {}", "x = f'{{y}} {} {{z}}'"):
        assert rewrite(source.format(text), MODULES) == source.format(expected or text)


def test_rewriting_again_changes_nothing():
    once = rewrite("from config import cfg  # config.load: python -m evaluation\nimport utils as u\n", MODULES)
    assert rewrite(once, MODULES) == once


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import config.load", r"somewhere, line 1: expected 'import config.load as ...'"),
        ("x = 1\nimport config", r"somewhere, line 2: expected 'import config as ...'"),
        ("import importlib\nimportlib.import_module('config')", r"somewhere, line 2: expected 'import config as ...'"),
        ("from  config import cfg", r"somewhere, line 1: expected 'from config' with one space"),
        ("config = f()\nconfig.load()", r"somewhere: a variable with an attribute reads like the name of a module"),
    ],
)
def test_what_cannot_be_rewritten_ends_the_build(source, message):
    with pytest.raises(ValueError, match=message):
        rewrite(source, MODULES, "somewhere")


def test_no_module_of_the_package_imports_another_by_its_bare_name():
    modules, count = root_modules(), 0
    assert ROOT == REPOSITORY and {"config", "train_ctl_model", "datasets.bases", "inference.embedding"} <= modules
    for folder in package_folders().values():
        for file in (ROOT / folder).glob("*.py"):
            source = file.read_text(encoding="utf-8")
            for node in ast.walk(ast.parse(rewrite(source, modules, str(file)))):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and not node.level:
                    names = [node.module]
                count += sum(name.startswith(PREFIX) for name in names)
                assert not any(_is_ours(name, modules) for name in names), file
    assert count > 500


def test_a_file_that_is_not_python_is_named():
    with pytest.raises(SyntaxError, match=r"\(somewhere\.py, line 1\)"):
        rewrite("def f(:\n", MODULES, "somewhere.py")


def test_the_packages_are_those_of_the_order_of_imports():
    assert {*PACKAGES, *PROGRAMS, PACKAGE} == set(LEVEL_OF) - {"benchmarks", "examples"}
