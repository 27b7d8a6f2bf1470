"""From the embeddings of a validation to metrics: chooses the protocols that a configuration asks for."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from yacs.config import CfgNode

from utils.eval_reid import EvalResult, evaluate_embeddings, metrics_dict
from utils.visrank import rank_for_display, render_rankings


def evaluate_validation(
    embeddings: Tensor, pids: Tensor, camids: Tensor, num_query: int, hparams: CfgNode
) -> list[EvalResult]:
    """Rank the gallery for every query: single images, or centroids by the published and the strict protocol.

    Args:
        embeddings: [M + N, D] float32, the queries first.
        pids: [M + N] int64.
        camids: [M + N] int64.
        num_query: M.
        hparams: MODEL.USE_CENTROIDS, MODEL.KEEP_CAMID_CENTROIDS, TEST.FEAT_NORM and SOLVER.DISTANCE_FUNC count.

    Returns:
        One result, or with MODEL.USE_CENTROIDS two.

    Raises:
        UserError: no query has a match.
    """
    arrays = _split(num_query, embeddings, pids, camids)
    options = _options(hparams)
    return [evaluate_embeddings(*arrays, protocol=protocol, **options) for protocol in _protocols(hparams)]


def write_pictures(
    embeddings: Tensor, pids: Tensor, camids: Tensor, num_query: int, hparams: CfgNode, paths: Sequence[str]
) -> Path:
    """One picture of the ranked results for each query, the first TEST.VISUALIZE_MAX_NUMBER queries at most.

    Args:
        embeddings, pids, camids, num_query, hparams: as for :func:`evaluate_validation`.
        paths: M + N image files.

    Returns:
        The folder: OUTPUT_DIR/visrank for single images, and in it one for each centroid protocol.
    """
    folder = Path(hparams.OUTPUT_DIR or hparams.LOG_DIR) / "visrank"
    for protocol in _protocols(hparams):
        rankings = rank_for_display(
            *_split(num_query, embeddings, pids, camids),
            topk=hparams.TEST.VISUALIZE_TOPK,
            max_number=hparams.TEST.VISUALIZE_MAX_NUMBER,
            protocol=protocol,
            **_options(hparams),
        )
        size = (hparams.INPUT.SIZE_TEST[0], hparams.INPUT.SIZE_TEST[1])
        target = folder if protocol == "instance" else folder / protocol
        render_rankings(rankings, paths[:num_query], paths[num_query:], target, size)
    return folder


def _protocols(hparams: CfgNode) -> tuple[str, ...]:
    return ("centroid", "centroid_strict") if hparams.MODEL.USE_CENTROIDS else ("instance",)


def _options(hparams: CfgNode) -> dict[str, Any]:
    return {
        "metric": hparams.SOLVER.DISTANCE_FUNC,
        "keep_camids": hparams.MODEL.KEEP_CAMID_CENTROIDS,
        "feat_norm": hparams.TEST.FEAT_NORM,
    }


def _split(num_query: int, *arrays: Tensor) -> list[Tensor]:
    """Query part and gallery part of each array, one after the other."""
    return [part for array in arrays for part in (array[:num_query], array[num_query:])]


def format_metrics(stage: str, results: list[EvalResult]) -> str:
    """The metrics as lines to print, each with the protocol that it follows."""
    titles = {
        "instance": "single images",
        "centroid": "centroids, published protocol (inflated; one relevant item: mAP is the mean reciprocal rank)",
        "centroid_strict": "centroids, strict protocol (one relevant item: mAP is the mean reciprocal rank)",
    }
    lines = []
    for result in results:
        numbers = "  ".join(f"{name} {value:.2%}" for name, value in metrics_dict(result).items())
        skipped = f"; {result.num_skipped} queries without a match left out" if result.num_skipped else ""
        lines.append(f"{stage}, {titles[result.protocol]}{skipped}:\n    {numbers}")
    return "\n".join(lines)
