"""Evaluate saved embeddings without a model: ``python -m evaluation --query q.npz --gallery g.npz``."""

import argparse
import re
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from utils.console import command_parser, say

if TYPE_CHECKING:
    from evaluation.inputs import Input
    from evaluation.retrieval import EvalResult, RankingOptions, RetrievalSet
    from evaluation.verification import RocTable

_DESCRIPTION = """Rank a gallery for every query and print CMC, Top-k, mAP and mINP.

Each .npz file holds "embeddings" [N, D], "pids" [N] and "camids" [N], and may hold "paths" [N]:
    numpy.savez("q.npz", embeddings=..., pids=..., camids=...)
pids and camids are whole numbers, or text in both files. Images of pid -1 are junk and left out. A folder that
create_embeddings.py wrote with pids will do as well: embeddings.npy, pids.npy, camids.npy if there are cameras.

Further commands, each with a --help of its own:
    python -m evaluation compare A B    two evaluations of the same queries: differences, intervals, p-values
    python -m evaluation suspects ...   identities and images whose labels look wrong"""

# Modules of this package with build_parser() and run(args).
COMMANDS = ("compare", "suspects")

_EXAMPLES = """examples:
  python -m evaluation --query q.npz --gallery g.npz
  python -m evaluation --query q.npz --gallery g.npz --metric cosine --rerank
  python -m evaluation --query q.npz --gallery g.npz --protocol strict --output results
  python -m evaluation --query embedded/query --gallery embedded/gallery --page page.html
  python -m evaluation --query q.npz --gallery g.npz --roc --open-set --unknown 0.5
  python -m evaluation --query q.npz --gallery g.npz --calibrate isotonic --output results
  python -m evaluation suspects --embeddings embedded/train     (labels that may be wrong; --help tells more)

protocols: "instance" ranks single images; "centroid" ranks centroids as the published code builds them, whose camera
look-up error inflates the scores (report "strict"); "strict" ranks one centroid for each identity and leaves the
query's camera out."""

_MAX_RANK = 1_000_000
_MAX_BLOCK_MB = 1_000_000
_LEAST_SHARE = 1e-12
_RANKED = 10_000  # queries whose results a page lists
_ARRAY = re.compile(r"(query|gallery|[qg]_(?:pids|camids|paths))(?:\[| (?:is|has|holds|must) )")


def build_parser() -> argparse.ArgumentParser:
    """Build the command line from the standard library alone, so that --help is fast.

    Example:
        >>> build_parser().parse_args(["--query", "q.npz", "--gallery", "g.npz"]).metric
        'euclidean'
    """
    parser = command_parser("python -m evaluation", _DESCRIPTION, _EXAMPLES)
    parser.add_argument("--query", required=True, metavar="FILE|DIR", help=".npz file or folder of the queries")
    parser.add_argument("--gallery", required=True, metavar="FILE|DIR", help="the same of the gallery images")
    parser.add_argument("--metric", default="euclidean", choices=["euclidean", "cosine"], help="default: euclidean")
    parser.add_argument(
        "--protocol",
        default="instance",
        choices=["instance", "centroid", "strict", "centroid_strict"],
        help="what is ranked, default: instance; centroid_strict is strict",
    )
    parser.add_argument("--normalize", action="store_true", help="scale embeddings to unit length (TEST.FEAT_NORM)")
    parser.add_argument("--ignore-cameras", action="store_true", help="keep all gallery images; camids are not needed")
    parser.add_argument(
        "--self-match",
        choices=["drop", "keep"],
        help="without cameras: leave a query's own image, the same file or a copy of it, out of its ranking (drop, the "
        "default) or count it (keep); this needs paths",
    )
    parser.add_argument(
        "--max-rank", type=int, default=50, metavar="N", help=f"length of the CMC, up to {_MAX_RANK}, default: 50"
    )
    _add_rankings(parser)
    parser.add_argument(
        "--roc",
        action="store_true",
        help="also print true accept rates at false accept rates, and the equal error rate",
    )
    _add_decisions(parser)
    parser.add_argument("--output", metavar="DIR", help="folder for metrics.json and per_query.csv")
    parser.add_argument("--page", metavar="FILE", help="HTML file for curves, cameras, a map and the ranked lists")
    parser.add_argument("--device", default="cpu", help="torch device, default: cpu")
    parser.add_argument("--block-mb", type=_positive, metavar="MB", help="memory for distances, default: 64")
    return parser


def _add_rankings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rerank", action="store_true", help="k-reciprocal re-ranking")
    parser.add_argument("--k1", type=int, default=20, help="re-ranking: reciprocal neighbours, default: 20")
    parser.add_argument("--k2", type=int, default=6, help="re-ranking: neighbours averaged, default: 6")
    parser.add_argument(
        "--lambda",
        type=_finite,
        default=0.3,
        dest="lambda_value",
        help="re-ranking: share of the original, default: 0.3",
    )
    parser.add_argument(
        "--query-expansion", type=int, default=0, metavar="K", help="add K nearest to each query; 0: off"
    )
    parser.add_argument(
        "--alpha", type=_finite, default=3.0, help="query expansion: exponent of the weights, default: 3"
    )


def _add_decisions(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--open-set",
        action="store_true",
        help="also print detection and identification rates at rates of false alarms, those of queries whose identity "
        "the gallery lacks",
    )
    parser.add_argument(
        "--unknown",
        type=_share,
        metavar="SHARE",
        help="open set: draw this share of the identities, and take their images in the gallery as absent",
    )
    parser.add_argument("--rank", type=_whole(1), default=1, metavar="N", help="open set: also at rank N, default: 1")
    parser.add_argument(
        "--calibrate",
        choices=["isotonic", "platt"],
        help="also fit the probability that a pair at a distance is of one identity, on half of the identities, and "
        "check it on the other half; --output keeps it as calibration.json, for get_similar.py --min-probability",
    )
    parser.add_argument(
        "--prior",
        type=_share,
        metavar="SHARE",
        help="calibration: the share of pairs of one identity where it will be used, default: that in these pairs; it "
        "is small in a large gallery, and 0.5 where every other pair is of one identity",
    )
    parser.add_argument("--seed", type=_whole(0), default=0, help="of what --unknown and --calibrate draw, default: 0")


def _positive(text: str) -> float:
    value = _number(text)
    if not 0 < value <= _MAX_BLOCK_MB:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 and up to {_MAX_BLOCK_MB}")
    return value


def _share(text: str) -> float:
    value = _number(text)
    if not _LEAST_SHARE <= value <= 1 - _LEAST_SHARE:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number between 0 and 1, at least {_LEAST_SHARE:g} away from both"
        )
    return value


def _finite(text: str) -> float:
    value = _number(text)
    if not float("-inf") < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")  # which no comparison accepts


def _whole(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, {least} or more")
        return int(text)

    return parse


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit status: 0, 2 for bad input, explained in one line on stderr, or 130 if interrupted.

    Example:
        >>> main(["--query", "missing.npz", "--gallery", "missing.npz"])
        2
    """
    arguments = sys.argv[1:] if argv is None else argv
    named: Callable[[str], str] = str
    if arguments and arguments[0] in COMMANDS:
        command = import_module(f".{arguments[0]}", __package__)
        work = partial(command.run, command.build_parser().parse_args(arguments[1:]))
    else:
        args = build_parser().parse_args(arguments)
        work, named = partial(_run, args), partial(_with_file, args=args)
    from utils.errors import UserError

    try:
        work()
    except UserError as error:
        sys.stderr.write(f"error: {named(str(error))}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    return 0


def _with_file(message: str, args: argparse.Namespace) -> str:
    """Put the file that holds an array before a message about it, and name the array as the file does."""
    found = _ARRAY.match(message)
    if found is None:
        return message
    path = args.query if message.startswith("q") else args.gallery
    way_out = " If the images have no cameras, give --ignore-cameras." if "camids" in found[1] else ""
    return f"{path}: " + re.sub(r"\b[qg]_(?=pids|camids|paths)", "", message) + way_out


def _run(args: argparse.Namespace) -> None:
    from evaluation.calibration import remove_calibration, write_calibration
    from evaluation.metrics import evaluate
    from evaluation.rerank import QueryExpansion, Rerank
    from evaluation.retrieval import RankingOptions
    from evaluation.tables import describe, write_evaluation
    from utils.errors import UserError
    from utils.files import require_file, require_writable
    from utils.origin import origin

    if args.max_rank > _MAX_RANK:
        raise UserError(f"--max-rank is {args.max_rank}; expected at most {_MAX_RANK}.")
    if args.page and not args.page.lower().endswith((".html", ".htm")):
        raise UserError(f"--page is {args.page!r}; expected a name that ends with .html.")
    retrieval, notes, inputs = _read(args)
    if args.output:
        require_writable(args.output, "--output")
    if args.page:
        require_writable(Path(args.page).parent, "--page")
        require_file(args.page, "--page")
    options = RankingOptions(
        metric=args.metric,
        protocol="centroid_strict" if args.protocol == "strict" else args.protocol,
        keep_camids=not args.ignore_cameras,
        feat_norm=args.normalize,
        rerank=Rerank(args.k1, args.k2, args.lambda_value) if args.rerank else None,
        query_expansion=QueryExpansion(args.query_expansion, args.alpha) if args.query_expansion else None,
    )
    block_bytes = None if args.block_mb is None else max(1, int(args.block_mb * 2**20))
    notes += _without_effect(args)
    decided = _decide(args, retrieval, options, block_bytes, inputs)
    result = evaluate(retrieval, options, max_rank=args.max_rank, block_bytes=block_bytes)
    lines = [*(f"note: {note}" for note in notes), describe(result, with_intervals=True)]
    say("\n".join([*lines, *decided.lines]) + "\n")
    if args.output:
        about = {"inputs": {name: side.origin() for name, side in inputs.items()}, **origin(), **decided.about}
        written = list(write_evaluation(args.output, [result], retrieval, _settings(args), decided.table, about))
        if "calibration" in about:
            written.append(write_calibration(args.output, about["calibration"]))
        elif removed := remove_calibration(args.output):
            say(f"removed: {removed}, which was of an earlier evaluation.\n")
        say("".join(f"written: {path}\n" for path in written))
    if args.page:
        _write_page(args.page, result, retrieval, options, decided.table, block_bytes)
    if decided.failed:
        raise UserError(" Also: ".join(decided.failed))


def _write_page(
    path: str,
    result: "EvalResult",
    retrieval: "RetrievalSet",
    options: "RankingOptions",
    table: "RocTable | None",
    block_bytes: int | None,
) -> None:
    from evaluation.page_data import Shown, worst_first
    from evaluation.pages import write_page
    from evaluation.ranked_images import rank_for_display

    worst = worst_first(result)[:_RANKED]
    shown = Shown(rank_for_display(retrieval, options, queries=worst, block_bytes=block_bytes))
    _, note = write_page(path, result, retrieval, options, shown, verification=table, block_bytes=block_bytes)
    say((f"note: {note}\n" if note else "") + f"written: {path}\n")


class _Decided(NamedTuple):
    lines: list[str]  # what --roc, --open-set and --calibrate print
    table: "RocTable | None"
    about: dict[str, Any]  # what metrics.json says of the latter two
    failed: list[str]  # why there is no table or calibration, which the metrics do not need


def _decide(
    args: argparse.Namespace,
    retrieval: "RetrievalSet",
    options: "RankingOptions",
    block_bytes: int | None,
    inputs: "dict[str, Input]",
) -> _Decided:
    from evaluation.calibration import calibrate, describe_calibration
    from evaluation.inputs import differing
    from evaluation.open_set import describe_open_set, draw_unknown, evaluate_open_set, open_set_details
    from evaluation.verification import describe_roc, roc_table
    from utils.errors import UserError

    decided = _Decided([], None, {}, [])
    lines, _, about, failed = decided
    if args.roc:
        try:
            table = roc_table(retrieval, options, block_bytes=block_bytes)
            lines += describe_roc(table)
            decided = decided._replace(table=table)
        except UserError as error:
            failed.append(str(error))
    if args.open_set:
        left_out = () if args.unknown is None else draw_unknown(retrieval, args.unknown, args.seed)
        found = evaluate_open_set(retrieval, options, left_out=left_out, block_bytes=block_bytes)
        ranks = sorted({1, args.rank})
        lines += describe_open_set(found, ranks)
        about["open_set"] = open_set_details(found, ranks)
    if args.calibrate:
        query, gallery = inputs["query"], inputs["gallery"]
        network = query.embedder if gallery.embedder and not differing(query, gallery) else {}
        drawn = {"method": args.calibrate, "prior": args.prior, "seed": args.seed}
        try:
            fitted = calibrate(retrieval, options, **drawn, network=network, block_bytes=block_bytes)
            lines += describe_calibration(fitted)
            about["calibration"] = fitted.to_dict()
        except UserError as error:
            failed.append(str(error))
    return decided


def _read(args: argparse.Namespace) -> "tuple[RetrievalSet, list[str], dict[str, Input]]":
    from evaluation.inputs import combine, differing, read_input
    from utils.devices import find_device
    from utils.errors import UserError

    query, gallery = (read_input(path, args.ignore_cameras) for path in (args.query, args.gallery))
    try:
        device = find_device(args.device)
    except UserError as error:
        raise UserError(f"--device: {error}") from error
    retrieval, notes = combine(query, gallery, device, args.ignore_cameras, args.self_match)
    if query.embedder and not args.normalize and args.metric == "euclidean":
        notes.append(
            "embeddings are compared at the length they have; a training's own tests scale them to unit length, unless "
            "TEST.FEAT_NORM is False (--normalize)."
        )
    different = differing(query, gallery)
    if different:
        sys.stderr.write(
            f"warning: {args.gallery} and {args.query} differ in {', '.join(different)} of the network; distances "
            "between them may mean little.\n"
        )
    return retrieval, notes, {"query": query, "gallery": gallery}


def _without_effect(args: argparse.Namespace) -> list[str]:
    """A sentence for each option that another one would have to switch on."""
    default = build_parser().get_default
    reranking = ("k1", "k2", "lambda_value") if not args.rerank else ()
    expansion = ("alpha",) if not args.query_expansion else ()
    open_set = ("unknown", "rank") if not args.open_set else ()
    calibration = ("prior",) if not args.calibrate else ()
    drawn = ("seed",) if not args.calibrate and (args.unknown is None or not args.open_set) else ()
    return [
        f"--{key.removesuffix('_value')} {getattr(args, key)} has no effect without {switch}."
        for switch, keys in (
            ("--rerank", reranking),
            ("--query-expansion", expansion),
            ("--open-set", open_set),
            ("--calibrate", calibration),
            ("--open-set --unknown or --calibrate", drawn),
        )
        for key in keys
        if getattr(args, key) != default(key)
    ]


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    return {key: value for key, value in vars(args).items() if key not in ("output", "page")}


if __name__ == "__main__":
    sys.exit(main())
