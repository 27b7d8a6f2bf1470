"""R1_mAP: queries and gallery in one tensor."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from config import cfg
from evaluation.centroid_protocols import create_centroids
from tests.support import golden
from utils.errors import UnknownNameError, UserError
from utils.reid_metric import R1_mAP, get_cosine, get_dist_func, get_euclidean


@pytest.mark.parametrize("name", ["eval_a_s0", "eval_a_s1", "eval_b_s0", "eval_b_s1"])
@pytest.mark.parametrize("dist_func", ["euclidean", "cosine"])
@pytest.mark.parametrize("feat_norm", [True, False])
def test_instances_as_recorded(name, dist_func, feat_norm):
    recorded = golden(name)
    metric = R1_mAP(int(recorded["num_query"]), feat_norm=feat_norm, dist_func=dist_func)
    cmc, mean_ap, topk = metric.compute(torch.from_numpy(recorded["feats"]), recorded["pids"], recorded["camids"])
    prefix = f"inst_{dist_func}_{'norm' if feat_norm else 'raw'}"
    np.testing.assert_array_equal(cmc, recorded[f"{prefix}_cmc"])
    np.testing.assert_array_equal(topk, recorded[f"{prefix}_topk"])
    assert mean_ap == pytest.approx(float(recorded[f"{prefix}_map"]), rel=1e-12)


@pytest.mark.parametrize(
    ("name", "respect_camids"),
    [("eval_b_s0", True), *((name, False) for name in ("eval_a_s0", "eval_a_s1", "eval_b_s0", "eval_b_s1"))],
)
def test_published_centroids_as_recorded(name, respect_camids):
    recorded = golden(name)
    m = int(recorded["num_query"])
    feats = torch.from_numpy(recorded["feats"])
    built = create_centroids(feats, recorded["pids"], recorded["camids"], m, respect_camids)
    cmc, mean_ap, topk = R1_mAP(m).compute(*built, respect_camids=respect_camids)
    prefix = "cent_camids" if respect_camids else "cent_plain"
    expected = recorded[f"{prefix}_cmc"]
    np.testing.assert_array_equal(cmc[: len(expected)], expected)
    assert cmc.shape == (50,)
    np.testing.assert_array_equal(topk, recorded[f"{prefix}_topk"])
    assert mean_ap == pytest.approx(float(recorded[f"{prefix}_map"]), rel=1e-12)


def test_distances_are_importable_from_here():
    assert get_dist_func("euclidean") is get_euclidean
    assert get_dist_func("cosine") is get_cosine


def module(distance):
    """What R1_mAP reads of a model."""
    hparams = cfg.clone()
    hparams.SOLVER.DISTANCE_FUNC = distance
    return SimpleNamespace(hparams=hparams)


@pytest.mark.parametrize(
    ("given", "settings", "expected"),
    [
        ((module("cosine"), 3), {}, ("cosine", 3, 50, True)),
        ((module("euclidean"), 3, 20, False), {}, ("euclidean", 3, 20, False)),
        (
            (),
            {"pl_module": module("cosine"), "num_query": 3, "max_rank": 7, "feat_norm": False},
            ("cosine", 3, 7, False),
        ),
        ((3,), {"pl_module": module("cosine")}, ("cosine", 3, 50, True)),
        ((module("cosine"),), {"num_query": 3, "dist_func": "euclidean"}, ("euclidean", 3, 50, True)),
        ((3, 20, False, "cosine"), {}, ("cosine", 3, 20, False)),
        ((np.int64(3),), {}, ("euclidean", 3, 50, True)),
        ((), {"num_query": 3, "pl_module": None}, ("euclidean", 3, 50, True)),
    ],
)
def test_the_distance_is_that_of_the_model_if_there_is_one(given, settings, expected):
    metric = R1_mAP(*given, **settings)
    assert (metric.dist_func, metric.num_query, metric.max_rank, metric.feat_norm) == expected


def test_the_distance_of_the_model_ranks():
    feats = torch.tensor([[1.0, 0], [3, 0.1], [1, 0.9]])  # the first item is nearer in angle, the second in the plane
    for distance, expected in (("cosine", 1.0), ("euclidean", 0.5)):
        _, mean_ap, _ = R1_mAP(module(distance), 1, feat_norm=False).compute(feats, [1, 1, 2], [0, 1, 1])
        assert mean_ap == expected


def test_bad_input():
    with pytest.raises(UnknownNameError, match="cosine, euclidean"):
        R1_mAP(1, dist_func="l1")
    with pytest.raises(UnknownNameError, match="'l2'"):
        R1_mAP(module("l2"), 1)
    with pytest.raises(TypeError, match="num_query"):
        R1_mAP(module("cosine"))
    feats = torch.eye(4)
    for num_query in (0, 4, 5):
        with pytest.raises(UserError, match=f"num_query is {num_query}"):
            R1_mAP(num_query).compute(feats, [1, 1, 1, 1], [0, 1, 2, 3])
    with pytest.raises(UserError, match="pids has 3 entries but embeddings has 4"):
        R1_mAP(1).compute(feats, [1, 1, 1], [0, 1, 2, 3])
    with pytest.raises(UserError, match=r"camids\[0\] has 2 cameras; a query has one"):
        R1_mAP(1).compute(feats, [1, 1, 1, 1], [[0, 1], [2], [3], [4]], respect_camids=True)
