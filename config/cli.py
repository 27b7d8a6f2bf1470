"""The command line that every script shares: ``--config_file PATH`` and KEY VALUE pairs. Imports nothing heavy."""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from yacs.config import CfgNode

from config.load import load_config, missing_value_error
from config.reference import format_reference
from utils.errors import UserError

_MOST_DIGITS = 18  # fit into 64 bits
_CPU_ALLOCATOR = "DefaultCPUAllocator: "

_EXAMPLES = (
    "--config_file configs/256_resnet50.yml DATASETS.ROOT_DIR /data OUTPUT_DIR logs/first",
    "--config_file configs/256_resnet50.yml GPU_IDS '[]' SOLVER.MAX_EPOCHS 1 MODEL.PRETRAINED False",
    "--config_file configs/320_resnet50_ibn_a.yml INPUT.SIZE_TRAIN '[320, 320]' SOLVER.BASE_LR 3.5e-4",
)


class _ConfigArgumentParser(argparse.ArgumentParser):
    """Appends examples and the list of config keys to the help, and reports an error in one line."""

    examples: Sequence[str] = ()

    def format_help(self) -> str:
        examples = "".join(f"  {self.prog} {example}\n" for example in self.examples)
        return f"{super().format_help()}\nexamples:\n{examples}\n{format_reference()}"

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (--help lists the options)\n")


def build_parser(
    description: str, examples: Sequence[str] = _EXAMPLES, prog: str | None = None
) -> argparse.ArgumentParser:
    """Build a parser with ``--config_file`` and any number of KEY VALUE pairs, for :func:`parse_args`.

    Scripts may add options that take a fixed number of values or none, but no positional arguments.

    Args:
        description: one sentence about the script.
        examples: what follows the command in the examples of ``--help``.
        prog: the command that starts the script; None for ``python`` and the file that runs.
    """
    prog = prog or f"python {Path(sys.argv[0]).name}"
    parser = _ConfigArgumentParser(prog=prog, description=description, allow_abbrev=False)
    parser.examples = examples
    parser.add_argument(
        "--config_file", "--config-file", default="", metavar="PATH", help="YAML file that overrides defaults"
    )
    parser.add_argument(
        "opts",
        nargs="*",
        metavar="KEY VALUE",
        help="config keys and values that override the file, before or after flags",
    )
    return parser


def parse_args(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None = None
) -> tuple[argparse.Namespace, CfgNode]:
    """Parse a command line and build its configuration.

    Args:
        parser: from :func:`build_parser`.
        argv: the arguments without the program's name; None takes those of this process.

    Returns:
        The parsed options, with the pairs as the list ``opts``; and a new, checked configuration.

    Raises:
        ConfigError: the configuration cannot be used (see :func:`config.load.load_config`).
        SystemExit: status 0 after ``--help``, 2 after a wrong option.
    """
    options, pairs = _split(parser, sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(options)
    args.opts = pairs
    return args, load_config(args.config_file, pairs)


def _split(parser: argparse.ArgumentParser, argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate options and their values from pairs: argparse alone would take a value such as -1e-4 for an option."""
    arity: dict[str, int] = {}
    for action in parser._actions:
        for name in action.option_strings:
            arity[name] = action.nargs if isinstance(action.nargs, int) else 1
    options: list[str] = []
    pairs: list[str] = []
    rest = list(argv)
    while rest:
        token = rest.pop(0)
        if token == "--":
            pairs += rest
            break
        if token.startswith("-"):
            count = arity.get(token, 0)
            options += [token, *rest[:count]]
            del rest[:count]
            continue
        pairs.append(token)
        if rest and rest[0] not in arity and not rest[0].startswith("--"):
            pairs.append(rest.pop(0))
        elif rest:  # an option stands where the value should
            raise missing_value_error(pairs)
    return options, pairs


def whole_number(least: int) -> Callable[[str], int]:
    """A type for argparse: whole numbers, ``least`` or more."""

    def parse(text: str) -> int:
        if not text.isdecimal() or len(text) > _MOST_DIGITS or int(text) < least:
            raise argparse.ArgumentTypeError(
                f"it is {text[:40]!r}; expected a whole number, {least} or more, of at most {_MOST_DIGITS} digits"
            )
        return int(text)

    return parse


@contextmanager
def clean_exit() -> Iterator[None]:
    """End the program without a traceback on errors that the user can fix.

    A UserError (such as ConfigError) or a lack of memory ends it with status 2 and one line on stderr, an interrupt
    (Ctrl-C) with status 130. Every other exception passes through.
    """
    try:
        yield
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        raise SystemExit(130) from None
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):  # Lightning ends a training with status 1
            raise SystemExit(130) from None
        raise
    except Exception as error:
        message = str(error) if isinstance(error, UserError) else _out_of_memory(error)
        if not message:
            raise
        sys.stderr.write(f"error: {message}\n")
        raise SystemExit(2) from None


def _out_of_memory(error: Exception) -> str:
    """What to do if the machine or an accelerator ran out of memory; "" for any other error."""
    lines = str(error).splitlines() or [type(error).__name__]
    # torch, which is not imported here, raises an OutOfMemoryError for accelerators and a RuntimeError for the CPU; a
    # loader's worker puts other lines before the message.
    said = next((line[line.index(_CPU_ALLOCATOR) :] for line in lines if _CPU_ALLOCATOR in line), "")
    if not said and not isinstance(error, MemoryError) and type(error).__name__ != "OutOfMemoryError":
        return ""
    return (
        f"memory ran out ({(said or lines[0]).rstrip('.')}); smaller images (INPUT.SIZE_TRAIN, "
        "INPUT.SIZE_TEST) or batches (SOLVER.IMS_PER_BATCH, TEST.IMS_PER_BATCH) need less."
    )
