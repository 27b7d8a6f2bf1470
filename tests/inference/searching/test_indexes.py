"""faiss indexes beside the exact search, and when a saved one is built anew."""

import json
import os
import sys

import numpy as np
import pytest

from inference.searching import indexes
from inference.searching.indexes import GalleryIndex, index_paths
from inference.searching.search import SearchOptions, search, search_gallery
from utils.errors import UserError


def clustered(rows, seed, dims=24):
    """Embeddings as a trained model makes them: around centres."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((40, dims))
    return (centres[rng.integers(40, size=rows)] + 0.3 * rng.standard_normal((rows, dims))).astype(np.float32)


@pytest.fixture
def gallery(tmp_path):
    np.save(tmp_path / "embeddings.npy", clustered(3000, 0))
    return tmp_path / "embeddings.npy"


def found(gallery, index="faiss:flat", **options):
    options = SearchOptions(index, **options)
    return search(clustered(60, 1), np.load(gallery, mmap_mode="r"), options, gallery_file=gallery)


@pytest.mark.parametrize("options", [{}, {"normalize": True}, {"metric": "cosine"}, {"metric": "cosine", "topk": 0}])
def test_flat_is_exact(gallery, options):
    result = found(gallery, **options)
    _, exact = search_gallery(clustered(60, 1), np.load(gallery), **options)
    assert result.recall == 1.0
    np.testing.assert_allclose(result.distances, exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_approximate_indexes_find_most_and_all_with_more_effort(gallery, kind):
    quick, thorough = found(gallery, f"faiss:{kind}:1", topk=10), found(gallery, f"faiss:{kind}:3000", topk=10)
    usual = found(gallery, f"faiss:{kind}", topk=10)
    assert usual.recall > 0.95
    assert quick.recall <= usual.recall <= thorough.recall
    assert thorough.recall > 0.999
    assert f"faiss:{kind}: recall@10 {usual.recall:.4f} against exact search, over 30 queries" == usual.note
    assert (np.diff(usual.distances, axis=1) >= 0).all()


def test_recall_is_the_share_of_the_exact_results(gallery, monkeypatch):
    """Every second result replaced by the farthest item."""
    query, embeddings = clustered(60, 1), np.load(gallery)
    indices, distances = search_gallery(query, embeddings, topk=0)

    def half(*_):
        rows, values = indices[:, :10].copy(), distances[:, :10].copy()
        rows[:, ::2], values[:, ::2] = indices[:, -1:], distances[:, -1:]
        return rows, values

    monkeypatch.setattr(GalleryIndex, "search", half)
    result = search(query, embeddings, SearchOptions("faiss:flat", topk=10))
    assert result.recall == 0.5
    assert (np.diff(result.distances, axis=1) >= 0).all()


def test_a_short_result_is_filled_up(gallery):
    """One list of an inverted file holds fewer items than are asked for."""
    result = found(gallery, "faiss:ivf:1", topk=2999)
    assert (result.indices[:, -1] == -1).all()
    assert np.array_equal(result.indices < 0, np.isinf(result.distances))


def test_far_results_are_left_out(gallery):
    limit = float(np.median(found(gallery, topk=5).distances))
    result = found(gallery, topk=5, max_distance=limit)
    assert 0 < (result.indices < 0).sum() < result.indices.size
    assert result.recall == 1.0
    assert result.distances[result.indices >= 0].max() <= limit


def test_few_items_have_every_index(tmp_path):
    for rows in (1, 3, 50):
        embeddings = clustered(rows, 0)
        for kind in ("flat", "ivf", "hnsw"):
            result = search(embeddings, embeddings, SearchOptions(f"faiss:{kind}", topk=100))
            assert result.indices.shape == (rows, rows)
            assert np.array_equal(result.indices[:, 0], np.arange(rows))


def test_saved_index_is_used_until_the_gallery_changes(gallery, monkeypatch):
    built = []
    build = indexes.build_index
    monkeypatch.setattr(indexes, "build_index", lambda *args: built.append(args[1]) or build(*args))
    first = found(gallery, "faiss:hnsw", topk=3)
    again = found(gallery, "faiss:hnsw", topk=3)
    assert built == ["hnsw"]
    assert np.array_equal(first.indices, again.indices)

    found(gallery, "faiss:hnsw", topk=3, metric="cosine")  # of unit length: another index
    assert built == ["hnsw"] * 2
    status = gallery.stat()
    np.save(gallery, clustered(3000, 5))
    os.utime(gallery, ns=(status.st_atime_ns, status.st_mtime_ns))  # as after a copy that keeps times
    changed = found(gallery, "faiss:hnsw", topk=3)
    assert built == ["hnsw"] * 3
    assert changed.recall > 0.9
    assert sorted(p.name for p in gallery.parent.iterdir()) == [
        "embeddings.hnsw-unit.faiss", "embeddings.hnsw-unit.faiss.json",
        "embeddings.hnsw.faiss", "embeddings.hnsw.faiss.json", "embeddings.npy",
    ]  # fmt: skip


@pytest.mark.parametrize("damage", ["cut", "note_gone", "note_cut", "other_index", "newer_gallery"])
def test_an_index_that_is_not_of_the_gallery_is_built_anew(gallery, damage):
    found(gallery, topk=3)
    index, note = index_paths(gallery, "flat", unit=False)
    if damage == "cut":
        index.write_bytes(index.read_bytes()[:5000])
    elif damage == "note_gone":
        note.unlink()
    elif damage == "note_cut":
        note.write_text(note.read_text()[:50])
    elif damage == "other_index":
        np.save(gallery.with_name("other.npy"), clustered(10, 0))
        found(gallery.with_name("other.npy"), topk=3)
        index.write_bytes(index_paths(gallery.with_name("other.npy"), "flat", unit=False)[0].read_bytes())
    else:
        os.utime(gallery, ns=(1, 1))
    before = index.stat().st_mtime_ns if index.exists() else 0
    assert found(gallery, topk=3).recall == 1.0
    assert index.stat().st_mtime_ns > before
    assert json.loads(note.read_text())["gallery"]["shape"] == [3000, 24]


def test_an_interrupted_save_is_not_taken_for_a_whole_one(gallery, monkeypatch):
    """Another gallery's index was written, its note was not; then the first gallery comes back with its times."""
    found(gallery, topk=3)
    first, status = gallery.read_bytes(), gallery.stat()
    np.save(gallery, clustered(3000, 5))

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(indexes, "write_text", interrupted)
        found(gallery, topk=3)
    gallery.write_bytes(first)
    os.utime(gallery, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert found(gallery, topk=3).recall == 1.0


def test_a_failed_save_is_no_failed_search(gallery, caplog):
    index, note = index_paths(gallery, "flat", unit=False)
    index.mkdir()  # cannot be replaced by a file
    assert found(gallery, topk=3).recall == 1.0
    assert "cannot be saved" in caplog.text
    assert sorted(p.name for p in gallery.parent.iterdir()) == [index.name, gallery.name]
    assert not note.exists()


def test_without_a_file_nothing_is_saved(gallery):
    result = search(clustered(60, 1), np.load(gallery), SearchOptions("faiss:ivf", topk=5))
    assert result.recall > 0.95
    assert [p.name for p in gallery.parent.iterdir()] == ["embeddings.npy"]


def test_missing_package_is_named(gallery, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match=r"needs the package faiss.*pip install 'centroids-reid\[search\]'"):
        found(gallery)


def test_all_results_need_an_index_that_sees_all(gallery):
    with pytest.raises(UserError, match=r"topk 0 .* faiss:flat"):
        found(gallery, "faiss:hnsw", topk=0)


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
def test_embeddings_must_be_finite(kind, monkeypatch):
    monkeypatch.setattr(indexes, "POINTS_PER_LIST", 10)  # so that training draws a part of the rows
    good, bad = clustered(3000, 0), clustered(3000, 0)
    bad[2007, 3] = np.nan
    for block_bytes in (indexes.BLOCK_BYTES, 4 * 24 * 1000):
        with pytest.raises(UserError, match=r"^gallery\[2007, 3\] is nan: every embedding must be finite"):
            list(indexes.embedding_blocks("gallery", bad, False, block_bytes))
    with pytest.raises(UserError, match=r"^gallery\[2007, 3\] is nan"):
        GalleryIndex(kind, None, bad, None, False)
    with pytest.raises(UserError, match=r"^query\[7, 3\] is nan"):
        GalleryIndex(kind, None, good, None, False).search(bad[2000:], 2)


def test_the_row_is_named_where_an_index_learns_from_some_of_them():
    bad = np.full((1000, 4), np.inf, np.float32)
    bad[:990] = clustered(990, 0, 4)
    with pytest.raises(UserError, match=r"^gallery\[99\d, 0\] is inf"):
        GalleryIndex("ivf", None, bad, None, False)


@pytest.mark.parametrize("index", ["faiss:flat", "faiss:hnsw", "faiss:ivf"])
@pytest.mark.parametrize("options", [{}, {"normalize": True}, {"metric": "cosine"}], ids=str)
def test_recall_of_repeated_items(index, options):
    """Which of the copies is found does not matter, though each way of computing rounds their distance differently."""
    embeddings = 30 * np.random.default_rng(0).random((22, 512), np.float32)
    embeddings[9:] = embeddings[3] * (1 + 1e-7 * np.random.default_rng(1).standard_normal((13, 512)))
    result = search(embeddings, embeddings, SearchOptions(index, topk=3, **options))
    assert result.recall == 1.0


def test_recall_is_strict_beyond_rounding(gallery, monkeypatch):
    """What is farther than the last exact result by a thousandth of the squared lengths is not among the results."""
    query, embeddings = clustered(60, 1), np.load(gallery)
    indices, distances = search_gallery(query, embeddings, topk=0)
    more = 2e-3 * np.square(query).sum(1)
    places = np.argmax(distances > distances[:, :1] + more[:, None], axis=1)[:, None]
    wrong = np.take_along_axis(indices, places, 1), np.take_along_axis(distances, places, 1)
    monkeypatch.setattr(GalleryIndex, "search", lambda *_: wrong)
    assert search(query, embeddings, SearchOptions("faiss:flat", topk=1)).recall == 0.0


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_no_effort_is_too_great(gallery, kind):
    assert found(gallery, f"faiss:{kind}:99999999999999999999", topk=3).recall == 1.0
