"""The definitions, written as plain loops: what the fast code is compared with."""

from typing import Any

import numpy as np


def stable_order(distances: np.ndarray) -> np.ndarray:
    """Gallery indices by distance, those at the same distance in gallery order."""
    return np.argsort(distances, axis=1, kind="stable")


def evaluate(
    order: np.ndarray, q_pids: Any, g_pids: Any, q_camids: Any, camera_sets: list[set[int]], max_rank: int = 50
) -> dict[str, Any]:
    """The instance protocol: each query's ranking is walked from the top."""
    single, matches, inp, relevant = [], [], [], []
    for i, ranking in enumerate(order):
        rank, hits, precisions = 0, 0, []
        first, last = 0, 0
        for j in ranking:
            if g_pids[j] == q_pids[i] and q_camids[i] in camera_sets[j]:
                continue
            rank += 1
            if g_pids[j] == q_pids[i]:
                hits += 1
                precisions.append(hits / rank)
                first = first or rank
                last = rank
        if hits:
            single.append((i, q_pids[i], np.mean(precisions)))
            matches.append(first)
            inp.append(hits / last)
            relevant.append(hits)
    first_match = np.array(matches)
    return {
        "single": np.array(single, dtype=float).reshape(-1, 3),
        "mAP": np.mean([row[2] for row in single]) if single else None,
        "mINP": np.mean(inp) if inp else None,
        "cmc": [np.mean(first_match <= k) for k in range(1, max_rank + 1)] if single else None,
        "topk": {k: np.mean(first_match <= k) for k in (1, 5, 10, 20, 50)} if single else None,
        "first_match": first_match,
        "inp": np.array(inp),
        "relevant": np.array(relevant),
    }


def squared_euclidean(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[M, N] in float64."""
    return ((x[:, None].astype(np.float64) - y[None].astype(np.float64)) ** 2).sum(-1)


def cosine(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[M, N] in float64."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    return 1 - (x / np.linalg.norm(x, axis=1, keepdims=True)) @ (y / np.linalg.norm(y, axis=1, keepdims=True)).T


def strict_ranks(
    query: np.ndarray, gallery: np.ndarray, q_pids: Any, g_pids: Any, q_camids: Any, g_camids: Any, keep_camids: bool
) -> dict[int, int]:
    """The strict centroid protocol with squared Euclidean distances: query index -> rank of the right centroid."""
    ranks = {}
    identities = sorted(set(g_pids.tolist()))
    for i in range(len(query)):
        candidates: list[np.ndarray] = []
        right = None
        for p in identities:
            chosen = g_pids == p
            if p == q_pids[i] and keep_camids:
                chosen &= g_camids != q_camids[i]
            if not chosen.any():
                continue
            if p == q_pids[i]:
                right = len(candidates)
            candidates.append(gallery[chosen].astype(np.float64).mean(0).astype(np.float32))
        if right is None:
            continue
        distances = squared_euclidean(query[i : i + 1], np.stack(candidates))[0]
        ranks[i] = stable_order(distances[None])[0].tolist().index(right) + 1
    return ranks
