"""Versions are told apart in utils/compat.py and nowhere else."""

import ast

import pytest

from tests.support import ROOT

PACKAGES = {"torch", "torchvision", "np", "numpy", "cv2", "mlflow", "pytorch_lightning", "pl", "lightning"}
ROOMS = ("callbacks", "config", "datasets", "inference", "losses", "modelling", "solver", "utils")
FILES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py")) if path.name != "compat.py"]
FILES += [ROOT / "train_ctl_model.py", ROOT / "train_base_model.py"]


def version_checks(source):
    """Lines that ask a package whether it has something, compare its version, or look at a signature of its own."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and node.args:
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            of_package = ast.unparse(node.args[0]).split(".")[0] in PACKAGES
            if name in ("hasattr", "getattr", "signature") and of_package:
                yield node.lineno
        if isinstance(node, ast.Compare) and "__version__" in ast.unparse(node):
            yield node.lineno


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("hasattr(torch.export, 'x')", [1]),
        ("inspect.signature(torch.onnx.export)", [1]),
        ("a = 1\nif torch.__version__ >= '2.9': pass", [2]),
        ("hasattr(model, 'fc'); print(torch.__version__); hasattr(os, 'x')", []),
    ],
)
def test_the_search_itself(source, found):
    assert list(version_checks(source)) == found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_other_module_tells_versions_apart(path):
    assert not list(version_checks(path.read_text(encoding="utf-8")))
