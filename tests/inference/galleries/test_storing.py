"""Galleries in one file or several, in float32 or float16, and what is left of them when their writer is killed."""

import json
import os
import resource
import shutil
import signal
import threading
import warnings
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from evaluation.inputs import read_input
from inference.galleries import float16, storing
from inference.galleries.editing import delete_rows, replace_rows
from inference.galleries.float16 import RecallSample, recall_of
from inference.galleries.gallery import read_gallery
from inference.galleries.storing import GalleryWriter
from inference.results.files import write_results
from inference.searching.search import SearchOptions, search, search_gallery
from utils.errors import MissingPathError, UserError
from utils.locks import lock
from utils.rows import Rows

ABOUT = {"embedder": {"weights": "w", "dimension": 4}, "root": "images", "pid_from": None}
ROWS = np.random.default_rng(0).standard_normal((23, 4)).astype(np.float32)
PATHS = [f"images/{'long' * (i % 4)}{i}.png" for i in range(23)]
LABELS = [(i % 5, f"c{i % 2}") for i in range(23)]
ALL = range(23)


def write(folder, positions=ALL, batch=6, labels=LABELS, rows=ROWS, **options):
    with GalleryWriter(folder, ABOUT, **options) as writer:
        for start in range(0, len(positions), batch):
            part = positions[start : start + batch]
            writer.add(rows[part], [PATHS[i] for i in part], [labels[i] for i in part] if labels else ())
        assert writer.finish() == len(positions)
    return folder


def extend(folder, positions, **options):
    with GalleryWriter.extending(folder, **options) as writer:
        writer.add(ROWS[positions], [PATHS[i] for i in positions], [LABELS[i] for i in positions])
        return writer.finish()


def assert_holds(folder, positions, rows=ROWS, labels=LABELS):
    found = read_gallery(folder)
    np.testing.assert_array_equal(np.asarray(found.embeddings), rows[positions])
    assert [str(path) for path in found.paths] == [PATHS[i] for i in positions]
    assert found.labels == [labels[i] for i in positions] if labels else found.labels == []
    assert (found.about["count"], found.about["images"]) == (len(positions), len(positions))
    assert not [path for path in folder.iterdir() if path.suffix in (".new", ".next", ".lock", ".tmp")]


def files_of(folder, kind="embeddings"):
    return {path.name: path.read_bytes() for path in sorted(folder.glob(f"{kind}*.npy"))}


@pytest.mark.parametrize(("rows_per_file", "sizes"), [(23, [23]), (22, [22, 1]), (8, [8, 8, 7]), (1, [1] * 23)])
def test_rows_are_cut_into_files_and_read_as_one(tmp_path, rows_per_file, sizes):
    write(tmp_path, rows_per_file=rows_per_file)
    assert_holds(tmp_path, ALL)
    names = [f"-{i:05d}" for i in range(len(sizes))] if len(sizes) > 1 else [""]
    for kind in ("embeddings", "paths", "pids", "camids"):
        assert list(files_of(tmp_path, kind)) == [f"{kind}{name}.npy" for name in names]
    lengths = [len(np.load(tmp_path / f"embeddings{name}.npy")) for name in names]
    assert lengths == sizes
    np.testing.assert_array_equal(np.load(tmp_path / f"paths{names[0]}.npy"), np.array(PATHS[: sizes[0]]))
    listed = json.loads((tmp_path / "gallery.json").read_text()).get("row_files")
    assert listed == ([{"name": n[1:], "rows": r} for n, r in zip(names, sizes, strict=True)] if names[0] else None)


def test_batches_do_not_show_in_the_bytes(tmp_path):
    write(tmp_path / "a", rows_per_file=8, batch=23)
    write(tmp_path / "b", rows_per_file=8, batch=1)
    assert files_of(tmp_path / "a", "") == files_of(tmp_path / "b", "")


def test_odd_names_and_no_labels(tmp_path):
    names = ["a\nb", "ü", "\udcff", "x" * 300]
    with GalleryWriter(tmp_path, ABOUT, rows_per_file=3) as writer:
        writer.add(ROWS[:4], names)
        writer.finish(images=9, skipped=["bad\udcff"])
    found = read_gallery(tmp_path)
    assert (found.paths[:].tolist(), found.labels, found.about["images"]) == (names, [], 9)
    assert (tmp_path / "skipped.txt").read_bytes() == b"bad\xff\n"


@pytest.mark.parametrize("start", [5, 8, 9, 16])
def test_extending_writes_only_the_last_file_again(tmp_path, start):
    """Also from one file to several, and with full files."""
    write(tmp_path, range(start), rows_per_file=8)
    full = start // 8 if start > 8 else 0
    kept = {name: (tmp_path / name).stat().st_ino for name in list(files_of(tmp_path))[:full]}
    assert extend(tmp_path, range(start, 23), rows_per_file=8) == 23
    assert_holds(tmp_path, ALL)
    assert {name: (tmp_path / name).stat().st_ino for name in kept} == kept
    write(tmp_path / "at_once", rows_per_file=8)
    assert files_of(tmp_path) == files_of(tmp_path / "at_once")


def test_a_gallery_in_one_file_takes_the_place_of_one_in_several(tmp_path):
    write(tmp_path, rows_per_file=8)
    write(tmp_path, range(4), labels=None)
    assert_holds(tmp_path, range(4), labels=None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["embeddings.npy", "gallery.json", "paths.npy"]


def test_leaving_without_finishing_changes_nothing(tmp_path):
    write(tmp_path, range(5))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ZeroDivisionError), GalleryWriter(tmp_path, ABOUT, rows_per_file=3) as writer:
        writer.add(ROWS, PATHS)
        raise ZeroDivisionError
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    with pytest.raises(UserError, match="nothing to write"), GalleryWriter(tmp_path / "none", ABOUT) as writer:
        writer.finish()


def test_a_full_disk_is_said_and_leaves_the_gallery(tmp_path, monkeypatch):
    write(tmp_path, range(5))

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(storing.os, "fsync", full)
        with pytest.raises(UserError, match=r"cannot write to .*No space left on device"):
            write(tmp_path)
    assert_holds(tmp_path, range(5))


# --------------------------------------------------------------------------------------------------------------- killed


def killed_at(step, call):
    """Run a call in a copy of this process that is killed at its ``step``-th change of the disk: whether it was."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads that the copy does not have
        child = os.fork()
    if not child:
        steps = count(1)

        def counted(real):
            def stand_in(*args, **kwargs):
                if next(steps) == step:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args, **kwargs)

            return stand_in

        for name in ("replace", "unlink"):
            setattr(os, name, counted(getattr(os, name)))
        call()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


CHANGES = {
    "delete, several files": (8, lambda folder: delete_rows(folder, [*PATHS[7:16], PATHS[20]])),
    "delete, one file": (99, lambda folder: delete_rows(folder, [PATHS[1]])),
    "replace": (8, lambda folder: replace_rows(folder, [PATHS[3], PATHS[22]], ROWS[:2])),
    "extend": (23, lambda folder: extend(folder, [3], rows_per_file=20)),
    "create": (12, lambda folder: write(folder, range(12))),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_kill_leaves_the_old_gallery_or_the_new_one(tmp_path, change):
    def held(folder):
        found = read_gallery(folder)
        assert len(read_input(str(folder)).arrays["pids"]) == len(found.paths)
        return np.asarray(found.embeddings).tobytes(), list(map(str, found.paths)), found.labels

    rows_per_file, edit = CHANGES[change]
    old = write(tmp_path / "old", rows_per_file=rows_per_file)
    edit(shutil.copytree(old, tmp_path / "new"))
    states, seen = [held(old), held(tmp_path / "new")], []
    for step in count(1):
        folder = shutil.copytree(old, tmp_path / f"killed{step}")
        was_killed = killed_at(step, lambda folder=folder: edit(folder))
        seen.append(states.index(held(folder)))
        delete_rows(folder, [PATHS[0]])  # completes what was begun, and removes what is left of it
        names = {path.name for path in folder.iterdir()}
        assert names == {path.name for path in (old, tmp_path / "new")[seen[-1]].iterdir()}
        np.testing.assert_array_equal(
            np.asarray(read_gallery(folder).embeddings), np.frombuffer(states[seen[-1]][0], "<f4").reshape(-1, 4)[1:]
        )
        if not was_killed:
            break
    assert seen == sorted(seen)
    assert len(seen) > 5
    assert set(seen) == {0, 1}


def test_a_reader_sees_one_gallery_or_the_other(tmp_path):
    """Replaced all the time, so that files of two galleries could be mixed without an error."""
    write(tmp_path, rows_per_file=8, labels=None)
    stop = threading.Event()

    def replace_all():
        for turn in count():
            if stop.is_set():
                return
            replace_rows(tmp_path, PATHS, np.full((23, 4), turn, np.float32))

    writer = threading.Thread(target=replace_all)
    writer.start()
    try:
        seen = {tuple(np.unique(np.asarray(read_gallery(tmp_path).embeddings)).tolist()) for _ in range(150)}
    finally:
        stop.set()
        writer.join()
    assert all(len(values) == 1 or values == tuple(np.unique(ROWS).tolist()) for values in seen)
    assert len(seen) > 3


def test_edits_wait_for_each_other(tmp_path, caplog):
    caplog.set_level("INFO")
    write(tmp_path, rows_per_file=8)
    with lock(tmp_path / storing.LOCK):
        other = threading.Thread(target=delete_rows, args=(tmp_path, [PATHS[0]]))
        other.start()
        other.join(0.3)
        assert other.is_alive()
        assert_rows_stay = len(read_gallery(tmp_path).paths)
    other.join()
    assert (assert_rows_stay, len(read_gallery(tmp_path).paths)) == (23, 22)
    assert caplog.messages == [f"Another process is writing to {tmp_path}: waiting for it."]


# -------------------------------------------------------------------------------------------------------------- float16


def test_float16_and_the_recall_that_it_costs(tmp_path, caplog):
    caplog.set_level("INFO")
    rows = np.random.default_rng(1).standard_normal((300, 4)).astype(np.float32)
    with GalleryWriter(tmp_path, ABOUT, "float16", 128) as writer:
        for start in range(0, 300, 7):
            writer.add(rows[start : start + 7], [f"{i}.png" for i in range(start, min(start + 7, 300))])
        writer.finish()
    found = read_gallery(tmp_path)
    assert found.embeddings.dtype == np.float16
    np.testing.assert_array_equal(np.asarray(found.embeddings), rows.astype(np.float16))
    stored = rows.astype(np.float16).astype(np.float32)
    nearest = []
    for x in (rows, stored):
        distances = ((x[:, None].astype(np.float64) - x) ** 2).sum(2)
        np.fill_diagonal(distances, np.inf)
        nearest.append(np.argsort(distances, axis=1, kind="stable")[:, :10])
    expected = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(*nearest, strict=True)])
    assert expected < 1
    assert found.about["float16"] == {"recall@10": pytest.approx(expected, abs=5e-4), "queries": 300, "rows": 300}
    share = found.about["float16"]["recall@10"]
    line = f"float16: recall@10 {share:.4f} against float32, over 300 of the embeddings among 300"
    assert caplog.messages == [line]
    indices, distances = search_gallery(rows[:5], found.embeddings, topk=1)
    assert indices[:, 0].tolist() == list(range(5))
    assert distances.max() < 1e-4


def test_the_sample_is_even_and_does_not_depend_on_batches(monkeypatch):
    monkeypatch.setattr(float16, "_ROWS", 50)
    drawn = []
    for batch in (1, 7, 400):
        sample = RecallSample()
        for start in range(0, 400, batch):
            sample.add(np.arange(start, min(start + batch, 400), dtype=np.float32)[:, None])
        drawn.append(np.sort(sample._rows[:, 0]).tolist())
    assert drawn[0] == drawn[1] == drawn[2]
    assert len(set(drawn[0])) == 50
    assert 120 < np.mean(drawn[0]) < 280
    assert max(drawn[0]) > 350


def test_recall_of_rows_that_lose_everything():
    rows = np.arange(40, dtype=np.float32)[:, None]
    shuffled = np.random.default_rng(0).permutation(rows)
    assert recall_of(rows, rows, np.arange(40), 3) == 1
    assert recall_of(rows, shuffled, np.arange(40), 3) < 0.3


def test_float16_overflow_and_mixed_dtypes(tmp_path):
    rows = ROWS.copy()
    rows[9, 2] = 70_000
    message = r"images/long9.png: the embedding has the value 70000, and float16 holds at most 65504: set GALLERY.DTYPE"
    with pytest.raises(UserError, match=message):
        write(tmp_path, rows=rows, dtype="float16")
    assert list(tmp_path.iterdir()) == []
    write(tmp_path, range(9), dtype="float16")
    with pytest.raises(
        UserError, match="holds float16, but GALLERY.DTYPE is float32: set it to float16, or name another"
    ):
        extend(tmp_path, range(9, 12), dtype="float32")
    extend(tmp_path, range(9, 23), dtype="float16")
    assert_holds(tmp_path, ALL, rows=ROWS.astype(np.float16))
    assert read_gallery(tmp_path).about["float16"]["rows"] == 14  # of those that were float32


# --------------------------------------------------------------------------------------------------- reading and search


@pytest.fixture
def several(tmp_path):
    write(tmp_path / "one")
    return write(tmp_path / "several", rows_per_file=5)


@pytest.mark.parametrize("options", [{"topk": 7}, {"topk": 0}, {"topk": 0, "max_distance": 2.0}, {"metric": "cosine"}])
def test_exact_search_is_that_of_one_file(several, options):
    query = ROWS[::4] + np.float32(0.01)
    found = search(query, read_gallery(several).embeddings, SearchOptions(**options))
    expected = search(query, ROWS, SearchOptions(**options))
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_array_equal(found.distances, expected.distances)


@pytest.mark.parametrize("index", ["faiss:flat", "faiss:ivf", "faiss:hnsw"])
def test_faiss_indexes_are_rebuilt_when_a_file_changes(several, index, caplog):
    caplog.set_level("INFO")
    options, built = SearchOptions(index=index, topk=1), "Building the index"

    def nearest(row):
        gallery = read_gallery(several)
        assert isinstance(gallery.embeddings, Rows)
        caplog.clear()
        return search(ROWS[row : row + 1], gallery.embeddings, options, gallery_file=several / "embeddings.npy")

    assert nearest(7).indices.tolist() == [[7]]
    assert built in caplog.text
    assert (several / f"embeddings.{index[6:]}.faiss").exists()
    assert nearest(8).indices.tolist() == [[8]]
    assert built not in caplog.text
    replace_rows(several, [PATHS[7]], -ROWS[7:8])
    found = nearest(7)
    assert built in caplog.text
    assert found.indices.tolist() != [[7]]
    delete_rows(several, [PATHS[0]])
    assert nearest(8).indices.tolist() == [[7]]


def test_a_store_is_filled_again_when_one_row_is_replaced(several, tmp_path, caplog):
    pytest.importorskip("milvus_lite")
    caplog.set_level("INFO")
    rows = np.random.default_rng(2).standard_normal((600, 4)).astype(np.float32)
    with GalleryWriter(several, ABOUT, rows_per_file=250) as writer:
        writer.add(rows, names := [f"{i}.png" for i in range(600)])
        writer.finish()
    options = SearchOptions(store=f"milvus:{tmp_path / 's.db'}", topk=1)

    def nearest(query):
        gallery = read_gallery(several)
        file = several / "embeddings.npy"
        return search(query, gallery.embeddings, options, gallery_file=file, gallery_paths=gallery.paths).indices

    assert nearest(rows[5:6]).tolist() == [[5]]
    replace_rows(several, names[6:7], rows[5:6] * 3)  # a row that the digest of the store does not look at
    caplog.clear()
    assert nearest(rows[5:6] * 3).tolist() == [[6]]
    assert "Writing 600 items" in caplog.text


def test_evaluation_and_results_read_several_files(several, tmp_path):
    one, many = (read_input(str(tmp_path / name)) for name in ("one", "several"))
    assert one.arrays.keys() == many.arrays.keys() == {"embeddings", "paths", "pids", "camids"}
    for name, array in one.arrays.items():
        np.testing.assert_array_equal(array, many.arrays[name])
        assert type(many.arrays[name]) is np.ndarray
    assert len(many.origin()["sha256"]) == 4 * 5
    for name in ("one", "several"):
        paths = read_gallery(tmp_path / name).paths
        indices = np.array([[22, 0, -1], [4, 5, 6]])
        found = write_results(tmp_path / f"r_{name}", ("npy", "csv", "jsonl"), ["q", "r"], paths, indices, indices / 7)
        found_results = (
            [path.read_bytes() for path in found[1:]],
            np.load(found[0], allow_pickle=True).item()["q"]["paths"],
        )
        assert found_results[1].tolist() == [PATHS[22], PATHS[0]]
        if name == "one":
            expected = found_results[0]
    assert found_results[0] == expected


def test_files_that_do_not_belong_to_the_gallery_are_named(several):
    shutil.copyfile(several / "embeddings-00004.npy", several / "embeddings-00001.npy")
    with pytest.raises(
        UserError, match=r"embeddings-00001.npy has the shape \[3, 4\], but gallery.json says .* 5 rows"
    ):
        read_gallery(several)
    (several / "embeddings-00001.npy").unlink()
    with pytest.raises(MissingPathError, match=r"embeddings-00001.npy does not exist, but gallery.json lists it"):
        read_gallery(several)
    (several / "gallery.json").write_text(json.dumps({**ABOUT, "row_files": [{"name": 3}]}))
    with pytest.raises(UserError, match="gallery.json is damaged"):
        read_gallery(several)
    assert Path(several).is_dir()


def test_a_disk_that_is_full_to_the_end_leaves_nothing_behind(tmp_path):
    """Closing a file writes again what did not fit; the lock must go all the same."""
    folder, rows = tmp_path / "gallery", np.ones((100, 100), np.float32)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with (
            pytest.raises(UserError, match="OUTPUT_DIR: cannot write to"),
            GalleryWriter(folder, {"embedder": {}, "pid_from": None}) as writer,
        ):
            for number in range(100):  # less than a file keeps back, so that closing it writes the rest
                writer.add(rows[number : number + 1], [f"{number}.png"])
            writer.finish()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(folder.iterdir()) == []


def test_a_damaged_list_of_a_change_is_named(tmp_path):
    write(tmp_path / "gallery")
    (tmp_path / "gallery" / "gallery.json.next").write_text("{")
    with pytest.raises(UserError, match=r"gallery.json.next is damaged .*; remove it, and create the gallery again"):
        read_gallery(tmp_path / "gallery")
