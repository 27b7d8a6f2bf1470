"""Packages that only some features need."""

import importlib.util
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from utils.errors import UserError


def require(module: str, extra: str, purpose: str) -> Any:
    """Import a module of an optional package.

    Args:
        module: dotted name.
        extra: the extra of this project that installs the package.
        purpose: what needs the package; the message starts with it.

    Raises:
        UserError: the module cannot be imported; the message says what needs it and which command installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"{purpose} needs the package {module.partition('.')[0]}, which cannot be imported ({error}): "
            f"{installation(extra)}"
        ) from error


def is_installed(module: str) -> bool:
    """Whether a top-level module can be found; it is not imported."""
    return importlib.util.find_spec(module) is not None


def installation(extra: str) -> str:
    """The command that installs an extra of this project; in a clone that is not installed, from the clone's folder."""
    try:
        version("centroids-reid")
    except PackageNotFoundError:
        return f"pip install -e '{Path(__file__).resolve().parent.parent}[{extra}]'"
    return f"pip install 'centroids-reid[{extra}]'"
