"""Data sets of the user's own, found by a name that is registered."""

import pytest

from datasets import init_dataset, register_dataset
from datasets.bases import ReidDataModule, Splits
from datasets.market1501 import Market1501
from datasets.registry import REGISTRY
from utils.errors import UnknownNameError, UserError


class Mine(ReidDataModule):
    def read_splits(self) -> Splits:
        images = [(f"{number}.jpg", number // 2, number % 2) for number in range(4)]
        return Splits(images, images[:2], images[2:])


@pytest.fixture(autouse=True)
def _only_here(monkeypatch):
    monkeypatch.setattr(REGISTRY, "registered", {})


def test_a_registered_name_gives_its_class_with_the_arguments():
    register_dataset("mine", Mine)
    data = init_dataset("mine", num_workers=0, seed=5)
    assert (type(data), data.num_workers, data.seed) == (Mine, 0, 5)
    data.setup()
    assert (data.num_classes, data.num_query, len(data.gallery_list)) == (2, 2, 2)


def test_registering_again_replaces_the_class():
    register_dataset("mine", Market1501)
    register_dataset("mine", Mine)
    assert type(init_dataset("mine")) is Mine


def test_it_may_be_joined_with_others():
    register_dataset("mine", Mine)
    assert [type(part) for part in init_dataset("mine+market1501").parts] == [Mine, Market1501]


def test_the_message_about_an_unknown_name_lists_it():
    register_dataset("mine", Mine)
    with pytest.raises(UnknownNameError, match=r"'your'; valid names: market1501, .*, mine; or package"):
        init_dataset("your")


@pytest.mark.parametrize("name", ["market1501", "", "a+b", "a:b", " mine"])
def test_names_that_would_not_be_found_are_refused(name):
    with pytest.raises(UserError, match="cannot be registered as"):
        register_dataset(name, Mine)
    assert REGISTRY.registered == {}


@pytest.mark.parametrize(("kind", "what"), [(3, "a int"), (Splits, "Splits"), (int, "int"), ([Mine], "a list")])
def test_what_is_no_data_module_is_told(kind, what, monkeypatch):
    register_dataset("x", kind)
    monkeypatch.setattr(f"{__name__}.KIND", kind, raising=False)
    for name in ("x", f"{__name__}:KIND"):
        with pytest.raises(
            UserError, match=rf"DATASETS.NAMES {name} is {what}; expected a subclass of .*ReidDataModule"
        ):
            init_dataset(name)


def test_a_function_may_make_the_data_module():
    register_dataset("x", lambda **arguments: Mine(**arguments))
    assert init_dataset("x", num_workers=0, seed=5).seed == 5
