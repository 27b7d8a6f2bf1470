"""The built package, and environments that hold it and what pip would install beside it."""

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from scripts.one_package import root_modules
from tests.launch import forbid_modules, run_command
from tests.support import ROOT

# What a fresh clone has, and what only work leaves behind.
OF_THE_CLONE = ("*.py", "*.toml", "*.txt", "*.md", "*.in", "*.js", "*.yml", "LICENSE", "py.typed")
SECONDS = 240


@dataclass
class Environment:
    """A virtual environment, seen by a user whose folder has modules with the names of ours."""

    folder: Path
    crowd: dict[str, str | None]

    @property
    def packages(self) -> Path:
        (found,) = self.folder.glob("lib/python*/site-packages")
        return found

    def run(self, command: str, *arguments: Any, **options: Any) -> subprocess.CompletedProcess[str]:
        """A command of the environment, such as python or ctl-train; in ``cwd``, where it finds the user's modules."""
        options = {"timeout": SECONDS, "cwd": self.folder, **options}
        return run_command(self.folder / "bin" / command, *arguments, **options, env=self.crowd)

    def paste(self, block: str, **options: Any) -> None:
        """Run a block of shell commands of a page."""
        path = {"PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}"}
        done = run_command("bash", "-euc", block, timeout=SECONDS, env=self.crowd | path, **options)
        assert done.returncode == 0, done.stdout + done.stderr

    def expect(self, *command: Any, status: int = 0, **options: Any) -> str:
        """What a command writes, stdout before stderr, once it has ended with a status."""
        done = self.run(*command, **options)
        assert done.returncode == status, done.stdout + done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        return done.stdout + done.stderr


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """The folder with the source distribution, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("built")
    shutil.copytree(ROOT, folder / "clone", ignore=_not_of_the_clone)
    done = run_command(
        sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", cwd=folder / "clone"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "dist"


def _not_of_the_clone(folder, names):
    here = Path(folder)
    wanted = [name for name in names if (here / name).is_dir() or any((Path(name)).match(p) for p in OF_THE_CLONE)]
    if here == ROOT:
        left = {"tests", "docs", "build", "dist", "logs", "demo_output"}
        wanted = [name for name in wanted if name not in left and not name.startswith(".") and "egg-info" not in name]
    return set(names) - set(wanted)


@pytest.fixture(scope="session")
def wheel(built):
    (found,) = built.glob("*.whl")
    return found


@pytest.fixture(scope="session")
def install(wheel, tmp_path_factory):
    """Make an environment with the wheel, some of its extras, and nothing that these do not ask for."""

    def make(*extras: str) -> Environment:
        folder = tmp_path_factory.mktemp("-".join(("environment", *extras)))
        crowd = folder / "crowd"
        crowd.mkdir()
        # Each ends the program that imports it. Packages that ours shares an environment with have such names.
        forbidden = forbid_modules(crowd, *{name.partition(".")[0] for name in root_modules()})
        environment = Environment(folder, {**forbidden, "MLFLOW_TRACKING_URI": None})  # earlier tests may have left one
        # Lightning 2.1 imports setuptools and does not ask for it.
        fill(environment, closure(wheel, extras) | {"setuptools"})
        pip(environment, "install", "--no-deps", "--no-index", wheel)
        return environment

    return make


def fill(environment: Environment, names: Iterable[str]) -> None:
    """Make an environment of distributions that are installed here."""
    done = run_command(sys.executable, "-m", "venv", "--without-pip", environment.folder)
    assert done.returncode == 0, done.stderr
    for name in sorted(names):
        link(name, environment.packages)


def pip(environment: Environment, *arguments: Any) -> None:
    done = run_command(sys.executable, "-m", "pip", "--python", environment.folder, "--quiet", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr


def closure(wheel: Path, extras: tuple[str, ...]) -> set[str]:
    """The distributions that pip would install with the wheel, by what those say that are installed here."""
    found: set[str] = set()
    asked = {("", "")}
    waiting = [(line, ("", *extras)) for line in _requires(wheel)]
    while waiting:
        line, of_extras = waiting.pop()
        requirement = Requirement(line)
        if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in of_extras):
            continue
        for extra in ("", *requirement.extras):
            if (requirement.name, extra) not in asked:
                asked.add((requirement.name, extra))
                try:
                    lines = distribution(requirement.name).requires or ()
                except PackageNotFoundError:
                    continue
                found.add(requirement.name)
                waiting += [(other, ("", extra)) for other in lines]
    return found


def _requires(wheel: Path) -> list[str]:
    (text,) = [content for name, content in read_archive(wheel).items() if name.endswith(".dist-info/METADATA")]
    lines = text.decode().partition("\n\n")[0].splitlines()
    return [line.partition(": ")[2] for line in lines if line.startswith("Requires-Dist: ")]


def read_archive(path: Path) -> dict[str, bytes]:
    """The files of a wheel."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}


def link(name: str, packages: Path) -> None:
    """Put a distribution that is installed here into another environment."""
    found = distribution(name)
    for top in {file.parts[0] for file in found.files or () if file.parts[0] not in ("..", "__pycache__")}:
        target = Path(str(found.locate_file(top)))
        if not (packages / top).exists() and target.suffix != ".pth":
            (packages / top).symlink_to(target)
