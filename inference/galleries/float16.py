"""What storing embeddings in float16 costs: the recall@10 of their search against that of float32."""

import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

_ROWS, _QUERIES, _RESULTS = 20_000, 1_000, 10
_SEED = 1234


class RecallSample:
    """A sample of float32 rows, drawn evenly from all that are added (reservoir sampling, Vitter's algorithm R)."""

    def __init__(self) -> None:
        self._rows: NDArray[np.float32] | None = None
        self._seen = 0
        self._draw = np.random.default_rng(_SEED)

    def add(self, rows: NDArray[Any]) -> None:
        """Offer rows [n, D]; the sample does not depend on how they are cut into calls."""
        if self._rows is None:
            self._rows = np.empty((_ROWS, rows.shape[1]), np.float32)
        numbers = np.arange(self._seen, self._seen + len(rows))
        is_late = numbers >= _ROWS
        numbers[is_late] = self._draw.random(int(is_late.sum())) * (numbers[is_late] + 1)
        for row in np.flatnonzero(numbers < _ROWS).tolist():
            self._rows[numbers[row]] = rows[row]
        self._seen += len(rows)

    def measure(self) -> dict[str, Any] | None:
        """The recall, and over how many queries and rows; None if there are too few rows."""
        if self._rows is None or self._seen < 2:
            return None
        exact = self._rows[: self._seen]
        queries = np.unique(np.linspace(0, len(exact) - 1, min(_QUERIES, len(exact))).astype(np.int64))
        count = min(_RESULTS, len(exact) - 1)
        recall = recall_of(exact, exact.astype(np.float16).astype(np.float32), queries, count)
        logger.info(
            "float16: recall@%d %.4f against float32, over %d of the embeddings among %d", count, recall, len(queries),
            len(exact),
        )  # fmt: skip
        return {f"recall@{count}": round(recall, 6), "queries": len(queries), "rows": len(exact)}


def recall_of(exact: NDArray[np.float32], stored: NDArray[np.float32], queries: NDArray[np.int64], count: int) -> float:
    """The share of the nearest ``count`` other rows of each query in ``exact`` [N, D] that are so in ``stored`` too."""
    from inference.searching.search import search_gallery

    found = []
    for rows in (exact, stored):
        nearest, _ = search_gallery(rows[queries], rows, topk=count + 1)
        # The query itself, which is not always the first of equal rows, goes; else the last.
        others = nearest != queries[:, None]
        others[others.all(1), -1] = False
        found.append(nearest[others].reshape(len(queries), count))
    hits = [np.isin(left, right).sum() for left, right in zip(*found, strict=True)]
    return float(np.sum(hits) / (len(queries) * count))
