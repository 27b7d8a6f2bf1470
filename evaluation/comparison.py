"""What changed between two evaluations of the same queries: differences, their intervals and p-values, and queries."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evaluation.bootstrap import Clusters, bootstrap, sign_flip_p_values
from evaluation.notes import TITLES
from evaluation.per_query import Evaluation, QueryTable, pair_queries
from evaluation.retrieval import FloatArray
from utils.errors import UserError
from utils.labels import IntArray

# What metrics.json says of an evaluation, as far as it may explain a difference. The inputs name two settings too.
_ABOUT = ("settings", "network", "inputs", "versions")
_SCORES = "The scores are "  # begins the caveat in the note of a protocol
_NAMED_TWICE = ("settings.query", "settings.gallery")
# What a run calls otherwise than python -m evaluation does: what a name begins with there -> with what here.
_ALIASES = {
    "settings.metric": "settings.distance",
    "settings.normalize": "settings.feat_norm",
    "inputs.query.embedder.": "network.",
}


def compare(
    a: Evaluation, b: Evaluation, protocol: str, level: float, resamples: int, permutations: int, seed: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Compare two evaluations query by query; queries without a match in either are left out.

    Args:
        a, b: the evaluations.
        protocol: one that both have.
        level: of the paired bootstrap intervals, see :func:`evaluation.bootstrap.confidence_intervals`.
        resamples: of the bootstrap.
        permutations: of the test, see :func:`evaluation.bootstrap.sign_flip_p_values`.
        seed: of both.

    Returns:
        What compare.json holds: under "metrics", each with its values in "A" and "B", their "difference" B - A, its
        "interval" (None if all queries are of one identity) and its "p_value". Then the queries that count, each with
        its numbers in both.

    Raises:
        UserError: the queries are not the same, or none has a match in both.

    Example:
        >>> from pathlib import Path
        >>> ap = np.array([0.5, 1.0])
        >>> tables = (QueryTable(["0", "1"], ["", ""], ["7", "8"], ap / k, 1 / ap, ap) for k in (2, 1))
        >>> a, b = (Evaluation(Path("x.csv"), {}, {"instance": table}) for table in tables)
        >>> document, queries = compare(a, b, "instance", 0.95, 1000, 100, 0)
        >>> document["metrics"]["mAP"]["difference"], queries[1]["AP_A"]
        (0.375, 0.5)
    """
    tables = a.protocols[protocol], b.protocols[protocol]
    by, rows = pair_queries(*tables, (a.file, b.file))
    counts = np.flatnonzero(~np.isnan(tables[0].ap) & ~np.isnan(tables[1].ap[rows]))
    if not len(counts):
        raise UserError(f"No query has a match in both {a.file} and {b.file}: there is nothing to compare.")
    names = tables[0].metrics(protocol)
    whole = [np.stack(list(table.metrics(protocol).values()), axis=1) for table in tables]
    sides = whole[0][counts], whole[1][rows[counts]]
    change = Clusters.of(np.array(tables[0].pid)[counts], sides[1] - sides[0])
    differs, told_by_one = differing(a, b, protocol)
    options: dict[str, Any] = {"level": level, "resamples": resamples, "permutations": permutations, "seed": seed}
    document = {
        "A": str(a.file),
        "B": str(b.file),
        "protocol": protocol,
        "queries": len(counts),
        "identities": len(change.sizes),
        "paired_by": by,
        "left_out": len(rows) - len(counts),
        "first_draw": any(_below(side.about, "protocols", protocol, "draws") for side in (a, b)),
        "caveat": _caveat(a, b, protocol),
        "differs": differs,
        "told_by_one": told_by_one,
        "metrics": dict(zip(names, _differences(*sides, change, **options), strict=True)),
        **options,
    }
    return document, _numbers_of(tables, counts, rows[counts])


def _differences(
    a: FloatArray, b: FloatArray, change: Clusters, level: float, resamples: int, permutations: int, seed: int
) -> list[dict[str, Any]]:
    """What is told of each of F metrics, from its values in A and B [V, F] and their differences."""
    intervals: Sequence[Any] = bootstrap(change, level, resamples, seed) or [None] * a.shape[1]
    columns = a.mean(axis=0), b.mean(axis=0), change.means, sign_flip_p_values(change, permutations, seed)
    return [
        {"A": in_a, "B": in_b, "difference": difference, "interval": interval, "p_value": p_value}
        for interval, (in_a, in_b, difference, p_value) in zip(intervals, np.stack(columns, 1).tolist(), strict=True)
    ]


def _numbers_of(tables: tuple[QueryTable, QueryTable], rows: IntArray, others: IntArray) -> list[dict[str, Any]]:
    """What is told of single queries, from their rows in the two tables."""
    queries = []
    for pair in zip(rows.tolist(), others.tolist(), strict=True):
        query: dict[str, Any] = {name: getattr(tables[0], name)[pair[0]] for name in ("query", "path", "pid")}
        for side, table, row in zip("AB", tables, pair, strict=True):
            query |= {f"AP_{side}": float(table.ap[row]), f"rank_{side}": int(table.first[row])}
        queries.append(query)
    return queries


def differing(a: Evaluation, b: Evaluation, protocol: str) -> tuple[dict[str, list[Any]] | None, list[str]]:
    """What the two metrics.json say otherwise of settings, network, inputs and versions.

    Returns:
        Key -> values in A and B, and those of the keys that one of them lacks, where the value is None. None and no
        keys if not both have a metrics.json.

    Example:
        >>> from pathlib import Path
        >>> a, b = (Evaluation(Path("x"), {"settings": {"rerank": r, "norm": True}}, {}) for r in (True, False))
        >>> differing(a, b, "instance")
        ({'settings.rerank': [True, False]}, [])
    """
    if not (a.about and b.about):
        return None, []
    flat = []
    for side in (a, b):
        of_protocol = _below(side.about, "protocols", protocol)
        found = {name: of_protocol[name] for name in ("gallery_items",) if name in of_protocol}
        for name in _ABOUT:
            found |= dict(_flatten(name, _below(side.about, name)))
        flat.append({_alias(key): value for key, value in found.items() if key not in _NAMED_TWICE})
    values = {key: [side.get(key) for side in flat] for key in dict.fromkeys([*flat[0], *flat[1]])}
    differs = {key: pair for key, pair in values.items() if pair[0] != pair[1]}
    return differs, [key for key in differs if not (key in flat[0] and key in flat[1])]


def _alias(key: str) -> str:
    for begin, instead in _ALIASES.items():
        if key == begin or (begin.endswith(".") and key.startswith(begin)):
            return instead + key[len(begin) :]
    return key


def _caveat(a: Evaluation, b: Evaluation, protocol: str) -> str:
    """The sentence of metrics.json that calls the numbers of a protocol too high; "" if none does."""
    notes = [str(_below(side.about, "protocols", protocol).get("note", "")) for side in (a, b)]
    return next((_SCORES + note.partition(_SCORES)[2] for note in notes if _SCORES in note), "")


def _below(about: Any, *names: str) -> dict[str, Any]:
    """An object within metrics.json; {} where another program has written something else."""
    for name in names:
        about = about.get(name) if isinstance(about, dict) else None
    return about if isinstance(about, dict) else {}


def _flatten(name: str, value: Any) -> list[tuple[str, Any]]:
    if name.endswith(".sha256") and isinstance(value, dict):  # of files, whose names say nothing
        return [(name, " ".join(str(digest)[:12] for digest in value.values()))]
    if not isinstance(value, dict):
        return [(name, value)]
    return [pair for key, below in value.items() for pair in _flatten(f"{name}.{key}", below)]


def most_changed(queries: list[dict[str, Any]], top: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The queries whose AP is higher in B, and those whose AP is lower, at most ``top`` of each, most changed first.

    Changes that vanish in the three decimals that are shown are left out.

    Example:
        >>> gained, lost = most_changed([{"AP_A": 0.5, "AP_B": 0.5}, {"AP_A": 0.5, "AP_B": 1.0}], 20)
        >>> len(gained), len(lost)
        (1, 0)
    """
    by_change = sorted(queries, key=lambda query: query["AP_A"] - query["AP_B"])
    gained = [query for query in by_change if round(query["AP_B"], 3) > round(query["AP_A"], 3)]
    lost = [query for query in reversed(by_change) if round(query["AP_B"], 3) < round(query["AP_A"], 3)]
    return gained[:top], lost[:top]


def describe(document: dict[str, Any], queries: list[dict[str, Any]], top: int) -> str:
    """The comparison in lines of text. Args as :func:`compare` returns them; ``top`` queries are listed each way.

    Example:
        >>> about = {"A": "a", "B": "b", "protocol": "instance", "queries": 1, "identities": 1, "paired_by": "path"}
        >>> about |= {"left_out": 0, "differs": {}, "metrics": {}, "level": 0.95}
        >>> print(describe(about, [], 20))
        A: a
        B: b
        single images: 1 queries of 1 identities, paired by path; one identity: no intervals
                        A        B    B - A         95% interval   p
    """
    lines = [f"A: {document['A']}", f"B: {document['B']}", about_queries(document), *about_settings(document)]
    head = f"{100 * document['level']:g}% interval"
    lines.append(f"{'':8}{'A':>9}{'B':>9}{'B - A':>9}   {head:>18}   p")
    for name, found in document["metrics"].items():
        numbers = f"{found['A']:>9.2%}{found['B']:>9.2%}{100 * found['difference']:>+9.2f}"
        lines.append(f"{name:8}{numbers}   {interval_text(found):>18}   {found['p_value']:.4g}")
    for what, changed in zip(("gained", "lost"), most_changed(queries, top), strict=True):
        lines += [f"queries that {what} most (AP in A, in B):"] if changed else []
        for query in changed:
            named = query["path"] or f"query {query['query']}"
            lines.append(f"    {query['AP_A']:.3f} -> {query['AP_B']:.3f}  {named} (identity {query['pid']})")
    return "\n".join(lines)


def about_queries(document: Mapping[str, Any]) -> str:
    """What is compared, in one line.

    Example:
        >>> counts = {"queries": 9, "identities": 1, "left_out": 0}
        >>> about_queries({"protocol": "instance", "paired_by": "path", **counts})
        'single images: 9 queries of 1 identities, paired by path; one identity: no intervals'
    """
    text = f"{TITLES[document['protocol']]}: {document['queries']} queries of {document['identities']} identities, "
    text += f"paired by {document['paired_by']}"
    text += f"; {document['left_out']} without a match in A or B left out" if document["left_out"] else ""
    text += "; of repeated draws of the gallery the first" if document.get("first_draw") else ""
    text += "; one identity: no intervals" if document["identities"] == 1 else ""
    return text + (f". {document['caveat']}" if document.get("caveat") else "")


def about_settings(document: Mapping[str, Any]) -> list[str]:
    """A line for each setting that both tell and that differs, and one that counts those of one side.

    Example:
        >>> about_settings({"differs": {"settings.rerank": [True, None], "settings.seed": [0, 1]}, "told_by_one": []})
        ['differs: settings.rerank is true in A, null in B', 'differs: settings.seed is 0 in A, 1 in B']
    """
    if document["differs"] is None:
        return ["settings are not compared, since not both tables have a metrics.json beside them"]
    alone = document.get("told_by_one", [])
    lines = [
        "differs: {} is {} in A, {} in B".format(key, *(json.dumps(value, ensure_ascii=False) for value in pair))
        for key, pair in document["differs"].items()
        if key not in alone
    ]
    if alone:
        what = "1 setting is" if len(alone) == 1 else f"{len(alone)} settings are"
        lines.append(f"{what} told by A or B alone, such as {alone[0]}")
    return lines


def interval_text(found: dict[str, Any]) -> str:
    """The interval of a difference, in points of per cent.

    Example:
        >>> interval_text({"interval": [-0.001, 0.02]}), interval_text({"interval": None})
        ('[-0.10, +2.00]', '-')
    """
    return f"[{100 * found['interval'][0]:+.2f}, {100 * found['interval'][1]:+.2f}]" if found["interval"] else "-"
