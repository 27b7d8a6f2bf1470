"""A door to :mod:`evaluation.ranked_images`, which draws ranked results as the original's utils/visrank.py did."""

from collections.abc import Iterable
from typing import Any

from evaluation import ranked_images
from evaluation.ranked_images import Ranking, render_rankings
from evaluation.retrieval import RankingOptions, RetrievalSet

__all__ = ["Ranking", "rank_for_display", "render_rankings"]


def rank_for_display(
    query: Any,
    gallery: Any,
    q_pids: Any,
    g_pids: Any,
    q_camids: Any,
    g_camids: Any,
    *,
    topk: int = 10,
    queries: Iterable[int] | None = None,
    max_number: int | None = None,
    **ranking: Any,
) -> list[Ranking]:
    """:func:`evaluation.ranked_images.rank_for_display` for programs that have arrays.

    Args:
        query, gallery, q_pids, g_pids, q_camids, g_camids: as for :class:`~evaluation.retrieval.RetrievalSet`.
        topk, queries: as there.
        max_number: only the first so many of the queries.
        ranking: the fields of :class:`~evaluation.retrieval.RankingOptions`.
    """
    retrieval = RetrievalSet(query, gallery, q_pids, g_pids, q_camids, g_camids)
    wanted = list(range(retrieval.num_query) if queries is None else queries)[:max_number]
    return ranked_images.rank_for_display(retrieval, RankingOptions(**ranking), topk=topk, queries=wanted)
