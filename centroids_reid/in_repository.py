"""In the repository, ``centroids_reid.config`` is a second name of the module ``config``, and so on; not in a wheel.

Programs that are written for the installed package so run beside the sources as well, on the very same modules.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PREFIX = f"{__package__}."
NOT_IMPORTED = {"scripts", "tests"}  # by the other folders


class SecondNames(MetaPathFinder, Loader):
    """Finds and loads ``centroids_reid.NAME`` as the module ``NAME`` of the repository."""

    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        """None for what is in the folder centroids_reid itself, or nowhere in the repository."""
        name = fullname.removeprefix(PREFIX)
        top = ROOT / name.partition(".")[0]
        if name == fullname or not (top.is_dir() or top.with_suffix(".py").is_file()):
            return None
        found = find_spec(name)
        if found is None or found.origin is None:
            return None
        is_package = found.submodule_search_locations is not None
        return ModuleSpec(fullname, self, origin=found.origin, loader_state=found, is_package=is_package)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The module of the shorter name."""
        return import_module(spec.loader_state.name)

    def exec_module(self, module: ModuleType) -> None:
        """The module has run; the import has just changed its spec, which is its own again."""
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state

    def get_code(self, fullname: str) -> CodeType | None:
        """For ``python -m``."""
        found: Any = find_spec(fullname.removeprefix(PREFIX))
        return found.loader.get_code(found.name)


def add_names() -> None:
    """Let this process import the second names.

    Raises:
        ImportError: Python finds another package of one of the first names before that of the repository.
    """
    for room in sorted(path.parent for path in ROOT.glob("*/__init__.py") if path.parent.name not in NOT_IMPORTED):
        found = find_spec(room.name)
        # A folder without __init__.py has no origin.
        place = (found.origin or next(iter(found.submodule_search_locations or ()), None)) if found else None
        if place is None or not Path(place).resolve().is_relative_to(room):
            raise ImportError(
                f"{room} is a part of {__package__}, but Python finds another module {room.name} first: "
                f"{place}. Put {ROOT} first in PYTHONPATH; or install the wheel, whose modules have "
                "no such names, instead of the repository (docs/INSTALL.md)."
            )
    sys.meta_path.insert(0, SecondNames())  # before the finder that would load the same files once more
