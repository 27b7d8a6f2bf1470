"""The stack machine: the same values as Python's for honest pickles, nothing but an error for the others."""

import io
import pickle
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.utils.pickle_files import call, global_op, value_op
from utils.safe_pickle import CONTAINER_MAKERS, Machine, UnreadableError, plain

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=20,
)


def run(data: bytes, machine: Machine | None = None) -> Any:
    return (machine or Machine(CONTAINER_MAKERS)).run(io.BytesIO(data))


# Protocols 0 to 2 write bytes as a call of _codecs.encode, which only the reader of torch files knows.
@settings(deadline=None, max_examples=60)
@given(VALUES, st.sampled_from([3, 4, 5]))
def test_reads_what_pickle_writes(value: Any, protocol: int) -> None:
    assert run(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
def test_shared_lists_stay_shared_and_sets_are_sets(protocol: int) -> None:
    shared = [1, 2]
    value = {"a": shared, "b": (shared, shared), "c": {1, 2}, "d": 1 << 70, "e": "ä\n"}
    result = run(pickle.dumps(value, protocol) if protocol != 0 else pickle.dumps({**value, "c": {1, 2}}, 0))
    assert result == value
    assert result["a"] is result["b"][0] is result["b"][1]


def test_stops_behind_the_pickle() -> None:
    stream = io.BytesIO(pickle.dumps([1], 2) + pickle.dumps("second", 2) + b"rest")
    assert [Machine().run(stream), Machine().run(stream), stream.read()] == [[1], "second", b"rest"]


def test_text_of_python_2() -> None:
    assert run(b"\x80\x02}U\x05conv1K\x01s.") == {"conv1": 1}


REFUSED = {
    "calls a list": b"\x80\x02](tR.",
    "calls a result": call("collections.OrderedDict")[:-1] + b")R.",
    "calls by name with a list": b"\x80\x02" + global_op("collections.OrderedDict") + b"]R.",
    "state of a class": b"\x80\x02" + global_op("collections.OrderedDict") + value_op({"fromkeys": 1}) + b"b.",
    "state of a list": b"\x80\x02]" + value_op({"append": 1}) + b"b.",
    "entries of a list": b"\x80\x02]K\x01K\x02s.",
    "entries of a class": b"\x80\x02" + global_op("collections.OrderedDict") + b"K\x01K\x02s.",
    "items of a dict": b"\x80\x02}K\x01a.",
    "table keyed by a list": b"\x80\x02}]K\x01s.",
    "table keyed by nested tuples": b"\x80\x02})" + b"\x85" * 100_000 + b"K\x01s.",
    "set of nested tuples": call("builtins.set", [((1,),)]),
    "keyword arguments": b"\x80\x04" + global_op("collections.OrderedDict") + b")}K\x01K\x02s\x92.",
    "name that is a number": b"\x80\x04K\x01K\x02\x93.",
    "INST": b"(icollections\nOrderedDict\n.",
    "OBJ": b"(" + global_op("collections.OrderedDict") + b"o.",
    "extension registry": b"\x80\x02\x82\x01.",
    "persistent id": b"K\x01Q.",
    "text persistent id": b"Pabc\n.",
    "itself": b"\x80\x02]q\x00h\x00a.",
    "itself in a tuple": b"\x80\x02]q\x00h\x00\x85a.",
    "deep nesting": b"\x80\x02" + b"]" * 5000 + b"a" * 4999 + b".",
    "empty stack": b"\x80\x02.",
    "missing mark": b"\x80\x02u.",
    "missing values": b"\x80\x02K\x01\x86.",
    "unknown memo": b"\x80\x02h\x07.",
    "no end": b"\x80\x02K\x01",
    "unknown opcode": b"\xff\xff",
    "empty": b"",
}


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED)
def test_refuses_what_is_malformed_or_reaches_beyond_data(data: bytes) -> None:
    with pytest.raises(UnreadableError):
        run(data)


@pytest.mark.parametrize("path", ["os.system", "builtins.eval", "sys.modules", "collections.OrderedDict.fromkeys"])
@pytest.mark.parametrize("form", ["global", "stack_global", "call", "inst"])
def test_a_name_outside_the_list_is_refused_by_name(path: str, form: str) -> None:
    module, name = path.rsplit(".", 1)
    data = {
        "global": b"\x80\x02" + global_op(path) + b".",
        "stack_global": b"\x80\x04" + value_op(module) + value_op(name) + b"\x93.",
        "call": call(path, "x"),
        "inst": b"(i" + module.encode() + b"\n" + name.encode() + b"\n.",
    }[form]
    with pytest.raises(UnreadableError, match=rf"asks for {path}, which is not among the classes"):
        run(data)


def test_names_of_python_2_are_known() -> None:
    assert run(call("__builtin__.set", [1, 2])) == {1, 2}


def test_an_opaque_name_is_text_and_cannot_be_called() -> None:
    machine = Machine(opaque=lambda path: path == "callbacks.Saver")
    assert run(b"\x80\x02}" + global_op("callbacks.Saver") + b"K\x01s.", machine) == {"callbacks.Saver": 1}
    with pytest.raises(UnreadableError, match=r"calls callbacks\.Saver"):
        run(call("callbacks.Saver", 1), machine)


def test_attributes_of_dictionaries_are_dropped() -> None:
    data = b"\x80\x02" + global_op("collections.OrderedDict") + b")R" + value_op({"__class__": 1, "update": 2}) + b"b."
    result = run(data)
    assert result == {} and type(result) is dict and callable(result.update)


def test_damaged_bytes_give_a_value_or_the_error_and_nothing_else() -> None:
    honest = pickle.dumps({"a": [1.5, (2, "x")], "b": {3, 4}, "c": {"d": None, 7: b"bytes"}}, 4)
    draw = random.Random(0)
    refused = 0
    for _ in range(2000):
        damaged = bytearray(honest)
        for _ in range(draw.randint(1, 4)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        try:
            run(bytes(damaged[: draw.randint(1, len(damaged))]))
        except UnreadableError:
            refused += 1
    assert refused > 1000


def test_what_is_shared_is_converted_once() -> None:
    layers: list[Any] = [0]
    for _ in range(60):  # 2**60 leaves, if each reference were followed
        layers = [layers, layers]
    assert plain(layers, lambda leaf, where: leaf)[0] is not None
