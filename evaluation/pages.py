"""An HTML page of an evaluation: numbers, curves, cameras, a map of the embeddings, and ranked lists, worst first."""

import html
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from evaluation import charts
from evaluation.charts import Axes, Line, chart
from evaluation.curves import RECALL_STEPS, CameraTable, Curves, measure_curves
from evaluation.embedding_map import EmbeddingMap, draw_map
from evaluation.notes import title_of
from evaluation.page_data import Shown, Thumbnails, page_data
from evaluation.page_parts import facts, page
from evaluation.retrieval import TOPK_RANKS, EvalResult, RankingOptions, RetrievalSet
from evaluation.tables import metric_texts
from evaluation.verification import RocTable, roc_table
from utils.errors import UserError
from utils.files import write_bytes
from utils.labels import check_length

AnyPath = str | os.PathLike[str]

_BARS = 80  # bins of the histograms, as drawn
_DISTANCES = {"euclidean": "squared Euclidean distance", "cosine": "cosine distance"}


def write_page(
    path: AnyPath,
    result: EvalResult,
    retrieval: RetrievalSet,
    options: RankingOptions | None = None,
    shown: Shown | None = None,
    *,
    verification: RocTable | None = None,
    block_bytes: int | None = None,
) -> tuple[Path, str]:
    """Write a page of an evaluation in one file, which needs neither network nor server.

    All pages have the numbers, the CMC, the precision-recall curve and the list of queries: lowest AP first, of equal
    AP latest first match first, those without a match last. That of single images also has a table of cameras, the
    distances of pairs of the same and of different identities, and a map of the embeddings.

    Args:
        path: the HTML file; it links to strips and heat maps by relative paths.
        result: the evaluation of ``retrieval`` by ``options``.
        retrieval: what was evaluated; the images of its files are shown small, of up to 5000 of them.
        options: protocol and distances; None ranks single images by squared Euclidean distance.
        shown: rankings, strips and the like; None lists the queries without results.
        verification: the histograms of distances, if they have been computed already.
        block_bytes: memory for distances; None is 64 MiB.

    Returns:
        The path of the page, and what a reader has to know about missing images; "" for nothing.

    Raises:
        UserError: result and retrieval have different numbers of queries, or the file cannot be written.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from evaluation.metrics import evaluate
        >>> images = RetrievalSet([[1.0]], [[0.9]], [7], [7], [0], [1])
        >>> with TemporaryDirectory() as folder:
        ...     write_page(Path(folder) / "index.html", evaluate(images), images)[0].name
        'index.html'
    """
    check_length("retrieval", retrieval.num_query, result.num_queries, "the evaluation")
    path, options, shown = Path(path), options or RankingOptions(), shown or Shown()
    curves = measure_curves(retrieval, options, block_bytes)
    cards, drawn = [_cmc(result), _precision(result, curves)], None
    if result.protocol == "instance":
        cards.append(_histograms(retrieval, options, verification, block_bytes))
        drawn = draw_map(retrieval, options.feat_norm or options.metric == "cosine")
    body = [f'<div class="charts">{"".join(cards)}</div>']
    body += [] if curves.cameras is None else [_cameras(curves.cameras, retrieval)]
    body += [] if drawn is None else [_map(drawn, retrieval)]
    thumbnails = Thumbnails(shown.exif_orientation)
    data = page_data(path.parent, result, retrieval, shown, drawn, thumbnails)
    note = _missing_images(retrieval, thumbnails)
    body.append(_lists(result, retrieval, shown, note))
    body.append(f'<script type="application/json" id="data">{data}</script>')
    script = Path(__file__).with_name("pages.js").read_text(encoding="utf-8")
    title = f"Evaluation: {title_of(result)}"
    text = page(title, _header(result), "\n".join(body), charts.STYLE + _STYLE, script)
    return write_bytes(path, text.encode("utf-8", "replace")), note  # names of files may be no text


def _header(result: EvalResult) -> str:
    texts, spread = metric_texts(result)
    tiles = list(texts.items())
    if result.caveat:
        tiles.append(("these numbers are", result.caveat))
    skipped = f" {result.num_skipped} queries have no match and do not count." if result.num_skipped else ""
    note = f"{result.note} {result.num_queries} queries, {result.num_gallery} gallery items{spread}.{skipped}"
    if result.draws:
        note += " Other curves than the CMC, and what is told of single queries, are of the first draw."
    return f"<p>{html.escape(note)}</p>{facts(tiles)}"


# --------------------------------------------------------------------------------------------------------------- curves


def _card(title: str, *parts: str) -> str:
    return f"<article><h2>{html.escape(title)}</h2>{''.join(parts)}</article>"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The numbers of a chart, behind a click."""
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in columns)
    lines = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows)
    listed = "".join(f"<tr>{line}</tr>" for line in lines)
    return (
        f"<details><summary>Numbers</summary><table><thead><tr>{head}</tr></thead><tbody>{listed}</tbody></table>"
        "</details>"
    )


def _cmc(result: EvalResult) -> str:
    shares = [float(share) for share in result.cmc]
    low = math.floor(10 * min(0.9, shares[0])) / 10  # the lines of good embeddings would lie on the frame
    axes = Axes("rank", "queries with a right result up to the rank", (1, max(len(shares), 2)), (low, 1))
    ranks = [rank for rank in TOPK_RANKS if rank <= len(shares)]
    told = ", ".join(f"{shares[rank - 1]:.1%} at rank {rank}" for rank in ranks)
    drawn = chart([Line("", range(1, len(shares) + 1), shares)], axes, f"Cumulative matching: {told}.")
    return _card("Cumulative matching (CMC)", drawn, _table(("rank", "share"), _rows(ranks, shares)))


def _rows(ranks: Sequence[int], shares: Sequence[float]) -> list[tuple[str, str]]:
    return [(str(rank), f"{shares[rank - 1]:.2%}") for rank in ranks]


def _precision(result: EvalResult, curves: Curves) -> str:
    recall = [level / RECALL_STEPS for level in range(RECALL_STEPS + 1)]
    rows = [(f"{recall[i]:.0%}", f"{curves.precision[i]:.2%}") for i in range(0, RECALL_STEPS + 1, 10)]
    axes = Axes("recall", "precision", (0, 1), (0, 1), percent=(True, True))
    told = ", ".join(f"{precision} at recall {level}" for level, precision in rows[::5])
    drawn = chart([Line("", recall, curves.precision.tolist())], axes, f"Precision: {told}.")
    note = "" if result.protocol == "instance" else "<p>Usually one item is relevant, so the curve is flat.</p>"
    return _card("Precision and recall", drawn, note, _table(("recall", "precision"), rows))


def _histograms(
    retrieval: RetrievalSet, options: RankingOptions, table: RocTable | None, block_bytes: int | None
) -> str:
    title = "Distances of pairs"
    try:
        table = table or roc_table(retrieval, options, block_bytes=block_bytes)
    except UserError as error:
        return _card(title, f"<p>{html.escape(str(error))}</p>")
    filled = np.flatnonzero(table.genuine + table.impostor)
    step = -(-(filled[-1] - filled[0] + 1) // _BARS)
    starts = np.arange(filled[0], filled[-1] + 1, step)
    x = (table.edges[starts] + table.edges[np.minimum(starts + step, len(table.edges) - 1)]) / 2
    lines = []
    for name, counts in (("same identity", table.genuine), ("different", table.impostor)):
        binned = np.add.reduceat(counts[: filled[-1] + 1], starts) / counts.sum()
        lines.append(Line(name, x.tolist(), binned.tolist(), is_filled=True))
    reached = (table.threshold >= x[0]) & (table.threshold <= x[-1])  # not one that is NaN
    limits = [
        (float(limit), f"FAR {level:g}")
        for level, limit in zip(table.far_levels[reached], table.threshold[reached], strict=True)
    ]
    distance = _DISTANCES[options.metric] if options.rerank is None else "re-ranked distance"
    highest = max(max(line.y) for line in lines)
    x_range = (float(x[0]), float(x[-1]))
    axes = Axes(distance, "share of pairs", x_range, (0, (1.05 + 0.09 * len(limits)) * highest), limits=limits)
    rows = [
        (f"{level:g}", "-" if math.isnan(limit) else f"{limit:.6g}", f"{tar:.2%}")
        for level, limit, tar in zip(table.far_levels, table.threshold, table.tar, strict=True)
    ]
    told = "; ".join(f"at FAR {level} {tar} of the same identity are accepted" for level, _, tar in rows)
    columns = ("false accept rate", "distance up to", "true accept rate")
    return _card(
        title, chart(lines, axes, f"Distances of same and different identities: {told}."), _table(columns, rows)
    )


# ------------------------------------------------------------------------------------------------------ cameras and map


def _cameras(table: CameraTable, retrieval: RetrievalSet) -> str:
    names = [
        [html.escape(retrieval.names.camera(camera)) for camera in cameras]
        for cameras in (table.query_cameras, table.gallery_cameras)
    ]
    head = "".join(f'<th scope="col">{name}</th>' for name in names[1])
    rows = []
    for name, shares, counts in zip(names[0], table.mean_ap.tolist(), table.queries.tolist(), strict=True):
        cells = "".join(map(_cell, shares, counts))
        rows.append(f'<tr><th scope="row">{name}</th>{cells}</tr>')
    left_out = f" {table.left_out} cameras with fewer images are left out." if table.left_out else ""
    numbered = "" if retrieval.names.cameras else " Cameras are numbered from 0."
    note = (
        "mAP of the queries of a camera (rows), where of the right images only those of one camera of the gallery "
        "(columns) count and the other right ones are left out of the ranking; wrong images are those of all cameras."
        f"{numbered}{left_out}"
    )
    corner = '<th scope="col">query \\ gallery</th>'
    grid = f"<table><thead><tr>{corner}{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return _card("Camera by camera", f'<p>{note}</p><div class="wide cameras" tabindex="0">{grid}</div>')


def _cell(share: float, count: int) -> str:
    if not count:
        return "<td>-</td>"
    return f'<td style="--share: {100 * share:.0f}%" title="{count} queries">{share:.1%}</td>'


def _map(drawn: EmbeddingMap, retrieval: RetrievalSet) -> str:
    total = retrieval.num_query + retrieval.num_gallery
    share = (
        "" if drawn.method == "UMAP" else " The axes hold {:.0%} and {:.0%} of the variance.".format(*drawn.explained)
    )
    which = (
        f"{len(drawn.images)} of {total} images, of identities drawn at random"
        if len(drawn.images) < total
        else "All images"
    )
    note = (
        f"{which}, by {drawn.method}; one colour for each identity, circles for the gallery, diamonds for queries."
        f"{share} "
        "Point at one, or step through them with the arrow keys; a click or Enter lists the queries of its identity."
    )
    frame = 'viewBox="-20 -20 1040 1040" tabindex="0" role="application" aria-label="Map of embeddings"'
    svg = f'<svg id="map" {frame}></svg>'
    return _card(
        "Map of embeddings",
        f'<p>{note}</p><div class="map">{svg}<div id="point" aria-live="polite">No image is chosen.</div></div>',
    )


# ---------------------------------------------------------------------------------------------------------------- lists


def _lists(result: EvalResult, retrieval: RetrievalSet, shown: Shown, note: str) -> str:
    about = "Worst queries first. A check mark and a green frame mark the query's identity, a cross and a red frame "
    about += "another one."
    about += "" if result.protocol == "instance" else " One of its images stands for a centroid."
    listed = len(shown.rankings)
    about += f" Results are listed for {listed} of {result.num_queries} queries." if listed < result.num_queries else ""
    about += f" {note}" if note else ""
    camera = ""
    if retrieval.has_cameras:
        names = (html.escape(retrieval.names.camera(camera)) for camera in np.unique(retrieval.q_camids).tolist())
        options = "".join(f"<option>{name}</option>" for name in names)
        camera = f'<label>Camera <select name="camera"><option value="">all</option>{options}</select></label>'
    share = 'type="number" min="0" max="100" step="any"'
    turn = '<button type="button" class="previous">Previous</button><button type="button" class="next">Next</button>'
    return (
        f"<section><h2>Ranked lists</h2><p>{html.escape(about)}</p>"
        "<noscript><p>The lists and the map need JavaScript.</p></noscript>"
        f'<form id="filter">{camera}<label>AP from <input name="low" {share}></label>'
        f'<label>to <input name="high" {share}> %</label><label>Identity <input name="identity"></label>'
        f'<button type="reset">All queries</button><span class="turn">{turn}</span>'
        '<span id="count" role="status"></span></form>'
        f'<div id="rankings"></div><p class="turn">{turn}</p></section>'
    )


def _missing_images(retrieval: RetrievalSet, thumbnails: Thumbnails) -> str:
    sides = (("queries", retrieval.q_paths), ("gallery", retrieval.g_paths))
    unknown = [name for name, paths in sides if paths is None]
    note = [f"The files of the {' and '.join(unknown)} are not known: images have numbers here."] if unknown else []
    if thumbnails.missing:
        total = len(thumbnails.encoded) + len(thumbnails.missing)
        first = thumbnails.missing[0].encode("utf-8", "replace").decode()
        note.append(
            f"{len(thumbnails.missing)} of {total} images cannot be shown, since their files cannot be read (the first "
            f"is {first})."
        )
    if thumbnails.left_out:
        note.append(f"{thumbnails.left_out} images are named but not shown, to keep the page small.")
    return " ".join(note)


_STYLE = """
:root { --light: 40%; }
@media (prefers-color-scheme: dark) { :root { --light: 66%; } }
h3 { font-size: .95rem; margin: 0 0 .4rem; overflow-wrap: anywhere; }
a { color: var(--first); }
:focus-visible { outline: 2px solid var(--first); outline-offset: 2px; }
.charts { display: grid; gap: 0 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); }
details { margin-top: .5rem; }
summary { color: var(--faint); cursor: pointer; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { border: 1px solid var(--line); padding: .2rem .6rem; text-align: right; }
th { font-weight: 600; }
.wide { overflow-x: auto; }
.cameras td { background: color-mix(in srgb, var(--first) calc(var(--share, 0%) * .45), transparent); }
.map { display: flex; flex-wrap: wrap; gap: 1rem; }
#map { flex: 1 1 20rem; max-width: 38rem; border: 1px solid var(--line); border-radius: .5rem; }
#map circle, #map path { fill: hsl(var(--hue) 70% var(--light)); opacity: .85; }
#map.chosen circle, #map.chosen path { opacity: .15; }
#map.chosen .same { opacity: 1; stroke: var(--text); stroke-width: 2; }
#map #ring { fill: none; stroke: var(--text); stroke-width: 3; opacity: 1; }
#point { flex: 1 1 14rem; color: var(--faint); overflow-wrap: anywhere; }
#point dd { color: var(--text); }
#point img { height: 8rem; margin-bottom: .5rem; }
form { display: flex; flex-wrap: wrap; gap: .5rem 1rem; align-items: center; margin: 0 0 1rem; }
input, select, button { font: inherit; padding: .2rem .5rem; }
input[type="number"] { width: 5.5rem; }
input[name="identity"] { width: 8rem; }
.turn { display: inline-flex; gap: .5rem; }
.ranking ol { display: flex; flex-wrap: wrap; gap: .5rem; list-style: none; margin: 0; padding: 0; }
.ranking li { display: flex; flex-direction: column; align-items: center; width: 6rem; border: 2px solid currentColor;
  border-radius: .4rem; padding: .25rem; }
.ranking li img { height: 64px; max-width: 100%; object-fit: contain; }
.ranking li.query { border-color: var(--text); margin-right: .75rem; min-width: 6rem; width: auto; }
.ranking li.query img { max-width: none; }
.ranking small { font-size: .75rem; max-width: 100%; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.faint { color: var(--faint); }
.unknown { color: var(--faint); font-size: .75rem; height: 64px; max-width: 100%; overflow: hidden;
  overflow-wrap: anywhere; }
"""
