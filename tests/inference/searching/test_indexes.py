"""faiss indexes beside the exact search, and when a saved one is built anew."""

import errno
import json
import os
import shutil
import signal
import sys
import time

import numpy as np
import pytest

from inference.searching import disk_lists, indexes, recall
from inference.searching.disk_lists import lists_bytes, lists_file
from inference.searching.exclusion import Exclusion
from inference.searching.indexes import GalleryIndex, index_paths
from inference.searching.search import SearchOptions, search, search_gallery
from tests.launch import start_python
from utils.errors import UserError
from utils.rows import Rows


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


@pytest.mark.parametrize("kind", ["ivf", "ivfpq", "hnsw"])
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
        for kind in ("flat", "ivf", "ivfpq", "hnsw"):
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


@pytest.mark.parametrize("kind", ["flat", "ivf", "ivfpq", "hnsw"])
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


@pytest.mark.parametrize("index", ["faiss:flat", "faiss:hnsw", "faiss:ivf", "faiss:ivfpq"])
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


@pytest.mark.parametrize("kind", ["ivf", "ivfpq", "hnsw"])
def test_no_effort_is_too_great(gallery, kind):
    assert found(gallery, f"faiss:{kind}:99999999999999999999", topk=3).recall == 1.0


# ------------------------------------------------------------------------------------------- product-quantised rows


@pytest.mark.parametrize("options", [{}, {"normalize": True}, {"metric": "cosine"}], ids=str)
def test_distances_of_quantised_rows_are_exact(tmp_path, options):
    """The codes of 3 bytes cannot tell these 24 numbers apart; the results are those of the gallery's own rows."""
    np.save(tmp_path / "embeddings.npy", clustered(3000, 0).astype(np.float16))
    half = np.load(tmp_path / "embeddings.npy", mmap_mode="r")
    query = clustered(60, 1)
    result = search(query, half, SearchOptions("faiss:ivfpq:99", topk=10, **options), gallery_file=tmp_path / "x.npy")
    indices, distances = search_gallery(query, half, topk=10, **options)
    assert np.array_equal(result.indices, indices)
    np.testing.assert_allclose(result.distances, distances, rtol=1e-4, atol=1e-5)
    index = index_paths(tmp_path / "x.npy", "ivfpq", bool(options))[0]
    assert index.stat().st_size < 3000 * (3 + 8) + 4 * 24 * (110 + 256) + 2000


def test_only_the_best_codes_are_looked_up(gallery, monkeypatch):
    """Few candidates: what the codes rank too low is missed, and the recall says so."""
    thorough = found(gallery, "faiss:ivfpq:99", topk=10)
    monkeypatch.setattr(indexes, "_LEAST_CANDIDATES", 10)
    monkeypatch.setattr(indexes, "_CANDIDATES", 1)
    assert found(gallery, "faiss:ivfpq:99", topk=10).recall < thorough.recall == 1


def test_what_is_left_out_is_replaced_among_quantised_rows(gallery):
    embeddings, query = np.load(gallery), clustered(60, 1)
    cameras = [str(i % 3) for i in range(60)], [str(i % 3) for i in range(3000)]
    paths = [f"{i}.jpg" for i in range(3060)]
    options = [SearchOptions(index, topk=10) for index in ("exact", "faiss:ivfpq:99")]
    exact, quantised = (
        search(query, embeddings, o, exclusion=Exclusion(paths[3000:], paths[:3000], cameras=cameras)) for o in options
    )
    assert np.array_equal(exact.indices, quantised.indices)
    assert quantised.left_out == exact.left_out
    assert (exact.indices % 3 != np.arange(60)[:, None] % 3).all()


@pytest.mark.parametrize("kind", ["ivf", "ivfpq"])
def test_a_gallery_in_several_files(gallery, tmp_path, kind):
    whole = np.load(gallery)
    folder = tmp_path / "several"
    folder.mkdir()
    for number, part in enumerate(np.split(whole, [700, 2100])):
        np.save(folder / f"embeddings-{number:05d}.npy", part)
    rows = Rows([np.load(file, mmap_mode="r") for file in sorted(folder.iterdir())])
    options = SearchOptions(f"faiss:{kind}", topk=10)
    results = [search(clustered(60, 1), rows, options, gallery_file=folder / "embeddings.npy") for _ in range(2)]
    expected = found(gallery, f"faiss:{kind}", topk=10)
    for result in results:
        assert np.array_equal(result.indices, expected.indices)
        assert np.array_equal(result.distances, expected.distances)
    built = index_paths(folder / "embeddings.npy", kind, unit=False)[0]
    before = built.stat().st_mtime_ns
    os.utime(folder / "embeddings-00001.npy", ns=(time.time_ns(), time.time_ns()))
    search(clustered(60, 1), rows, options, gallery_file=folder / "embeddings.npy")
    assert built.stat().st_mtime_ns > before


# --------------------------------------------------------------------------------------------------- lists on disk


@pytest.fixture
def small_machine(monkeypatch):
    """One with memory for a third of a gallery of 3000 x 24."""
    monkeypatch.setattr(indexes, "memory_limit", lambda: lists_bytes(3000, 24))
    monkeypatch.setattr(disk_lists, "WRITE_BYTES", 4 * 24 * 800)  # several blocks


@pytest.mark.parametrize("options", [{}, {"metric": "cosine"}], ids=str)
def test_lists_on_disk_give_what_those_in_memory_give(gallery, tmp_path, options, monkeypatch, caplog):
    caplog.set_level("INFO")
    expected = found(gallery, "faiss:ivf:5", topk=10, **options)
    other = shutil.copytree(gallery.parent, tmp_path / "other", ignore=shutil.ignore_patterns("*.faiss*"))
    index = index_paths(other / gallery.name, "ivf", bool(options))[0]
    monkeypatch.setattr(indexes, "memory_limit", lambda: 3 * lists_bytes(3000, 24) - 3)
    monkeypatch.setattr(disk_lists, "WRITE_BYTES", 4 * 24 * 800)
    results = [found(other / gallery.name, "faiss:ivf:5", topk=10, **options)]
    assert f"more than a third of this machine's memory (0.0 GiB): they stay in {lists_file(index)}" in caplog.text
    assert lists_file(index).stat().st_size == lists_bytes(3000, 24)
    assert index.stat().st_size < 4 * 24 * 200
    before = index.stat().st_mtime_ns
    results.append(found(other / gallery.name, "faiss:ivf:5", topk=10, **options))
    monkeypatch.setattr(indexes, "memory_limit", lambda: 1 << 40)  # a larger machine uses them too
    moved = other.rename(tmp_path / "moved")
    results.append(found(moved / gallery.name, "faiss:ivf:5", topk=10, **options))
    assert (moved / index.name).stat().st_mtime_ns == before
    for result in results:
        assert np.array_equal(result.indices, expected.indices)
        assert np.array_equal(result.distances, expected.distances)


def test_an_index_of_a_larger_machine_is_mapped(gallery, small_machine, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(indexes, "memory_limit", lambda: 1 << 40)
        expected = found(gallery, "faiss:ivf", topk=10)
    index = index_paths(gallery, "ivf", unit=False)[0]
    before = index.stat().st_mtime_ns
    assert np.array_equal(found(gallery, "faiss:ivf", topk=10).indices, expected.indices)
    assert (index.stat().st_mtime_ns, lists_file(index).exists()) == (before, False)


def test_lists_that_are_not_whole_are_written_anew(gallery, small_machine):
    expected = found(gallery, "faiss:ivf", topk=10)
    lists = lists_file(index_paths(gallery, "ivf", unit=False)[0])
    whole = lists.read_bytes()
    lists.write_bytes(whole[:-1000])
    assert np.array_equal(found(gallery, "faiss:ivf", topk=10).indices, expected.indices)
    assert lists.read_bytes() == whole
    np.save(gallery, clustered(3000, 5))
    assert found(gallery, "faiss:ivf:99", topk=10).recall == 1


def test_lists_go_with_the_index_that_needs_them(gallery, small_machine, monkeypatch):
    found(gallery, "faiss:ivf", topk=10)
    np.save(gallery, clustered(3000, 5))
    monkeypatch.setattr(indexes, "memory_limit", lambda: 1 << 40)
    assert found(gallery, "faiss:ivf:99", topk=10).recall == 1
    assert not lists_file(index_paths(gallery, "ivf", unit=False)[0]).exists()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_full_disk_is_named(gallery, small_machine, monkeypatch):
    lists = lists_file(index_paths(gallery, "ivf", unit=False)[0])
    usage = shutil.disk_usage(gallery.parent)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
        with pytest.raises(UserError, match=rf"{lists} needs 0.0 GiB, but its disk has 0.0 GiB left: make room, or"):
            found(gallery, "faiss:ivf")
    monkeypatch.setattr(disk_lists, "_write_rows", full_disk)
    with pytest.raises(UserError, match=rf"{lists} cannot be written \(No space left on device\).*faiss:ivfpq"):
        found(gallery, "faiss:ivf")
    assert names(gallery.parent) == ["embeddings.npy"]


def full_disk(stream, *_):
    stream.write(b"some")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_killed_build_leaves_nothing_that_the_next_one_does_not_remove(gallery, small_machine):
    """Killed while it writes the lists, by a signal; a build that still runs keeps its own."""
    code = """if True:
        import os, signal, sys, time
        import numpy as np
        from inference.searching import disk_lists, indexes
        write = disk_lists._write_rows
        def stopped(stream, blocks, *arguments):
            write(stream, [next(iter(blocks))], *arguments)
            stream.flush()
            print("writing", flush=True)
            time.sleep(60)
        disk_lists._write_rows, indexes.memory_limit = stopped, lambda: 1000
        indexes.GalleryIndex("ivf", None, np.load(sys.argv[1], mmap_mode="r"), sys.argv[1], False)
    """
    build = start_python("-c", code, gallery, stdout=-1)
    try:
        assert build.stdout.readline() == "writing\n"
        left = names(gallery.parent)
        assert len(left) == 2
        assert left[0].startswith(".embeddings.ivf.faiss.lists.")
        found(gallery, "faiss:ivf", topk=10)
        assert left[0] in names(gallery.parent)
    finally:
        build.send_signal(signal.SIGKILL)
        build.wait()
    whole = ["embeddings.ivf.faiss", "embeddings.ivf.faiss.json", "embeddings.ivf.faiss.lists", "embeddings.npy"]
    assert names(gallery.parent) == [left[0], *whole]
    index_paths(gallery, "ivf", unit=False)[1].unlink()
    assert found(gallery, "faiss:ivf:99", topk=10).recall == 1
    assert names(gallery.parent) == whole


# ---------------------------------------------------------------------------------------- the recall of large galleries


def test_the_recall_of_a_large_gallery_is_measured_once(gallery, monkeypatch):
    monkeypatch.setattr(recall, "MEASURED_ONCE", 3000)
    first = found(gallery, "faiss:hnsw:5", topk=10)
    assert first.note == f"faiss:hnsw:5: recall@10 {first.recall:.4f} against exact search, over 30 queries"
    monkeypatch.setattr("inference.searching.search._recall", lambda *_: (0.25, 30))
    again = found(gallery, "faiss:hnsw:5", topk=10)
    assert again.recall == first.recall
    assert again.note == f"{first.note} of an earlier search"
    assert found(gallery, "faiss:hnsw:6", topk=10).recall == 0.25  # another search
    assert found(gallery, "faiss:hnsw:5", topk=9).recall == 0.25
    assert found(gallery, "faiss:hnsw:5", topk=10).recall == first.recall
    np.save(gallery, clustered(3000, 5))
    assert found(gallery, "faiss:hnsw:5", topk=10).recall == 0.25
    np.save(gallery, clustered(2999, 5))
    found(gallery, "faiss:hnsw:5", topk=10)
    assert found(gallery, "faiss:hnsw:5", topk=10).note.endswith("over 30 queries")


def test_a_recall_over_few_queries_is_not_kept(gallery, monkeypatch):
    monkeypatch.setattr(recall, "MEASURED_ONCE", 3000)
    for _ in range(2):
        result = search(clustered(24, 1), np.load(gallery), SearchOptions("faiss:flat", topk=3), gallery_file=gallery)
        assert result.note.endswith("over 24 queries")
    assert not recall.recall_file(gallery).exists()


def test_a_recall_that_cannot_be_kept_is_told(gallery, monkeypatch, caplog):
    monkeypatch.setattr(recall, "MEASURED_ONCE", 3000)
    recall.recall_file(gallery).mkdir()
    assert found(gallery, topk=3).recall == 1
    assert "The recall will be measured again at the next search: " in caplog.text


@pytest.mark.parametrize("kind", ["flat", "ivf", "ivfpq", "hnsw"])
def test_values_whose_squares_overflow_are_named(kind):
    """faiss would end the process."""
    gallery = np.ones((50, 8), np.float32)
    gallery[5] = 1e25
    with pytest.raises(UserError, match=r"gallery\[5\] is too large for distances in float32"):
        search(gallery[:1], gallery, SearchOptions(f"faiss:{kind}"))
