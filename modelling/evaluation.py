"""From the embeddings of a validation to metrics: chooses the protocols that a configuration asks for."""

from torch import Tensor
from yacs.config import CfgNode

from utils.eval_reid import EvalResult, evaluate_embeddings, metrics_dict


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
    protocols = ("centroid", "centroid_strict") if hparams.MODEL.USE_CENTROIDS else ("instance",)
    m = num_query
    return [
        evaluate_embeddings(
            embeddings[:m],
            embeddings[m:],
            pids[:m],
            pids[m:],
            camids[:m],
            camids[m:],
            metric=hparams.SOLVER.DISTANCE_FUNC,
            protocol=protocol,
            keep_camids=hparams.MODEL.KEEP_CAMID_CENTROIDS,
            feat_norm=hparams.TEST.FEAT_NORM,
        )
        for protocol in protocols
    ]


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
