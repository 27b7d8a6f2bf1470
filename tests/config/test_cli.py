"""The command line that the scripts share, partly in this process, partly as a script of its own."""

import argparse
import re
import sys
import time
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch

from config import cfg
from config.cli import build_parser, clean_exit, parse_args, whole_number
from config.reference import read_reference
from tests.launch import REPOSITORY_FIRST, run_python
from tests.support import ROOT
from utils.errors import ConfigError

STUB = """
import sys
from config.cli import build_parser, clean_exit, parse_args
from utils.errors import UserError


def main():
    parser = build_parser("Train a model.")
    parser.add_argument("--print_freq", type=int, default=10)
    parser.add_argument("--fail", default="")
    args, config = parse_args(parser)
    heavy = sorted({"torch", "numpy", "pytorch_lightning", "mlflow", "cv2"} & set(sys.modules))
    if args.fail:
        raise {"user": UserError, "bug": RuntimeError, "interrupt": KeyboardInterrupt}[args.fail]("went wrong")
    print(config.MODEL.NAME, config.SOLVER.MAX_EPOCHS, args.print_freq, heavy)


with clean_exit():
    main()
"""


@pytest.fixture
def stub(tmp_path: Path) -> Path:
    path = tmp_path / "train_stub.py"
    path.write_text(STUB)
    return path


def run(stub: Path, *arguments: str) -> CompletedProcess[str]:
    return run_python(stub, *arguments, cwd=stub.parent, env={**REPOSITORY_FIRST, "COLUMNS": "200"}, timeout=60)


def parse(*arguments: str) -> tuple[object, list[str]]:
    parser = build_parser("A script.")
    parser.add_argument("--print_freq", type=int, default=10)
    parser.add_argument("--normalize_features", action="store_true")
    parser.add_argument("--sizes", type=int, nargs=2)
    args, _ = parse_args(parser, list(arguments))
    return args, args.opts


FILE = str(ROOT / "configs" / "256_resnet50.yml")
PAIRS = ["GPU_IDS", "[0]", "SOLVER.MAX_EPOCHS", "7"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--config_file", FILE, *PAIRS],
        [f"--config_file={FILE}", *PAIRS],
        ["--config-file", FILE, *PAIRS],
        [*PAIRS, "--config_file", FILE],
        [*PAIRS, f"--config_file={FILE}"],
        [*PAIRS[:2], "--config_file", FILE, *PAIRS[2:]],
        ["--config_file", FILE, "--", *PAIRS],
    ],
)
def test_the_file_and_pairs_in_any_order(arguments: list[str]) -> None:
    args, config = parse_args(build_parser("A script."), arguments)
    assert (args.config_file, args.opts) == (FILE, PAIRS)
    assert (config.MODEL.PRETRAIN_PATH, config.SOLVER.MAX_EPOCHS) == ("./models/resnet50-19c8e357.pth", 7)


def test_nothing_given_is_the_defaults() -> None:
    args, config = parse_args(build_parser("A script."), [])
    assert (args.config_file, args.opts) == ("", [])
    assert config == cfg
    assert config is not cfg


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("DATALOADER.NUM_WORKERS", "-1"),
        ("DATASETS.ROOT_DIR", "-h2"),
        ("OUTPUT_DIR", "-runs"),
        ("SOLVER.BASE_LR", "1e-4"),
    ],
)
def test_values_may_begin_with_a_dash(key: str, value: str) -> None:
    for arguments in ([key, value, "--print_freq", "3"], ["--print_freq", "3", key, value]):
        args, opts = parse(*arguments)
        assert opts == [key, value]
        assert args.print_freq == 3  # type: ignore[attr-defined]


def test_a_negative_number_in_exponents_reaches_its_key() -> None:
    with pytest.raises(ConfigError, match=r"SOLVER.BASE_LR is -0.0001; expected 0 or more"):
        parse("SOLVER.BASE_LR", "-1e-4")


def test_options_of_a_script_of_any_fixed_length() -> None:
    args, opts = parse("--sizes", "3", "-4", "GPU_IDS", "[]", "--normalize_features", "OUTPUT_DIR", "x")
    assert opts == ["GPU_IDS", "[]", "OUTPUT_DIR", "x"]
    assert (args.sizes, args.normalize_features) == ([3, -4], True)  # type: ignore[attr-defined]


def test_an_option_in_place_of_a_value_names_the_key() -> None:
    with pytest.raises(ConfigError, match="OUTPUT_DIR has no value"):
        parse("GPU_IDS", "[0]", "OUTPUT_DIR", "--config_file", FILE, "MODEL.NAME", "x")
    with pytest.raises(ConfigError, match="OUTPUT_DIR has no value"):
        parse("OUTPUT_DIR", f"--config_file={FILE}")
    with pytest.raises(ConfigError, match="OUTPUT_DIR has no value"):
        parse("OUTPUT_DIR", "-h")


def test_arguments_default_to_those_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", *PAIRS])
    assert parse_args(build_parser("A script."))[1].SOLVER.MAX_EPOCHS == 7


def test_the_stub_runs_without_heavy_imports(stub: Path) -> None:
    result = run(stub, "--config_file", FILE, "SOLVER.MAX_EPOCHS", "3", "--print_freq", "5")
    assert (result.stdout.strip(), result.returncode, result.stderr) == ("resnet50 3 5 []", 0, "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["MODEL.NAM", "x"], ["MODEL.NAM", "MODEL.NAME"]),
        (["MODEL.NAME"], ["MODEL.NAME has no value"]),
        (["SOLVER.MAX_EPOCHS", "many"], ["SOLVER.MAX_EPOCHS", "'many'", "an integer"]),
        (["SOLVER.DIST_BACKEND", "dp"], ["SOLVER.DIST_BACKEND", "ddp"]),
        (["--config_file", "missing.yml"], ["missing.yml", "does not exist"]),
        (["--config_file", "broken.yml"], ["broken.yml", "line 2"]),
        (["--config_file", "unknown.yml"], ["unknown.yml", "line 2", "SOLVER.BASE_LRR", "SOLVER.BASE_LR."]),
        (["--config_file"], ["--config_file", "expected one argument"]),
        (["--confg_file", FILE], ["--confg_file"]),
        (["--config", FILE], ["--config"]),
        (["--print_freq", "often"], ["--print_freq", "'often'"]),
        (["--fail", "user"], ["went wrong"]),
    ],
)
def test_errors_are_one_line_and_status_2(stub: Path, arguments: list[str], words: list[str]) -> None:
    (stub.parent / "broken.yml").write_text("MODEL:\n  NAME: ]\n")
    (stub.parent / "unknown.yml").write_text("SOLVER:\n  BASE_LRR: 1\n")
    result = run(stub, *arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    assert re.fullmatch(r"error: [^\n]+\n", result.stderr)
    for word in words:
        assert word in result.stderr


def test_other_errors_keep_their_traceback(stub: Path) -> None:
    result = run(stub, "--fail", "bug")
    assert result.returncode == 1
    assert "Traceback" in result.stderr
    assert "RuntimeError: went wrong" in result.stderr


def test_an_interrupt_is_status_130_without_traceback(stub: Path) -> None:
    result = run(stub, "--fail", "interrupt")
    assert (result.returncode, result.stderr) == (130, "interrupted\n")


def test_clean_exit_passes_values_and_other_exits_through() -> None:
    with clean_exit():
        done = True
    assert done
    with pytest.raises(SystemExit) as caught, clean_exit():
        sys.exit(5)
    assert caught.value.code == 5
    with pytest.raises(OSError, match="disk"), clean_exit():
        raise OSError("disk")


class OutOfMemoryError(RuntimeError):
    """As torch has it for accelerators."""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "(MemoryError)"),
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore"), "allocate 2.00 GiB)"),
        (RuntimeError("Caught in worker.\nDefaultCPUAllocator: can't"), "(DefaultCPUAllocator: can't)"),
        (lambda: torch.empty(1 << 61, dtype=torch.uint8), "(DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_memory_that_ran_out_is_one_line_with_a_way_out(error, said: str, capsys) -> None:
    with pytest.raises(SystemExit) as caught, clean_exit():
        if isinstance(error, Exception):
            raise error
        error()
    assert caught.value.code == 2
    shown = capsys.readouterr().err
    assert re.fullmatch(r"error: memory ran out \(.*\); smaller images \(INPUT[^\n]+\n", shown)
    assert said in shown


def test_help_shows_usage_every_key_and_examples_in_under_a_second(stub: Path) -> None:
    seconds = []
    for _ in range(3):  # the best of three: the machine may be busy with other things
        start = time.perf_counter()
        result = run(stub, "--help")
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1.0
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("usage: python train_stub.py")
    assert "python train_stub.py --config_file configs/256_resnet50.yml" in result.stdout
    words = " ".join(result.stdout.split())
    for section in read_reference():
        assert section.comment in words
        for key in section.keys:
            assert f"{key.name} = {key.default} {key.comment}" in words


def test_help_imports_nothing_heavy(stub: Path) -> None:
    result = run_python("-X", "importtime", stub, "--help", env=REPOSITORY_FIRST)
    imported = {line.rsplit("|", 1)[-1].strip().partition(".")[0] for line in result.stderr.splitlines()}
    assert "yacs" in imported
    assert not imported & {"torch", "numpy", "pytorch_lightning", "lightning", "mlflow", "cv2", "PIL"}


def test_whole_numbers_of_a_command_line():
    assert [whole_number(0)("0"), whole_number(2)("007"), whole_number(1)("9" * 18)] == [0, 7, 10**18 - 1]
    for text in ("1", "-2", "2.0", "", "two", "9" * 19, "9" * 5000):
        with pytest.raises(argparse.ArgumentTypeError) as caught:
            whole_number(2)(text)
        assert str(caught.value) == (f"it is {text[:40]!r}; expected a whole number, 2 or more, of at most 18 digits")


def test_an_interrupt_that_lightning_turned_into_status_1_ends_with_130() -> None:
    def end_as_lightning(cause: type[BaseException]) -> None:
        with clean_exit():
            try:
                raise cause
            except cause:
                sys.exit(1)

    for cause, status in ((KeyboardInterrupt, 130), (ValueError, 1)):
        with pytest.raises(SystemExit) as ended:
            end_as_lightning(cause)
        assert ended.value.code == status
