"""What everything that ranks takes, and what an evaluation returns."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from evaluation.distance_blocks import as_embeddings
from evaluation.rerank import QueryExpansion, Rerank
from utils.errors import UnknownNameError, UserError
from utils.labels import IntArray, check_length, int_array

FloatArray = NDArray[np.float64]

TOPK_RANKS = (1, 5, 10, 20, 50)
PROTOCOLS = ("instance", "centroid", "centroid_strict")


@dataclass(frozen=True)
class RetrievalSet:
    """M queries and a gallery of N images.

    Attributes:
        query: [M, D] floating tensor or array.
        gallery: [N, D] floating.
        q_pids, g_pids: [M], [N] whole numbers.
        q_camids, g_camids: [M], [N] whole numbers; in the instance protocol a gallery item may have a set of cameras.
        q_paths, g_paths: M and N image files, where they are known.

    Raises:
        UserError: an empty side, lengths that do not agree, labels that are not whole numbers; names array and index.
    """

    query: Any
    gallery: Any
    q_pids: Any
    g_pids: Any
    q_camids: Any
    g_camids: Any
    q_paths: Sequence[str] | None = None
    g_paths: Sequence[str] | None = None

    def __post_init__(self) -> None:
        query, gallery = as_embeddings("query", self.query), as_embeddings("gallery", self.gallery)
        checked = {
            "query": query,
            "gallery": gallery,
            "q_pids": int_array("q_pids", self.q_pids, len(query), "query"),
            "g_pids": int_array("g_pids", self.g_pids, len(gallery), "gallery"),
            "q_camids": int_array("q_camids", self.q_camids, len(query), "query"),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        check_length("g_camids", len(self.g_camids), len(gallery), "gallery")
        for name, paths, owner in (("q_paths", self.q_paths, query), ("g_paths", self.g_paths, gallery)):
            if paths is not None:
                check_length(name, len(paths), len(owner), "query" if name == "q_paths" else "gallery")

    @classmethod
    def of_rows(
        cls, embeddings: Tensor, pids: Any, camids: Any, num_query: int, paths: Sequence[str] | None = None
    ) -> "RetrievalSet":
        """The rows of a validation set: M queries, then N gallery images.

        Args:
            embeddings: [M + N, D] floating.
            pids, camids: [M + N] whole numbers, or sets of cameras.
            num_query: M.
            paths: M + N image files.

        Raises:
            UserError: num_query leaves no query or no gallery, or lengths that do not agree.
        """
        m = num_query
        if not 0 < m < len(embeddings):
            raise UserError(
                f"num_query is {m}, but there are {len(embeddings)} embeddings of queries and gallery items."
            )
        check_length("pids", len(pids), len(embeddings), "embeddings")
        check_length("camids", len(camids), len(embeddings), "embeddings")
        q_paths, g_paths = (None, None) if paths is None else (paths[:m], paths[m:])
        return cls(embeddings[:m], embeddings[m:], pids[:m], pids[m:], camids[:m], camids[m:], q_paths, g_paths)

    @property
    def num_query(self) -> int:
        """M."""
        return len(self.query)

    @property
    def num_gallery(self) -> int:
        """N."""
        return len(self.gallery)

    def single_cameras(self) -> IntArray:
        """The gallery's cameras [N]. Raises UserError where an item has a set of them."""
        return int_array("g_camids", self.g_camids, self.num_gallery, "gallery")


@dataclass(frozen=True)
class RankingOptions:
    """How a gallery is ranked.

    Attributes:
        metric: "euclidean" (squared) or "cosine".
        protocol: "instance", "centroid" or "centroid_strict", see :mod:`evaluation.metrics`.
        keep_camids: in the centroid protocols, whether cameras are looked at.
        feat_norm: scale embeddings, or centroids once built, to unit length.
        rerank: k-reciprocal re-ranking of queries and gallery items (in the centroid protocols: centroids).
        query_expansion: average each query with its nearest gallery images first.

    Raises:
        UnknownNameError: another protocol.
    """

    metric: str = "euclidean"
    protocol: str = "instance"
    keep_camids: bool = True
    feat_norm: bool = False
    rerank: Rerank | None = None
    query_expansion: QueryExpansion | None = None

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise UnknownNameError(f"protocol is {self.protocol!r}; valid names: {', '.join(PROTOCOLS)}.")


@dataclass(frozen=True)
class EvalResult:
    """What an evaluation found. V is the number of valid queries: those with at least one relevant item."""

    protocol: str
    cmc: NDArray[np.float32]  # [max_rank] share of valid queries with a relevant item in the first 1, 2, ... ranks
    mAP: float  # noqa: N815 - the field's name
    mINP: float  # noqa: N815 - mean of (number of relevant items / rank of the last one)
    topk: dict[int, float]  # rank -> share, for TOPK_RANKS
    single_performance: FloatArray  # [V, 3] query index, pid, AP
    first_match: IntArray  # [V] rank of the first relevant item, 1 is the top
    inp: FloatArray  # [V]
    num_relevant: IntArray  # [V]
    num_queries: int
    num_gallery: int  # items ranked, centroids in the centroid protocols

    @property
    def query_index(self) -> IntArray:
        """[V] index of each valid query."""
        return self.single_performance[:, 0].astype(np.int64)

    @property
    def average_precision(self) -> FloatArray:
        """[V] AP of each valid query."""
        return self.single_performance[:, 2]

    @property
    def num_skipped(self) -> int:
        """Queries without a relevant item."""
        return self.num_queries - len(self.single_performance)
