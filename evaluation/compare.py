"""Compare two evaluations of the same queries: ``python -m evaluation compare A B``."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from utils.console import command_parser, say

if TYPE_CHECKING:
    from evaluation.per_query import Evaluation

_DESCRIPTION = """Compare two evaluations of the same queries, query by query.

A and B are folders that hold per_query.csv and metrics.json, the OUTPUT_DIR of a run, or a per_query.csv itself.
Printed are the metrics of both, their difference B - A with a bootstrap interval, the p-value of a permutation test,
and the queries that changed most. Both resample identities, since the queries of one resemble each other. They tell
what the choice of queries may do; how much another seed of the training does, only further trainings tell."""

_EXAMPLES = """examples:
  python -m evaluation compare logs/plain/evaluation logs/reranked/evaluation
  python -m evaluation compare logs/a logs/b --protocol strict --output logs/a_and_b"""


def build_parser() -> argparse.ArgumentParser:
    """Build the command line from the standard library alone, so that --help is fast.

    Example:
        >>> build_parser().parse_args(["a", "b"]).top
        20
    """
    parser = command_parser("python -m evaluation compare", _DESCRIPTION, _EXAMPLES)
    parser.add_argument("a", metavar="A", help="the evaluation to compare with")
    parser.add_argument("b", metavar="B", help="the evaluation to compare")
    parser.add_argument(
        "--protocol",
        choices=["instance", "centroid", "strict", "centroid_strict"],
        help="default: the first that both have",
    )
    parser.add_argument("--level", type=_share, default=0.95, help="of the intervals, between 0 and 1, default: 0.95")
    parser.add_argument(
        "--resamples", type=_resamples, default=1000, metavar="N", help="of the bootstrap, default: 1000"
    )
    parser.add_argument("--permutations", type=_count, default=10_000, metavar="N", help="of the test, default: 10000")
    parser.add_argument("--seed", type=int, default=0, help="of both, 0 or more, default: 0")
    parser.add_argument(
        "--top", type=int, default=20, metavar="N", help="queries listed that gained and that lost most, default: 20"
    )
    parser.add_argument("--output", metavar="DIR", help="folder for compare.json and compare.html")
    return parser


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number between 0 and 1")
    return value


def _count(text: str, most: int = 10_000_000) -> int:
    if not text.isdecimal() or len(text) > 9 or not 0 < int(text) <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to {most}")
    return int(text)


def _resamples(text: str) -> int:
    return _count(text, 1_000_000)  # the metrics of all of them are in memory at once


def run(args: argparse.Namespace) -> None:
    """Print the comparison, and write it if there is a folder.

    Raises:
        UserError: a file is wrong, the evaluations do not fit together, or the folder cannot be written to.

    Example:
        >>> run(build_parser().parse_args(["a", "b", "--top", "-1"]))
        Traceback (most recent call last):
        utils.errors.UserError: --top is -1; expected 0 or more.
    """
    from evaluation.compare_page import write_page
    from evaluation.comparison import compare, describe, most_changed
    from evaluation.per_query import read_evaluation
    from utils.errors import UserError
    from utils.files import require_writable, write_text
    from utils.origin import origin

    for name in ("seed", "top"):
        if getattr(args, name) < 0:
            raise UserError(f"--{name} is {getattr(args, name)}; expected 0 or more.")
    a, b = read_evaluation(args.a), read_evaluation(args.b)
    protocol = shared_protocol(a, b, args.protocol)
    options = {name: getattr(args, name) for name in ("level", "resamples", "permutations", "seed")}
    document, queries = compare(a, b, protocol, **options)
    if args.output:
        require_writable(args.output, "--output")
    say(describe(document, queries, args.top) + "\n")
    if args.output:
        changed = dict(zip(("gained", "lost"), most_changed(queries, args.top), strict=True))
        text = json.dumps({**document, "changed": changed, **origin()}, indent=2, allow_nan=False)
        written = [write_text(Path(args.output) / "compare.json", text + "\n")]
        written.append(write_page(Path(args.output) / "compare.html", document, queries, changed))
        say("".join(f"written: {path}\n" for path in written))


def shared_protocol(a: "Evaluation", b: "Evaluation", wanted: str | None = None) -> str:
    """The protocol to compare by: the wanted one, or the first of ``a`` that ``b`` has too.

    Raises:
        UserError: not both have it; the message names what each has.

    Example:
        >>> from evaluation.per_query import Evaluation
        >>> a, b = (Evaluation(Path("x.csv"), {}, dict.fromkeys(names)) for names in (("centroid", "instance"),) * 2)
        >>> shared_protocol(a, b)
        'centroid'
    """
    from utils.errors import UserError

    wanted = "centroid_strict" if wanted == "strict" else wanted
    shared = [name for name in a.protocols if name in b.protocols and wanted in (None, name)]
    if not shared:
        has = "; ".join(f"{side.file} has {', '.join(side.protocols)}" for side in (a, b))
        raise UserError(f"Not both evaluations have {f'the protocol {wanted}' if wanted else 'one protocol'}: {has}.")
    return shared[0]
