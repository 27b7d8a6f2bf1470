"""Names in a configuration: the project's, registered ones, and module:attribute."""

import sys

import pytest

from utils.errors import UnknownNameError, UserError
from utils.registry import Registry, is_import_path


@pytest.fixture
def registry():
    return Registry("MODEL.NAME", "network", {"ours": 1, "late": "math:pi"})


def test_names_of_the_table_are_values_or_places(registry):
    assert (registry.find("ours"), registry.find("late")) == (1, pytest.approx(3.14159, abs=1e-5))


def test_registered_names_come_after_those_of_the_table(registry):
    registry.register("mine", 2)
    registry.register("mine", 3)
    assert registry.find("mine") == 3
    assert registry.names() == ["ours", "late", "mine"]


def test_a_module_of_the_current_folder_is_found(registry, tmp_path, monkeypatch):
    (tmp_path / "my_nets_of_this_test").mkdir()
    (tmp_path / "my_nets_of_this_test" / "small.py").write_text("tiny = 'tiny'\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    assert registry.find("my_nets_of_this_test.small:tiny") == "tiny"
    with pytest.raises(UserError, match=r"MODEL.NAME is 'my_nets.*:huge', but .*small.py defines no huge"):
        registry.find("my_nets_of_this_test.small:huge")


def test_a_module_that_cannot_be_imported_is_named_with_the_places(registry, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match=rf"module nowhere.nets cannot be imported .*\. It is looked for .*current folder {tmp_path}\.$"
    ):
        registry.find("nowhere.nets:tiny")


def test_a_module_that_is_there_but_lacks_another_is_told_apart(registry, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "half_there.py").write_text("import nowhere_at_all.part")
    with pytest.raises(UserError, match=r"\. It is there, but what it imports is not: nowhere_at_all\.$"):
        registry.find("half_there:tiny")
    for name, text in {"of_no_name": "raise ImportError('no driver')", "lacks_one": "from json import nothing"}.items():
        (tmp_path / f"{name}.py").write_text(text)
        with pytest.raises(UserError, match=r"\. It is there, but fails when it is imported\.$"):
            registry.find(f"{name}:tiny")


def test_an_unknown_name_lists_the_others(registry):
    registry.register("mine", 2)
    with pytest.raises(UnknownNameError, match=r"MODEL.NAME is 'your'; valid names: ours, late, mine; or package.mod"):
        registry.find("your")


@pytest.mark.parametrize("name", ["ours", "", " mine", "a+b", "a:b"])
def test_names_that_could_not_be_found_are_refused(registry, name):
    with pytest.raises(UserError, match="network cannot be registered as"):
        registry.register(name, 2)
    assert registry.registered == {}


def test_only_paths_that_nobody_registered_are_code_elsewhere(registry):
    assert registry.is_code_elsewhere("os:system")
    assert not registry.is_code_elsewhere("late")
    assert not registry.is_code_elsewhere("mine")


@pytest.mark.parametrize(
    ("name", "is_path"),
    [("a:b", True), ("a.b.c:D", True), ("a", False), (":b", False), ("a:", False), ("a b:c", False), ("a:b:c", False)],
)
def test_import_paths(name, is_path):
    assert is_import_path(name) is is_path
