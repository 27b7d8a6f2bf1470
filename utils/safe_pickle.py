"""Reads pickles without running anything from them.

A pickle is a program for a small stack machine, and Python's own machine imports and calls whatever the program names.
The machine here imports nothing: a class or function that the file names stays a :class:`Name`, names outside an
allow-list are refused, and what an allowed name *makes* is decided by a table of our own functions. Nothing that Python
would call, nor any object with attributes that the file could set, is ever put on the machine's stack.
"""

import pickletools
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

Maker = Callable[..., Any]


class UnreadableError(ValueError):
    """A file, or a pickle inside one, that is damaged, foreign or refused; the message is a phrase about the file."""


@dataclass(frozen=True, slots=True)
class Name:
    """A class or function that the pickle names, as "module.name". It is never imported."""

    path: str


class Built:
    """Stands for an object on the machine's stack that is not plain data.

    ``value`` is what it becomes in the result; None if it cannot stand there by itself. :meth:`set_state` takes the
    state that a pickle gives to an object after making it.
    """

    value: Any = None

    def set_state(self, state: Any) -> None:
        """Refuse it; for those that have a state to override."""
        raise UnreadableError("holds a pickle that sets the state of something that has none")


# Opcodes that push a fixed value, a fresh container, or the value that is decoded beside them.
_FIXED: Mapping[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_FRESH: Mapping[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set}
_ARGUMENT = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
_IGNORED = {"PROTO", "FRAME"}
# Python 2 named these modules differently.
_RENAMED_MODULES = {"__builtin__": "builtins"}
_MALFORMED = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


class Machine:
    """The stack machine.

    Args:
        makers: "module.name" -> function that is called with the arguments in the file and returns plain data.
        opaque: names that the file may hold but not call, such as the classes that key a table; they become strings.
        load_persistent: turns a persistent id (torch's references to tensor storage) into a value.
    """

    def __init__(
        self,
        makers: Mapping[str, Maker] | None = None,
        opaque: Callable[[str], bool] = lambda path: False,
        load_persistent: Callable[[Any], Any] | None = None,
    ) -> None:
        self._makers = makers or {}
        self._opaque = opaque
        self._load_persistent = load_persistent
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # the stacks under each open mark
        self._memo: dict[int, Any] = {}

    def run(self, stream: BinaryIO) -> Any:
        """Read one pickle and leave the stream behind its last byte.

        Returns:
            Dicts, lists, tuples, sets, numbers, strings, bytes, and whatever the makers returned.

        Raises:
            UnreadableError: the pickle is malformed, or names something outside the allow-list.
        """
        self._stack, self._below, self._memo = [], [], {}
        try:
            for opcode, argument, _ in pickletools.genops(stream):
                if opcode.name == "STOP":
                    return plain(self._stack.pop(), _finished)
                self._step(opcode.name, argument)
        except UnreadableError:
            raise
        except _MALFORMED as error:
            raise UnreadableError(f"holds a damaged pickle ({error})") from error
        raise UnreadableError("holds a pickle without an end")

    def _step(self, name: str, argument: Any) -> None:
        if name in _ARGUMENT:
            self._stack.append(argument)
        elif name in _FIXED:
            self._stack.append(_FIXED[name])
        elif name in _FRESH:
            self._stack.append(_FRESH[name]())
        elif name in {"BINPUT", "LONG_BINPUT", "PUT"}:
            self._memo[argument] = self._stack[-1]
        elif name in {"BINGET", "LONG_BINGET", "GET"}:
            self._stack.append(self._memo[argument])
        elif name not in _IGNORED:
            self._operate(name, argument)

    def _operate(self, name: str, argument: Any) -> None:
        stack = self._stack
        match name:
            case "MARK":
                self._below.append(stack)
                self._stack = []
            case "MEMOIZE":
                self._memo[len(self._memo)] = stack[-1]
            case "POP":
                stack.pop()
            case "POP_MARK":
                self._since_mark()
            case "DUP":
                stack.append(stack[-1])
            case "TUPLE":
                items = self._since_mark()
                self._stack.append(tuple(items))
            case "LIST":
                items = self._since_mark()
                self._stack.append(items)
            case "FROZENSET":
                items = self._since_mark()
                self._stack.append(make_set(items))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                self._stack.append(tuple(self._take(int(name[-1]))))
            case "DICT":
                items = self._since_mark()
                self._stack.append(_set_items({}, items))
            case "APPEND":
                self._extend(self._take(1))
            case "APPENDS" | "ADDITEMS":
                self._extend(self._since_mark())
            case "SETITEM":
                items = self._take(2)
                _set_items(self._stack[-1], items)
            case "SETITEMS":
                items = self._since_mark()
                _set_items(self._stack[-1], items)
            case _:
                self._construct(name, argument)

    def _construct(self, name: str, argument: Any) -> None:
        """The opcodes by which a pickle reaches beyond plain data."""
        match name:
            case "GLOBAL":
                self._stack.append(self._named(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                self._stack.append(self._named(*self._take(2)))
            case "REDUCE" | "NEWOBJ":
                called, arguments = self._take(2)
                self._stack.append(self._make(called, arguments))
            case "NEWOBJ_EX":
                called, arguments, keywords = self._take(3)
                if keywords:
                    raise UnreadableError(
                        "holds a pickle that makes an object with keyword arguments, which is refused"
                    )
                self._stack.append(self._make(called, arguments))
            case "BUILD":
                (state,) = self._take(1)
                _set_state(self._stack[-1], state)
            case "BINPERSID" if self._load_persistent:
                self._stack.append(self._load_persistent(self._stack.pop()))
            case "INST":
                self._named(*argument.split(" ", 1))  # protocol 0; refused below even for an allowed name
                raise UnreadableError("holds a pickle with the operation INST, which is refused")
            case _:
                raise UnreadableError(f"holds a pickle with the operation {name}, which is refused")

    def _named(self, module: Any, name: Any) -> Name:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise UnreadableError("holds a pickle that names a class by something other than text")
        path = f"{_RENAMED_MODULES.get(module, module)}.{name}"
        if path not in self._makers and not self._opaque(path):
            raise UnreadableError(
                f"asks for {path}, which is not among the classes that a checkpoint may hold; nothing of it was run"
            )
        return Name(path)

    def _make(self, called: Any, arguments: Any) -> Any:
        if not (isinstance(called, Name) and isinstance(arguments, tuple)):
            raise UnreadableError("holds a pickle that calls something other than a named class")
        if called.path not in self._makers:
            raise UnreadableError(f"calls {called.path}, which a checkpoint may only mention; nothing of it was run")
        return self._makers[called.path](*arguments)

    def _extend(self, items: list[Any]) -> None:
        container = self._stack[-1]
        if type(container) is set:
            container.update(make_set(items))
        elif type(container) is list:
            container.extend(items)
        else:
            raise UnreadableError("holds a damaged pickle (items appended to something other than a list)")

    def _take(self, count: int) -> list[Any]:
        taken = self._stack[-count:]
        if len(taken) < count:
            raise UnreadableError("holds a damaged pickle (values missing)")
        del self._stack[-count:]
        return taken

    def _since_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._below.pop()
        return items


def make_dict(items: Any = ()) -> dict[Any, Any]:
    """What any class of dictionary becomes; ``items`` are a dictionary or [key, value] pairs."""
    pairs = items.items() if isinstance(items, dict) else items
    return _set_items({}, [part for key, value in pairs for part in (key, value)])


def make_set(items: Any = ()) -> set[Any]:
    """What any class of set becomes."""
    return {_checked_key(item) for item in items}


CONTAINER_MAKERS: dict[str, Maker] = {
    "builtins.set": make_set,
    "builtins.frozenset": make_set,
    "collections.OrderedDict": make_dict,
    "collections.Counter": make_dict,
}


def _set_items(target: Any, items: list[Any]) -> dict[Any, Any]:
    if type(target) is not dict or len(items) % 2:
        raise UnreadableError("holds a damaged pickle (entries set on something other than a dictionary)")
    target.update((_checked_key(key), value) for key, value in zip(items[::2], items[1::2], strict=True))
    return target


def _checked_key(key: Any) -> Any:
    # Hashing is native code that a deeply nested tuple could exhaust, so only flat keys are let through.
    for part in key if isinstance(key, tuple) else () if isinstance(key, Name) else (key,):
        if not isinstance(part, str | int | float | bytes | None):
            raise UnreadableError(f"holds a table keyed by {type(part).__name__}")
    return key


def _set_state(target: Any, state: Any) -> None:
    if isinstance(target, Built):
        target.set_state(state)
    elif type(target) is not dict:
        raise UnreadableError("holds a pickle that sets the state of something that has none")
    # A dict's state is the attributes of its former class (yacs' immutable flag, a state dict's version numbers).


def _finished(value: Any, where: str) -> Any:
    """What a leaf on the machine's stack becomes in the result."""
    if isinstance(value, Name):
        return value.path
    if not isinstance(value, Built):
        return value
    if value.value is None:
        raise UnreadableError(f"holds an object without data at {where or 'the top'}")
    return value.value


def plain(value: Any, leaf: Callable[[Any, str], Any], sets_as: Callable[[Any], Any] = set) -> Any:
    """Copy nested containers as plain dict, list, tuple and set; what is shared in the input is shared in the copy.

    Args:
        value: dicts, lists, tuples and sets (and their subclasses), nested in any way.
        leaf: called with everything else and its position ("['callbacks'][0]"); returns what takes its place.
        sets_as: what a set, frozen or not, becomes.

    Raises:
        UnreadableError: a container that contains itself, or nesting of hundreds of levels.
    """
    copies: dict[int, Any] = {}
    under_way: set[int] = set()

    def each(items: Collection[Any], where: str) -> list[Any]:
        return [copy(item, f"{where}[{i}]") for i, item in enumerate(items)]

    def copy(item: Any, where: str) -> Any:
        if not isinstance(item, dict | list | tuple | set | frozenset):
            return leaf(item, where)
        if id(item) in under_way:
            raise UnreadableError(f"holds a container that contains itself at {where or 'the top'}")
        if id(item) not in copies:
            under_way.add(id(item))
            if isinstance(item, dict):
                result: Any = {copy(k, where): copy(v, f"{where}[{k!r}]") for k, v in item.items()}
            else:
                kind = list if isinstance(item, list) else tuple if isinstance(item, tuple) else sets_as
                result = kind(each(item, where))
            copies[id(item)] = result
            under_way.discard(id(item))
        return copies[id(item)]

    try:
        return copy(value, "")
    except RecursionError:
        raise UnreadableError("holds containers nested too deeply") from None
