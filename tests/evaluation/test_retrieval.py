"""What everything that ranks takes: checked when it is made, with the array and the index in the message."""

import numpy as np
import pytest
import torch

from evaluation.metrics import evaluate_embeddings
from evaluation.retrieval import PROTOCOLS, RankingOptions, RetrievalSet
from utils.errors import UnknownNameError, UserError


def test_labels_become_whole_numbers_and_embeddings_tensors(data):
    retrieval = RetrievalSet(data[0].tolist(), data[1], data[2].tolist(), torch.from_numpy(data[3]), *data[4:])
    assert (retrieval.num_query, retrieval.num_gallery) == (12, 40)
    assert torch.equal(retrieval.query, torch.from_numpy(data[0]))
    for name, expected in (("q_pids", data[2]), ("g_pids", data[3]), ("q_camids", data[4])):
        assert getattr(retrieval, name).dtype == np.int64
        assert np.array_equal(getattr(retrieval, name), expected)


def test_lengths_that_do_not_agree(data):
    with pytest.raises(UserError, match="q_camids has 3 entries"):
        RetrievalSet(*data[:4], data[4][:3], data[5])
    with pytest.raises(UserError, match="g_camids has 3 entries"):
        RetrievalSet(*data[:5], data[5][:3])
    with pytest.raises(UserError, match="q_paths has 1 entries"):
        RetrievalSet(*data, q_paths=["a"])
    with pytest.raises(UserError, match="g_paths has 1 entries"):
        RetrievalSet(*data, g_paths=["a"])


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, np.zeros((0, 4), np.float32), "query is empty"),
        (1, np.zeros((0, 4), np.float32), "gallery is empty"),
        (2, np.r_[np.zeros(11), 0.5], r"q_pids\[11\] is 0.5"),
        (3, ["a"] * 40, r"g_pids\[0\] is 'a'"),
        (4, np.zeros((12, 1), int), "q_camids must be one-dimensional"),
    ],
)
def test_what_cannot_be_ranked_is_named(data, position, value, message):
    given = list(data)
    given[position] = value
    with pytest.raises(UserError, match=message):
        RetrievalSet(*given)


def test_rows_of_a_validation_are_queries_first(data):
    query, gallery, q_pids, g_pids, q_camids, g_camids = data
    paths = [f"{i}.jpg" for i in range(52)]
    rows = torch.from_numpy(np.r_[query, gallery]), np.r_[q_pids, g_pids], np.r_[q_camids, g_camids]
    retrieval = RetrievalSet.of_rows(*rows, 12, paths)
    assert torch.equal(retrieval.query, torch.from_numpy(query))
    assert torch.equal(retrieval.gallery, torch.from_numpy(gallery))
    assert np.array_equal(retrieval.q_pids, q_pids) and np.array_equal(retrieval.g_pids, g_pids)
    assert np.array_equal(retrieval.q_camids, q_camids) and np.array_equal(retrieval.single_cameras(), g_camids)
    assert (retrieval.q_paths, retrieval.g_paths) == (paths[:12], paths[12:])
    assert RetrievalSet.of_rows(*rows, 12).q_paths is None


@pytest.mark.parametrize("num_query", [-1, 0, 3, 4])
def test_rows_without_queries_or_without_a_gallery(num_query):
    with pytest.raises(UserError, match=f"num_query is {num_query}, but there are 3"):
        RetrievalSet.of_rows(torch.zeros(3, 2), [0, 0, 0], [0, 0, 0], num_query)


@pytest.mark.parametrize(("pids", "camids", "name"), [([0], [0, 0, 0], "pids"), ([0, 0, 0], [0], "camids")])
def test_rows_whose_labels_do_not_agree(pids, camids, name):
    with pytest.raises(UserError, match=f"^{name} has 1 entries but embeddings has 3"):
        RetrievalSet.of_rows(torch.zeros(3, 2), pids, camids, 1)


def test_sets_of_cameras_are_no_single_cameras(data):
    retrieval = RetrievalSet(*data[:5], [{0, 1}] * 40)
    with pytest.raises(UserError, match="g_camids"):
        retrieval.single_cameras()


def test_an_unknown_protocol_lists_the_valid_ones():
    with pytest.raises(UnknownNameError, match=f"protocol is 'strict'; valid names: {', '.join(PROTOCOLS)}"):
        RankingOptions(protocol="strict")


def test_columns_of_a_result(data):
    result = evaluate_embeddings(*data)
    assert result.num_queries == 12
    assert result.num_skipped == 12 - len(result.query_index) >= 1
    assert 11 not in result.query_index
    assert result.average_precision.mean() == pytest.approx(result.mAP)
    assert result.query_index.dtype == np.int64
    assert np.array_equal(result.single_performance[:, 1], data[2][result.query_index])
