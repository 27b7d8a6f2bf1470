"""The Dockerfile, carried out by scripts/check_dockerfile.sh: as it is, and with faults that the script must find."""

import re
import shutil
from importlib.metadata import version
from textwrap import dedent

import pytest

from tests.centroids_reid.conftest import Environment, closure, fill, read_archive
from tests.launch import run_command
from tests.support import ROOT

pytestmark = pytest.mark.slow

SCRIPT = ROOT / "scripts" / "check_dockerfile.sh"
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
CPU = "https://download.pytorch.org/whl/cpu"
# Of no use to the build, and large or private.
STRAY = (
    ".git/config", ".venv/bin/activate", "data/market1501/query/0001_c1.jpg", "datasets/market1501/0001_c1.jpg",
    "logs/market1501/run.log", "demo_output/model.ckpt", "model.pth", "configs/last.ckpt", "tests/test_imports.py",
    "utils/__pycache__/image.pyc", "mlflow.db", ".env",
)  # fmt: skip


def check(environment, context, *stages):
    """The script's status and what it wrote; without a network."""
    offline = {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": "/dev/null", "PIP_FIND_LINKS": None}
    # Reads as its opposite in a variable: the build takes setuptools from the environment.
    offline["PIP_NO_BUILD_ISOLATION"] = "0"
    return run_command("bash", SCRIPT, environment, context, *stages, cwd=context, env=offline)


def write_program(path, text):
    path.write_text(f"#!/bin/sh\n{dedent(text)}")
    path.chmod(0o755)


@pytest.mark.by_hand
def test_the_image_holds_the_package_and_nothing_else(built, wheel, tmp_path):
    (extras,) = re.findall(r"^ARG EXTRAS=(.+)$", DOCKERFILE, re.MULTILINE)
    names = closure(wheel, tuple(extras.split(",")))
    environment = Environment(tmp_path / "environment", {})
    fill(environment, names | {"pip", "setuptools"})
    write_program(environment.folder / "bin" / "pip", 'exec "$(dirname "$0")/python" -m pip "$@"\n')
    # The versions of make test-floor rule each other out, mlflow's among them, so that pip would not install the extra.
    text = DOCKERFILE.replace(extras, "") if environment.run("pip", "check").returncode else DOCKERFILE

    context, stages = tmp_path / "context", tmp_path / "stages"
    shutil.copytree(built.parent / "clone", context)
    (context / "Dockerfile").write_text(text)
    shutil.copy(ROOT / ".dockerignore", context)
    for name in STRAY:
        (context / name).parent.mkdir(parents=True, exist_ok=True)
        (context / name).touch()
    # The same, unless make test-newest runs the test.
    (context / "constraints.txt").write_text("".join(f"{name}=={version(name)}\n" for name in names))
    done = check(environment.folder, context, stages)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "usage: ctl-train" in done.stdout

    of_build = files(stages / "build" / "src")
    assert "setup.py" in of_build and not of_build.intersection(STRAY)
    assert files(stages / "image") == {"dist/constraints.txt", f"dist/{wheel.name}"}
    assert read_archive(stages / "image" / "dist" / wheel.name) == read_archive(wheel)
    assert (environment.packages / "centroids_reid").is_dir()


def files(folder):
    """The paths of all files below a folder, relative to it."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def stand_in(tmp_path):
    """An environment whose pip notes what it is asked for, and a context of empty files."""
    environment = Environment(tmp_path / "environment", {})
    fill(environment, ())
    pip = """\
        echo "$*" >>"$(dirname "$0")/pip.txt"
        case $1 in
            wheel) mkdir -p "$5" && touch "$5/p-1-py3-none-any.whl" ;;
            install) cp "$0" "$(dirname "$0")/ctl-train" ;;
        esac
    """
    write_program(environment.folder / "bin" / "pip", pip)
    context = tmp_path / "context"
    context.mkdir()
    (context / "Dockerfile").write_text(DOCKERFILE)
    shutil.copy(ROOT / ".dockerignore", context)
    for name in re.findall(r"^!(.*)", (context / ".dockerignore").read_text(), re.MULTILINE):
        (context / name).touch()
    return environment, context


def test_what_pip_is_asked_for(stand_in, tmp_path):
    environment, context = stand_in
    done = check(environment.folder, context, tmp_path / "stages")
    assert done.returncode == 0, done.stdout + done.stderr
    dist = tmp_path / "stages" / "image" / "dist"
    common = f"install --no-cache-dir --constraint {dist}/constraints.txt"
    assert (environment.folder / "bin" / "pip.txt").read_text().splitlines() == [
        f"wheel --no-cache-dir --no-deps --wheel-dir {tmp_path}/stages/build/dist .",
        f"install --no-cache-dir --no-deps --index-url {CPU} --constraint {dist}/constraints.txt torch torchvision",
        f"{common} {dist}/p-1-py3-none-any.whl[train,export]",
        "--help",
    ]
    again = check(environment.folder, context)
    assert again.returncode == 1 and "the package is already there" in again.stderr


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("USER ${USER_ID}", "", "at its end: the image would run as root, since no USER follows the last FROM"),
        ("USER ${USER_ID}", "USER root", "USER root: the image would run as root"),
        ("USER ${USER_ID}", "USER nobody", "USER nobody: no useradd above adds this user"),
        ("--home-dir /workspace", "--home-dir /home/reid", "at its end: the user does not own the WORKDIR"),
        ("COPY constraints.txt", "COPY absent.txt", "COPY absent.txt /dist/: this failed"),
        ("COPY . .", "COPY Dockerfile .", "COPY Dockerfile .: this failed"),
        ("COPY --from=build", "COPY --from=other", "COPY --from=other /dist/ /dist/: this failed"),
        ("RUN pip wheel", "RUN false && \\\n  pip", "--wheel-dir /dist .: this failed"),
        ("COPY . .", "HEALTHCHECK NONE", "HEALTHCHECK NONE: this instruction is not known here"),
        ("COPY . .", "RUN apt-get install libGL1", "libGL1: the package needs neither opencv nor libGL"),
        ("ARG USER_ID=1000", "", "/workspace reid: this failed"),
        ("ARG PYTHON=3.12", "", "FROM python:${PYTHON}-slim AS build: this failed"),
        ("python:${PYTHON}-slim AS", "ubuntu AS", "FROM ubuntu AS build: only python:3.*-slim has a stand-in here"),
        ('"--help"]', '"--help"', 'CMD ["ctl-train", "--help": this failed'),
        ("ctl-train", "ctl-absent", 'CMD ["ctl-absent", "--help"]: this failed'),
    ],
)
def test_a_fault_of_the_dockerfile_is_found(stand_in, old, new, said):
    environment, context = stand_in
    before, _, after = DOCKERFILE.rpartition(old)
    assert after
    (context / "Dockerfile").write_text(before + new + after)
    done = check(environment.folder, context)
    assert done.returncode == 1 and f"{said}\n" in done.stderr, done.stdout + done.stderr
    for number in re.findall(r"^error: Dockerfile, line (\d+)", done.stderr):
        assert (before + new + after).splitlines()[int(number) - 1].strip() in done.stderr


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("*\n", "", ".dockerignore: expected first of all a line with *"),
        ("!utils\n", "!absent\n", ".dockerignore: !absent: this failed"),
        ("!utils\n", "!utils/**/*.py\n", ".dockerignore: !utils/**/*.py: this is not known here"),
    ],
)
def test_a_fault_of_dockerignore_is_found(stand_in, old, new, said):
    environment, context = stand_in
    path = context / ".dockerignore"
    path.write_text(path.read_text().replace(f"\n{old}", f"\n{new}", 1))
    done = check(environment.folder, context)
    assert done.returncode == 1 and said in done.stderr, done.stdout + done.stderr


def test_opencv_is_found(stand_in):
    environment, context = stand_in
    (environment.packages / "cv2.py").touch()
    done = check(environment.folder, context)
    assert done.returncode == 1 and "opencv got installed" in done.stderr, done.stdout + done.stderr
