"""Probabilities of distances against plain loops over the pairs of each half of the identities."""

import json
from dataclasses import replace

import numpy as np
import pytest

from evaluation.calibration import (
    Calibration,
    calibrate,
    describe_calibration,
    read_calibration,
    write_calibration,
)
from evaluation.rerank import QueryExpansion, Rerank
from evaluation.retrieval import RankingOptions, RetrievalSet
from tests.evaluation import oracle
from utils.errors import MissingPathError, NoValidQueryError, UnknownNameError, UserError

STEPS = {"distances": [0.25, 0.5, 2.0], "probabilities": [0.95, 0.5, 0.125]}


def draw(seed=0, identities=20, m=100, n=150, spread=1.0):
    rng = np.random.default_rng(seed)
    pids, camids = rng.integers(0, identities, m + n), rng.integers(0, 4, m + n)
    pids[m:][:10] = identities + 5  # distractors
    feats = (rng.normal(size=(identities + 6, 4))[pids] + spread * rng.normal(size=(m + n, 4))).astype(np.float32)
    return feats[:m], feats[m:], pids[:m], pids[m:], camids[:m], camids[m:]


def pairs_of(data, seed=0):
    """Distance, whether it is of one identity, and half of each pair that counts; -1 is a pair of both halves."""
    query, gallery, q_pids, g_pids, q_camids, g_camids = data
    rng = np.random.default_rng(seed)
    shared = sorted(set(q_pids.tolist()) & set(g_pids.tolist()))
    others = sorted(set(q_pids.tolist()) ^ set(g_pids.tolist()))
    second = {pid for pids in (shared, others) for pid in rng.permutation(pids)[: len(pids) // 2].tolist()}
    distances, rows = oracle.squared_euclidean(query, gallery), []
    for i in range(len(query)):
        for j in range(len(gallery)):
            if q_pids[i] != g_pids[j] or q_camids[i] != g_camids[j]:
                halves = {q_pids[i] in second, g_pids[j] in second}
                rows.append((distances[i, j], q_pids[i] == g_pids[j], int(halves.pop()) if len(halves) == 1 else -1))
    return np.array(rows).T


def weights_of(same, prior):
    return np.where(same == 1, prior / (same == 1).sum(), (1 - prior) / (same == 0).sum())


@pytest.mark.parametrize("prior", [None, 0.5])
def test_isotonic_fit_equals_its_definition(prior):
    """The falling step function by the formula of minima and maxima of means (Ayer et al. 1955)."""
    query, gallery, *labels = draw(m=60, n=80)
    data = (np.rint(3 * query), np.rint(3 * gallery), *labels)  # many pairs have the same distance, and exactly so
    found = calibrate(RetrievalSet(*data), prior=prior)
    distance, same, half = pairs_of(data)
    assert found.prior == pytest.approx(same.mean() if prior is None else prior)
    distance, same = distance[half == 0], same[half == 0]
    distinct, place = np.unique(distance, return_inverse=True)
    weight = weights_of(same, found.prior)
    own, whole = (np.append(0, np.bincount(place, x).cumsum()) for x in (weight * same, weight))
    count = len(distinct)

    highest = np.full((count, count), np.inf)  # [j, i] of the means of j to k, for every k from i on
    for j in range(count):
        means = (own[j + 1 :] - own[j]) / (whole[j + 1 :] - whole[j])
        highest[j, j:] = np.maximum.accumulate(means[::-1])[::-1]
    expected = highest.min(axis=0)
    assert 3 < len(set(found.parameters["probabilities"])) < count
    np.testing.assert_allclose(found.probability(distinct), expected, atol=1e-9)


@pytest.mark.parametrize("prior", [None, 0.5])
def test_platt_fit_has_the_least_loss(prior):
    data = draw()
    found = calibrate(RetrievalSet(*data), method="platt", prior=prior)
    distance, same, half = pairs_of(data)
    distance, same, prior = distance[half == 0], same[half == 0], found.prior
    target = np.where(same == 1, (same.sum() + 1) / (same.sum() + 2), 1 / ((1 - same).sum() + 2))

    def loss(slope, offset):
        z = slope * distance + offset
        return weights_of(same, prior) @ (target * np.logaddexp(0, z) + (1 - target) * np.logaddexp(0, -z))

    slope, offset = found.parameters["slope"], found.parameters["offset"]
    least = loss(slope, offset)
    for change in np.random.default_rng(0).normal(size=(20, 2)) * 0.05:
        assert loss(slope + change[0], offset + change[1]) > least - 1e-9
    p = 1 / (1 + np.exp(slope * distance + offset))
    assert abs(weights_of(same, prior) @ (target - p)) < 1e-5
    np.testing.assert_allclose(found.probability(distance), p)


@pytest.mark.parametrize("method", ["isotonic", "platt"])
def test_reliability_is_of_the_other_half(method):
    data = draw(spread=0.6)
    found = calibrate(RetrievalSet(*data), method=method, seed=4)
    distance, same, half = pairs_of(data, seed=4)
    distance, same = distance[half == 1], same[half == 1]
    weight, p = weights_of(same, found.prior), found.probability(distance)
    place, error = np.minimum((10 * p).astype(int), 9), 0.0
    assert [row["from"] for row in found.reliability["bins"]] == [i / 10 for i in np.unique(place)]
    for row, i in zip(found.reliability["bins"], np.unique(place), strict=True):
        own = place == i
        share = weight[own].sum()
        assert row["pairs"] == pytest.approx(own.sum(), abs=2)  # Platt's line crosses from one to the next within a bin
        assert row["predicted"] == pytest.approx(weight[own] @ p[own] / share, abs=0.01)
        assert row["observed"] == pytest.approx(weight[own] @ same[own] / share, abs=0.01)
        error += abs(weight[own] @ (p[own] - same[own]))
    assert found.reliability["ece"] == pytest.approx(error, abs=1e-4)
    assert found.reliability["brier"] == pytest.approx(weight @ (p - same) ** 2, abs=1e-4)
    assert found.reliability["brier_of_prior"] == pytest.approx(found.prior * (1 - found.prior))
    assert found.reliability["seed"] == 4


def test_probabilities_of_many_identities_hold_for_others():
    found = calibrate(RetrievalSet(*draw(1, identities=400, m=1500, n=3000, spread=0.1)))
    assert found.reliability["brier"] < 0.5 * found.reliability["brier_of_prior"]
    assert found.reliability["ece"] < 5e-4
    for row in found.reliability["bins"]:
        assert row["predicted"] == pytest.approx(row["observed"], abs=0.12)


def test_the_checked_half_has_no_part_in_the_fit():
    query, gallery, q_pids, g_pids, q_camids, g_camids = draw()
    retrieval = RetrievalSet(query, gallery, q_pids, g_pids, q_camids, g_camids)
    before = calibrate(retrieval, prior=0.1)
    shared, rng = np.intersect1d(q_pids, g_pids), np.random.default_rng(0)
    second = rng.permutation(shared)[: len(shared) // 2]
    rows = np.flatnonzero(np.isin(g_pids, second) & (np.square(gallery).sum(1) < np.square(gallery).sum(1).max()))
    gallery[rows] = gallery[np.roll(rows, 1)]
    after = calibrate(RetrievalSet(query, gallery, q_pids, g_pids, q_camids, g_camids), prior=0.1)
    assert after.parameters == before.parameters
    assert after.reliability != before.reliability


@pytest.mark.parametrize(
    "calibration",
    [
        Calibration("isotonic", STEPS, "cosine", False, 0.1),
        Calibration("platt", {"slope": 2.5, "offset": -4.0}, "cosine", False, 0.1),
    ],
)
def test_a_limit_keeps_what_is_probable_enough_and_all_of_it(calibration):
    distances = np.linspace(0, 3, 5000)
    p = calibration.probability(distances)
    assert (np.diff(p) <= 0).all()
    for wanted in (0.2, 0.5, 0.7, 0.95):
        kept = distances <= calibration.distance(wanted)
        assert (p[kept] >= wanted - 1e-9).all()
        assert (p[~kept] < wanted).all()


@pytest.mark.parametrize("end", [0.1, 0.3, 1 / 3])
def test_a_limit_holds_for_distances_in_float32(end):
    """0.1 as float32 is more than 0.1, and belongs to the next step."""
    calibration = Calibration("isotonic", {"distances": [end, 1.0], "probabilities": [0.9, 0.1]}, "cosine", False, 0.1)
    distances = np.append(np.nextafter(np.float32(end), np.float32([0, 9])), np.float32(end))
    kept = distances <= np.float32(calibration.distance(0.5))
    assert kept.tolist() == (calibration.probability(distances) >= 0.5).tolist()


def test_steps():
    calibration = Calibration("isotonic", STEPS, "cosine", False, 0.1)
    assert calibration.probability([[-0.1, 0.25], [0.2501, 99]]).tolist() == [[0.95, 0.95], [0.5, 0.125]]
    assert np.isnan(calibration.probability(np.nan))
    assert calibration.probability(np.inf) == 0.125
    assert calibration.distance(0.1) == np.inf
    with pytest.raises(UserError, match=r"no distance has a probability of 0\.96: the calibration's highest is 0\.95"):
        calibration.distance(0.96)
    for wrong in (0, 1, -1, np.nan):
        with pytest.raises(UserError, match="expected a number between 0 and 1"):
            calibration.distance(wrong)


def test_a_far_pair_has_no_probability_in_platts_line():
    calibration = Calibration("platt", {"slope": 2.5, "offset": -4.0}, "cosine", False, 0.1)
    assert calibration.probability(1e9) == 0
    with pytest.raises(UserError, match=r"no distance has a probability of 0\.99: the calibration's highest is 0\.982"):
        calibration.distance(0.99)


def test_written_and_read(tmp_path):
    found = calibrate(RetrievalSet(*draw()), RankingOptions("cosine", feat_norm=True), network={"weights": "ab"})
    assert (found.metric, found.normalize, found.network) == ("cosine", True, {"weights": "ab"})
    assert read_calibration(write_calibration(tmp_path, found.to_dict())) == found
    assert read_calibration(tmp_path) == found  # the folder of the evaluation
    (tmp_path / "metrics.json").write_text(json.dumps({"mAP": 1.0, "calibration": found.to_dict()}))
    assert read_calibration(tmp_path / "metrics.json") == found


def test_a_calibration_of_another_network_is_refused():
    network = {"weights": "0123456789abcdef", "size": [64, 32], "dtype": "float32"}
    calibration = Calibration("isotonic", STEPS, "cosine", False, 0.1, network)
    calibration.check_network({**network, "dtype": "bfloat16", "flip": True}, "c.json")  # flip is not known
    replace(calibration, network={}).check_network(network, "c.json")
    with pytest.raises(UserError) as refused:
        calibration.check_network({**network, "weights": "fedcba9876543210"}, "c.json")
    assert str(refused.value) == (
        "the calibration in c.json is of embeddings with weights 0123456789ab..., but here it is fedcba987654...: make "
        "one of this network's embeddings (python -m evaluation --calibrate isotonic --output DIR)."
    )
    with pytest.raises(UserError, match=r"with size \[64, 32\], but here it is \[1, 2\]"):
        calibration.check_network({**network, "size": [1, 2]}, "c.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "holds no calibration"),
        ("[]", "holds no calibration"),
        pytest.param("[" * 200000, "holds no calibration", id="deep"),
        ('{"mAP": 1}', r"holds no calibration \(the calibration is damaged \(KeyError: 'method'\)"),
        (json.dumps({**Calibration("isotonic", STEPS, "cosine", False, 0.1).to_dict(), "method": "x"}), "'isotonic|x'"),
    ],
)
def test_another_file_is_refused(tmp_path, text, message):
    (tmp_path / "file.json").write_text(text)
    with pytest.raises(UserError, match=message) as refused:
        read_calibration(tmp_path / "file.json")
    assert str(refused.value).startswith(f"{tmp_path}/file.json holds no calibration")
    assert str(refused.value).endswith(
        "python -m evaluation --calibrate isotonic --output DIR writes calibration.json."
    )
    with pytest.raises(MissingPathError, match=r"none\.json does not exist; python -m evaluation --calibrate"):
        read_calibration(tmp_path / "none.json")


@pytest.mark.parametrize("method", ["isotonic", "platt"])
@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({"normalize": "no"}, r"normalize is 'no'\."),
        ({"network": [1]}, r"network is \[1\]\."),
        ({"metric": 3}, r"metric is 3\."),
        ({"prior": "x"}, r"prior is 'x'\."),
        ({"prior": 2}, r"prior is 2\."),
        ({"reliability": None}, r"reliability is None\."),
        ({"parameters": [1]}, r"parameters is \[1\]\."),
        (
            {"parameters": {"slope": "1", "offset": 0.0, "distances": [[1]], "probabilities": [[1]]}},
            "(slope|distances) is",
        ),
        ({"parameters": {"slope": 1, "offset": True, "distances": 1, "probabilities": [1]}}, "(offset|distances) is"),
        ({"parameters": {"slope": 10**400, "offset": 0, "distances": [10**400], "probabilities": [1]}}, "too large"),
    ],
)
def test_entries_of_another_kind_are_named(tmp_path, method, entry, told):
    parameters = STEPS if method == "isotonic" else {"slope": 2.5, "offset": -4.0}
    calibration = Calibration(method, parameters, "cosine", False, 0.1).to_dict()
    (tmp_path / "file.json").write_text(json.dumps(calibration | entry))
    with pytest.raises(UserError, match=told) as refused:
        read_calibration(tmp_path / "file.json")
    assert "the calibration is damaged" in str(refused.value) and "\n" not in str(refused.value)


def test_a_byte_order_mark_is_no_damage_and_whole_numbers_are_numbers(tmp_path):
    calibration = Calibration("platt", {"slope": 10**300, "offset": 1}, "cosine", False, 0.1)
    assert calibration.probability([0.0, 1.0]).tolist() == [pytest.approx(1 / (1 + np.e)), 0]
    (tmp_path / "file.json").write_text("\ufeff" + json.dumps(calibration.to_dict()), encoding="utf-8")
    assert read_calibration(tmp_path / "file.json") == calibration


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("platt", {"slope": 0.0, "offset": 1.0}),
        ("platt", {"slope": np.nan, "offset": 1.0}),
        ("platt", {"slope": 1.0, "offset": np.inf}),
        ("isotonic", {"distances": [], "probabilities": []}),
        ("isotonic", {"distances": [1.0, 2.0], "probabilities": [0.5]}),
        ("isotonic", {"distances": [2.0, 1.0], "probabilities": [0.5, 0.25]}),
        ("isotonic", {"distances": [1.0, 2.0], "probabilities": [0.25, 0.5]}),
        ("isotonic", {"distances": [1.0, 2.0], "probabilities": [1.5, 0.5]}),
        ("isotonic", {"distances": [1.0, 2.0], "probabilities": [0.5, -0.5]}),
        ("isotonic", {"distances": [1.0, np.inf], "probabilities": [0.5, 0.25]}),
    ],
)
def test_a_rising_probability_is_refused(method, parameters):
    with pytest.raises(UserError, match="must fall with the distance"):
        Calibration(method, parameters, "cosine", False, 0.5)


def test_what_cannot_be_calibrated_is_one_line():
    query, gallery, q_pids, g_pids, q_camids, g_camids = data = draw()
    images = RetrievalSet(*data)
    unusable = RetrievalSet(np.full_like(query, np.nan), *data[1:])
    with pytest.raises(UnknownNameError, match="method is 'beta'; valid names: isotonic, platt"):
        calibrate(unusable, method="beta")  # before distances are computed
    for wrong in (0, 1, np.nan):
        with pytest.raises(UserError, match="the prior is"):
            calibrate(images, prior=wrong)
    for options in (RankingOptions(rerank=Rerank()), RankingOptions(query_expansion=QueryExpansion(2))):
        with pytest.raises(UserError, match="without re-ranking and query expansion"):
            calibrate(images, options)
    with pytest.raises(NoValidQueryError, match="No query can be evaluated"):
        calibrate(RetrievalSet(*data[:4], np.zeros(100), np.zeros(150)))
    few = np.minimum(q_pids, 1), np.minimum(g_pids, 1)
    with pytest.raises(UserError, match=r"in each half of the identities, but a half of these 2 has only one kind"):
        calibrate(RetrievalSet(query, gallery, *few, q_camids, g_camids))
    backwards = RetrievalSet(
        [[1.0], [2], [3], [4]], [[9.0], [0], [0], [0]], [1, 2, 3, 4], [1, 2, 3, 4], [0] * 4, [1] * 4
    )
    del backwards
    with pytest.raises(UserError, match="must be finite"):
        calibrate(unusable)


@pytest.mark.parametrize("method", ["isotonic", "platt"])
def test_embeddings_that_tell_nothing_apart_are_refused(method):
    """Images of one identity are far from each other, images of two are near."""
    side = np.eye(8, dtype=np.float32)
    retrieval = RetrievalSet(side, -side, range(8), range(8), np.zeros(8), np.ones(8))
    with pytest.raises(UserError, match="near pairs are not more often of one identity than far ones"):
        calibrate(retrieval, method=method)


def test_described():
    lines = describe_calibration(calibrate(RetrievalSet(*draw(spread=0.3)), prior=0.5))
    assert lines[0] == (
        "calibration, isotonic, where 50.000% of pairs are of one identity; fitted on half of the identities, on the "
        "other half:"
    )
    assert lines[1].startswith("    probability 0 to 0.1: predicted ")
    assert "Brier score" in lines[-2]
    assert "(0.25 if every pair had the prior)" in lines[-2]
    assert "distances of probabilities: 0.5 up to " in lines[-1]
