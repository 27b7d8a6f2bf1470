"""Copies of checkpoints as plain data: every class that they hold, what is shared, and what has no plain form."""

from collections import Counter, OrderedDict
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning.utilities.parsing import AttributeDict
from yacs.config import CfgNode

from checkpoints.plain import to_plain
from tests.checkpoints.plain_data import assert_plain
from utils.errors import CheckpointError


class Colour(StrEnum):
    RED = "red"


def test_to_plain_makes_every_class_plain() -> None:
    node = CfgNode({"A": CfgNode({"B": (1, 2)}), "C": ["x"]})
    shared = {"w": torch.nn.Parameter(torch.ones(2))}
    plain = to_plain(
        {
            "node": node,
            "attributes": AttributeDict(a=AttributeDict(b=1)),
            "numbers": [np.float64(0.5), np.int64(2), np.bool_(True), np.float32(0.25)],
            "array": np.arange(3),
            "ordered": OrderedDict(b=1, a=2),
            "counter": Counter("aab"),
            "set": {7},
            "path": Path("a") / "b",
            "device": torch.device("cpu"),
            "size": torch.Size([1, 2]),
            "enum": Colour.RED,
            "version": torch.__version__,
            "shared": [shared, shared],
            torch.nn.Linear: None,
        }
    )
    assert_plain(plain)
    assert plain["node"] == {"A": {"B": (1, 2)}, "C": ["x"]}
    assert plain["numbers"] == [0.5, 2, True, 0.25]
    assert plain["array"].tolist() == [0, 1, 2]
    assert (plain["set"], plain["path"], plain["device"], plain["size"]) == ([7], "a/b", "cpu", (1, 2))
    assert (plain["enum"], plain["counter"]) == ("red", {"a": 2, "b": 1})
    assert plain["shared"][0] is plain["shared"][1] and not plain["shared"][0]["w"].requires_grad
    assert "torch.nn.modules.linear.Linear" in plain


@pytest.mark.parametrize("value", [object(), lambda: 0, open], ids=["object", "function", "builtin"])
def test_to_plain_names_what_it_cannot_save_and_where(value: Any) -> None:
    with pytest.raises(CheckpointError, match=r"holds a .* at \['callbacks'\]\[1\]"):
        to_plain({"callbacks": [0, value]})


def test_the_original_stays_as_it_is() -> None:
    inner = [1]
    original = {"list": inner, "tuple": (inner,)}
    plain = to_plain(original)
    plain["list"].append(2)
    array = np.zeros(2)
    copy = to_plain(array)
    array += 1
    assert copy.tolist() == [0, 0]
    assert original == {"list": [1], "tuple": ([1],)}
    assert plain["tuple"][0] is plain["list"]


def test_containers_that_contain_themselves_are_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(CheckpointError, match="nested too deeply or contain themselves"):
        to_plain({"a": endless})


def test_the_top_itself_may_have_no_plain_form() -> None:
    with pytest.raises(CheckpointError, match="holds a builtins.object at its top"):
        to_plain(object())
