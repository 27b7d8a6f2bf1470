"""A door: the names of the original's utils/reid_metric.py, over :mod:`evaluation` and :mod:`utils.distances`."""

from typing import Any

from torch import Tensor

from evaluation.metrics import evaluate
from evaluation.retrieval import TOPK_RANKS, EvalResult, RankingOptions, RetrievalSet
from utils.distances import cosine_similarity, get_cosine, get_dist_func, get_euclidean
from utils.errors import UserError

__all__ = ["R1_mAP", "cosine_similarity", "get_cosine", "get_dist_func", "get_euclidean"]


class R1_mAP:  # noqa: N801 - the name that other programs import
    """CMC, mAP and related metrics: ``R1_mAP(pl_module, num_query, ...)``, or ``R1_mAP(num_query, ...)``.

    Args:
        pl_module: the model whose hparams.SOLVER.DISTANCE_FUNC is used; by position it comes first.
        num_query: the number of queries, which are the first embeddings.
        max_rank: length of the CMC.
        feat_norm: scale embeddings to unit length before distances are computed.
        dist_func: "euclidean" (squared) or "cosine"; None takes that of pl_module, or "euclidean" without one.
        block_bytes: memory for distances, see :func:`evaluation.metrics.evaluate`.

    Raises:
        UnknownNameError: any other dist_func.
    """

    def __init__(self, *given: Any, pl_module: Any = None, **settings: Any) -> None:
        if given and hasattr(given[0], "hparams"):
            pl_module, *given = given  # type: ignore[assignment]
        self._set(pl_module, *given, **settings)

    def _set(
        self,
        pl_module: Any,
        num_query: int,
        max_rank: int = 50,
        feat_norm: bool = True,
        dist_func: str | None = None,
        block_bytes: int | None = None,
    ) -> None:
        if dist_func is None:
            dist_func = "euclidean" if pl_module is None else pl_module.hparams.SOLVER.DISTANCE_FUNC
        get_dist_func(dist_func)  # raises for an unknown name
        self.num_query = num_query
        self.max_rank = max_rank
        self.feat_norm = feat_norm
        self.dist_func = dist_func
        self.block_bytes = block_bytes

    def compute(self, feats: Tensor, pids: Any, camids: Any, respect_camids: bool = False) -> tuple[Any, float, Any]:
        """Rank and measure.

        Args:
            feats: [M + N, D] floating, the M queries first; N images or centroids.
            pids: [M + N] whole numbers.
            camids: M + N whole numbers (surplus entries are ignored); with respect_camids M + N sets, lists or arrays
                of cameras, and a query's holds one camera.
            respect_camids: gallery items have sets of cameras.

        Returns:
            cmc [max_rank], mAP, and the shares for ranks 1, 5, 10, 20 and 50.

        Raises:
            UserError: as for :func:`evaluation.metrics.evaluate`.
        """
        result = self.evaluate(feats, pids, camids, respect_camids)
        return result.cmc, result.mAP, [result.topk[k] for k in TOPK_RANKS]

    def evaluate(self, feats: Tensor, pids: Any, camids: Any, respect_camids: bool = False) -> EvalResult:
        """As :meth:`compute`, but return the whole result."""
        if isinstance(camids, list) and not respect_camids and any(isinstance(of, set | list) for of in camids):
            raise UserError("camids holds sets of cameras; with those, respect_camids is True.")
        retrieval = RetrievalSet.of_rows(feats, pids, camids[: len(feats)], self.num_query)
        options = RankingOptions(metric=self.dist_func, feat_norm=self.feat_norm)
        return evaluate(retrieval, options, max_rank=self.max_rank, block_bytes=self.block_bytes)
