"""Writes out ``~`` and ``$VARIABLES`` in the keys that hold paths."""

import os
import re
from contextlib import suppress
from pathlib import Path

from yacs.config import CfgNode

from utils.errors import ConfigError

PATH_KEYS = (
    *("MODEL.PRETRAIN_PATH", "DATASETS.ROOT_DIR", "DATASETS.JSON_TRAIN_PATH", "DATASETS.CSV_PATH"),
    *("DATALOADER.CACHE_DIR", "OUTPUT_DIR", "LOG_DIR"),
)
# MODEL.PRETRAIN_PATH "auto" is the newest checkpoint in OUTPUT_DIR; "auto:FILE" is the same, or FILE if there is none.
AUTO = "auto"

_VARIABLE = re.compile(r"\$(?:(\w+)|\{([^}]*)\})")


def is_auto(path: str) -> bool:
    """Whether a MODEL.PRETRAIN_PATH asks for the newest checkpoint instead of naming a file."""
    return path == AUTO or path.startswith(f"{AUTO}:")


def expand_paths(config: CfgNode) -> None:
    """Write out the paths of a configuration, in place.

    Raises:
        ConfigError: a path names an environment variable that is not set.
    """
    for key in PATH_KEYS:
        section, _, name = key.rpartition(".")
        node = config[section] if section else config
        node[name] = expand_path(node[name] or "", key)  # a program may have set None


def expand_path(path: str, key: str) -> str:
    """A path with ``~`` and ``$VARIABLES`` written out; one that exists as it is written stays as it is.

    Args:
        path: the value of the key; of "auto:FILE", FILE is written out.
        key: what the error names.

    Raises:
        ConfigError: an environment variable is not set.
    """
    prefix, file = (f"{AUTO}:", path[len(AUTO) + 1 :]) if path.startswith(f"{AUTO}:") else ("", path)
    if not (file.startswith("~") or "$" in file) or Path(file).exists():
        return path

    def value_of(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name not in os.environ:
            raise ConfigError(
                f"{key} is {path!r}, but the environment variable {name} is not set: export it, or write the path out."
            )
        return os.environ[name]

    file = _VARIABLE.sub(value_of, file)
    if file.startswith("~"):
        with suppress(RuntimeError):  # there is no such user: errors about the file will show it as it was written
            file = str(Path(file).expanduser())
    return prefix + file
