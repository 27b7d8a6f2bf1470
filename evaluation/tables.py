"""What an evaluation leaves behind: metrics.json, per_query.csv, and a page that shows the worst queries first."""

import csv
import html
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from utils.eval_reid import EvalResult, metrics_dict
from utils.files import write_text
from utils.labels import Cameras, check_length, int_array
from utils.roc import RocTable
from utils.visrank import Ranking

AnyPath = str | os.PathLike[str]

TITLES = {
    "instance": "single images",
    "centroid": "centroids, published protocol",
    "centroid_strict": "centroids, strict protocol",
}
NOTES = {
    "instance": "Gallery images of the query's identity seen by the query's camera are removed.",
    "centroid": (
        "Built as in the published code, whose camera look-up error inflates the scores. As a rule one item is "
        "relevant to a query, and mAP is the mean reciprocal rank."
    ),
    "centroid_strict": (
        "One centroid for each identity; the query's own leaves out the query's camera. One item is relevant, and mAP "
        "is the mean reciprocal rank."
    ),
}

_COLUMNS = ("protocol", "query", "path", "pid", "camera", "AP", "first_match_rank", "INP", "relevant")


def describe(result: EvalResult) -> str:
    """An evaluation in two lines: the protocol with what its mAP means, and the metrics."""
    counts = f"{len(result.first_match)} queries against {result.num_gallery} items"
    skipped = f", {result.num_skipped} without a match left out" if result.num_skipped else ""
    note = "" if result.protocol == "instance" else "; one relevant item, so mAP is the mean reciprocal rank"
    numbers = "  ".join(f"{name} {value:.2%}" for name, value in metrics_dict(result).items())
    return f"{TITLES[result.protocol]} ({counts}{skipped}{note}):\n    {numbers}"


def write_evaluation(
    output_dir: AnyPath,
    results: Sequence[EvalResult],
    q_pids: Any,
    q_camids: Any,
    query_paths: Sequence[AnyPath] | None = None,
    settings: Mapping[str, Any] | None = None,
    verification: RocTable | None = None,
) -> tuple[Path, Path]:
    """Write metrics.json and per_query.csv.

    metrics.json holds the logged names at its top level, ``protocols`` with the details of each result, ``settings``,
    and ``verification`` with thresholds for false accept rates if there is such a table. per_query.csv has one row for
    each result and query; a query without a match has empty numbers. Cameras count from 0, ranks from 1.

    Args:
        output_dir: made if missing.
        results: of the same queries.
        q_pids, q_camids: [M].
        query_paths: M image files.
        settings: anything that JSON can hold.
        verification: of :func:`utils.roc.roc_table`.

    Raises:
        UserError: lengths that do not agree, or a folder that cannot be written to.
    """
    num_query = results[0].num_queries
    q_pids = int_array("q_pids", q_pids, num_query, "the evaluation")
    q_camids = int_array("q_camids", q_camids, num_query, "the evaluation")
    if query_paths is not None:
        check_length("query_paths", len(query_paths), num_query, "the evaluation")
    details = {
        result.protocol: {
            "note": NOTES[result.protocol],
            "mAP": result.mAP,
            "mINP": result.mINP,
            "topk": {str(rank): value for rank, value in result.topk.items()},
            "cmc": [round(float(value), 8) for value in result.cmc],
            "queries": result.num_queries,
            "queries_without_match": result.num_skipped,
            "gallery_items": result.num_gallery,
        }
        for result in results
    }
    document = {**metrics_dict(*results), "protocols": details, "settings": dict(settings or {})}
    if verification is not None:
        document["verification"] = _thresholds(verification)
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(_COLUMNS)
    for result in results:
        found = {query: i for i, query in enumerate(result.query_index.tolist())}
        for query, (pid, camera) in enumerate(zip(q_pids.tolist(), q_camids.tolist(), strict=True)):
            path = os.fspath(query_paths[query]) if query_paths is not None else ""
            row = [result.protocol, query, path, pid, camera]
            writer.writerow(row + (_numbers(result, found[query]) if query in found else ["", "", "", 0]))
    folder = Path(output_dir)
    metrics = write_text(folder / "metrics.json", json.dumps(document, indent=2, allow_nan=False) + "\n")
    return metrics, write_text(folder / "per_query.csv", table.getvalue())


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


def write_index(
    path: AnyPath,
    result: EvalResult,
    rankings: Sequence[Ranking],
    pictures: Mapping[int, AnyPath],
    q_pids: Any,
    q_camids: Any,
    g_camids: Any,
    query_paths: Sequence[AnyPath],
) -> Path:
    """Write a page that shows the pictured queries, the worst first; it needs no network and no server.

    Worst is the lowest AP, then the latest first match; queries without a match come last.

    Args:
        path: the HTML file; pictures are linked relative to it.
        result: the evaluation that the rankings come from.
        rankings: of the pictured queries.
        pictures: index of the query -> PNG, as :func:`utils.visrank.render_rankings` returns it.
        q_pids, q_camids: [M].
        g_camids: [N] cameras of the gallery images.
        query_paths: M image files.

    Raises:
        UserError: lengths that do not agree, or a file that cannot be written.
    """
    q_pids = int_array("q_pids", q_pids, result.num_queries, "the evaluation")
    q_camids = int_array("q_camids", q_camids, result.num_queries, "the evaluation")
    cameras = Cameras("g_camids", g_camids, len(g_camids))
    found = {query: i for i, query in enumerate(result.query_index.tolist())}

    def badness(ranking: Ranking) -> tuple[bool, float, int, int]:
        i = found.get(ranking.query)
        if i is None:
            return True, 0.0, 0, ranking.query
        return False, float(result.average_precision[i]), -int(result.first_match[i]), ranking.query

    cards = []
    for ranking in sorted(rankings, key=badness):
        i = found.get(ranking.query)
        facts = [
            ("AP", f"{result.average_precision[i]:.1%}" if i is not None else "no match"),
            ("first match", f"rank {result.first_match[i]}" if i is not None else "-"),
            ("identity", str(q_pids[ranking.query])),
            ("camera", str(q_camids[ranking.query])),
        ]
        picture = quote(Path(os.path.relpath(pictures[ranking.query], Path(path).parent)).as_posix())
        cards.append(_card(Path(query_paths[ranking.query]).name, facts, picture, _results(ranking, cameras)))
    return write_text(path, _page(result, cards))


def _page(result: EvalResult, cards: list[str]) -> str:
    tiles = "".join(_fact(name, f"{value:.1%}") for name, value in metrics_dict(result).items())
    skipped = f" {result.num_skipped} queries have no match and count in no number." if result.num_skipped else ""
    return _PAGE.format(
        title=f"Ranked results: {TITLES[result.protocol]}",
        note=html.escape(
            f"{NOTES[result.protocol]} {result.num_queries} queries, {result.num_gallery} gallery items.{skipped}"
        ),
        tiles=tiles,
        shown=f"{len(cards)} of {result.num_queries} queries are shown",
        shown_by="" if result.protocol == "instance" else " A centroid is shown by one of its images.",
        cards="\n".join(cards),
    )


def _results(ranking: Ranking, cameras: Cameras) -> str:
    badges = []
    for rank, (image, right) in enumerate(zip(ranking.images.tolist(), ranking.right.tolist(), strict=True), start=1):
        kind, mark = ("right", "&#10003;") if right else ("wrong", "&#10007;")
        seen = ", ".join(map(str, cameras.of(image)))
        badges.append(f'<li class="{kind}">{rank} {mark} <small>cam {seen}</small></li>')
    return "".join(badges)


def _fact(name: str, value: str) -> str:
    return f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>"


def _card(name: str, facts: list[tuple[str, str]], picture: str, results: str) -> str:
    listed = "".join(_fact(key, value) for key, value in facts)
    return (
        f'<article><h2>{html.escape(name)}</h2><dl>{listed}</dl><a class="strip" href="{picture}">'
        f'<img src="{picture}" alt="Query {html.escape(name)} and its nearest results" loading="lazy"></a>'
        f"<ol>{results}</ol></article>"
    )


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --back: #f4f5f7; --card: #fff; --text: #1b1f24; --faint: #59636e; --line: #d8dde3;
  --right: #11742f; --wrong: #b3261e; }}
@media (prefers-color-scheme: dark) {{ :root {{ --back: #14171a; --card: #1f2429; --text: #e8eaed; --faint: #a3adb8;
  --line: #3a424a; --right: #5fd488; --wrong: #ff8a80; }} }}
* {{ box-sizing: border-box; }}
body {{ margin: 0 auto; max-width: 100rem; padding: 1.5rem; background: var(--back); color: var(--text);
  font: 1rem/1.45 system-ui, sans-serif; }}
h1 {{ font-size: 1.5rem; margin: 0 0 .25rem; }}
p {{ color: var(--faint); margin: 0 0 1rem; max-width: 60rem; }}
dl {{ display: flex; flex-wrap: wrap; gap: .5rem 1.5rem; margin: 0 0 .75rem; }}
dt {{ color: var(--faint); font-size: .8rem; }}
dd {{ margin: 0; font-variant-numeric: tabular-nums; font-weight: 600; }}
header dd {{ font-size: 1.25rem; }}
article {{ background: var(--card); border: 1px solid var(--line); border-radius: .5rem; margin: 0 0 1rem;
  padding: 1rem; }}
h2 {{ font-size: 1rem; margin: 0 0 .5rem; overflow-wrap: anywhere; }}
.strip {{ display: block; overflow-x: auto; }}
img {{ display: block; max-width: none; background: #fff; }}
ol {{ display: flex; flex-wrap: wrap; gap: .4rem; list-style: none; margin: .75rem 0 0; padding: 0; }}
li {{ border: 1px solid currentColor; border-radius: 1rem; padding: 0 .6rem; font-size: .85rem; }}
.right {{ color: var(--right); }}
.wrong {{ color: var(--wrong); }}
</style>
</head>
<body>
<header>
<h1>{title}</h1>
<p>{note}</p>
<dl>{tiles}</dl>
<p>{shown}, the worst first. Each picture holds the query (black frame), then its nearest results: a green frame is the
query's identity, a red one is not.{shown_by} Cameras count from 0.</p>
</header>
<main>
{cards}
</main>
</body>
</html>
"""
