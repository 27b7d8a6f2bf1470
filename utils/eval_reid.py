"""A door: the names of the original's utils/eval_reid.py, and later names that were published here.

They live in :mod:`evaluation.metrics` and :mod:`evaluation.retrieval`.
"""

from collections.abc import Sequence
from typing import Any

from evaluation.metrics import eval_func, evaluate_distances, evaluate_embeddings, metrics_dict
from evaluation.retrieval import TOPK_RANKS, EvalResult

__all__ = [
    "TOPK_RANKS",
    "EvalResult",
    "eval_func",
    "evaluate_distances",
    "evaluate_embeddings",
    "k_list",
    "metrics_dict",
    "top_k_retrieval",
]

k_list = list(TOPK_RANKS)


def top_k_retrieval(row_matches: Any, k: Sequence[int] = k_list) -> list[int]:
    """Tell whether one query has a match among its first k results.

    Args:
        row_matches: [N] booleans or 0 and 1, the matches in ranked order.
        k: the ranks to look at, each 1 or more.

    Returns:
        1 or 0 for each rank of ``k``; 0 where there are no results.
    """
    return [int(any(row_matches[:rank])) for rank in k]
