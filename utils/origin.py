"""Where numbers come from: versions and the command line."""

import platform
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import parent_process
from typing import Any

from utils.addresses import without_passwords

# Packages whose versions can change a number.
PACKAGES = ("torch", "torchvision", "pytorch-lightning", "numpy", "pillow")


def versions() -> dict[str, str | None]:
    """The versions of this project, Python and PACKAGES; None for what is not installed as a package.

    A program that runs beside the source, without an installation, has no version of the project.
    """
    return {
        **{name: _version(name) for name in ("centroids-reid", *PACKAGES)},
        "python": platform.python_version(),
    }


def _version(name: str) -> str | None:
    # A module that is loaded says more: torch 2.8.0+cu130, where its package is of version 2.8.0.
    loaded = getattr(sys.modules.get(name.replace("-", "_")), "__version__", None)
    try:
        return str(loaded) if loaded else version(name)
    except PackageNotFoundError:
        return None


def command_line() -> str:
    """The command that started the program, as a shell takes it; without the passwords of addresses."""
    # The command line of a process that multiprocessing started says nothing; Python hands it the program's arguments.
    command = [sys.executable, *sys.argv] if parent_process() else sys.orig_argv
    return shlex.join(map(without_passwords, command))


def origin() -> dict[str, Any]:
    """What every metrics.json says of its origin."""
    return {"versions": versions(), "command": command_line()}
