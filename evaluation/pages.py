"""An HTML page of ranked results, worst queries first."""

import html
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from evaluation.metrics import metrics_dict
from evaluation.notes import TITLES
from evaluation.page_parts import facts, page
from evaluation.ranked_images import Ranking
from evaluation.retrieval import EvalResult, RetrievalSet
from utils.files import write_text
from utils.labels import Cameras, Names, check_length

AnyPath = str | os.PathLike[str]


def write_index(
    path: AnyPath,
    result: EvalResult,
    rankings: Sequence[Ranking],
    strips: Mapping[int, AnyPath],
    retrieval: RetrievalSet,
    heatmaps: Mapping[int, AnyPath] | None = None,
) -> Path:
    """Write a page that shows the strips of ranked results, worst query first; it needs neither network nor server.

    Queries are ordered by AP, lowest first, and those with equal AP by their first match, latest first. Queries without
    a match come last.

    Args:
        path: the HTML file; it links to the strips by relative paths.
        result: the evaluation of ``retrieval``.
        rankings: the rankings of the queries that have a strip; none give a page without strips.
        strips: index of the query -> PNG, as :func:`evaluation.ranked_images.render_rankings` returns it.
        retrieval: what was evaluated, with the image files of its queries.
        heatmaps: index of the query -> image that shows why its first result is similar; None for none.

    Returns:
        The path of the page.

    Raises:
        UserError: result and retrieval have different numbers of queries, or the file cannot be written.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from evaluation.metrics import evaluate
        >>> images = RetrievalSet([[1.0]], [[0.9]], [7], [7], [0], [1], q_paths=["query.jpg"])
        >>> with TemporaryDirectory() as folder:
        ...     write_index(Path(folder) / "index.html", evaluate(images), [], {}, images).name
        'index.html'
    """
    check_length("retrieval", retrieval.num_query, result.num_queries, "the evaluation")
    assert retrieval.q_paths is not None
    named = retrieval.names
    cameras = Cameras("g_camids", retrieval.g_camids, retrieval.num_gallery) if retrieval.has_cameras else None
    found = {query: i for i, query in enumerate(result.query_index.tolist())}

    def badness(ranking: Ranking) -> tuple[bool, float, int, int]:
        i = found.get(ranking.query)
        if i is None:
            return True, 0.0, 0, ranking.query
        return False, float(result.average_precision[i]), -int(result.first_match[i]), ranking.query

    cards = []
    for ranking in sorted(rankings, key=badness):
        i = found.get(ranking.query)
        about = [
            ("AP", f"{result.average_precision[i]:.1%}" if i is not None else "no match"),
            ("first match", f"rank {result.first_match[i]}" if i is not None else "-"),
            ("identity", named.pid(retrieval.q_pids[ranking.query])),
        ]
        about += [("camera", named.camera(retrieval.q_camids[ranking.query]))] * (cameras is not None)
        strip = _link(strips[ranking.query], path)
        results = _results(ranking, cameras, named) + _heatmap_link((heatmaps or {}).get(ranking.query), path)
        cards.append(_card(Path(retrieval.q_paths[ranking.query]).name, about, strip, results))
    return write_text(path, _page(result, retrieval, cards))


def _link(file: AnyPath, page_path: AnyPath) -> str:
    return quote(Path(os.path.relpath(file, Path(page_path).parent)).as_posix())


def _heatmap_link(file: AnyPath | None, page_path: AnyPath) -> str:
    return "" if file is None else f'<li><a href="{_link(file, page_path)}">heat maps</a></li>'


def _page(result: EvalResult, retrieval: RetrievalSet, cards: list[str]) -> str:
    tiles = [(name, f"{value:.1%}") for name, value in metrics_dict(result).items()]
    skipped = f" {result.num_skipped} queries have no match and do not count." if result.num_skipped else ""
    if result.caveat:
        tiles.append(("these numbers are", result.caveat))
    note = html.escape(f"{result.note} {result.num_queries} queries, {result.num_gallery} gallery items.{skipped}")
    shown = (
        f"{len(cards)} of {result.num_queries} queries are shown, worst first. Each strip holds the query (black "
        "frame), then its nearest results: a green frame marks the query's identity, a red frame another one."
    )
    shown += "" if result.protocol == "instance" else " One of its images stands for a centroid."
    shown += " Cameras are numbered from 0." if retrieval.has_cameras and not retrieval.names.cameras else ""
    header = f"<p>{note}</p>{facts(tiles)}<p>{shown}</p>"
    return page(f"Ranked results: {TITLES[result.protocol]}", header, "\n".join(cards), _STYLE)


def _results(ranking: Ranking, cameras: Cameras | None, named: Names) -> str:
    badges = []
    for rank, (image, right) in enumerate(zip(ranking.images.tolist(), ranking.right.tolist(), strict=True), start=1):
        kind, mark = ("right", "&#10003;") if right else ("wrong", "&#10007;")
        seen = "" if cameras is None else ", ".join(map(named.camera, cameras.of(image)))
        small = f" <small>cam {html.escape(seen)}</small>" if seen else ""
        badges.append(f'<li class="{kind}">{rank} {mark}{small}</li>')
    return "".join(badges)


def _card(name: str, about: list[tuple[str, str]], strip: str, results: str) -> str:
    return (
        f'<article><h2>{html.escape(name)}</h2>{facts(about)}<a class="strip" href="{strip}">'
        f'<img src="{strip}" alt="Query {html.escape(name)} and its nearest results" loading="lazy"></a>'
        f"<ol>{results}</ol></article>"
    )


_STYLE = """
.strip { display: block; overflow-x: auto; }
img { display: block; max-width: none; background: #fff; }
ol { display: flex; flex-wrap: wrap; gap: .4rem; list-style: none; margin: .75rem 0 0; padding: 0; }
li { border: 1px solid currentColor; border-radius: 1rem; padding: 0 .6rem; font-size: .85rem; }
"""
