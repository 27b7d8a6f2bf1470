"""Who set a value: the command line, a configuration file, a program, or nobody.

:func:`config.load.load_config` notes it in the tree that it returns; copies and pickles of the tree keep the notes. A
value that a program merged or assigned counts as set if it is not the default.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from yacs.config import CfgNode

from config import DEFAULT_VALUES
from config.flatten import flatten_config
from utils.errors import MissingPathError

FILE, COMMAND_LINE = 1, 2
_NOTES = "_origins"  # in the __dict__ of the tree, beside yacs's own notes


def note_origin(config: CfgNode, key: str, origin: int) -> None:
    """Note that FILE or COMMAND_LINE set a key; the later one counts."""
    config.__dict__.setdefault(_NOTES, {})[key] = origin


def was_set(config: CfgNode, key: str) -> bool:
    """Whether somebody set a key, to its default or to another value."""
    return key in config.__dict__.get(_NOTES, {}) or _differs(config, key)


def strength(config: CfgNode, key: str) -> int:
    """How clearly somebody wants the value of a key.

    Returns:
        2 for a key on the command line; 1 for a value that differs from the default, wherever it comes from; 0 for a
        default, also where a file repeats it, as files that list every key do.
    """
    if config.__dict__.get(_NOTES, {}).get(key) == COMMAND_LINE:
        return 2
    return 1 if _differs(config, key) else 0


def _differs(config: CfgNode, key: str) -> bool:
    # A tree of another program's may lack keys.
    value, default = flatten_config(config).get(key, default := DEFAULT_VALUES.get(key)), default
    return comparable(value) != comparable(default)


def comparable(value: object) -> object:
    """A value of a key in the form in which it is compared: a list and a tuple of the same numbers are equal."""
    return list(value) if isinstance(value, tuple) else value


@contextmanager
def naming_the_default_folder(config: CfgNode) -> Iterator[None]:
    """Add to the error for a folder that is not there that DATASETS.ROOT_DIR is the default, if nobody set it."""
    try:
        yield
    except MissingPathError as error:
        root = config.DATASETS.ROOT_DIR
        if was_set(config, "DATASETS.ROOT_DIR") or root not in str(error):
            raise
        raise type(error)(f"{error} It is {root!r}, the default: nothing sets DATASETS.ROOT_DIR.") from error
