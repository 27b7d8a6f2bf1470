"""Measure embeddings that were made elsewhere: mAP, CMC, mINP and verification at fixed false accept rates.
Usage: python examples/evaluate_embeddings.py [embeddings.npz]; without a file it draws embeddings of its own."""

import sys
from typing import Any

import numpy as np

from evaluation.metrics import evaluate
from evaluation.retrieval import RankingOptions, RetrievalSet
from evaluation.verification import roc_table


def draw_embeddings() -> dict[str, Any]:
    """40 identities seen by 4 cameras: one query and one gallery image from each camera."""
    rng = np.random.default_rng(0)
    pids, camids = np.repeat(np.arange(40), 4), np.tile(np.arange(4), 40)
    centres = rng.normal(size=(40, 64))[pids]
    query, gallery = (centres + 1.2 * rng.normal(size=centres.shape) for _ in range(2))
    labels = {"q_pids": pids, "g_pids": pids, "q_camids": camids, "g_camids": camids}
    return {"query": query, "gallery": gallery, **labels}


def main() -> None:
    arrays = np.load(sys.argv[1]) if len(sys.argv) > 1 else draw_embeddings()
    retrieval = RetrievalSet(**arrays)  # query [M, D], gallery [N, D], q_pids, g_pids, q_camids, g_camids
    for protocol in ("instance", "centroid_strict"):
        result = evaluate(retrieval, RankingOptions(metric="cosine", protocol=protocol))
        print(f"{protocol}: mAP {result.mAP:.4f}, Top-1 {result.topk[1]:.4f}, mINP {result.mINP:.4f}")
    table = roc_table(retrieval, RankingOptions(metric="cosine"), far_levels=(1e-3, 1e-2))
    for level, tar, threshold in zip(table.far_levels, table.tar, table.threshold, strict=True):
        print(f"FAR {level:g}: TAR {tar:.4f} at cosine distance {threshold:.4f}")


if __name__ == "__main__":
    main()
