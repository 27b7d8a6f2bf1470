"""Ranking numbers against the recordings and against plain loops."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.distance_blocks import DistanceBlocks
from evaluation.metrics import eval_func, evaluate, evaluate_distances, evaluate_embeddings, metrics_dict
from evaluation.rerank import QueryExpansion, Rerank
from evaluation.retrieval import TOPK_RANKS, EvalResult, RetrievalSet
from tests.evaluation import oracle
from tests.support import golden
from utils.distributed import Processes
from utils.errors import UnknownNameError, UserError

RECORDINGS = ["eval_a_s0", "eval_a_s1", "eval_b_s0", "eval_b_s1"]
MODES = [("euclidean", True), ("euclidean", False), ("cosine", True), ("cosine", False)]


def draw(seed, num_query, num_gallery, ids=5, cameras=3, dim=3, levels=3):
    """Small whole-number embeddings, so that distances are exact and many are the same."""
    rng = np.random.default_rng(seed)
    total = num_query + num_gallery
    feats = rng.integers(-levels, levels + 1, (total, dim)).astype(np.float32)
    feats[rng.random(total) < 0.2] = feats[0]  # duplicates
    pids = rng.choice(np.array([-7, 0, 3, 40, 41, 1501, 99_999])[:ids], total)
    camids = rng.integers(0, cameras, total)
    m = num_query
    return feats[:m], feats[m:], pids[:m], pids[m:], camids[:m], camids[m:]


def split(recorded):
    m = int(recorded["num_query"])
    feats, pids, camids = recorded["feats"], recorded["pids"], recorded["camids"]
    return feats[:m], feats[m:], pids[:m], pids[m:], camids[:m], camids[m:]


def assert_recorded(result, recorded, prefix):
    cmc = recorded[f"{prefix}_cmc"]
    np.testing.assert_array_equal(result.cmc[: len(cmc)], cmc)
    np.testing.assert_array_equal(list(result.topk.values()), recorded[f"{prefix}_topk"])
    np.testing.assert_allclose(result.mAP, recorded[f"{prefix}_map"], rtol=1e-12)
    np.testing.assert_allclose(result.single_performance, recorded[f"{prefix}_single"], rtol=1e-12)


def assert_same(result, expected):
    np.testing.assert_allclose(result.single_performance, expected["single"], rtol=1e-12)
    np.testing.assert_allclose(result.cmc, expected["cmc"], rtol=1e-6)
    np.testing.assert_array_equal(result.first_match, expected["first_match"])
    np.testing.assert_array_equal(result.num_relevant, expected["relevant"])
    np.testing.assert_allclose(result.inp, expected["inp"], rtol=1e-12)
    assert result.mAP == pytest.approx(expected["mAP"], rel=1e-12)
    assert result.mINP == pytest.approx(expected["mINP"], rel=1e-12)
    assert result.topk == pytest.approx(expected["topk"], rel=1e-12)


def assert_equal_results(a: EvalResult, b: EvalResult):
    for name in ("cmc", "single_performance", "first_match", "inp", "num_relevant"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert (a.mAP, a.mINP, a.topk) == (b.mAP, b.mINP, b.topk)


# ------------------------------------------------------------------------------------------------------- recordings


@pytest.mark.parametrize("name", RECORDINGS)
@pytest.mark.parametrize(("metric", "norm"), MODES)
def test_instances_as_recorded(name, metric, norm):
    recorded = golden(name)
    result = evaluate_embeddings(*split(recorded), metric=metric, feat_norm=norm)
    assert_recorded(result, recorded, f"inst_{metric}_{'norm' if norm else 'raw'}")


@pytest.mark.parametrize("name", RECORDINGS)
@pytest.mark.parametrize("keep_camids", [True, False])
def test_published_centroids_as_recorded(name, keep_camids):
    recorded = golden(name)
    prefix = f"cent_{'camids' if keep_camids else 'plain'}"
    result = evaluate_embeddings(*split(recorded), protocol="centroid", keep_camids=keep_camids, feat_norm=True)
    assert result.num_gallery == len(recorded[f"{prefix}_labels"]) - int(recorded["num_query"])
    if f"{prefix}_map" in recorded:  # the original died on small galleries
        assert_recorded(result, recorded, prefix)


@pytest.mark.parametrize("name", RECORDINGS)
def test_eval_func_as_recorded(name):
    recorded = golden(name)
    _, _, q_pids, g_pids, q_camids, g_camids = split(recorded)
    order = oracle.stable_order(recorded["distmat"])
    for indices in (order, torch.from_numpy(order)):
        cmc, mean_ap, topk, single = eval_func(indices, q_pids, g_pids, q_camids, g_camids)
        prefix = "inst_euclidean_raw"
        np.testing.assert_array_equal(cmc, recorded[f"{prefix}_cmc"])
        np.testing.assert_array_equal(topk, recorded[f"{prefix}_topk"])
        np.testing.assert_allclose(mean_ap, recorded[f"{prefix}_map"], rtol=1e-12)
        np.testing.assert_allclose(single, recorded[f"{prefix}_single"], rtol=1e-12)


def test_eval_func_with_camera_sets_as_recorded():
    recorded = golden("eval_b_s0")
    m = int(recorded["num_query"])
    sets = np.split(recorded["cent_camids_camids_flat"], recorded["cent_camids_camids_len"].cumsum()[:-1])
    feats = recorded["cent_camids_emb"] / np.linalg.norm(recorded["cent_camids_emb"], axis=1, keepdims=True)
    order = oracle.stable_order(oracle.squared_euclidean(feats[:m], feats[m:]))
    labels = recorded["cent_camids_labels"]
    q_camids = [int(cameras[0]) for cameras in sets[:m]]
    for kind in (list, set, np.asarray):
        g_camids = [kind(cameras.tolist()) for cameras in sets[m:]]
        cmc, mean_ap, topk, single = eval_func(
            order, labels[:m], labels[m:], q_camids, g_camids, max_rank=50, respect_camids=True
        )
        np.testing.assert_array_equal(cmc, recorded["cent_camids_cmc"])
        np.testing.assert_array_equal(topk, recorded["cent_camids_topk"])
        np.testing.assert_allclose(mean_ap, recorded["cent_camids_map"], rtol=1e-12)
        np.testing.assert_allclose(single, recorded["cent_camids_single"], rtol=1e-12)


# ------------------------------------------------------------------------------------------------------ plain loops


@pytest.mark.parametrize("num_gallery", [*range(1, 13), 20, 49, 50, 51, 60])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_instances_equal_plain_loop(num_gallery, metric):
    data = draw(num_gallery, 40, num_gallery)
    query, gallery, *labels = data
    if metric == "cosine":  # whole-number cosines are only exact for vectors along the axes
        query, gallery = (np.eye(3, dtype=np.float32)[x[:, 0].astype(int) % 3] for x in (query, gallery))
    distances = (oracle.squared_euclidean if metric == "euclidean" else oracle.cosine)(query, gallery)
    q_pids, g_pids, q_camids, g_camids = labels
    sets = [{c} for c in g_camids.tolist()]
    expected = oracle.evaluate(oracle.stable_order(distances), q_pids, g_pids, q_camids, sets)
    assert expected["mAP"] is not None
    assert_same(evaluate_embeddings(query, gallery, *labels, metric=metric), expected)
    assert_same(evaluate_distances(distances, *labels), expected)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    num_query=st.integers(1, 40),
    num_gallery=st.integers(1, 60),
    ids=st.integers(1, 7),
    cameras=st.integers(1, 4),
    max_rank=st.integers(1, 70),
)
def test_all_entry_points_equal_plain_loop(seed, num_query, num_gallery, ids, cameras, max_rank):
    query, gallery, q_pids, g_pids, q_camids, g_camids = draw(seed, num_query, num_gallery, ids, cameras)
    order = oracle.stable_order(oracle.squared_euclidean(query, gallery))
    expected = oracle.evaluate(order, q_pids, g_pids, q_camids, [{c} for c in g_camids.tolist()], max_rank)
    labels = (q_pids, g_pids, q_camids, g_camids)
    if expected["mAP"] is None:
        with pytest.raises(UserError, match="No query can be evaluated"):
            evaluate_embeddings(query, gallery, *labels, max_rank=max_rank)
        with pytest.raises(UserError, match="No query can be evaluated"):
            eval_func(order, *labels, max_rank=max_rank)
        return
    result = evaluate_embeddings(query, gallery, *labels, max_rank=max_rank)
    assert_same(result, expected)
    assert result.num_skipped == num_query - len(expected["single"])
    cmc, mean_ap, topk, single = eval_func(order, *labels, max_rank=max_rank)
    assert len(cmc) == min(max_rank, num_gallery)
    np.testing.assert_allclose(cmc, expected["cmc"][: len(cmc)], rtol=1e-6)
    np.testing.assert_allclose(topk, list(expected["topk"].values()), rtol=1e-12)
    np.testing.assert_allclose(single, expected["single"], rtol=1e-12)
    assert mean_ap == pytest.approx(expected["mAP"], rel=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_camera_sets_equal_plain_loop(seed):
    rng = np.random.default_rng(seed)
    query, gallery, q_pids, g_pids, q_camids, _ = draw(seed, 20, 45)
    sets = [set(rng.choice(8, rng.integers(0, 4), replace=False).tolist()) for _ in g_pids]
    order = oracle.stable_order(oracle.squared_euclidean(query, gallery))
    expected = oracle.evaluate(order, q_pids, g_pids, q_camids, sets)
    assert_same(evaluate_embeddings(query, gallery, q_pids, g_pids, q_camids, sets), expected)
    np.testing.assert_allclose(
        eval_func(order, q_pids, g_pids, q_camids, sets, respect_camids=True)[3], expected["single"], rtol=1e-12
    )


@pytest.mark.parametrize("keep_camids", [True, False])
@pytest.mark.parametrize("num_gallery", [1, 2, 3, 7, 20, 60])
def test_strict_centroids_equal_plain_loop(num_gallery, keep_camids):
    rng = np.random.default_rng(num_gallery)
    for seed in range(6):
        query, gallery, q_pids, g_pids, q_camids, g_camids = draw(seed + 100 * num_gallery, 25, num_gallery, ids=7)
        gallery = gallery + rng.normal(0, 1e-2, gallery.shape).astype(np.float32)
        ranks = oracle.strict_ranks(query, gallery, q_pids, g_pids, q_camids, g_camids, keep_camids)
        arguments = (query, gallery, q_pids, g_pids, q_camids, g_camids)
        if not ranks:
            with pytest.raises(UserError, match="No query can be evaluated"):
                evaluate_embeddings(*arguments, protocol="centroid_strict", keep_camids=keep_camids)
            continue
        result = evaluate_embeddings(*arguments, protocol="centroid_strict", keep_camids=keep_camids)
        assert dict(zip(result.query_index.tolist(), result.first_match.tolist(), strict=True)) == ranks
        np.testing.assert_allclose(result.average_precision, [1 / rank for rank in ranks.values()])
        assert result.mAP == pytest.approx(np.mean([1 / rank for rank in ranks.values()]))
        assert result.num_gallery == len(set(g_pids.tolist()))


def test_strict_ties_stand_in_order_of_identities():
    gallery = np.array([[1, 0], [1, 0], [1, 0]], dtype=np.float32)
    query = np.zeros((3, 2), dtype=np.float32)
    result = evaluate_embeddings(query, gallery, [5, 6, 7], [7, 6, 5], [0, 0, 0], [1, 1, 1], protocol="centroid_strict")
    assert result.first_match.tolist() == [1, 2, 3]


def test_everything_at_the_same_distance_keeps_gallery_order():
    query, gallery = np.zeros((2, 4), np.float32), np.ones((400, 4), np.float32)
    g_pids = np.arange(400) % 2  # 200 relevant items: both ways of counting
    result = evaluate_embeddings(query, gallery, [0, 1], g_pids, [9, 9], np.zeros(400))
    assert result.first_match.tolist() == [1, 2]
    expected = oracle.evaluate(np.tile(np.arange(400), (2, 1)), [0, 1], g_pids, [9, 9], [{0}] * 400)
    assert_same(result, expected)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("how", [{"metric": "euclidean"}, {"metric": "cosine"}, {"feat_norm": True}])
def test_copies_of_an_image_are_at_the_same_distance(seed, how):
    """Rounding must not tell copies apart, wherever in the gallery they stand."""
    rng = np.random.default_rng(seed)
    query, gallery = (rng.normal(size=(n, 100)).astype(np.float32) for n in (9, 213))
    gallery[rng.random(213) < 0.5] = gallery[0]
    q_pids, g_pids = rng.integers(0, 4, 9), rng.integers(0, 4, 213)
    if how != {"metric": "euclidean"}:
        unit_query, unit_gallery = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (query, gallery))
        order = oracle.stable_order(oracle.squared_euclidean(unit_query, unit_gallery).round(9))
    else:
        order = oracle.stable_order(oracle.squared_euclidean(query, gallery))
    expected = oracle.evaluate(order, q_pids, g_pids, np.zeros(9), [{1}] * 213)
    assert_same(evaluate_embeddings(query, gallery, q_pids, g_pids, np.zeros(9), np.ones(213), **how), expected)


# --------------------------------------------------------------------------------------- sizes, types, block height


@pytest.mark.parametrize("protocol", ["instance", "centroid", "centroid_strict"])
@pytest.mark.parametrize(
    "how",
    [
        {"metric": "euclidean"},
        {"metric": "euclidean", "feat_norm": True},
        {"metric": "cosine"},
        {"rerank": Rerank(8, 3, 0.3), "query_expansion": QueryExpansion(3)},
    ],
)
def test_block_size_does_not_matter(protocol, how, monkeypatch):
    rng = np.random.default_rng(3)
    query, gallery = (rng.normal(size=(n, 64)).astype(np.float32) for n in (300, 700))
    gallery[rng.integers(0, 700, 200)] = gallery[0]
    q_pids, g_pids = rng.integers(0, 30, 300), rng.integers(0, 30, 700)
    q_camids, g_camids = rng.integers(0, 4, 300), rng.integers(0, 4, 700)
    data = (query, gallery, q_pids, g_pids, q_camids, g_camids)
    monkeypatch.setattr("evaluation.distance_blocks.MAX_TILE", 64)  # so that there are many blocks
    first = evaluate_embeddings(*data, protocol=protocol, **how)
    for block_bytes in (1, 400_000, 1 << 40):
        result = evaluate_embeddings(*data, protocol=protocol, **how, block_bytes=block_bytes)
        assert_equal_results(result, first)


@pytest.mark.parametrize(
    "convert",
    [
        lambda x: x.astype(np.float16),
        lambda x: x.astype(np.float64),
        lambda x: x.astype(np.int64),
        lambda x: x.astype(np.longdouble),
        lambda x: x.astype(">f4"),
        lambda x: np.asfortranarray(x),
        lambda x: x[::-1, ::-1].copy()[::-1, ::-1],  # negative strides
        lambda x: np.repeat(x, 2, axis=1)[:, ::2],
        lambda x: torch.from_numpy(x.copy()).to(torch.bfloat16),
        lambda x: torch.from_numpy(x.copy()).requires_grad_(),
        lambda x: np.frombuffer(x.tobytes(), np.float32).reshape(x.shape),  # read-only
    ],
)
def test_types_of_embeddings(convert, recwarn):
    data = draw(1, 30, 50)
    expected = evaluate_embeddings(*data)
    assert_equal_results(evaluate_embeddings(convert(data[0]), convert(data[1]), *data[2:]), expected)
    assert not recwarn.list


@pytest.mark.parametrize("convert", [torch.from_numpy, list, lambda x: x.astype(np.uint8), lambda x: x.astype(float)])
def test_types_of_labels(convert):
    query, gallery, q_pids, g_pids, q_camids, g_camids = draw(2, 30, 50)
    labels = [np.abs(x) % 100 for x in (q_pids, g_pids, q_camids, g_camids)]
    expected = evaluate_embeddings(query, gallery, *labels)
    assert_equal_results(evaluate_embeddings(query, gallery, *map(convert, labels)), expected)


@pytest.mark.parametrize("convert", [np.float16, np.float32])
@pytest.mark.parametrize("how", [{}, {"metric": "cosine"}, {"feat_norm": True}])
def test_more_rows_than_are_multiplied_at_once(convert, how, monkeypatch):
    query, gallery = (torch.from_numpy(x.astype(convert)) for x in draw(5, 30, 60)[:2])
    expected = DistanceBlocks(query, gallery, **how)(0, 30)
    monkeypatch.setattr("evaluation.distance_blocks._CPU_CHUNK_BYTES", 100)
    monkeypatch.setattr("evaluation.distance_blocks._LEAST_CHUNK", 20)
    found = DistanceBlocks(query, gallery, **how)(0, 30)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 if how else 0)  # few columns round differently


def test_a_handful_of_rows_is_not_multiplied_alone(monkeypatch):
    """Products of so few columns may round in their own way; the last chunk takes them along."""
    rng = np.random.default_rng(0)
    query, gallery = (torch.from_numpy(rng.normal(size=(count, 2048)).astype(np.float32)) for count in (16, 136))
    widths = []
    multiply = torch.Tensor.addmm_

    def spy(self, x, y, **options):
        widths.append(y.shape[1])
        return multiply(self, x, y, **options)

    expected = DistanceBlocks(query, gallery)(0, 16).clone()
    monkeypatch.setattr(torch.Tensor, "addmm_", spy)
    monkeypatch.setattr("evaluation.distance_blocks._CPU_CHUNK_BYTES", 64 * 2048 * 4)
    monkeypatch.setattr("evaluation.distance_blocks._LEAST_CHUNK", 64)
    assert torch.equal(DistanceBlocks(query, gallery)(0, 16), expected)
    assert widths == [64, 72]


def test_every_product_has_the_same_height(monkeypatch):
    """Products of different heights may round differently, on some processors, in some sizes."""
    shapes = set()
    fill = DistanceBlocks.fill_tile

    def spy(self, out, start):
        shapes.add(tuple(out.shape))
        fill(self, out, start)

    monkeypatch.setattr(DistanceBlocks, "fill_tile", spy)
    monkeypatch.setattr("evaluation.distance_blocks.MAX_TILE", 64)
    rng = np.random.default_rng(0)
    labels = (rng.integers(0, 5, 150), rng.integers(0, 5, 90), np.zeros(150), np.ones(90))
    for block_bytes in (1, 50_000, 1 << 40):
        evaluate_embeddings(rng.normal(size=(150, 4)), rng.normal(size=(90, 4)), *labels, block_bytes=block_bytes)
    assert shapes == {(64, 90)}


def test_processes_share_out_whole_products(monkeypatch):
    """A process that begins elsewhere would compute other products than one process does alone."""
    starts = []
    call = DistanceBlocks.__call__

    def spy(self, start, stop):
        starts.append((start, stop, self.tile))
        return call(self, start, stop)

    monkeypatch.setattr(DistanceBlocks, "__call__", spy)
    monkeypatch.setattr("evaluation.distance_blocks.MAX_TILE", 64)
    rng = np.random.default_rng(0)
    labels = (rng.integers(0, 5, 150), rng.integers(0, 5, 90), np.zeros(150), np.ones(90))
    retrieval = RetrievalSet(rng.normal(size=(150, 4)), rng.normal(size=(90, 4)), *labels)
    for rank in range(2):
        evaluate(retrieval, processes=Processes(rank, 2, lambda part: part))
    assert [(start, stop) for start, stop, _ in starts] == [(0, 64), (64, 150)]
    assert all(start % tile == 0 for start, _, tile in starts)


def test_distances_are_exact_under_autocast_and_lower_precision(monkeypatch):
    rng = np.random.default_rng(0)
    query, gallery = (torch.from_numpy(rng.normal(size=(n, 96)).astype(np.float32)) for n in (20, 80))
    labels = (rng.integers(0, 4, 20), rng.integers(0, 4, 80), np.zeros(20), np.ones(80))
    expected = evaluate_embeddings(query, gallery, *labels)
    precisions = []
    fill = DistanceBlocks.fill_tile

    def spy(self, out, start):
        precisions.append(torch.get_float32_matmul_precision())  # has no effect on most CPUs
        fill(self, out, start)

    monkeypatch.setattr(DistanceBlocks, "fill_tile", spy)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            result = evaluate_embeddings(query, gallery, *labels)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert precisions == ["highest"]
    assert_equal_results(result, expected)


# ----------------------------------------------------------------------------------------------------------- errors


def change(position, value):
    def apply(data):
        data = list(data)
        data[position] = value(data[position])
        return data

    return apply


def put(index, value):
    def apply(array):
        array = array.astype(np.float64)
        array[index] = value
        return array

    return apply


@pytest.mark.parametrize("protocol", ["instance", "centroid", "centroid_strict"])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (change(0, put((3, 1), np.nan)), r"query\[3, 1\] is nan"),
        (change(0, put((29, 0), np.inf)), r"query\[29, 0\] is inf"),
        (change(1, put((7, 2), -np.inf)), r"gallery.*\[\d+, 2\] is (-inf|nan)"),
        (change(1, put((0, 0), 1e30)), r"gallery.* too large"),
        (change(2, lambda x: x[:-1]), r"q_pids has 29 entries but query has 30: index 29"),
        (change(3, lambda x: np.append(x, 1)), r"g_pids has 51 entries but gallery has 50: index 50"),
        (change(4, lambda x: x[:5]), r"q_camids has 5 entries .* index 5"),
        (change(5, lambda x: x[:5]), r"g_camids has 5 entries .* index 5"),
        (change(2, put(4, 0.5)), r"q_pids\[4\] is .*0\.5"),
        (change(5, put(6, np.nan)), r"g_camids\[6\] is"),
        (change(3, lambda x: x.reshape(2, 25)), r"g_pids must be one-dimensional"),
        (change(3, lambda x: [f"id{i}" for i in x]), r"g_pids\[0\] is"),
        (change(0, lambda x: x[:0]), r"query is empty"),
        (change(1, lambda x: x[:0]), r"gallery is empty"),
        (change(0, lambda x: x[:, :2]), r"2 dimensions but gallery.* has 3"),
        (change(0, lambda x: x[0]), r"query has the shape \[.*\]; expected \[rows, dimensions\]"),
        (change(0, lambda x: x.astype(str)), r"query holds"),
        (change(2, lambda x: x + 1_000_000), r"No query can be evaluated"),
    ],
)
def test_bad_input_is_named(spoil, message, protocol):
    with pytest.raises(ValueError, match=message):
        evaluate_embeddings(*spoil(draw(0, 30, 50)), protocol=protocol)


def test_bad_settings_are_named():
    data = draw(0, 30, 50)
    with pytest.raises(
        UnknownNameError, match="protocol is 'strict'; valid names: instance, centroid, centroid_strict"
    ):
        evaluate_embeddings(*data, protocol="strict")
    with pytest.raises(UnknownNameError, match="cosine, euclidean"):
        evaluate_embeddings(*data, metric="manhattan")
    with pytest.raises(UserError, match="max_rank is 0"):
        evaluate_embeddings(*data, max_rank=0)
    with pytest.raises(UserError, match="block_bytes is 0"):
        evaluate_embeddings(*data, block_bytes=0)


def test_only_one_camera_leaves_nothing():
    query, gallery, q_pids, g_pids, *_ = draw(0, 30, 50)
    for protocol in ("instance", "centroid", "centroid_strict"):
        with pytest.raises(UserError, match="No query can be evaluated"):
            evaluate_embeddings(query, gallery, q_pids, g_pids, [0] * 30, [0] * 50, protocol=protocol)


def test_bad_distances_are_named():
    labels = draw(0, 30, 50)[2:]
    distances = np.zeros((30, 50))
    distances[11, 4] = np.nan
    with pytest.raises(UserError, match=r"distances\[11, 4\] is nan"):
        evaluate_distances(distances, *labels)
    with pytest.raises(UserError, match=r"distances has the shape \[29, 50\]"):
        evaluate_distances(distances[1:], *labels)
    with pytest.raises(UserError, match=r"distances\(0, 30\) has the shape \[30, 49\]"):
        evaluate_distances(lambda start, stop: torch.zeros(stop - start, 49), *labels)
    with pytest.raises(UserError, match="q_pids is empty"):
        evaluate_distances(lambda start, stop: torch.zeros(stop - start, 50), [], labels[1], [], labels[3])


def test_bad_indices_are_named():
    labels = draw(0, 30, 50)[2:]
    with pytest.raises(UserError, match=r"indices must lie in 0\.\.49"):
        eval_func(np.full((30, 50), 50), *labels)
    with pytest.raises(UserError, match="q_pids has 30 entries but indices has 29"):
        eval_func(np.zeros((29, 50), int), *labels)
    with pytest.raises(UserError, match="shape"):
        eval_func(np.zeros(50, int), *labels)


# ----------------------------------------------------------------------------------------------------- logged names


def test_names_of_the_metrics():
    data = draw(0, 30, 50)
    results = {
        protocol: evaluate_embeddings(*data, protocol=protocol)
        for protocol in ("instance", "centroid", "centroid_strict")
    }
    names = ["mAP", *(f"Top-{k}" for k in TOPK_RANKS)]
    assert list(metrics_dict(results["instance"])) == [*names, "mINP"]
    both = metrics_dict(results["centroid"], results["centroid_strict"])
    assert list(both) == [*names, *(f"strict_{name}" for name in names)]
    assert both["strict_mAP"] == results["centroid_strict"].mAP
    assert both["Top-5"] == results["centroid"].topk[5]
    for result in results.values():
        assert result.cmc.shape == (50,)


def test_a_validation_set_is_cut_after_its_queries():
    paths = [f"{i}.jpg" for i in range(5)]
    retrieval = RetrievalSet.of_rows(torch.arange(10.0).reshape(5, 2), [0, 1, 2, 3, 4], [5, 6, 7, 8, 9], 2, paths)
    assert (retrieval.num_query, retrieval.num_gallery) == (2, 3)
    assert retrieval.query.tolist() == [[0, 1], [2, 3]]
    assert retrieval.g_pids.tolist() == [2, 3, 4]
    assert retrieval.q_camids.tolist() == [5, 6]
    assert retrieval.single_cameras().tolist() == [7, 8, 9]
    assert (list(retrieval.q_paths), list(retrieval.g_paths)) == (paths[:2], paths[2:])


@pytest.mark.parametrize("name", ["pids", "camids"])
@pytest.mark.parametrize("length", [5, 7])
def test_the_rows_of_a_validation_set_need_a_label_each(name, length):
    labels = {"pids": [0] * 6, "camids": [0] * 6, name: [0] * length}
    with pytest.raises(UserError, match=rf"^{name} has {length} entries but embeddings has 6: index {min(length, 6)} "):
        RetrievalSet.of_rows(torch.zeros(6, 2), **labels, num_query=2)


def test_each_query_and_each_gallery_image_needs_a_file():
    rows = (torch.zeros(6, 2), [0] * 6, [0] * 6, 2)
    with pytest.raises(UserError, match="^g_paths has 3 entries but gallery has 4: index 3 "):
        RetrievalSet.of_rows(*rows, ["a.jpg"] * 5)
    with pytest.raises(UserError, match="^q_paths has 1 entries but query has 2: index 1 "):
        RetrievalSet.of_rows(*rows, ["a.jpg"])
