"""Protocols that draw the gallery several times, and report the mean.

VehicleID: ten draws of one gallery image of each identity (Liu et al., "Deep Relative Distance Learning", CVPR 2016).
SYSU-MM01: ten draws of one gallery image of each identity and camera (Wu et al., "RGB-Infrared Cross-Modality Person
Re-Identification", ICCV 2017). All images are embedded once; a draw selects rows.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from datasets.draws import GalleryDraw
from evaluation.metrics import metrics_dict
from evaluation.retrieval import EvalResult
from evaluation.statistics import summarize


class Rows(NamedTuple):
    """The images of an evaluation, M queries before N gallery images: what RetrievalSet.of_rows takes.

    Example:
        >>> rows = Rows(torch.eye(3), torch.tensor([7, 7, 8]), torch.tensor([0, 1, 1]), 1)
        >>> rows.of_draw(GalleryDraw(query=[2, 1], gallery=[0])).pids.tolist()
        [8, 7, 7]
    """

    embeddings: Tensor  # [M + N, D]
    pids: Tensor  # [M + N] int64
    camids: Tensor  # [M + N] int64
    num_query: int  # M
    paths: Sequence[str] | None = None  # M + N image files

    def of_draw(self, draw: GalleryDraw) -> "Rows":
        """The rows that a draw selects, its queries first; without a copy if these are all rows in their order."""
        index = torch.from_numpy(np.concatenate([np.asarray(part, dtype=np.int64) for part in draw]))
        if torch.equal(index, torch.arange(len(self.pids))):
            return self._replace(num_query=len(draw.query))
        paths = self.paths and [self.paths[i] for i in index.tolist()]
        return Rows(self.embeddings[index], self.pids[index], self.camids[index], len(draw.query), paths)


def with_draws(evaluations: Iterable[Mapping[str, EvalResult]]) -> dict[str, EvalResult]:
    """Join the evaluations of repeated draws, each of which is needed only until the next one is asked for.

    Args:
        evaluations: protocol -> result, of each draw; at least one.

    Returns:
        Protocol -> the result of the first draw, with the mean metrics and CMC of all, and their spread in ``draws``.

    Example:
        >>> from evaluation.metrics import evaluate
        >>> from evaluation.retrieval import RetrievalSet
        >>> rows = Rows(torch.tensor([[0.0], [1], [5]]), torch.tensor([7, 7, 8]), torch.arange(3), 1)
        >>> draws = GalleryDraw([0], [1, 2]), GalleryDraw([1], [2, 0])
        >>> found = with_draws({"instance": evaluate(RetrievalSet.of_rows(*rows.of_draw(draw)))} for draw in draws)
        >>> found["instance"].draws["mAP"]["values"]
        [1.0, 1.0]
    """
    first: dict[str, EvalResult] = {}
    metrics: dict[str, list[dict[str, float]]] = {}
    curves: dict[str, list[np.ndarray]] = {}
    for evaluation in evaluations:
        first = first or dict(evaluation)
        for protocol, result in evaluation.items():
            named = {name.removeprefix("strict_"): value for name, value in metrics_dict(result).items()}
            metrics.setdefault(protocol, []).append(named)
            curves.setdefault(protocol, []).append(result.cmc)
    return {name: _mean_of(result, metrics[name], curves[name]) for name, result in first.items()}


def _mean_of(first: EvalResult, metrics: Sequence[Mapping[str, float]], curves: Sequence[np.ndarray]) -> EvalResult:
    draws = summarize(metrics)
    note = f"Means over {len(metrics)} draws of queries and gallery; what is told of single queries is of the first."
    return replace(
        first,
        cmc=np.stack(curves).mean(axis=0, dtype=np.float64).astype(np.float32),
        mAP=draws["mAP"]["mean"],
        mINP=draws["mINP"]["mean"] if "mINP" in draws else first.mINP,
        topk={k: draws[f"Top-{k}"]["mean"] for k in first.topk},
        draws=draws,
        note=f"{first.note} {note}".strip(),
    )
