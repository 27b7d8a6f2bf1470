"""How the wheel is built: one package, centroids_reid, with all the others below it.

In the repository the packages are at the root and import each other by their own names, as programs of the original
do. Installed like that, they would clash with other packages called ``datasets`` or ``utils``. So the build writes
``from centroids_reid.config import cfg`` where a source says ``from config import cfg``, and does likewise with the
names of modules and commands in texts. It changes nothing else, and checks that.

Used by setup.py; imports nothing but setuptools.
"""

import ast
import re
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from setuptools import find_packages
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel

from centroids_reid.commands import PROGRAMS

PACKAGE = "centroids_reid"
PREFIX = f"{PACKAGE}."
ROOT = Path(__file__).resolve().parent.parent
# The packages of the root, and beside them modules, and a folder without modules. A clone may hold more, of its
# user's own, which stays out.
PACKAGES = (
    *("callbacks", "checkpoints", "config", "datasets", "engine", "evaluation", "inference", "losses", "modelling"),
    *("scripts", "solver", "utils"),
)
MODULES = ("train_base_model", "train_ctl_model")
CONFIGS = "configs"
# For the work on the repository.
LEFT_OUT = {"in_repository", "api_page", "demo", "mutants", "mutate", "one_package"}

_COMMAND = re.compile(r"(?<![\w/])(?:(?:python3? )?(?P<file>(?:\w+/)*\w+)\.py|python3? -m (?P<module>\w+(?:\.\w+)*))\b")


def root_packages() -> list[str]:
    """The packages of the repository, by the names that they have there."""
    return find_packages(str(ROOT), include=[f"{name}{below}" for name in (PACKAGE, *PACKAGES) for below in ("", ".*")])


def package_folders() -> dict[str, str]:
    """The packages of the wheel, and the folder of each."""
    folders = {PACKAGE: PACKAGE, PREFIX + CONFIGS: CONFIGS}
    folders |= {PREFIX + name: name.replace(".", "/") for name in root_packages() if name != PACKAGE}
    return folders


def root_modules() -> set[str]:
    """The names of all modules that get a new one."""
    packages = set(root_packages()) - {PACKAGE}
    folders = {package: ROOT / package.replace(".", "/") for package in packages}
    return packages.union(MODULES, (f"{name}.{file.stem}" for name in folders for file in folders[name].glob("*.py")))


class BuildPackage(build_py):
    """Copies the modules into the package and rewrites them."""

    def run(self) -> None:
        """Build into a folder without files of former builds."""
        if not self.editable_mode:
            shutil.rmtree(Path(self.build_lib) / PACKAGE, ignore_errors=True)
        super().run()

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        """The modules of a folder; those of the root belong to the package itself."""
        found = super().find_package_modules(package, package_dir)
        if self.editable_mode:
            return found
        if package == PACKAGE:
            found += [(package, name, f"{name}.py") for name in MODULES]
        return [module for module in found if module[1] not in LEFT_OUT and module[1].isidentifier()]

    def build_module(self, module: str, module_file: str, package: str) -> object:
        """Copy a module, rewritten."""
        copied = super().build_module(module, module_file, package)
        file = Path(self.get_module_outfile(self.build_lib, package.split("."), module))
        text = rewrite(file.read_text(encoding="utf-8"), root_modules(), module_file)
        file.write_text(text, encoding="utf-8", newline="\n")
        return copied


class InstallEditable(editable_wheel):
    """``pip install -e .``: the packages under the names that they have in the repository."""

    def finalize_options(self) -> None:
        """Leave the new names to the repository's own means."""
        self.distribution.packages, self.distribution.py_modules = root_packages(), list(MODULES)
        self.distribution.package_dir, self.distribution.package_data = {}, {}
        super().finalize_options()


def rewrite(source: str, modules: Collection[str], file: str = "a module") -> str:
    """A module's source for its place in the package.

    Args:
        source: of a module in the repository.
        modules: the names of all modules that get the prefix.
        file: what errors name.

    Raises:
        ValueError: an import that cannot be rewritten, or a text that cannot be told from code.
    """
    tree = ast.parse(source, file)
    lines = source.encode().splitlines(keepends=True)
    for line, column in sorted(_places(tree, lines, modules, file), reverse=True):
        lines[line - 1] = lines[line - 1][:column] + PREFIX.encode() + lines[line - 1][column:]
    text = _COMMAND.sub(lambda match: _command(match, modules), b"".join(lines).decode())
    dotted = "|".join(re.escape(name) for name in modules if "." in name)
    text = re.sub(rf"(?<![\w./])(?=(?:{dotted})\b)", PREFIX, text)
    if _without_names(ast.parse(text)) != _without_names(tree):
        raise ValueError(f"{file}: a variable with an attribute reads like the name of a module; rename the variable.")
    return text


def _places(tree: ast.AST, lines: list[bytes], modules: Collection[str], file: str) -> Iterator[tuple[int, int]]:
    """Line and column where imports of other modules lack the prefix."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not node.level and node.module and _is_ours(node.module, modules):
            column = node.col_offset + len(b"from ")
            if not lines[node.lineno - 1][column:].startswith(node.module.encode()):
                raise ValueError(f"{file}, line {node.lineno}: expected 'from {node.module}' with one space.")
            yield node.lineno, column
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if _is_ours(alias.name, modules):
                    if alias.asname is None:
                        raise ValueError(f"{file}, line {node.lineno}: expected 'import {alias.name} as ...'.")
                    yield alias.lineno, alias.col_offset
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            name = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else ""
            if name in PACKAGES:  # below these, names in texts get the prefix
                raise ValueError(f"{file}, line {node.lineno}: expected 'import {name} as ...'.")


def _is_ours(name: str, modules: Collection[str]) -> bool:
    return name.partition(".")[0] in modules


def _command(match: re.Match[str], modules: Collection[str]) -> str:
    """How a program of the repository is called once it is installed; that of a room may be named by its file alone."""
    module = match["module"] or match["file"].replace("/", ".")
    for command, program in PROGRAMS.items():
        if program in (f".{module}", "" if match["module"] else f".inference.{module}"):
            return command
    is_run = match[0].startswith("python")
    return f"python -m {PREFIX}{module}" if is_run and module in modules else match[0]


def _without_names(tree: ast.AST) -> str:
    """A module's code without what may change: its texts, and the prefix in its imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node.value = ""
        elif isinstance(node, ast.ImportFrom):
            node.module = node.module and node.module.removeprefix(PREFIX)
        elif isinstance(node, ast.alias):
            node.name = node.name.removeprefix(PREFIX)
    return ast.dump(tree)
