"""Every public function and class of the rooms that promise an example has one, and every example runs."""

import doctest
import importlib
import inspect
import pkgutil

import pytest

PACKAGES = ("losses", "evaluation", "datasets.samplers")


def public_objects(module):
    """The public functions and classes that a module defines itself."""
    return [
        value
        for name, value in sorted(vars(module).items())
        if not name.startswith("_")
        and (inspect.isfunction(value) or inspect.isclass(value))
        and value.__module__ == module.__name__
    ]


def modules_of(package):
    root = importlib.import_module(package)
    names = [found.name for found in pkgutil.walk_packages(root.__path__, f"{package}.")]
    return [root, *map(importlib.import_module, names)]


def find_examples(value, module):
    """The doctests of a function, or of a class and its methods."""
    # With module=False the finder accepts objects that a decorator wrapped, which it would otherwise pass over.
    found = doctest.DocTestFinder(exclude_empty=True).find(value, value.__qualname__, module=False, globs=vars(module))
    return [test for test in found if any(doctest.SKIP not in example.options for example in test.examples)]


OBJECTS = [
    (value, module) for package in PACKAGES for module in modules_of(package) for value in public_objects(module)
]
NAMES = [f"{module.__name__}.{value.__qualname__}" for value, module in OBJECTS]


def run(tests):
    for test in tests:
        report: list[str] = []
        assert doctest.DocTestRunner().run(test, out=report.append).failed == 0, "".join(report)


def test_every_package_is_walked():
    known = {
        "losses.triplet_loss.TripletLoss",
        "evaluation.__main__.main",
        "evaluation.distance_blocks.exact_float32",
        "datasets.samplers.get_sampler",
        "datasets.samplers.random_identity.RandomIdentitySampler",
    }
    assert known <= set(NAMES)


@pytest.mark.parametrize(("value", "module"), OBJECTS, ids=NAMES)
def test_public_object_has_an_example_that_runs(value, module):
    tests = find_examples(value, module)
    assert tests, f"{module.__name__}.{value.__qualname__} has no >>> example"
    run(tests)


def test_embedder():
    module = importlib.import_module("inference.embedding.embedder")
    tests = find_examples(module.Embedder, module)
    assert tests
    run(tests)


def test_a_missing_or_wrong_example_is_found():
    def bare():
        """No example."""

    def wrong():
        """Adds.

        >>> 1 + 1
        3
        """

    module = importlib.import_module(__name__)
    assert find_examples(bare, module) == []
    with pytest.raises(AssertionError, match=r"Got:\s+2"):
        run(find_examples(wrong, module))
