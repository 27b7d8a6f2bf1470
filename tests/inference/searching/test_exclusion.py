"""Results that are left out: the query itself, and images from its own camera; the next ones take their places."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from inference.searching import exclusion as exclusion_module
from inference.searching.exclusion import Exclusion
from inference.searching.search import SearchOptions, search
from utils.errors import UserError

NUM_QUERY, NUM_GALLERY = 30, 400


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Query and gallery paths: gallery images 0 to 29 are the queries' files, 30 to 59 copies of them."""
    folder = tmp_path_factory.mktemp("files")
    for number in range(NUM_GALLERY):
        (folder / f"{number}.png").write_bytes(f"content {number % 30 if number < 60 else number:06}".encode())
    gallery = [str(folder / f"{number}.png") for number in range(NUM_GALLERY)]
    queries = [f"{folder}/./{number}.png" for number in range(NUM_QUERY)]  # the same paths, written otherwise
    return queries, gallery


@pytest.fixture(scope="module")
def embeddings():
    """Whose nearest items are those of the query's own camera, which moves an embedding more than the rest.

    Whole numbers, so that distances are not rounded.
    """
    rng = np.random.default_rng(0)
    camera = np.arange(NUM_GALLERY) % 2
    gallery = rng.integers(-100, 100, (NUM_GALLERY, 12)).astype(np.float32)
    gallery[:, 0] += 1500 * camera
    gallery[30:60] = gallery[:30] + 1
    return gallery[:NUM_QUERY].copy(), gallery, [str(number) for number in camera]


def oracle(query, gallery, topk, banned):
    """A plain loop: sort the whole gallery, drop what is banned."""
    results, left = [], 0
    for number, row in enumerate(query):
        distances = ((gallery.astype(np.float64) - row) ** 2).sum(1)
        order = np.argsort(distances, kind="stable")
        allowed = [i for i in order if not banned(number, i)][: topk or None]
        last = list(order).index(allowed[-1]) if allowed and len(allowed) == topk else len(order)
        left += sum(banned(number, i) for i in order[:last])
        results.append((allowed, distances[allowed]))
    return results, left


def is_copy(number, item):
    return item in (number, number + 30)


@pytest.mark.parametrize("where", ["exact", "faiss:flat", "faiss:hnsw:400", "milvus"])
@pytest.mark.parametrize("topk", [1, 10, 150, 399])
def test_the_same_results_whichever_way(files, embeddings, tmp_path, where, topk):
    query, gallery, cameras = embeddings
    store = f"milvus:{tmp_path / 'gallery.db'}" if where == "milvus" else ""
    options = SearchOptions("exact" if store else where, store, topk=topk)
    for itself, other_cameras in ((True, False), (False, True), (True, True)):
        exclusion = Exclusion(*files, itself=itself, cameras=(cameras[:NUM_QUERY], cameras) if other_cameras else None)

        def banned(number, item, itself=itself, other_cameras=other_cameras):
            return (itself and is_copy(number, item)) or (other_cameras and cameras[number] == cameras[item])

        found = search(query, gallery, options, gallery_paths=files[1], exclusion=exclusion)
        expected, left = oracle(query, gallery, topk, banned)
        assert found.indices.shape == (NUM_QUERY, topk)
        for number, (wanted, distances) in enumerate(expected):
            row = found.indices[number]
            assert row[row >= 0].tolist() == wanted or where != "exact"  # indexes choose freely among equals
            assert not any(banned(number, item) for item in row[row >= 0])
            np.testing.assert_allclose(found.distances[number, : len(wanted)], distances, rtol=1e-5)
            assert np.isinf(found.distances[number, len(wanted) :]).all()
        assert sum(exclusion.counts.values()) == left
        assert found.recall in (None, 1.0)


def test_what_is_said(files, embeddings):
    query, gallery, cameras = embeddings
    exclusion = Exclusion(*files, itself=True, cameras=(cameras[:NUM_QUERY], cameras))
    found = search(query, gallery, SearchOptions(topk=1), exclusion=exclusion)
    # Both copies of each query, and the 198 others of its camera, which are all nearer than any of the other camera's.
    assert found.left_out == "results left out: 60 of the query itself, 5940 from the query's own camera"
    one_camera = Exclusion(*files, cameras=(["a"] * NUM_QUERY, ["a"] * NUM_GALLERY))
    found = search(query, gallery, SearchOptions(topk=2), exclusion=one_camera)
    assert found.left_out == (
        "results left out: 12000 from the query's own camera; 30 of 30 queries have no other result"
    )
    assert (found.indices == -1).all()
    nothing = Exclusion([path + "x" for path in files[0]], files[1], itself=True)
    assert search(query, gallery, SearchOptions(topk=2), exclusion=nothing).left_out == "results left out: none"
    options = SearchOptions(topk=2, max_distance=-1)
    assert search(query, gallery, options, exclusion=nothing).left_out == (
        "results left out of those up to the distance -1: none; 30 of 30 queries have no other result"
    )


@pytest.mark.parametrize("topk", [0, 5])
def test_max_distance(files, embeddings, topk):
    query, gallery, cameras = embeddings
    exclusion = Exclusion(*files, itself=True, cameras=(cameras[:NUM_QUERY], cameras))
    limit = 2.25e6
    for index in ("exact", "faiss:flat"):
        options = SearchOptions(index, topk=topk, max_distance=limit)
        found = search(query, gallery, options, exclusion=exclusion)
        distances = ((query[:, None].astype(np.float64) - gallery[None]) ** 2).sum(2)
        for number, row in enumerate(found.indices):
            allowed = [i for i in np.argsort(distances[number], kind="stable") if cameras[i] != cameras[number]]
            wanted = [i for i in allowed if distances[number, i] <= limit]
            assert row[row >= 0].tolist() == wanted[: topk or None]
        assert 0 < (found.indices >= 0).sum() < NUM_QUERY * (topk or NUM_GALLERY // 2)
        found = search(query, gallery, replace(options, max_distance=1e4), exclusion=exclusion)
        assert found.left_out.endswith("; 30 of 30 queries have no other result")  # that is near enough


def test_more_is_asked_for_only_where_too_little_is_left(files, embeddings, monkeypatch):
    monkeypatch.setattr(exclusion_module, "_AT_ONCE", 50)  # so that queries are searched in several groups
    query, gallery, _ = embeddings
    cameras = ["0"] * NUM_GALLERY
    for number in np.argsort(((gallery[None, :] - query[:3, None]) ** 2).sum((0, 2)))[-20:]:
        cameras[number] = "1"  # those that are far from the first three queries
    of_queries = ["0"] * 3 + ["2"] * (NUM_QUERY - 3)  # nothing is left out for the third camera
    asked = []

    def find(part, count):
        asked.append((len(part), count))
        result = search(part, gallery, SearchOptions(topk=count))
        return result.indices, result.distances

    found, _ = Exclusion(*files, cameras=(of_queries, cameras)).nearest(find, query, 10, NUM_GALLERY)
    assert {cameras[item] for item in found[:3].ravel()} == {"1"}
    assert {count for _, count in asked} == {20, 80, 320, NUM_GALLERY}
    assert sum(number for number, count in asked if count == 20) == NUM_QUERY
    assert sum(number for number, count in asked if count == 80) == 3


def test_a_store_that_returns_too_few(files, embeddings, tmp_path, monkeypatch):
    query, gallery, cameras = embeddings
    monkeypatch.setattr("inference.searching.stores.MOST_RESULTS", 100)
    options = SearchOptions(store=f"milvus:{tmp_path / 'gallery.db'}", topk=50)
    exclusion = Exclusion(*files, cameras=(cameras[:NUM_QUERY], cameras))
    with pytest.raises(
        UserError, match=r"of the 100 results that the store returns for .*/0.png, fewer than 50 may stay"
    ):
        search(query, gallery, options, gallery_paths=files[1], exclusion=exclusion)


def test_files_that_are_gone_are_known_by_path(files, embeddings, tmp_path):
    query, gallery, _ = embeddings
    moved = [str(tmp_path / Path(path).name) for path in files[1]]
    queries = [moved[number] for number in range(NUM_QUERY)]
    found = search(query, gallery, SearchOptions(topk=1), exclusion=Exclusion(queries, moved, itself=True))
    assert found.indices[:, 0].tolist() == [number + 30 for number in range(NUM_QUERY)]  # the copies stay
    assert found.left_out == (
        "results left out: 30 of the query itself; copies under other names are not recognised where a file is "
        f"missing, such as {moved[0]}"
    )


LINE = np.arange(8, dtype=np.float32)[:, None] + 1  # distances from 0: 1, 4, 9, ...


@pytest.mark.parametrize("index", ["exact", "faiss:flat"])
@pytest.mark.parametrize(
    ("topk", "limit", "found", "left_out"),
    [
        (1, None, [1], 1),  # what is left out behind the last result does not count
        (2, None, [1, 3], 2),
        (2, 9.5, [1, -1], 2),  # nor what is too far anyway
        (0, 20, [1, 3], 2),
        (0, 0.5, [], 0),
    ],
)
def test_only_what_would_have_been_a_result_counts(index, topk, limit, found, left_out):
    names = [str(number) for number in range(8)]
    exclusion = Exclusion(["q"], names, cameras=(["a"], ["a", "b"] * 3 + ["a", "a"]))
    query = np.zeros((1, 1), np.float32)
    result = search(query, LINE, SearchOptions(index, topk=topk, max_distance=limit), exclusion=exclusion)
    row = result.indices[0]
    assert row[row >= 0].tolist() == [item for item in found if item >= 0]
    counted = int(result.left_out.split(": ")[1].split()[0]) if left_out else 0
    assert (counted, ": none" in result.left_out) == (left_out, left_out == 0)


def test_no_more_is_asked_for_beyond_the_greatest_distance():
    asked = []
    line = np.arange(1, 101, dtype=np.float32)[:, None]

    def find(part, count):
        asked.append(count)
        result = search(part, line, SearchOptions(topk=count))
        return result.indices, result.distances

    exclusion = Exclusion(["q"], ["x"] * 100, cameras=(["a"], ["a"] * 100))
    found, _ = exclusion.nearest(find, np.zeros((1, 1), np.float32), 2, 100, max_distance=50)
    assert (asked, found.tolist()) == ([10], [[-1, -1]])


def test_nothing_is_left_of_any_ranking():
    gallery = np.eye(3, dtype=np.float32)
    nothing = Exclusion(["a.png"] * 2, ["b.png"] * 3, cameras=(["a"] * 2, ["a"] * 3))
    found = search(gallery[:2], gallery, SearchOptions("faiss:flat", topk=0), exclusion=nothing)
    assert (found.indices < 0).all()
