"""Reports of an evaluation: a two-line description, metrics.json and per_query.csv."""

import csv
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.bootstrap import LEVEL, RESAMPLES, confidence_intervals
from evaluation.metrics import metrics_dict
from evaluation.notes import title_of
from evaluation.retrieval import EvalResult, RetrievalSet
from evaluation.statistics import describe_summary
from evaluation.verification import RocTable
from utils.files import write_together
from utils.labels import check_length

AnyPath = str | os.PathLike[str]

_COLUMNS = ("protocol", "query", "path", "pid", "camera", "AP", "first_match_rank", "INP", "relevant")


def describe(result: EvalResult, with_intervals: bool = False) -> str:
    """Describe an evaluation in two lines: the protocol and what its mAP means, then the metrics, and whether they are
    inflated.

    Args:
        result: the evaluation.
        with_intervals: put the interval of :func:`evaluation.bootstrap.confidence_intervals` behind each metric; where
            there are repeated draws, their spread stands there in any case.

    Example:
        >>> from evaluation.metrics import evaluate_distances
        >>> result = evaluate_distances([[0.5, 0.1]], [7], [7, 8], [0], [1, 1])
        >>> print(describe(result).splitlines()[0])
        single images (1 queries against 2 items):
    """
    counts = f"{len(result.first_match)} queries against {result.num_gallery} items"
    skipped = f", {result.num_skipped} without a match left out" if result.num_skipped else ""
    usually = "usually " if result.protocol == "centroid" else ""
    note = "" if result.protocol == "instance" else f"; {usually}one relevant item, so mAP is the mean reciprocal rank"
    values, spread = metric_texts(result, with_intervals)
    numbers = "  ".join(f"{name} {value}" for name, value in values.items())
    caveat = f"  ({result.caveat})" if result.caveat else ""
    return f"{title_of(result)} ({counts}{skipped}{note}{spread}):\n    {numbers}{caveat}"


def metric_texts(result: EvalResult, with_intervals: bool = True) -> tuple[dict[str, str], str]:
    """Each metric as it is printed, and what the spread beside it is; that begins with a semicolon unless empty.

    Example:
        >>> from evaluation.metrics import evaluate_distances
        >>> result = evaluate_distances([[0.5, 0.1]], [7], [7, 8], [0], [1, 1])
        >>> texts, spread = metric_texts(result)
        >>> texts["mAP"], spread
        ('50.00%', '; no intervals: one identity')
    """
    found = confidence_intervals(result) if with_intervals and not result.draws else {}
    if result.draws:
        spread = f"; mean ± standard deviation over {len(result.draws['mAP']['values'])} draws of queries and gallery"
    elif with_intervals:
        spread = f"; [{LEVEL:.0%} interval over queries, by identity]" if found else "; no intervals: one identity"
    else:
        spread = ""
    texts = {}
    for name, value in metrics_dict(result).items():
        plain = name.removeprefix("strict_")
        ends, drawn = found.get(plain), result.draws.get(plain)
        interval = f" [{100 * ends[0]:.2f}, {100 * ends[1]:.2f}]" if ends else ""
        texts[name] = describe_summary({"": drawn}).strip() if drawn else f"{value:.2%}{interval}"
    return texts, spread


def write_evaluation(
    output_dir: AnyPath,
    results: Sequence[EvalResult],
    retrieval: RetrievalSet,
    settings: Mapping[str, Any] | None = None,
    verification: RocTable | None = None,
    about: Mapping[str, Any] | None = None,
) -> tuple[Path, Path]:
    """Write metrics.json and per_query.csv.

    metrics.json holds the metrics under their logged names, ``protocols`` with the details of each result and the
    intervals of its metrics (none if all queries are of one identity), ``settings``, and, if there is a ROC table,
    ``verification`` with its thresholds, ``equal_error_rate`` and ``verification_curve``, lists of FAR, TAR and
    threshold. If metrics are inflated, ``caveat`` comes first and says which. per_query.csv has one row for each result
    and query; the numbers of a query without a match are empty, and so are cameras where there are none. Cameras
    without names are numbered from 0, ranks from 1.

    Args:
        output_dir: folder for the two files, created if missing.
        results: one or more evaluations of ``retrieval``.
        retrieval: what was evaluated; the table names the image files of its queries, if known.
        settings: anything that JSON can hold.
        verification: a table from :func:`evaluation.verification.roc_table`.
        about: further entries of metrics.json: what it is of, see :mod:`utils.origin`.

    Returns:
        The paths of metrics.json and per_query.csv.

    Raises:
        UserError: results and retrieval have different numbers of queries, or the folder cannot be written to.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from evaluation.metrics import evaluate
        >>> images = RetrievalSet([[1.0]], [[0.9]], [7], [7], [0], [1], q_paths=["query.jpg"])
        >>> with TemporaryDirectory() as folder:
        ...     _, table = write_evaluation(folder, [evaluate(images)], images)
        ...     print(table.read_text().splitlines()[1])
        instance,0,query.jpg,7,0,1.000000,1,1.000000,1
    """
    check_length("retrieval", retrieval.num_query, results[0].num_queries, "the evaluation")
    details = {result.protocol: _details(result) for result in results}
    metrics = metrics_dict(*results)
    # Of a metric in several results, the last counts; those of the strict protocol have names of their own.
    named_map = [result for result in results if result.protocol != "centroid_strict"]
    caveat = named_map[-1].caveat if named_map else ""
    document: dict[str, Any] = {"caveat": f"mAP and Top-k are {caveat}."} if caveat else {}
    document |= {**metrics, "protocols": details, "settings": dict(settings or {}), **(about or {})}
    if verification is not None:
        rate, threshold = verification.equal_error_rate()
        document["verification"] = _thresholds(verification)
        document["equal_error_rate"] = {"rate": rate, "threshold": threshold}
        curve = verification.curve()
        document["verification_curve"] = {name: values.tolist() for name, values in vars(curve).items()}
    folder = Path(output_dir)
    text = json.dumps(document, indent=2, allow_nan=False) + "\n"
    metrics_file, table = folder / "metrics.json", folder / "per_query.csv"
    write_together({metrics_file: text, table: _per_query_table(results, retrieval)})
    return metrics_file, table


def _details(result: EvalResult) -> dict[str, Any]:
    caveat = {"caveat": result.caveat} if result.caveat else {}
    return caveat | {
        "note": f"{result.note} The scores are {result.caveat}." if result.caveat else result.note,
        "mAP": result.mAP,
        "mINP": result.mINP,
        "topk": {str(rank): value for rank, value in result.topk.items()},
        "cmc": [round(float(value), 8) for value in result.cmc],
        "queries": result.num_queries,
        "queries_without_match": result.num_skipped,
        "gallery_items": result.num_gallery,
        "intervals": confidence_intervals(result),
        "intervals_are": {"level": LEVEL, "resamples": RESAMPLES, "clustered_by": "identity"}
        | ({"of": "the first draw"} if result.draws else {}),
        **({"draws": result.draws} if result.draws else {}),
    }


def _per_query_table(results: Sequence[EvalResult], retrieval: RetrievalSet) -> str:
    table = io.StringIO()
    writer = csv.writer(table)
    names = retrieval.names
    writer.writerow(_COLUMNS)
    for result in results:
        found = {query: i for i, query in enumerate(result.query_index.tolist())}
        for query, (pid, camera) in enumerate(zip(retrieval.q_pids.tolist(), retrieval.q_camids.tolist(), strict=True)):
            path = os.fspath(retrieval.q_paths[query]) if retrieval.q_paths is not None else ""
            seen_by = names.camera(camera) if retrieval.has_cameras else ""
            row = [result.protocol, query, path, names.pid(pid), seen_by]
            writer.writerow(row + (_numbers(result, found[query]) if query in found else ["", "", "", 0]))
    return table.getvalue()


def _thresholds(table: RocTable) -> list[dict[str, float | None]]:
    columns = (table.far_levels, table.far, table.tar, table.threshold)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return [
        {"far_level": level, "far": far, "tar": tar, "threshold": None if math.isnan(limit) else limit}
        for level, far, tar, limit in rows
    ]


def _numbers(result: EvalResult, i: int) -> list[Any]:
    ap, inp = float(result.average_precision[i]), float(result.inp[i])
    return [f"{ap:.6f}", int(result.first_match[i]), f"{inp:.6f}", int(result.num_relevant[i])]
