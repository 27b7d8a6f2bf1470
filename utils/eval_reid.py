"""A door: the names of the original's utils/eval_reid.py, and later names that were published here.

They live in :mod:`evaluation.metrics` and :mod:`evaluation.retrieval`.
"""

from evaluation.metrics import eval_func, evaluate_distances, evaluate_embeddings, metrics_dict
from evaluation.retrieval import TOPK_RANKS, EvalResult

__all__ = ["TOPK_RANKS", "EvalResult", "eval_func", "evaluate_distances", "evaluate_embeddings", "metrics_dict"]
