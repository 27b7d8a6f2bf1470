"""What the evaluations of several runs, or of several test sets, say together: mean and spread, cross-domain matrix."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.notes import TITLES
from evaluation.places import EvaluationPlace
from evaluation.statistics import describe_summary, summarize
from utils.errors import UserError
from utils.files import write_text
from utils.origin import origin

# The kinds of evaluation, as a run's results name them, and the protocols of each.
KINDS = {"instances": ("instance",), "centroids": ("centroid_strict", "centroid")}
# The numbers of a cross-domain matrix; inflated ones are not among them.
CELL = ("mAP", "Top-1")
Summary = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class RunsSummary:
    """Mean and spread over runs.

    Attributes:
        protocols: protocol -> metric, under its logged name -> "mean", "std" and "values".
        caveats: protocol -> why its numbers are too high, for those that are.
        left_out: metrics, by protocol, that some runs lack.
        runs: numbers of the runs; None for a single one.
        seeds: of each run; None where it is unknown.
        trained_on: data sets of the training, where metrics.json names them.

    Example:
        >>> one = {"mAP": {"mean": 0.5, "std": 0.1, "values": [0.4, 0.5, 0.6]}}
        >>> RunsSummary({"instance": one}, {}, {}, [0, 1, 2], [7, 8, 9]).scalars()
        {'instances/mAP_mean': 0.5, 'instances/mAP_std': 0.1}
    """

    protocols: dict[str, Summary]
    caveats: dict[str, str]
    left_out: dict[str, list[str]]
    runs: list[int | None]
    seeds: list[int | None]
    trained_on: str = ""

    def lines(self, label: str) -> list[str]:
        """Lines for each protocol, and one for metrics that were left out.

        Args:
            label: what the lines begin with, such as "3 runs".
        """
        lines = []
        for protocol, summary in self.protocols.items():
            caveat = f"  ({self.caveats[protocol]})" if protocol in self.caveats else ""
            first = next(iter(summary))
            of_each = ", ".join(f"{value:.2%}" for value in summary[first]["values"])
            lines.append(
                f"{label}, {TITLES[protocol]} (mean ± standard deviation):\n    {describe_summary(summary)}{caveat}"
            )
            lines.append(f"    {first} of each run: {of_each}")
        if self.left_out:
            named = "; ".join(f"{TITLES[protocol]}: {', '.join(names)}" for protocol, names in self.left_out.items())
            lines.append(f"{label}: left out of the summary, since not every run has them: {named}")
        return lines

    def by_kind(self) -> dict[str, Summary]:
        """The metrics of single images and of centroids; those of the strict protocol have names of their own."""
        found = {
            kind: {name: value for protocol in protocols for name, value in self.protocols.get(protocol, {}).items()}
            for kind, protocols in KINDS.items()
        }
        return {kind: summary for kind, summary in found.items() if summary}

    def scalars(self) -> dict[str, float]:
        """instances/mAP_mean, instances/mAP_std and so on."""
        return {
            f"{kind}/{name}_{part}": found[part]
            for kind, summary in self.by_kind().items()
            for name, found in summary.items()
            for part in ("mean", "std")
            if found[part] is not None
        }

    def of_run(self, number: int) -> dict[str, float]:
        """The metrics of the run at a place in ``runs``: instances/mAP and so on."""
        kinds = self.by_kind().items()
        return {f"{kind}/{name}": found["values"][number] for kind, own in kinds for name, found in own.items()}

    def document(self) -> dict[str, Any]:
        """The contents of summary.json."""
        caveats = [f"{TITLES[protocol]}: the scores are {caveat}." for protocol, caveat in self.caveats.items()]
        document: dict[str, Any] = {"caveat": " ".join(caveats)} if caveats else {}
        document |= {"runs": self.runs, "seeds": self.seeds, **self.by_kind()}
        return document | ({"left_out": self.left_out} if self.left_out else {})


def read_evaluation(folder: Path) -> dict[str, Any]:
    """What metrics.json of an evaluation holds.

    Raises:
        UserError: there is none, or it is not one.

    Example:
        >>> read_evaluation(Path("missing"))
        Traceback (most recent call last):
        utils.errors.UserError: missing/metrics.json cannot be read (No such file or directory); expected an evaluation.
    """
    path = folder / "metrics.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"))
        _check_entries(document)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        raise UserError(f"{path} cannot be read ({reason}); expected an evaluation.") from error
    return dict(document)


def _check_entries(document: Any) -> None:
    """Raise a TypeError, or what reading the metrics raises, unless all that is summarized is of the right kind."""
    if not isinstance(document["protocols"], dict):
        raise TypeError("protocols is no table")
    for protocol, metrics in metrics_by_protocol(document).items():
        for name, value in metrics.items():
            if not (isinstance(value, int | float) and math.isfinite(value)):
                raise TypeError(f"{name} of {protocol} is {repr(value)[:80]}")
        if not isinstance(document["protocols"][protocol].get("caveat", ""), str):
            raise TypeError(f"caveat of {protocol} is no text")
    run = document.get("run", {})
    for key in ("number", "seed"):
        if not isinstance(run.get(key), int | None):
            raise TypeError(f"{key} of the run is {repr(run[key])[:80]}")
    if not isinstance(document.get("trained_on", ""), str):
        raise TypeError("trained_on is no text")


def metrics_by_protocol(document: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The metrics in a metrics.json under their logged names, by protocol, strict before published.

    Example:
        >>> metrics_by_protocol({"protocols": {"centroid_strict": {"mAP": 0.5, "topk": {"1": 0.25}}}})
        {'centroid_strict': {'strict_mAP': 0.5, 'strict_Top-1': 0.25}}
    """
    found = {}
    for protocol in (protocol for protocols in KINDS.values() for protocol in protocols):
        if protocol not in document["protocols"]:
            continue
        details = document["protocols"][protocol]
        prefix = "strict_" if protocol == "centroid_strict" else ""
        found[protocol] = {f"{prefix}mAP": details["mAP"]}
        found[protocol] |= {f"{prefix}Top-{rank}": value for rank, value in details["topk"].items()}
        if protocol == "instance":
            found[protocol]["mINP"] = details["mINP"]
    return found


def summarize_documents(documents: Sequence[Mapping[str, Any]]) -> RunsSummary:
    """Mean and spread of the metrics that all evaluations have.

    Args:
        documents: what :func:`read_evaluation` gives for each run; one or more.

    Example:
        >>> runs = [{"protocols": {"instance": {"mAP": x, "mINP": x, "topk": {"1": x}}}} for x in (0.5, 0.75)]
        >>> print(summarize_documents(runs).lines("2 runs")[0])
        2 runs, single images (mean ± standard deviation):
            mAP 62.50 ± 17.68%  Top-1 62.50 ± 17.68%  mINP 62.50 ± 17.68%
    """
    metrics = [metrics_by_protocol(document) for document in documents]
    protocols, left_out = {}, {}
    for protocol in (protocol for protocols in KINDS.values() for protocol in protocols):
        of_runs = [found.get(protocol, {}) for found in metrics]
        every = dict.fromkeys(name for found in of_runs for name in found)
        summary = summarize(of_runs)
        lacking = [name for name in every if name not in summary]
        if summary:
            protocols[protocol] = summary
        if lacking:
            left_out[protocol] = lacking
    caveats = {
        protocol: details["caveat"]
        for document in documents
        for protocol, details in document["protocols"].items()
        if details.get("caveat") and protocol in protocols
    }
    numbers, seeds = ([document.get("run", {}).get(key) for document in documents] for key in ("number", "seed"))
    return RunsSummary(protocols, caveats, left_out, numbers, seeds, documents[0].get("trained_on", ""))


def summarize_runs(top: Path, runs: Sequence[int | None], place: EvaluationPlace) -> RunsSummary | None:
    """Mean and spread over the runs of one test set, from the files that they left.

    Args:
        top: the folder "evaluation" of the runs.
        runs: their numbers; [None] for a single run. One that has left no metrics.json is passed over: a program's own
            steps may log metrics without an evaluation of ours.
        place: the test set.

    Returns:
        The summary; None if there is no evaluation.

    Raises:
        UserError: the evaluation of a run is damaged.

    Example:
        >>> summarize_runs(Path("missing"), [0, 1], EvaluationPlace()) is None
        True
    """
    folders = [EvaluationPlace(run, place.test_set, is_first=False).folders(top)[0] for run in runs]
    documents = [read_evaluation(folder) for folder in folders if (folder / "metrics.json").exists()]
    return summarize_documents(documents) if documents else None


def write_summary(summary: RunsSummary, folder: Path) -> Path:
    """Write summary.json, and return its path. Raises UserError if the folder cannot be written to.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     written = write_summary(RunsSummary({}, {}, {}, [0], [7]), Path(folder))
        ...     print(json.loads(written.read_text())["seeds"])
        [7]
    """
    document = summary.document() | origin()
    return write_text(folder / "summary.json", json.dumps(document, indent=2, allow_nan=False) + "\n")


def cross_domain_lines(rows: Mapping[str, Mapping[str, RunsSummary]]) -> list[str]:
    """The matrix as text: mAP / Top-1 in per cent of what was trained on a row's data sets and tested on a column's.

    Args:
        rows: what was trained on -> test set -> numbers; all rows have the same test sets.

    Returns:
        A table of single images and one of centroids by the strict protocol, each one text with line breaks.

    Example:
        >>> one = {name: {"mean": 0.5, "std": None, "values": [0.5]} for name in CELL}
        >>> rows = {"market1501": {"veri776": RunsSummary({"instance": one}, {}, {}, [None], [None])}}
        >>> print(cross_domain_lines(rows)[0])
        cross-domain matrix, mAP / Top-1 in %, single images:
            trained on | veri776
            --------------------------
            market1501 | 50.00 / 50.00
    """
    columns = list(next(iter(rows.values())))
    tables = []
    for protocol, prefix in (("instance", ""), ("centroid_strict", "strict_")):
        cells = [["trained on", *columns]]
        for trained_on, row in rows.items():
            found = [row[column].protocols.get(protocol, {}) for column in columns]
            cells.append([trained_on, *(_cell([summary.get(prefix + name) for name in CELL]) for summary in found)])
        widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
        lines = [" | ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)) for line in cells]
        lines.insert(1, "-" * len(lines[0]))
        caveats = _caveats(rows, (protocol,))
        title = f"cross-domain matrix, {' / '.join(CELL)} in %, {TITLES[protocol]}:"
        tables.append("\n".join([title, *(f"    {line.rstrip()}" for line in (*lines, *caveats))]))
    return tables


def _caveats(rows: Mapping[str, Mapping[str, RunsSummary]], protocols: Sequence[str]) -> list[str]:
    """What must be said of numbers in a matrix, a sentence for each of its test sets."""
    return list(
        dict.fromkeys(
            f"{TITLES[protocol]} of {column}: the scores are {summary.caveats[protocol]}."
            for row in rows.values()
            for column, summary in row.items()
            for protocol in protocols
            if protocol in summary.caveats
        )
    )


def _cell(numbers: Sequence[Mapping[str, Any] | None]) -> str:
    parts = []
    for found in numbers:
        spread = "" if found is None or found["std"] is None else f" ± {100 * found['std']:.2f}"
        parts.append("-" if found is None else f"{100 * found['mean']:.2f}{spread}")
    return " / ".join(parts)


def write_matrix(rows: Mapping[str, Mapping[str, RunsSummary]], folder: Path) -> Path:
    """Write matrix.json: ``trained_on``, ``tested_on`` and, for each kind and metric, a number for each of both.

    With several runs the numbers are means, and ``std`` holds the standard deviations in the same form. Numbers that
    not every run has are null.

    Args:
        rows: as for :func:`cross_domain_lines`.
        folder: the folder "evaluation".

    Returns:
        The path. Raises UserError if the folder cannot be written to.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> one = {name: {"mean": 0.5, "std": None, "values": [0.5]} for name in CELL}
        >>> rows = {"market1501": {"veri776": RunsSummary({"instance": one}, {}, {}, [None], [None])}}
        >>> with TemporaryDirectory() as folder:
        ...     print(json.loads(write_matrix(rows, Path(folder)).read_text())["instances"])
        {'mAP': [[0.5]], 'Top-1': [[0.5]]}
    """
    columns = list(next(iter(rows.values())))
    tables: dict[str, dict[str, dict[str, list[list[Any]]]]] = {"mean": {}, "std": {}}
    for part, kinds in tables.items():
        for kind, prefix in (("instances", ""), ("centroids", "strict_")):
            found = [[row[column].by_kind().get(kind, {}) for column in columns] for row in rows.values()]
            kinds[kind] = {
                prefix + name: [[cell.get(prefix + name, {}).get(part) for cell in row] for row in found]
                for name in CELL
            }
    summaries = [summary for row in rows.values() for summary in row.values()]
    caveats = _caveats(rows, ("instance", "centroid_strict"))
    document: dict[str, Any] = {"caveat": " ".join(caveats)} if caveats else {}
    document |= {"trained_on": list(rows), "tested_on": columns, **tables["mean"]}
    document |= {"std": tables["std"]} if any(len(summary.seeds) > 1 for summary in summaries) else {}
    return write_text(folder / "matrix.json", json.dumps(document | origin(), indent=2, allow_nan=False) + "\n")
