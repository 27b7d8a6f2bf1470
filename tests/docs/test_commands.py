"""The shell blocks of the pages: all of a page in order, in a copy of the repository, as a reader would paste them.

A block that cannot run here has ``<!-- not run: reason -->`` on the line before its fence. A block of any language with
``<!-- save as: FILE -->`` there is a file of the reader's, saved when its turn comes. For all shell blocks ``/data`` is
a folder with a drawn data set (market1501/, queries/, gallery/); model.ckpt, q.npz and g.npz lie where the commands
run; and the programs of stand_in.py make trainings and data sets small, whatever the page says. A checkpoint named for
its epoch, such as epoch=119.ckpt, is the newest one that an earlier block of the page has written in that folder.
"""

import ast
import os
import re
import shutil
import socket
import subprocess
import sys
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np
import pytest

from config.load import load_config
from tests.docs import stand_in
from tests.launch import warm_python
from tests.support import ROOT

PAGES = [path for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md") if path.exists()] + sorted(
    ROOT.glob("docs/*.md")
)
PROGRAMS = ("python", "python3", "torchrun", "make", "git", "pytest", *stand_in.ANSWERED)
NOT_RUN = re.compile(r"<!-- not run: (?P<reason>.*\S) *-->")
SAVE_AS = re.compile(r"<!-- save as: (?P<file>\S+) -->")
# What a copy leaves out: what runs have written here, environments, and the recorded numbers of the suite.
LEFT_OUT = shutil.ignore_patterns(
    ".*",
    "golden",
    "data",
    "logs",
    "outputs",
    "models",
    "demo_output",
    "mlruns",
    "build",
    "dist",
    "*.egg-info",
    "*.ckpt",
)
SECONDS = 240


class Block(NamedTuple):
    """A fenced block of a page."""

    line: int  # of its fence
    language: str
    text: str
    not_run: str  # the reason, or ""
    save_as: str = ""  # the name of the file that it is, or ""


def read_blocks(page):
    """The fenced blocks of a page's text, in order."""
    blocks, lines, start = [], page.splitlines(), None
    for number, line in enumerate(lines):
        if not line.lstrip().startswith("```"):
            continue
        if start is None:
            start = number
            continue
        mark = lines[start - 1].strip() if start else ""
        reason, file = NOT_RUN.fullmatch(mark), SAVE_AS.fullmatch(mark)
        body = "\n".join(lines[start + 1 : number]) + "\n"
        marks = (reason["reason"] if reason else "", file["file"] if file else "")
        blocks.append(Block(start + 1, lines[start].strip().strip("`"), body, *marks))
        start = None
    assert start is None, f"the block of line {start} has no end"
    return blocks


BLOCKS = {path.relative_to(ROOT).as_posix(): read_blocks(path.read_text(encoding="utf-8")) for path in PAGES}


class Reader:
    """Runs the shell blocks of a page in one folder, one after the other.

    Args:
        folder: for the copy of the repository and the programs.
        data: what stands for /data.
    """

    def __init__(self, folder, data):
        self.clone, self.data = folder / "clone", data
        self.log = folder / "commands.log"
        shutil.copytree(ROOT, self.clone, ignore=LEFT_OUT)
        programs = folder / "bin"
        programs.mkdir()
        for name in PROGRAMS:
            program = programs / name
            program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{stand_in.__file__}" {name} "$@"\n')
            program.chmod(0o755)
        self.environment = {
            "PATH": f"{programs}:{os.defpath}",
            "HOME": str(folder),
            "PYTHONPATH": str(self.clone),  # as after `pip install -e .`
            "COMMANDS_LOG": str(self.log),
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
            "WARM_PYTHON": warm_python(),
        }

    def run(self, block):
        """Run a block to its end; returns what it wrote. Every command, also in the background, must end with 0."""
        text = re.sub(r"(?<![\w.])/data\b", str(self.data), block.text).replace("29500", str(free_port()))
        self.log.write_text("")
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text],
            cwd=self.clone, env=self.environment, timeout=SECONDS, check=False,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        statuses = self.log.read_text().splitlines()
        wrong = [line for line in statuses if not line.startswith("0 ")]
        assert (done.returncode, wrong) == (0, []), f"the block of line {block.line}:\n{block.text}\n{done.stdout}"
        return done.stdout


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="session")
def data(market, checkpoint, arrays, tmp_path_factory):
    """What the pages call /data: market1501/, and the folders of images queries/ and gallery/."""
    folder = tmp_path_factory.mktemp("pages") / "data"
    shutil.copytree(market, folder)
    for name, source in (("queries", "query"), ("gallery", "bounding_box_test")):
        (folder / name).symlink_to(folder / "market1501" / source)
    return folder


@pytest.fixture
def reader(tmp_path, data, checkpoint, arrays):
    """A reader who has a trained model, and embeddings from elsewhere, in the folder that they stand in."""
    made = Reader(tmp_path, data)
    (made.clone / "model.ckpt").symlink_to(checkpoint)
    for name, values in zip(("q.npz", "g.npz"), arrays, strict=True):
        np.savez(made.clone / name, **values)
    return made


def pages_with_commands():
    for page, blocks in BLOCKS.items():
        shell = [block for block in blocks if block.language == "sh" and not block.not_run]
        takes_long = any(re.search(r"train_|inference[./]", block.text) for block in shell)
        marks = [pytest.mark.slow] if page == "README.md" else [pytest.mark.by_hand] if takes_long else []
        if shell:
            yield pytest.param(page, id=page, marks=marks)


@pytest.mark.parametrize("page", list(pages_with_commands()))
def test_the_commands_of_a_page_run(page, reader):
    for block in BLOCKS[page]:
        if block.save_as:
            (reader.clone / block.save_as).write_text(block.text, encoding="utf-8")
        elif block.language == "sh" and not block.not_run:
            reader.run(block)


@pytest.mark.parametrize("page", BLOCKS)
def test_every_shell_block_is_run_or_has_a_reason(page):
    """Also under another name of the language, or none, which the test above would pass over."""
    assert {block.language for block in BLOCKS[page]} <= {"sh", "python", "yaml", "bibtex", ""}
    program = re.compile(r"^\s*(\$ )?(python|make|torchrun|pip|git|bash|pytest)\b", re.MULTILINE)
    assert [b.line for b in BLOCKS[page] if not b.language and program.search(b.text)] == []
    comments = len(re.findall(r"^<!-- not run", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE))
    assert comments == sum(bool(block.not_run) for block in BLOCKS[page] if block.language == "sh")


@pytest.mark.parametrize("page", BLOCKS)
def test_yaml_blocks_are_configurations(page, tmp_path):
    for block in BLOCKS[page]:
        if block.language == "yaml":
            (tmp_path / "page.yml").write_text(block.text)
            load_config(tmp_path / "page.yml")


@pytest.mark.parametrize("page", BLOCKS)
def test_what_python_blocks_import_is_there(page):
    for block in BLOCKS[page]:
        if block.language != "python":
            continue
        compile(block.text, f"{page}:{block.line}", "exec")
        for node in ast.walk(ast.parse(block.text)):
            if isinstance(node, ast.Import | ast.ImportFrom):
                statement = ast.unparse(node)
                if "onnxruntime" not in statement or find_spec("onnxruntime") is not None:  # it is optional
                    exec(statement, {})


@pytest.mark.parametrize(
    "text",
    [
        "false",
        "no_such_program",
        "python no_such_file.py",
        "python -m evaluation --query q.npz --gallery missing.npz",
        "python train_ctl_model.py --config_file=configs/no_such.yml",
        "python train_ctl_model.py SOLVER.NO_SUCH_KEY 1",
        "python -m benchmarks.no_such",
        "python benchmarks/bench_evaluation.py --sise market",
        "make no_such_target",
        "pytest tests/no_such_folder",
        "python -c 'raise SystemExit(3)' & wait",
        "test -d /data/no_such_set",
    ],
)
def test_a_command_that_fails_is_noticed(text, reader):
    with pytest.raises(AssertionError, match="the block of line 7"):
        reader.run(Block(7, "sh", text, ""))


def test_a_block_sees_the_drawn_data_and_what_earlier_blocks_have_written(reader):
    reader.run(Block(1, "sh", "ls /data/queries/*.jpg | wc -l > count", ""))
    assert reader.run(Block(2, "sh", "cat count; ls data/toy || true", "")).split()[0] == "12"


def test_blocks_are_found_with_their_reasons():
    page = "a\n```sh\nmake\n```\n<!-- not run: a server -->\n```sh\nserve\n```\n```\n1\n```\n"
    page += "<!-- save as: a.py -->\n```python\npass\n```\n"
    assert [tuple(block) for block in read_blocks(page)] == [
        (2, "sh", "make\n", "", ""),
        (6, "sh", "serve\n", "a server", ""),
        (9, "", "1\n", "", ""),
        (13, "python", "pass\n", "", "a.py"),
    ]


def test_settings_of_the_page_give_way_or_stay():
    command = [
        "train_ctl_model.py",
        "MODEL.NAME",
        "resnet50",
        "SOLVER.MAX_EPOCHS",
        "60",
        "MODEL.RESUME_TRAINING",
        "True",
    ]
    added = stand_in.small_training(command)[len(command) :]
    pairs = dict(zip(added[::2], added[1::2], strict=True))
    assert (pairs["SOLVER.MAX_EPOCHS"], pairs["LOGGING.MLFLOW"]) == ("2", "False")
    assert "MODEL.NAME" not in pairs
    assert "MODEL.BACKBONE_EMB_SIZE" not in pairs


def test_an_epoch_that_a_short_training_does_not_reach_is_its_newest(tmp_path):
    for number in (0, 1):
        (tmp_path / f"epoch={number}.ckpt").touch()
        os.utime(tmp_path / f"epoch={number}.ckpt", (number, number))
    assert stand_in.existing_checkpoint(str(tmp_path / "epoch=119.ckpt")) == str(tmp_path / "epoch=1.ckpt")
    for named in ("epoch=0.ckpt", "other.ckpt", "missing/epoch=119.ckpt"):
        assert stand_in.existing_checkpoint(str(tmp_path / named)) == str(tmp_path / named)
