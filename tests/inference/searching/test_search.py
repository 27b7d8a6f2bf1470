"""The exact search against plain loops, the options of the command line, and thresholds."""

import argparse
import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.calibration import Calibration, write_calibration
from evaluation.metrics import evaluate
from evaluation.retrieval import RankingOptions, RetrievalSet
from evaluation.tables import write_evaluation
from evaluation.verification import roc_table
from inference.searching.search import (
    SearchOptions,
    add_arguments,
    formats_from_args,
    options_from_args,
    parse_store,
    search,
    search_gallery,
    write_results,
)
from inference.searching.thresholds import threshold_at_far, threshold_from_file
from tests.launch import forbid_modules, run_code
from utils.distances import get_dist_func, normalize
from utils.errors import UnknownNameError, UserError


def drawn(rows, dims, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal((rows, dims)).astype(dtype)


def whole(seed, rows, dims=6):
    """Small whole numbers: squared distances are exact in float32, and many are equal."""
    return np.random.default_rng(seed).integers(-2, 3, (rows, dims)).astype(np.float32)


def ranked_by_hand(query, gallery, topk, max_distance=np.inf):
    """Plain loops: each row the (index, squared distance) of the nearest items, earlier ones first among equals."""
    rows = []
    for q in query:
        distances = [float(sum((a - b) ** 2 for a, b in zip(q.tolist(), g.tolist(), strict=True))) for g in gallery]
        order = sorted(range(len(gallery)), key=lambda i: (distances[i], i))
        rows.append([(i, distances[i]) for i in order if distances[i] <= max_distance][: topk or None])
    return rows


def unpadded(indices, distances):
    assert np.array_equal(indices < 0, np.isinf(distances))
    assert all(row.tolist() == sorted(row.tolist(), key=lambda i: i < 0) for row in indices)  # only the end is filled
    pairs = zip(indices.tolist(), distances.tolist(), strict=True)
    return [[(i, d) for i, d in zip(*pair, strict=True) if i >= 0] for pair in pairs]


@pytest.mark.parametrize("block_bytes", [None, 4096, 400, 1])
@pytest.mark.parametrize("topk", [1, 7, 90, 200, 0])
def test_equals_plain_loops_with_ties(topk, block_bytes):
    query, gallery = whole(0, 23), whole(1, 150)
    indices, distances = search_gallery(query, gallery, topk=topk, block_bytes=block_bytes)
    assert indices.dtype == np.int64
    assert distances.dtype == np.float32
    assert indices.shape == (23, min(topk or 150, 150))
    assert unpadded(indices, distances) == ranked_by_hand(query, gallery, topk)


@settings(max_examples=60)
@given(st.data())
def test_any_shape_blocks_and_threshold(data):
    q, n, topk = (data.draw(st.integers(low, high)) for low, high in ((1, 9), (1, 40), (0, 45)))
    limit = data.draw(st.sampled_from([None, -1.0, 0.0, 4.0, 11.0, 1000.0]))
    query, gallery = whole(data.draw(st.integers(0, 99)), q, 3), whole(data.draw(st.integers(0, 99)), n, 3)
    block_bytes = data.draw(st.integers(1, 2000))
    found = search_gallery(query, gallery, topk=topk, block_bytes=block_bytes, max_distance=limit)
    expected = ranked_by_hand(query, gallery, topk, np.inf if limit is None else limit)
    assert unpadded(*found) == expected
    ragged = topk == 0 and limit is not None
    assert found[0].shape == (q, max(map(len, expected)) if ragged else min(topk or n, n))


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_metrics_are_those_of_the_evaluation(metric, normalized):
    query, gallery = drawn(40, 32), drawn(700, 32, 1)
    x, y = (normalize(torch.from_numpy(a)) if normalized else torch.from_numpy(a) for a in (query, gallery))
    matrix = get_dist_func(metric)(x, y)
    for block_bytes in (None, 1 << 14):
        indices, distances = search_gallery(
            query, gallery, metric=metric, normalize=normalized, topk=20, block_bytes=block_bytes
        )
        np.testing.assert_allclose(distances, matrix.topk(20, largest=False).values, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(distances, matrix.gather(1, torch.from_numpy(indices)), rtol=1e-5, atol=1e-5)
        assert all(len(set(row)) == 20 for row in indices.tolist())


@pytest.mark.parametrize("options", [{}, {"normalize": True}, {"topk": 0}, {"topk": 0, "max_distance": 1e-2}], ids=str)
def test_squared_distances_are_not_negative(options):
    embeddings = drawn(22, 512)
    embeddings[9:] = embeddings[3]
    assert float(get_dist_func("euclidean")(*[torch.from_numpy(embeddings)] * 2).min()) < 0  # or this tests nothing
    indices, distances = search_gallery(embeddings, embeddings, **options)
    assert distances.min() == 0
    same = indices[9][: np.searchsorted(distances[9], 1e-2)]
    assert same.tolist() == [3, *range(9, 22)]


def test_a_gallery_that_comes_ever_closer():
    gallery = np.linspace(9, 0, 500, dtype=np.float32)[:, None] * np.ones((1, 4), np.float32)
    indices, _ = search_gallery(np.zeros((3, 4)), gallery, topk=5, block_bytes=64)
    assert indices.tolist() == [[499, 498, 497, 496, 495]] * 3


@pytest.mark.parametrize(
    "kind", ["memmap", "memmap_fortran", "float16", "float64", "bfloat16", "int8", "list", "read_only"]
)
def test_kinds_of_input(kind, tmp_path):
    query, gallery = whole(0, 5), whole(1, 60)
    expected = ranked_by_hand(query, gallery, 9)
    given_gallery = gallery
    if kind.startswith("memmap"):
        np.save(tmp_path / "g.npy", np.asfortranarray(gallery) if kind.endswith("fortran") else gallery)
        given_gallery = np.load(tmp_path / "g.npy", mmap_mode="r")
    elif kind == "bfloat16":
        given_gallery = torch.from_numpy(gallery).bfloat16()
    elif kind == "list":
        given_gallery = gallery.tolist()
    elif kind == "read_only":
        given_gallery.flags.writeable = False
    else:
        given_gallery = gallery.astype(kind)
    assert unpadded(*search_gallery(torch.from_numpy(query), given_gallery, topk=9, block_bytes=100)) == expected


def test_a_part_of_a_writable_map_keeps_what_was_written_to_it(tmp_path):
    gallery = np.lib.format.open_memmap(tmp_path / "g.npy", "w+", np.float32, (4000, 8))
    gallery[:] = drawn(4000, 8)
    part = gallery[1001:3001]
    private = np.load(tmp_path / "g.npy", mmap_mode="c")
    private[0] = 7
    assert np.array_equal(search_gallery(part, part, topk=1, block_bytes=4096)[0][:, 0], np.arange(2000))
    search_gallery(part, private, topk=1)
    assert np.array_equal(gallery, drawn(4000, 8))
    assert (private[0] == 7).all()


def test_memory_is_bounded(tmp_path):
    """2,000 queries against 120 MB: neither the gallery nor the 480 MB of distances are ever in memory."""
    np.save(tmp_path / "g.npy", drawn(60_000, 512))
    code = """
import sys, numpy as np
from inference.searching.search import search_gallery
peak = lambda: next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) // 1024
gallery = np.load(sys.argv[1], mmap_mode="r")
query = np.ones((2000, 512), np.float32)
search_gallery(query[:50], gallery[:3000], block_bytes=1 << 22)
before = peak()
indices, _ = search_gallery(query, gallery, topk=10, block_bytes=1 << 22)
print(peak() - before)
"""
    done = run_code(code, tmp_path / "g.npy", timeout=550)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 60, f"{done.stdout} MiB"


@pytest.mark.parametrize(
    ("query", "gallery", "options", "message"),
    [
        (drawn(2, 4), drawn(3, 5), {}, "query has 4 dimensions but gallery has 5"),
        (drawn(0, 4), drawn(3, 4), {}, "query is empty"),
        (drawn(2, 4), drawn(0, 4), {}, "gallery is empty"),
        (drawn(2, 4), drawn(3, 4)[0], {}, r"gallery has the shape \[4\]; expected \[rows, dimensions\]"),
        (drawn(2, 4), np.array([["a"] * 4]), {}, "gallery holds <U1 values"),
        (drawn(2, 4), np.where(np.arange(400)[:, None] == 399, np.nan, drawn(400, 4)), {}, "nan: every embedding"),
        (np.full((2, 4), np.inf), drawn(3, 4), {}, r"query\[0, 0\] is inf"),
        (drawn(2, 4), drawn(3, 4), {"topk": -1}, "topk is -1"),
        (drawn(2, 4), drawn(3, 4), {"block_bytes": 0}, "block_bytes is 0"),
        (drawn(2, 4), drawn(3, 4), {"metric": "manhattan"}, "cosine, euclidean"),
    ],
)
def test_bad_input_is_named(query, gallery, options, message):
    with pytest.raises(UserError, match=message):
        search_gallery(query, gallery, **{"block_bytes": 512, **options})


def test_rows_that_are_not_finite_are_counted_in_the_whole_gallery():
    gallery = drawn(400, 4)
    gallery[205, 2] = np.inf
    with pytest.raises(UserError, match=r"gallery\[200:\]\[5, 2\] is inf"):
        search_gallery(drawn(5, 4), gallery, block_bytes=4 * 5 * 100)


# ------------------------------------------------------------------------------------------------------- command line


def parsed(*argv):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    args = parser.parse_args(argv)
    return options_from_args(args, "euclidean", 100, False), formats_from_args(args)


def test_options(tmp_path):
    assert parsed() == (SearchOptions(), ("npy",))
    argv = ["--index", "faiss:ivf:64", "--max-distance", "0.5", "--format", "csv,npy,csv", "--html"]
    assert parsed(*argv) == (SearchOptions("faiss:ivf:64", max_distance=0.5), ("csv", "npy", "html"))
    file, table = written_table(tmp_path, normalize=False)
    assert parsed("--max-far", "0.1", file)[0].max_distance == table.threshold[1]
    with pytest.raises(UserError, match="exclude each other"):
        parsed("--max-far", "0.001", "m.json", "--max-distance", "1")
    assert parsed("--store", "milvus:a/b.db")[0].store == "milvus:a/b.db"
    with pytest.raises(UserError, match="exclude each other"):
        parsed("--store", "milvus:a/b.db", "--index", "faiss:flat")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--index", "faiss:tree"], "exact, faiss:flat, faiss:ivf, faiss:ivfpq, faiss:hnsw"),
        (["--index", "hnsw"], "faiss:hnsw"),
        (["--index", "faiss:flat:3"], "positive number"),
        (["--index", "faiss:ivf:0"], "positive number"),
        (["--store", "redis://x"], "milvus:FILE.db"),
        (["--store", "milvus:folder"], "milvus:FILE.db"),
        (["--store", "milvus:a.db#1-b"], "letters, digits and _"),
        (["--max-distance", "nan"], "'nan' is not a number"),
        (["--max-distance", "far"], "'far' is not a number"),
        (["--format", "npy,xml"], "npy, jsonl, csv"),
    ],
)
def test_wrong_options_are_explained_at_once(argv, message, capsys):
    with pytest.raises(SystemExit) as ended:
        parsed(*argv)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_addresses_of_stores():
    assert parse_store("milvus:a/b.db") == ("a/b.db", "gallery")
    assert parse_store("milvus:http://host:19530#shoes") == ("http://host:19530", "shoes")


def test_the_command_line_needs_no_torch(tmp_path):
    code = (
        "import argparse; from inference.searching.search import add_arguments; p = argparse.ArgumentParser(); "
        "add_arguments(p); p.parse_args(['--help'])"
    )
    done = run_code(code, env=forbid_modules(tmp_path, "torch", "numpy", "faiss", "pymilvus"))
    assert done.returncode == 0, done.stderr
    assert "--max-distance" in done.stdout


def test_exact_search_of_the_command_line():
    query, gallery = whole(0, 5), whole(1, 60)
    result = search(query, gallery, SearchOptions(topk=4, max_distance=10.0))
    expected = search_gallery(query, gallery, topk=4, max_distance=10.0)
    assert np.array_equal(result.indices, expected[0])
    assert np.array_equal(result.distances, expected[1])
    assert result.recall is None
    with pytest.raises(UserError, match="exclude each other"):
        SearchOptions("faiss:flat", "milvus:a.db")


# --------------------------------------------------------------------------------------------------------- thresholds


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_threshold_at_a_false_accept_rate(metric):
    pids = np.repeat(np.arange(20), 6)
    embeddings = drawn(20, 16)[pids] + 0.6 * drawn(120, 16, 1)
    query, gallery, q_pids, g_pids = embeddings[::2], embeddings[1::2], pids[::2], pids[1::2]
    cameras = np.zeros(60, np.int64), np.ones(60, np.int64)
    table = roc_table(RetrievalSet(query, gallery, q_pids, g_pids, *cameras), RankingOptions(metric))
    np.testing.assert_equal(threshold_at_far(table, 0.01), table.threshold[list(table.far_levels).index(0.01)])
    for far in (0.003, 0.05, 0.4):
        limit = threshold_at_far(table, far)
        indices, _ = search_gallery(query, gallery, metric=metric, topk=0, max_distance=limit)
        row, column = np.nonzero(indices >= 0)
        wrong = int((q_pids[row] != g_pids[indices[row, column]]).sum())
        most = far * 60 * 57  # of all pairs of two identities
        assert most - 3 < wrong <= most
    assert threshold_at_far(table, 1.0) == table.edges[-1]
    with pytest.raises(UserError, match="0 to 1"):
        threshold_at_far(table, 1.5)


def test_no_threshold_is_low_enough():
    same = np.ones((4, 3), np.float32)
    table = roc_table(RetrievalSet(same, same, np.arange(4), np.arange(4), np.zeros(4, int), np.ones(4, int)))
    with pytest.raises(UserError, match="no threshold"):
        threshold_at_far(table, 0.1)


SETTINGS = {"metric": "euclidean", "normalize": True, "rerank": False, "query_expansion": 0}


def written_table(folder, **settings):
    """metrics.json with the thresholds of a small evaluation; of its two lowest rates only the second can be kept."""
    pids = np.repeat(np.arange(10), 2)
    embeddings = np.concatenate([np.eye(12, dtype=np.float32)[pids[:18]], np.eye(12, dtype=np.float32)[[0, 0]]])
    retrieval = RetrievalSet(embeddings, embeddings, pids, pids, np.zeros(20, int), np.ones(20, int))
    options = RankingOptions(feat_norm=True)
    table = roc_table(retrieval, options, far_levels=(0.001, 0.1))
    write_evaluation(folder, [evaluate(retrieval, options)], retrieval, SETTINGS | settings, table)
    return str(folder / "metrics.json"), table


def test_threshold_of_a_written_evaluation(tmp_path):
    file, table = written_table(tmp_path)
    assert threshold_from_file("0.1", file, "euclidean", True) == table.threshold[1] == threshold_at_far(table, 0.1)
    assert threshold_from_file("1e-1", file, "euclidean", True) == table.threshold[1]
    (tmp_path / "bare.json").write_text('{"settings": {}}')
    for rate, where, metric, unit, message in [
        ("0.001", file, "euclidean", True, "no threshold keeps"),
        ("0.05", file, "euclidean", True, r"rate is 0.05; .* has 0.001, 0.1"),
        ("few", file, "euclidean", True, "rate is few"),
        (
            "0.1",
            file,
            "cosine",
            True,
            r"are of euclidean distances, but this search uses cosine ones \(SOLVER.DISTANCE",
        ),
        (
            "0.1",
            file,
            "euclidean",
            False,
            "are of embeddings of unit length .--normalize., but this search lacks --norm",
        ),
        ("0.1", file, "cosine", False, "euclidean distances, .*; and of embeddings of unit length"),
        ("0.1", f"{file}.no", "euclidean", True, "does not exist"),
        ("0.1", str(tmp_path / "bare.json"), "euclidean", True, "--roc --output writes it"),
        ("0.1", str(tmp_path / "per_query.csv"), "euclidean", True, "has no table"),
        ("0.1", written_table(tmp_path / "b", rerank=True)[0], "euclidean", True, "after re-ranking"),
    ]:
        with pytest.raises(UserError, match=message):
            threshold_from_file(rate, where, metric, unit)


# -------------------------------------------------------------------------------------------------------------- files


def calibration_file(folder, metric="euclidean", normalize=False):
    steps = {"distances": [0.5, 1.0, 4.0], "probabilities": [0.95, 0.5, 0.0]}
    return str(write_calibration(folder, Calibration("isotonic", steps, metric, normalize, 0.1).to_dict()))


def test_a_probability_becomes_a_distance(tmp_path, caplog):
    file = calibration_file(tmp_path)
    caplog.set_level("INFO")
    options = parsed("--min-probability", "0.9", "--calibration", file)[0]
    assert options.max_distance == 0.5
    assert caplog.messages == ["Keeping results up to the distance 0.5, for a probability of 0.9."]
    assert options.calibration.probability(0.6) == 0.5
    alone = parsed("--calibration", file)[0]  # probabilities are written, and nothing is left out
    assert (alone.max_distance, alone.calibration) == (None, options.calibration)


@pytest.mark.parametrize("index", ["exact", "faiss:flat"])
@pytest.mark.parametrize("topk", [0, 3])
def test_every_engine_keeps_what_is_probable_enough(tmp_path, index, topk):
    if index != "exact":
        pytest.importorskip("faiss")
    gallery = np.array([[0.5], [0.25], [2.0], [1.0]], np.float32)  # squared distances 0.25, 0.0625, 4 and 1
    options = parsed("--min-probability", "0.5", "--calibration", calibration_file(tmp_path), "--index", index)[0]
    result = search(np.zeros((1, 1), np.float32), gallery, replace(options, topk=topk))
    assert result.indices[0][result.indices[0] >= 0].tolist() == [1, 0, 3]


def test_a_probability_without_its_calibration_is_refused(tmp_path):
    file = calibration_file(tmp_path)
    with pytest.raises(UserError, match=r"needs --calibration FILE, or calibration\.json in the gallery's folder"):
        parsed("--min-probability", "0.9")
    with pytest.raises(UserError, match=r"--max-distance and --min-probability exclude each other"):
        parsed("--min-probability", "0.9", "--calibration", file, "--max-distance", "1")
    with pytest.raises(UserError, match=r"--max-far and --min-probability exclude each other"):
        parsed("--min-probability", "0.9", "--calibration", file, "--max-far", "0.1", "m.json")
    for wrong in ("0", "1", "1.5"):
        with pytest.raises(UserError, match=rf"--min-probability {wrong}: the probability is .*between 0 and 1"):
            parsed("--min-probability", wrong, "--calibration", file)
    with pytest.raises(UserError, match=r"--min-probability 0\.96: no distance has a probability of 0\.96: .*0\.95"):
        parsed("--min-probability", "0.96", "--calibration", file)
    with pytest.raises(UserError, match=r"none\.json does not exist"):
        parsed("--calibration", "none.json")
    with pytest.raises(UserError, match=r"is of cosine distances, but this search uses euclidean ones .* and of embed"):
        parsed("--calibration", calibration_file(tmp_path, "cosine", True))


def found():
    indices = np.array([[2, 0, 1], [1, -1, -1], [-1, -1, -1]])
    distances = np.array([[0.1234567, 0.25, 3.1234567e-8], [1.5, np.inf, np.inf], [np.inf] * 3], dtype=np.float32)
    # The last query's name is not UTF-8 on disk.
    return ["q/ä.jpg", "q/b,c.jpg", "q/\udcff.jpg"], np.array(["g/0.jpg", "g/ö.jpg", "g/2.jpg"]), indices, distances


def test_files_of_results(tmp_path):
    query_paths, gallery_paths, indices, distances = found()
    files = write_results(tmp_path / "new", ["npy", "jsonl", "csv", "html"], *found())
    assert [file.name for file in files] == ["results.npy", "results.jsonl", "results.csv", "results.html"]
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == sorted(file.name for file in files)

    results = np.load(files[0], allow_pickle=True).item()
    assert list(results) == query_paths
    for row, count in enumerate((3, 1, 0)):
        entry = results[query_paths[row]]
        assert list(entry) == ["indices", "paths", "distances"]
        assert np.array_equal(entry["indices"], indices[row, :count])
        assert np.array_equal(entry["paths"], gallery_paths[indices[row, :count]])
        assert np.array_equal(entry["distances"], distances[row, :count])

    lines = [json.loads(line) for line in files[1].read_text(encoding="utf-8").splitlines()]
    assert [line["query"] for line in lines] == query_paths
    assert [len(line["results"]) for line in lines] == [3, 1, 0]
    assert lines[0]["results"][1] == {"rank": 2, "index": 0, "path": "g/0.jpg", "distance": 0.25}
    assert np.array_equal(np.float32([r["distance"] for r in lines[0]["results"]]), distances[0])

    with files[2].open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(r["query"], r["rank"], r["index"], r["path"]) for r in rows] == [
        ("q/ä.jpg", "1", "2", "g/2.jpg"),
        ("q/ä.jpg", "2", "0", "g/0.jpg"),
        ("q/ä.jpg", "3", "1", "g/ö.jpg"),
        ("q/b,c.jpg", "1", "1", "g/ö.jpg"),
    ]
    assert np.array_equal(np.float32([r["distance"] for r in rows]), distances[np.isfinite(distances)])


def test_files_of_results_with_probabilities(tmp_path):
    query_paths = found()[0]
    probabilities = np.array([[0.9, 0.5, 0.1], [0.25, 0.0, 0.0], [0.0] * 3])
    files = write_results(tmp_path, ["npy", "jsonl", "csv", "html"], *found(), probabilities)
    entries = np.load(files[0], allow_pickle=True).item()
    assert list(entries[query_paths[0]]) == ["indices", "paths", "distances", "probabilities"]
    for row, count in enumerate((3, 1, 0)):
        assert entries[query_paths[row]]["probabilities"].tolist() == probabilities[row, :count].tolist()
    line = json.loads(files[1].read_text(encoding="utf-8").splitlines()[0])
    expected = {"rank": 2, "index": 0, "path": "g/0.jpg", "distance": 0.25, "probability": 0.5}
    assert line["results"][1] == expected
    with files[2].open(encoding="utf-8", newline="") as stream:
        assert [r["probability"] for r in csv.DictReader(stream)] == ["0.9", "0.5", "0.1", "0.25"]
    page = files[3].read_text(encoding="utf-8")
    assert "2. 0.25 (50.0%)" in page
    assert "rank, distance and the probability that it is of one identity." in page


def test_results_that_do_not_fit_are_refused(tmp_path):
    query_paths, gallery_paths, indices, distances = found()
    with pytest.raises(UnknownNameError, match="npy, jsonl, csv, html"):
        write_results(tmp_path, ["xml"], *found())
    with pytest.raises(UserError, match="2 query paths, but indices of 3"):
        write_results(tmp_path, ["npy"], query_paths[:2], gallery_paths, indices, distances)
    with pytest.raises(UserError, match="gallery row 2, but there are 2 paths"):
        write_results(tmp_path, ["npy"], query_paths, gallery_paths[:2], indices, distances)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["npy", "jsonl", "csv", "html"])
def test_a_failure_leaves_the_old_file(name, tmp_path):
    class Broken(list):
        def __iter__(self):
            yield "q/a.jpg"
            raise RuntimeError("power cut")

        __getitem__ = None

    old = write_results(tmp_path, [name], *found())[0]
    before = old.read_bytes()
    with pytest.raises((RuntimeError, TypeError)):
        write_results(tmp_path, [name], Broken(["q/a.jpg", "q/b.jpg", "q/c.jpg"]), *found()[1:])
    assert old.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [old.name]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file.*results.csv cannot be written"):
        write_results(tmp_path / "file" / "below", ["csv"], *found())


@pytest.mark.parametrize("topk", [0, 2])
def test_queries_without_a_result_up_to_the_limit_are_counted(topk):
    query, gallery = np.array([[0.0], [5], [9]], np.float32), np.array([[0.5], [1]], np.float32)
    found = search(query, gallery, SearchOptions(topk=topk, max_distance=0.3))
    assert found.left_out == "2 of 3 queries have no result up to the distance 0.3"
    assert search(query, gallery, SearchOptions(topk=topk, max_distance=100)).left_out == ""
    assert search(query, gallery, SearchOptions(topk=topk)).left_out == ""
