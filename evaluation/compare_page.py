"""The page of a comparison: metrics of both, AP in one against AP in the other, and the queries that changed most."""

import html
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.comparison import about_queries, about_settings, interval_text
from evaluation.page_parts import facts, page, thumbnail
from utils.errors import UserError
from utils.files import write_bytes

AnyPath = str | os.PathLike[str]
_SIZE = 320  # of the plot, in its own units


def write_page(
    path: AnyPath,
    document: Mapping[str, Any],
    queries: Sequence[Mapping[str, Any]],
    changed: Mapping[str, Sequence[Mapping[str, Any]]],
) -> Path:
    """Write the page, one file with small images of the queries whose files can be read.

    Args:
        path: the page.
        document, queries: as :func:`evaluation.comparison.compare` returns them.
        changed: the queries to show that "gained" and "lost".

    Raises:
        UserError: it cannot be written.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> about = {"A": "a", "B": "b", "protocol": "instance", "queries": 1, "identities": 1, "paired_by": "path"}
        >>> about |= {"left_out": 0, "differs": {}, "metrics": {}, "level": 0.95, "resamples": 1, "permutations": 1}
        >>> with TemporaryDirectory() as folder:
        ...     page_of = write_page(f"{folder}/compare.html", about, [{"AP_A": 0.5, "AP_B": 0.5}], {})
        ...     "M160 160h0" in page_of.read_text()
        True
    """
    header = facts([("A", document["A"]), ("B", document["B"])])
    lines = [about_queries(document), *about_settings(document)]
    header += f"<p>{'<br>'.join(map(html.escape, lines))}</p>"
    body = f'<div class="beside"><article>{_table(document)}</article><article>{_plot(queries)}</article></div>'
    for what, found in changed.items():
        body += f"<h2>Queries that {what} most: {len(found)} are shown</h2>" if found else ""
        body += f'<div class="cards">{"".join(map(_card, found))}</div>'
    text = page("Two evaluations compared", header, body, _STYLE)
    return write_bytes(path, text.encode("utf-8", "replace"))  # names of files may be no text


def _table(document: Mapping[str, Any]) -> str:
    names = ("", "A", "B", "B - A", f"{100 * document['level']:g}% interval", "p")
    rows = ["<tr>" + "".join(f'<th scope="col">{name}</th>' for name in names) + "</tr>"]
    for name, found in document["metrics"].items():
        beyond = found["interval"] and not found["interval"][0] <= 0 <= found["interval"][1]
        agree = beyond and found["p_value"] <= 1 - document["level"]
        kind = f' class="{"right" if found["difference"] > 0 else "wrong"}"' if agree else ""
        cells = f"<td>{found['A']:.2%}</td><td>{found['B']:.2%}</td><td{kind}>{100 * found['difference']:+.2f}</td>"
        cells += f"<td>{interval_text(found)}</td><td>{found['p_value']:.4g}</td>"
        rows.append(f'<tr><th scope="row">{name}</th>{cells}</tr>')
    text = f"Bootstrap of {document['resamples']}, permutation test of {document['permutations']} draws by identity."
    text += " They tell of the choice of queries, not of other trainings. p tests whether there is any difference, the "
    text += "interval estimates its size; near the edge they can disagree. A difference has a colour where both agree: "
    text += f"the interval leaves out 0 and p is at most {1 - document['level']:.4g}."
    return f"<table>{''.join(rows)}</table><p>{text}</p>"


def _plot(queries: Sequence[Mapping[str, Any]]) -> str:
    """AP in A to the right, AP in B upwards; a dot for each query, one for those at the same place."""
    places = {(round(_SIZE * query["AP_A"]), round(_SIZE * (1 - query["AP_B"]))) for query in queries}
    dots = "".join(f"M{x} {y}h0" for x, y in sorted(places))
    return (
        f'<svg viewBox="-30 -10 {_SIZE + 40} {_SIZE + 45}" role="img" aria-label="AP of each query in A and in B">'
        f'<path class="axis" d="M0 0V{_SIZE}H{_SIZE}M0 {_SIZE}L{_SIZE} 0"/><path class="dots" d="{dots}"/>'
        f'<text x="{_SIZE // 2}" y="{_SIZE + 25}">AP in A</text>'
        f'<text transform="translate(-12 {_SIZE // 2}) rotate(-90)">AP in B</text></svg>'
    )


def _card(query: Mapping[str, Any]) -> str:
    name = query["path"] or f"query {query['query']}"
    try:
        image = f'<img src="{thumbnail(query["path"])}" alt="">' if query["path"] else ""
    except UserError:  # the files may lie on another machine
        image = ""
    kind = "right" if query["AP_B"] > query["AP_A"] else "wrong"
    about = [
        ("AP", f"{query['AP_A']:.1%} to {query['AP_B']:.1%}"),
        ("first match", f"rank {query['rank_A']} to {query['rank_B']}"),
        ("identity", query["pid"]),
    ]
    return f'<article><h2 class="{kind}">{html.escape(name)}</h2>{image}{facts(about)}</article>'


_STYLE = """
.beside { display: flex; flex-wrap: wrap; gap: 1rem; }
.beside p { max-width: 32rem; }
.cards { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(16rem, 1fr)); }
.cards article { margin: 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 0 0 .75rem; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .8rem; text-align: right; }
th { color: var(--faint); font-weight: 600; }
svg { display: block; width: 24rem; max-width: 100%; }
svg text { fill: var(--faint); font-size: 12px; text-anchor: middle; }
.axis { fill: none; stroke: var(--line); }
.dots { fill: none; stroke: var(--text); stroke-linecap: round; stroke-opacity: .4; stroke-width: 4; }
"""
