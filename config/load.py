"""Builds a configuration from the defaults, a YAML file and KEY VALUE pairs, or says what is wrong with them."""

import ast
import difflib
import logging
import os
from collections.abc import Iterator, Sequence
from datetime import date
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode

from config import cfg
from config.flatten import flatten_config
from config.origins import COMMAND_LINE, FILE, note_origin
from config.paths import expand_path, expand_paths
from config.validate import OPTIONAL_NUMBERS, check_config
from utils.errors import ConfigError
from utils.launched import is_launched_first

log = logging.getLogger(__name__)

OWN_CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def load_config(config_file: str | os.PathLike[str] = "", opts: Sequence[Any] = ()) -> CfgNode:
    """Copy the shared ``cfg``, then merge a YAML file and the pairs, in order, into the copy.

    Values are converted to the type of the default where nothing is lost: an integer to a float, a tuple to a list,
    32 to text. In paths, ``~`` and ``$VARIABLES`` are written out.

    Args:
        config_file: a YAML file; "" for none.
        opts: [KEY, VALUE, KEY, VALUE, ...]; values are text as typed on a command line, or Python objects.

    Returns:
        A new, mutable tree, checked by :func:`config.validate.check_config`; :mod:`config.origins` tells which keys
        were set.

    Raises:
        ConfigError: a file that is missing or malformed, an unknown key, a key without a value, a value that does not
            fit its key, an environment variable in a path that is not set.
    """
    config = cfg.clone()
    config.defrost()
    if os.fspath(config_file):
        _merge_yaml(config, find_config_file(os.fspath(config_file)))
    _merge_pairs(config, opts)
    expand_paths(config)
    check_config(config)
    return config


def find_config_file(name: str) -> Path:
    """The file that ``--config_file`` names: one that exists, else one of the project's own configs/.

    Those are found as ``256_resnet50.yml`` and as ``configs/256_resnet50.yml``, in whatever folder a program runs.

    Raises:
        ConfigError: the name has an environment variable that is not set.
    """
    path = Path(expand_path(name, "--config_file"))
    own = OWN_CONFIGS / path.name
    # lexists: a link to a file that is gone is the user's own. Neither call raises for a name that no file can have.
    if os.path.lexists(path) or path not in (Path(own.name), Path(OWN_CONFIGS.name, own.name)):
        return path
    if not os.path.isfile(own):  # noqa: PTH113
        return path
    if is_launched_first():
        log.warning("--config_file %s: taken from %s, since there is no such file in %s.", name, own.parent, Path.cwd())
    return own


def _merge_pairs(config: CfgNode, opts: Sequence[Any]) -> None:
    if len(opts) % 2:
        raise missing_value_error(opts)
    for key, value in zip(opts[0::2], opts[1::2], strict=True):
        _require_leaf(config, str(key), "command line")
        _assign(config, str(key), value, "command line")
        note_origin(config, str(key), COMMAND_LINE)


def missing_value_error(opts: Sequence[Any]) -> ConfigError:
    """The error for an odd number of items; it blames the key that is followed by another key."""
    keys = flatten_config(cfg)
    lacking = (
        key for key, value in zip(opts[0::2], opts[1::2], strict=False) if str(key) in keys and str(value) in keys
    )
    return ConfigError(f"{next(lacking, opts[-1])} has no value (command line); expected pairs: KEY VALUE ...")


def _merge_yaml(config: CfgNode, path: Path) -> None:
    """Merge a file by its YAML nodes rather than its values: nodes know their lines, and the text as written."""
    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8-sig"))
        root = loader.get_single_node()
        if root is None or root.tag == "tag:yaml.org,2002:null":  # an empty file
            return
        if not isinstance(root, yaml.MappingNode):
            raise ConfigError(f"Config file {path} holds no sections; expected lines such as 'MODEL:'.")
        for key, node in _leaves(config, root, loader, path):
            where = f"{path}, line {node.start_mark.line + 1}"
            try:
                value = _yaml_value(config, key, node, loader)
            except ValueError as error:  # such as a date of 31 February
                raise ConfigError(f"{key} is {getattr(node, 'value', '')!r} ({where}): {error}.") from None
            _assign(config, key, value, where)
            note_origin(config, key, FILE)
    except FileNotFoundError:
        own = ", ".join(sorted(file.name for file in OWN_CONFIGS.glob("*.yml")))
        raise ConfigError(
            f"Config file {path} does not exist (looked in {Path.cwd()}); the project's own are {own or 'missing'}."
        ) from None
    except OSError as error:
        raise ConfigError(f"Config file {path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"Config file {path} is not UTF-8 text (byte {error.start}).") from None
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"Config file {path}{line}: not valid YAML: {error.problem}.") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"Config file {path}: not valid YAML: {' '.join(str(error).split())}.") from None


def _leaves(
    config: CfgNode, mapping: yaml.MappingNode, loader: yaml.SafeLoader, path: Path, prefix: str = ""
) -> Iterator[tuple[str, yaml.Node]]:
    """Yield the dotted names and value nodes of a YAML mapping. An empty section is allowed."""
    _refuse_repeated(mapping, path, prefix)
    loader.flatten_mapping(mapping)  # resolves "<<: *anchor"
    for key_node, value_node in mapping.value:
        where = f"{path}, line {key_node.start_mark.line + 1}"
        key = f"{prefix}{key_node.value}"
        if not _is_section(config, key):
            _require_leaf(config, key, where)
            yield key, value_node
        elif isinstance(value_node, yaml.MappingNode):
            yield from _leaves(config, value_node, loader, path, f"{key}.")
        elif value_node.tag != "tag:yaml.org,2002:null":
            raise ConfigError(f"{key} is a section ({where}); expected indented lines of its keys below it.")


def _refuse_repeated(mapping: yaml.MappingNode, path: Path, prefix: str) -> None:
    """YAML would take the last of several values, or of several sections, and drop the others."""
    lines: dict[str, int] = {}
    for key_node, _ in mapping.value:
        name, line = str(key_node.value), key_node.start_mark.line + 1
        if name in lines and name != "<<":
            raise ConfigError(
                f"{prefix}{name} occurs twice ({path}, lines {lines[name]} and {line}); keep one of them."
            )
        lines[name] = line


def _yaml_value(config: CfgNode, key: str, node: yaml.Node, loader: yaml.SafeLoader) -> Any:
    is_text = isinstance(flatten_config(config)[key], str) and isinstance(node, yaml.ScalarNode)
    if is_text and node.tag != "tag:yaml.org,2002:null":
        return node.value  # as written: YAML would turn yes into a boolean and 2024_01 into a number
    return loader.construct_object(node, deep=True)


def _is_section(config: CfgNode, key: str) -> bool:
    node: Any = config
    for part in key.split("."):
        if not isinstance(node, CfgNode) or part not in node:
            return False
        node = node[part]
    return isinstance(node, CfgNode)


def _require_leaf(config: CfgNode, key: str, where: str) -> None:
    keys = list(flatten_config(config))
    if key in keys:
        return
    if _is_section(config, key):
        example = next((k for k in keys if k.startswith(f"{key}.")), key)
        raise ConfigError(f"{key} is a section ({where}); expected one of its keys, such as {example}.")
    hint = " Write KEY VALUE, without '='." if "=" in key else ""
    nearest = nearest_key(key.partition("=")[0], keys)
    raise ConfigError(f"Unknown config key {key!r} ({where}); the nearest valid key is {nearest}.{hint}")


def nearest_key(name: str, keys: Sequence[str]) -> str:
    """The valid key closest to a wrong one: a likely typo first, then the same name in another section."""
    wanted = name.upper()
    same_name = [key for key in keys if key.rpartition(".")[2] == wanted.rpartition(".")[2]]
    typos = difflib.get_close_matches(wanted, keys, n=1, cutoff=0.9)
    return (typos or difflib.get_close_matches(wanted, same_name or keys, n=1, cutoff=0.0))[0]


def _assign(config: CfgNode, key: str, value: Any, where: str) -> None:
    section, _, name = key.rpartition(".")
    node = config
    for part in filter(None, section.split(".")):
        node = node[part]
    like = 0.0 if key in OPTIONAL_NUMBERS else node[name]
    if key in OPTIONAL_NUMBERS and value in (None, "None"):
        node[name] = None
        return
    try:
        node[name] = _convert(value, like)
    except (TypeError, OverflowError):
        or_none = " or None" if key in OPTIONAL_NUMBERS else ""
        raise ConfigError(f"{key} is {value!r} ({where}); expected {_expected(like)}{or_none}.") from None


def _convert(value: Any, like: Any) -> Any:
    """Convert ``value`` to the type of ``like``. Raises TypeError if it does not fit."""
    if like is None:
        return value
    if isinstance(like, str):
        return _to_text(value)
    if isinstance(value, str):
        value = _literal(value)
    if isinstance(like, list | tuple) and isinstance(value, list | tuple):
        return type(like)(_convert(item, like[0]) if like else item for item in value)
    if isinstance(like, bool):
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
    elif isinstance(value, bool):
        pass  # a bool is an int to Python, but never what a numeric key means
    elif isinstance(like, float) and isinstance(value, Real):
        return float(value)
    elif isinstance(like, int) and isinstance(value, Integral):
        return int(value)
    raise TypeError


def _to_text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
        return value[1:-1] if quoted else value
    if isinstance(value, Real | date | os.PathLike) and not isinstance(value, bool):
        return str(value)
    raise TypeError


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def _expected(like: Any) -> str:
    if isinstance(like, list | tuple):
        return f"a list such as {list(like)} (in quotes if it has spaces)"
    return {bool: "True or False", int: "an integer", float: "a number"}.get(type(like), "text")
