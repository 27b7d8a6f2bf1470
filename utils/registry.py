"""What the name in a configuration stands for: something of the project, something registered, or module:attribute."""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Generic, TypeVar

from utils.errors import UnknownNameError, UserError

T = TypeVar("T")


class Registry(Generic[T]):
    """The values that a configuration key can name.

    A name is looked up among those registered, then in the table; one with a colon, ``package.module:attribute``, is
    imported. Modules are found as Python finds them, and in the current folder.

    Args:
        key: the configuration key, for messages.
        what: what the key names, for messages, such as "data set".
        table: name -> value, or "module:attribute" of a value that is imported when it is first asked for.
        package: the package that modules in the table are relative to.
        families: prefix -> what finds a name that follows the prefix and a colon.
    """

    def __init__(
        self,
        key: str,
        what: str,
        table: Mapping[str, T | str],
        package: str | None = None,
        families: Mapping[str, Callable[[str], T]] | None = None,
    ) -> None:
        self.key = key
        self.what = what
        self.table = table
        self.package = package
        self.families = families or {}
        self.registered: dict[str, T] = {}

    def register(self, name: str, value: T) -> None:
        """Let ``name`` stand for ``value`` in this process; registering a name again replaces the value.

        Raises:
            UserError: the name belongs to the project, is empty, or holds a character with a meaning of its own.
        """
        if name in self.table or not name or name != name.strip() or set(name) & set("+:"):
            raise UserError(
                f"A {self.what} cannot be registered as {name!r}; expected a name without '+', ':' or outer spaces "
                f"that is none of {', '.join(self.table) or 'those of this project'}."
            )
        self.registered[name] = value

    def find(self, name: str, whole: str = "") -> T:
        """What a name stands for.

        Args:
            name: the name.
            whole: the value of the key, if it joins several names.

        Raises:
            UnknownNameError: no such name (a KeyError and a ValueError); the message lists the valid ones.
            UserError: the module of "module:attribute" cannot be imported, or has no such attribute.
        """
        if name in self.registered:
            return self.registered[name]
        if name in self.table:
            value = self.table[name]
            return _import_attribute(value, self.key, self.package) if isinstance(value, str) else value
        if self.is_in_family(name):
            family, _, rest = name.partition(":")
            return self.families[family](rest)
        if is_import_path(name):
            return _import_attribute(name, self.key, None)
        found = f"{whole!r}, which joins {name!r}" if whole not in ("", name) else repr(name)
        valid = [*self.names(), *(f"{family}:<name>" for family in self.families)]
        raise UnknownNameError(
            f"{self.key} is {found}; valid names: {', '.join(valid) or 'none so far'}; or package.module:name "
            f"for a {self.what} of your own."
        )

    def names(self) -> list[str]:
        """The names of the project, then the registered ones."""
        return [*self.table, *self.registered]

    def is_code_elsewhere(self, name: str) -> bool:
        """Whether finding this name imports a module that the project does not know."""
        ours = name in self.registered or name in self.table or self.is_in_family(name)
        return not ours and is_import_path(name)

    def is_in_family(self, name: str) -> bool:
        """Whether a name begins with the prefix of a family."""
        prefix, colon, _ = name.partition(":")
        return bool(colon) and prefix in self.families


def is_import_path(name: str) -> bool:
    """Whether a name is of the form package.module:attribute."""
    module, colon, attribute = name.partition(":")
    return bool(colon) and attribute.isidentifier() and all(part.isidentifier() for part in module.split("."))


def _import_hint(error: ImportError, module: str, here: str) -> str:
    """What to make of a module that cannot be imported: it is nowhere, or what it imports is."""
    missing, ours = error.name or "", __name__.rpartition(".utils.")[0]
    if not isinstance(error, ModuleNotFoundError) or not missing:
        return "It is there, but fails when it is imported."
    if f"{module}.".startswith(f"{missing}."):
        return f"It is looked for in PYTHONPATH, among the installed packages and in the current folder {here}."
    if ours and find_spec(f"{ours}.{missing.partition('.')[0]}"):
        return f"It imports {missing}, which is {ours}.{missing} in the installed package."
    return f"It is there, but what it imports is not: {missing}."


def _import_attribute(path: str, key: str, package: str | None) -> Any:
    module, _, attribute = path.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:  # a script finds its own folder, but not the one that the user is in
        sys.path.append(here)
    try:
        found = import_module(module, package)
    except ImportError as error:
        hint = _import_hint(error, module, here)
        raise UserError(f"{key} is {path!r}, but the module {module} cannot be imported ({error}). {hint}") from error
    if not hasattr(found, attribute):
        raise UserError(f"{key} is {path!r}, but {found.__file__ or module} defines no {attribute}.")
    return getattr(found, attribute)
