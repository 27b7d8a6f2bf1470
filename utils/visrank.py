"""A door to :mod:`evaluation.ranked_images`, which draws ranked results as the original's utils/visrank.py did."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from evaluation import ranked_images
from evaluation.ranked_images import Ranking, rank_distances, render_rankings
from evaluation.retrieval import RankingOptions, RetrievalSet
from utils.errors import UserError

__all__ = ["Ranking", "rank_for_display", "render_rankings", "visualize_ranked_results"]


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


def visualize_ranked_results(
    distmat: Any,
    dataset: tuple[Sequence[Any], Sequence[Any]],
    data_type: str = "image",
    width: int = 128,
    height: int = 256,
    save_dir: str = "",
    topk: int = 10,
    max_number: int | None = None,
) -> dict[int, Path]:
    """Write one strip for each query: its image, then its nearest gallery images, right ones in green, others in red.

    Gallery images of the query's identity from the query's camera are left out.

    Args:
        distmat: [M, N] floating, the distances from M queries to N gallery images.
        dataset: the queries and the gallery, lists of M and N tuples (path, pid, camid, anything).
        data_type: "image".
        width, height: size of each image in a strip, in pixels.
        save_dir: folder for the strips, created if missing; "" is the current one.
        topk: largest number of results in a strip.
        max_number: only the first so many of the queries; None takes all.

    Returns:
        Index of the query -> its strip, a PNG named after the query's file.

    Raises:
        UserError: another data_type, lengths that do not agree, a distance that is not finite, or an image that cannot
            be read.
    """
    if data_type != "image":
        raise UserError(f"data_type is {data_type!r}; only 'image' is served: give one image for each query and item.")
    (q_paths, q_pids, q_camids), (g_paths, g_pids, g_camids) = (
        [[sample[i] for sample in samples] for i in range(3)] for samples in dataset
    )
    queries = range(len(q_pids))[:max_number]
    rankings = rank_distances(distmat, q_pids, g_pids, q_camids, g_camids, topk=topk, queries=queries)
    return render_rankings(rankings, q_paths, g_paths, save_dir, (height, width))
