"""The arguments of everything that ranks, and the result of an evaluation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from evaluation.distance_blocks import as_embeddings
from evaluation.rerank import QueryExpansion, Rerank
from evaluation.self_matches import SelfMatches
from utils.errors import UnknownNameError, UserError
from utils.labels import IntArray, Names, check_length, int_array

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
        q_paths, g_paths: M and N image files, if known.
        names: what the user calls the identities and cameras.
        has_cameras: False for data without cameras: the camids above are not looked at, and no filter removes items,
            except by ``self_matches``.
        self_matches: without cameras, the queries' own images among the gallery, which are left out of their rankings;
            the published centroid protocol keeps them.

    Raises:
        UserError: there are no queries or no gallery items, the lengths do not agree, or a label is not a whole number;
            the message names the array and index.

    Example:
        >>> images = RetrievalSet([[1.0, 0]], [[0.9, 0], [0, 1]], [7], [7, 8], [0], [1, 1])
        >>> images.num_query, images.num_gallery
        (1, 2)
    """

    query: Any
    gallery: Any
    q_pids: Any
    g_pids: Any
    q_camids: Any
    g_camids: Any
    q_paths: Sequence[str] | None = None
    g_paths: Sequence[str] | None = None
    names: Names = field(default_factory=Names)
    has_cameras: bool = True
    self_matches: SelfMatches | None = None

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
        """Split the rows of a validation set: M queries, then N gallery images.

        Args:
            embeddings: [M + N, D] floating.
            pids: [M + N] whole numbers.
            camids: [M + N] whole numbers; in the instance protocol an item may have a set of cameras, a query of one.
            num_query: M.
            paths: M + N image files.

        Raises:
            UserError: num_query leaves no queries or no gallery, or the lengths do not agree.
        """
        m = num_query
        if not 0 < m < len(embeddings):
            raise UserError(
                f"num_query is {m}, but there are {len(embeddings)} embeddings of queries and gallery items; "
                f"expected 1 to {len(embeddings) - 1}."
            )
        check_length("pids", len(pids), len(embeddings), "embeddings")
        check_length("camids", len(camids), len(embeddings), "embeddings")
        q_paths, g_paths = (None, None) if paths is None else (paths[:m], paths[m:])
        q_camids = camids[:m] if isinstance(camids, Tensor) else [_only(i, of) for i, of in enumerate(camids[:m])]
        return cls(embeddings[:m], embeddings[m:], pids[:m], pids[m:], q_camids, camids[m:], q_paths, g_paths)

    @property
    def num_query(self) -> int:
        """Number of queries, M."""
        return len(self.query)

    @property
    def num_gallery(self) -> int:
        """Number of gallery images, N."""
        return len(self.gallery)

    def single_cameras(self) -> IntArray:
        """The gallery's cameras [N]; raises a UserError if an item has a set of them."""
        return int_array("g_camids", self.g_camids, self.num_gallery, "gallery")

    def filter_cameras(self) -> tuple[IntArray, Any]:
        """The cameras [M] and [N] by which items are removed: those of the images, or stand-ins if there are none."""
        if self.has_cameras:
            return self.q_camids, self.g_camids
        if self.self_matches is not None:
            return self.self_matches.as_cameras()
        return np.zeros(self.num_query, dtype=np.int64), np.ones(self.num_gallery, dtype=np.int64)


def _only(index: int, cameras: Any) -> Any:
    """The camera of a query, which may stand in a set, list or array of its own."""
    if not hasattr(cameras, "__len__") or isinstance(cameras, str):
        return cameras
    if len(cameras) != 1:
        raise UserError(f"camids[{index}] has {len(cameras)} cameras; a query has one.")
    return next(iter(cameras))


@dataclass(frozen=True)
class RankingOptions:
    """How a gallery is ranked.

    Attributes:
        metric: "euclidean" (squared) or "cosine".
        protocol: "instance", "centroid" or "centroid_strict", see :mod:`evaluation.metrics`.
        keep_camids: in the centroid protocols, take cameras into account.
        feat_norm: scale embeddings to unit length; in the centroid protocols, scale the centroids once built.
        rerank: settings of k-reciprocal re-ranking of queries and gallery items; None ranks by the plain distances.
        query_expansion: settings for averaging each query with its nearest gallery images first; None does not.

    Raises:
        UnknownNameError: any other protocol.

    Example:
        >>> RankingOptions(metric="cosine").protocol
        'instance'
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
    """The result of an evaluation with V valid queries: those with at least one relevant item.

    Example:
        >>> from evaluation.metrics import evaluate
        >>> result = evaluate(RetrievalSet([[1.0], [5]], [[0.9], [0.2]], [7, 9], [7, 8], [0, 0], [1, 1]))
        >>> result.mAP, result.num_queries, result.num_skipped
        (1.0, 2, 1)
    """

    protocol: str
    cmc: NDArray[np.float32]  # [max_rank] share of valid queries with a relevant item at rank 1, up to rank 2, ...
    mAP: float  # noqa: N815 - the usual name in the literature
    mINP: float  # noqa: N815 - mean of (number of relevant items / rank of the last one)
    topk: dict[int, float]  # rank -> share, for TOPK_RANKS
    # [V, 3] query index, pid, AP. A pid beyond 2**53 is rounded here, and whole in pids.
    single_performance: FloatArray
    pids: IntArray  # [V] identity of each valid query
    first_match: IntArray  # [V] rank of the first relevant item, counted from 1
    inp: FloatArray  # [V] the values whose mean is mINP
    num_relevant: IntArray  # [V] number of relevant items
    num_queries: int
    num_gallery: int  # items ranked: images or centroids
    # Metric -> mean, std and values over repeated draws of queries and gallery. mAP, mINP, topk and cmc are then means,
    # and what single queries have is of the first draw. Empty: there is one division.
    draws: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    note: str = ""  # what the protocol ranks and leaves out, for readers
    caveat: str = ""  # why the numbers are too high, and which to use instead
    applied: str = ""  # query expansion and re-ranking, with their settings

    @property
    def query_index(self) -> IntArray:
        """Index of each valid query, [V]."""
        return self.single_performance[:, 0].astype(np.int64)

    @property
    def average_precision(self) -> FloatArray:
        """AP of each valid query, [V]."""
        return self.single_performance[:, 2]

    @property
    def num_skipped(self) -> int:
        """Number of queries without a relevant item."""
        return self.num_queries - len(self.single_performance)
