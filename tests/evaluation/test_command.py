"""python -m evaluation: what it prints and writes, and how it fails."""

import json
import os
import re
import time

import numpy as np
import pytest
from PIL import Image

from evaluation.__main__ import main
from evaluation.calibration import calibrate, describe_calibration, read_calibration
from evaluation.metrics import evaluate, evaluate_embeddings
from evaluation.open_set import describe_open_set, draw_unknown, evaluate_open_set, open_set_details
from evaluation.page_data import Shown
from evaluation.pages import write_page
from evaluation.ranked_images import rank_for_display
from evaluation.rerank import QueryExpansion, Rerank
from evaluation.retrieval import RankingOptions, RetrievalSet
from evaluation.verification import roc_table
from tests.launch import run_code, run_module


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    pids, camids = rng.integers(0, 6, 80), rng.integers(0, 3, 80)
    feats = (rng.normal(size=(6, 5))[pids] + rng.normal(size=(80, 5))).astype(np.float32)
    paths = np.array([f"é{i}.jpg" for i in range(80)])
    for name, rows in (("q", slice(0, 20)), ("g", slice(20, 80))):
        arrays = {"embeddings": feats[rows], "pids": pids[rows], "camids": camids[rows], "paths": paths[rows]}
        np.savez(tmp_path / f"{name}.npz", **arrays)
    data = (feats[:20], feats[20:], pids[:20], pids[20:], camids[:20], camids[20:])
    return ["--query", str(tmp_path / "q.npz"), "--gallery", str(tmp_path / "g.npz")], data, tmp_path


@pytest.mark.parametrize(
    ("options", "keywords"),
    [
        ([], {}),
        (["--metric", "cosine"], {"metric": "cosine"}),
        (["--normalize", "--max-rank", "7", "--block-mb", "0.5"], {"feat_norm": True, "max_rank": 7}),
        (["--block-mb", "1e-300"], {}),
        (["--protocol", "strict"], {"protocol": "centroid_strict"}),
        (["--protocol", "centroid"], {"protocol": "centroid"}),
        (["--rerank", "--k1", "9", "--k2", "3", "--lambda", "0.5"], {"rerank": Rerank(9, 3, 0.5)}),
        (
            ["--metric", "cosine", "--rerank", "--protocol", "strict"],
            {"metric": "cosine", "rerank": Rerank(), "protocol": "centroid_strict"},
        ),
        (["--query-expansion", "4", "--alpha", "2"], {"query_expansion": QueryExpansion(4, 2.0)}),
    ],
)
def test_evaluates_as_the_function(files, options, keywords, capsys):
    arguments, data, folder = files
    assert main([*arguments, *options, "--output", str(folder / "out")]) == 0
    result = evaluate_embeddings(*data, **keywords)
    written = json.loads((folder / "out" / "metrics.json").read_text(encoding="utf-8"))
    protocol = written["protocols"][result.protocol]
    assert protocol["mAP"] == result.mAP
    np.testing.assert_allclose(protocol["cmc"], result.cmc, atol=1e-7)
    assert written["settings"]["metric"] == keywords.get("metric", "euclidean")
    assert "é3.jpg" in (folder / "out" / "per_query.csv").read_text(encoding="utf-8")
    out = capsys.readouterr().out
    assert f"mAP {result.mAP:.2%}" in out
    assert ("reciprocal rank" in out) == (result.protocol != "instance")
    assert (f", re-ranking (k1 {keywords['rerank'].k1}, " in out) if "rerank" in keywords else "re-ranking" not in out


def test_options_without_the_one_that_they_belong_to_are_named(files, capsys):
    assert main([*files[0], "--k1", "9", "--lambda", "0.5", "--alpha", "2"]) == 0
    assert capsys.readouterr().out.splitlines()[:3] == [
        "note: --k1 9 has no effect without --rerank.",
        "note: --lambda 0.5 has no effect without --rerank.",
        "note: --alpha 2.0 has no effect without --query-expansion.",
    ]
    assert main([*files[0], "--k2", "3", "--rerank", "--alpha", "2", "--query-expansion", "4"]) == 0
    assert "no effect" not in capsys.readouterr().out


def test_without_cameras(files, capsys):
    arguments, data, folder = files
    for name, feats, pids in (("q", data[0], data[2]), ("g", data[1], data[3])):
        np.savez(folder / f"{name}.npz", embeddings=feats, pids=pids)
    assert main([*arguments, "--ignore-cameras", "--protocol", "strict"]) == 0
    assert main(arguments) == 2
    assert "q.npz lacks camids; it holds embeddings, pids" in capsys.readouterr().err
    assert main([*arguments, "--ignore-cameras"]) == 0
    expected = evaluate_embeddings(*data[:4], np.zeros(20), np.ones(60))
    assert f"mAP {expected.mAP:.2%}" in capsys.readouterr().out


def test_verification_rates(files, capsys):
    assert main([*files[0], "--roc"]) == 0
    assert "at FAR 0.01" in capsys.readouterr().out


def spoil_missing(folder):
    (folder / "q.npz").unlink()
    return []


def spoil_foreign(folder):
    (folder / "q.npz").write_text("<!DOCTYPE html>")
    return []


def spoil_cut(folder):
    data = (folder / "g.npz").read_bytes()
    (folder / "g.npz").write_bytes(data[: len(data) // 2])
    return []


def spoil_single(folder):
    with (folder / "q.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    return []


def spoil_pickle(folder):
    np.savez(folder / "q.npz", embeddings=np.array([{}]), pids=[1], camids=[0])
    return []


def change(file, name, function, *options):
    """A function that changes one array of a file, and returns options for the command."""

    def spoil(folder):
        with np.load(folder / file) as archive:
            arrays = dict(archive)
        arrays[name] = function(arrays[name])
        np.savez(folder / file, **arrays)
        return [option.format(folder) for option in options]

    return spoil


def with_nan(embeddings):
    embeddings[4, 1] = np.nan
    return embeddings


def spoil_output(folder):
    (folder / "out").write_text("a file")
    return ["--output", str(folder / "out")]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_missing, "q.npz does not exist; expected an .npz file with embeddings, pids, camids, or a"),
        (spoil_foreign, "q.npz is not an .npz file"),
        (spoil_cut, "g.npz is not an .npz file"),
        (spoil_single, "q.npz holds a single array"),
        (spoil_pickle, "q.npz is not an .npz file of plain arrays"),
        (change("g.npz", "embeddings", with_nan), "g.npz: gallery[4, 1] is nan"),
        (change("q.npz", "embeddings", lambda x: x[:, :0]), "query has the shape [20, 0]; expected one dimension"),
        (change("q.npz", "embeddings", lambda x: x[:0]), "q.npz: query is empty; expected one row for each image"),
        (change("q.npz", "embeddings", lambda x: x[0]), "q.npz: query has the shape [5]; expected [rows, dimensions]"),
        (change("q.npz", "embeddings", lambda x: x.astype(str)), "q.npz: query holds <U"),
        (
            change("q.npz", "pids", lambda x: x.astype(str)),
            "q.npz: pids are text ('5'), but in {}/g.npz they are int64:",
        ),
        (change("q.npz", "pids", lambda x: x > 2), "q.npz: pids[0] is True; expected a whole number"),
        (change("g.npz", "pids", lambda x: x * 0 + 2.5), "g.npz: pids[0] is 2.5; expected a whole number"),
        (change("g.npz", "pids", lambda x: x * 0 + 2e300), "g.npz: pids[0] is 2e+300; expected a whole number"),
        (change("g.npz", "camids", lambda x: x.astype(np.uint64) + np.uint64(2**63)), "g.npz: camids[0] is 9223372036"),
        (change("g.npz", "camids", lambda x: x[1:]), "g.npz: camids has 59 entries but gallery has 60"),
        (change("q.npz", "pids", lambda x: x[0], "--ignore-cameras"), "q.npz: pids must be one-dimensional"),
        (change("q.npz", "paths", lambda x: x[1:], "--output", "{}/o"), "q.npz: paths has 19 entries but query has 20"),
        (spoil_output, "cannot write to"),
        (lambda folder: ["--rerank", "--k1", "0"], "k1 0"),
        (lambda folder: ["--query-expansion", "-1"], "k of 1 or more"),
        (lambda folder: ["--max-rank", "0"], "max_rank is 0"),
        (lambda folder: ["--max-rank", "100000000000"], "--max-rank is 100000000000; expected at most 1000000"),
        (lambda folder: ["--device", "meta"], "--device: the device 'meta' cannot be used"),
        (lambda folder: ["--device", "hpu"], "--device: the device 'hpu' cannot be used"),
        (lambda folder: ["--device", "nonsense"], "--device: the device is 'nonsense'; expected auto, cpu, cuda"),
    ],
)
def test_errors_are_one_line(files, spoil, message, capsys):
    arguments, _, folder = files
    assert main([*arguments, *spoil(folder)]) == 2
    captured = capsys.readouterr()
    assert message.format(folder) in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_a_folder_that_cannot_be_written_is_met_before_the_work(files, monkeypatch, capsys):
    arguments, _, folder = files
    (folder / "file").write_text("")
    monkeypatch.setattr("evaluation.metrics.evaluate", lambda *_, **__: pytest.fail("was called"))
    assert main([*arguments, "--output", str(folder / "file" / "below")]) == 2
    assert f"--output: cannot write to '{folder / 'file' / 'below'}'" in capsys.readouterr().err


def test_the_metrics_are_printed_before_they_are_written(files, capsys):
    arguments, data, folder = files
    (folder / "out" / "metrics.json").mkdir(parents=True)
    assert main([*arguments, "--output", str(folder / "out")]) == 2
    captured = capsys.readouterr()
    assert f"mAP {evaluate_embeddings(*data).mAP:.2%}" in captured.out
    assert "metrics.json' is a folder" in captured.err
    assert [path.name for path in (folder / "out").iterdir()] == ["metrics.json"]


@pytest.mark.parametrize(
    ("options", "more"),
    [
        ([], {}),
        (["--roc", "--rerank", "--k1", "4", "--k2", "2"], {"rerank": Rerank(4, 2)}),
        (["--protocol", "strict", "--metric", "cosine"], {"protocol": "centroid_strict", "metric": "cosine"}),
    ],
)
def test_a_page_of_the_evaluation(files, options, more, capsys):
    arguments, data, folder = files
    page = folder / "new" / "page.html"
    assert main([*arguments, *options, "--page", str(page), "--output", str(folder / "out")]) == 0
    *_, note, written = capsys.readouterr().out.splitlines()
    assert written == f"written: {page}"
    paths = [f"é{i}.jpg" for i in range(80)]
    retrieval, ranking = RetrievalSet(*data, paths[:20], paths[20:]), RankingOptions(**more)
    shown = Shown(rank_for_display(retrieval, ranking))
    expected, about = write_page(folder / "page.html", evaluate(retrieval, ranking), retrieval, ranking, shown)
    assert note == f"note: {about}" and "images cannot be shown, since their files cannot be read" in note
    assert page.read_text(encoding="utf-8") == expected.read_text(encoding="utf-8")
    assert "page" not in json.loads((folder / "out" / "metrics.json").read_text(encoding="utf-8"))["settings"]


def test_a_page_shows_images_by_their_paths(files, capsys):
    arguments, _, folder = files
    for side in "qg":
        with np.load(folder / f"{side}.npz") as archive:
            arrays = dict(archive)
        arrays["paths"] = np.array([str(folder / path) for path in arrays["paths"]])
        for path in arrays["paths"]:
            Image.new("RGB", (4, 8)).save(path)
        np.savez(folder / f"{side}.npz", **arrays)
    assert main([*arguments, "--page", str(folder / "page.html")]) == 0
    assert "note" not in capsys.readouterr().out
    data = re.search(r'"thumbnails":(\[.*?\])', (folder / "page.html").read_text(encoding="utf-8"))[1]
    assert len(json.loads(data)) == 80


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("folder.html", "--page: '{}/folder.html' is a folder; expected the name of a file."),
        ("q.npz/page.html", "--page: cannot write to '{}/q.npz'"),
        ("q.npz", "--page is '{}/q.npz'; expected a name that ends with .html."),
        ("x" * 256 + ".html", "xxx.html' (File name too long)."),
        ("\0.html", "--page: no file can be called '{}/\\x00.html' ("),
    ],
)
def test_a_page_that_cannot_be_written_is_met_before_the_work(files, name, message, monkeypatch, capsys):
    arguments, _, folder = files
    (folder / "folder.html").mkdir()
    monkeypatch.setattr("evaluation.metrics.evaluate", lambda *_, **__: pytest.fail("was called"))
    assert main([*arguments, "--page", str(folder / name)]) == 2
    captured = capsys.readouterr()
    assert message.format(folder) in captured.err and captured.out == ""


@pytest.mark.parametrize("text", ["x", "nan", "0", "inf"])
def test_a_wrong_block_size_is_explained(files, text, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*files[0], "--block-mb", text])
    assert ended.value.code == 2
    assert f"'{text}' is not a number above 0" in capsys.readouterr().err


def test_as_a_module(files):
    done = run_module("evaluation", *files[0])
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "Top-1" in done.stdout
    wrong = run_module("evaluation", *files[0], "--metric", "l1")
    assert wrong.returncode == 2
    assert "Traceback" not in wrong.stderr


def test_help_is_fast_and_needs_no_torch():
    begin = time.perf_counter()
    done = run_module("evaluation", "--help")
    assert time.perf_counter() - begin < 5  # loading torch alone takes longer on a busy machine
    assert done.returncode == 0
    assert "--protocol" in done.stdout
    heavy = "any(m in sys.modules for m in ('torch', 'numpy'))"
    code = f"import sys, evaluation.__main__ as e; e.build_parser(); sys.exit({heavy})"
    assert run_code(code).returncode == 0


def test_an_interruption_has_the_shells_exit_status(files, monkeypatch, capsys):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("evaluation.metrics.evaluate", interrupt)
    assert main(files[0]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_what_is_not_given_is_as_the_settings_have_it(files, monkeypatch):
    asked = []

    def record(retrieval, options, max_rank, block_bytes):
        asked.append((options, max_rank, block_bytes))
        raise KeyboardInterrupt

    monkeypatch.setattr("evaluation.metrics.evaluate", record)
    main([*files[0], "--rerank", "--query-expansion", "5"])
    assert asked == [(RankingOptions(rerank=Rerank(), query_expansion=QueryExpansion()), 50, None)]


def test_equal_error_rate_and_curve(files, capsys):
    arguments, data, folder = files
    assert main([*arguments, "--roc", "--output", str(folder / "out")]) == 0
    table = roc_table(RetrievalSet(*data))
    rate, threshold = table.equal_error_rate()
    assert f"    EER {rate:.2%} (distance up to {threshold:.6g})" in capsys.readouterr().out
    written = json.loads((folder / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert written["equal_error_rate"] == {"rate": rate, "threshold": threshold}
    assert [row["far_level"] for row in written["verification"]] == list(table.far_levels)
    assert written["verification_curve"] == {name: x.tolist() for name, x in vars(table.curve()).items()}


def test_open_set(files, capsys):
    arguments, data, folder = files
    options = ["--open-set", "--unknown", "0.4", "--seed", "3", "--rank", "5", "--output", str(folder / "out")]
    assert main([*arguments, *options]) == 0
    retrieval = RetrievalSet(*data)
    found = evaluate_open_set(retrieval, left_out=draw_unknown(retrieval, 0.4, 3))
    out = capsys.readouterr().out
    for line in describe_open_set(found, (1, 5)):
        assert line in out
    assert "; the gallery images of 2 identities are left out here):" in out
    assert f"mAP {evaluate_embeddings(*data).mAP:.2%}" in out  # with all of the gallery
    written = json.loads((folder / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert written["open_set"] == open_set_details(found, (1, 5))
    assert written["settings"]["unknown"] == 0.4


def test_without_unknown_queries_the_way_to_some_is_told(files, capsys):
    assert main([*files[0], "--open-set"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        "error: There are no unknown queries: the gallery holds the identity of every query. Add queries of other "
        "identities, or leave the gallery images of some out (--unknown 0.5, for half of the identities).\n"
    )


@pytest.mark.parametrize(("method", "prior"), [("isotonic", None), ("platt", 0.5)])
def test_calibration(files, capsys, method, prior):
    arguments, data, folder = files
    options = ["--calibrate", method, "--normalize", "--seed", "2", "--output", str(folder / "out")]
    assert main([*arguments, *options, *(["--prior", str(prior)] if prior else [])]) == 0
    fitted = calibrate(RetrievalSet(*data), RankingOptions(feat_norm=True), method=method, prior=prior, seed=2)
    out = capsys.readouterr().out
    assert "\n".join(describe_calibration(fitted)) in out
    assert out.endswith(f"written: {folder}/out/calibration.json\n")
    for name in ("calibration.json", "metrics.json"):
        assert read_calibration(folder / "out" / name) == fitted


def test_a_calibration_says_of_which_network_it_is(files):
    """If both folders say it, and say the same."""
    _, data, folder = files
    about = {"weights": "abc", "dimension": 5}
    for name, feats, pids, camids in (("q", data[0], data[2], data[4]), ("g", data[1], data[3], data[5])):
        (folder / name).mkdir()
        for kind, array in (("embeddings", feats), ("pids", pids), ("camids", camids)):
            np.save(folder / name / f"{kind}.npy", array)
        (folder / name / "gallery.json").write_text(json.dumps({"embedder": about}))
    arguments = ["--query", str(folder / "q"), "--gallery", str(folder / "g"), "--calibrate", "platt"]
    assert main([*arguments, "--output", str(folder / "out")]) == 0
    assert read_calibration(folder / "out" / "calibration.json").network.items() > about.items()
    for other in ({"embedder": {**about, "weights": "b"}}, {}):
        (folder / "g" / "gallery.json").write_text(json.dumps(other))
        assert main([*arguments, "--output", str(folder / "out")]) == 0
        assert read_calibration(folder / "out" / "calibration.json").network == {}


def test_options_of_decisions_without_the_decision_are_named(files, capsys):
    assert main([*files[0], "--unknown", "0.5", "--rank", "3", "--prior", "0.5", "--seed", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[:4] == [
        "note: --unknown 0.5 has no effect without --open-set.",
        "note: --rank 3 has no effect without --open-set.",
        "note: --prior 0.5 has no effect without --calibrate.",
        "note: --seed 1 has no effect without --open-set --unknown or --calibrate.",
    ]
    assert main([*files[0], "--calibrate", "platt", "--seed", "1"]) == 0
    assert main([*files[0], "--open-set", "--unknown", "0.5", "--seed", "1"]) == 0
    assert "no effect" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "text", "message"),
    [
        ("--unknown", "1", "'1' is not a number between 0 and 1, at least 1e-12 away from both"),
        ("--prior", "x", "'x' is not a number between 0 and 1, at least 1e-12 away from both"),
        ("--rank", "0", "'0' is not a whole number, 1 or more"),
        ("--prior", "1e-320", "'1e-320' is not a number between 0 and 1, at least 1e-12 away from both"),
        ("--alpha", "nan", "'nan' is not a finite number"),
        ("--lambda", "inf", "'inf' is not a finite number"),
        ("--block-mb", "1e305", "'1e305' is not a number above 0 and up to 1000000"),
        ("--seed", "-1", "'-1' is not a whole number, 0 or more"),
    ],
)
def test_a_wrong_number_is_explained(files, capsys, option, text, message):
    with pytest.raises(SystemExit) as ended:
        main([*files[0], f"{option}={text}"])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.fixture
def no_text(files):
    """The files of ``files``, with names that are no UTF-8."""
    arguments, _, folder = files
    for side in "qg":
        with np.load(folder / f"{side}.npz") as archive:
            arrays = dict(archive)
        arrays["paths"] = np.array([f"\udcff{path}" for path in arrays["paths"]])
        np.savez(folder / f"{side}.npz", **arrays)
    return arguments, folder


def test_names_of_files_that_are_no_text(no_text, capsys):
    """They keep their bytes in tables; pages replace them."""
    arguments, folder = no_text
    assert main([*arguments, "--output", str(folder), "--page", str(folder / "page.html")]) == 0
    assert "\udcffé3.jpg".encode("utf-8", "surrogateescape") in (folder / "per_query.csv").read_bytes()
    assert main(["suspects", "--embeddings", arguments[1], arguments[3], "--output", str(folder)]) == 0
    assert b"\xff" in (folder / "suspects.csv").read_bytes()
    assert "?é" in (folder / "suspects.html").read_text(encoding="utf-8")


def test_names_that_are_no_text_are_printed(no_text):
    done = run_module("evaluation", "suspects", "--embeddings", no_text[0][1], no_text[0][3])
    assert (done.returncode, done.stderr) == (0, "")
    assert "?é" in done.stdout


def test_files_are_written_though_nobody_reads_what_is_printed(files, monkeypatch):
    """As with ``| head -1``, in each of the commands."""
    arguments, _, folder = files
    reading, writing = os.pipe()
    os.close(reading)
    out = str(folder / "out")
    with os.fdopen(writing, "w") as stream:
        monkeypatch.setattr("sys.stdout", stream)
        assert main([*arguments, "--output", out, "--page", str(folder / "page.html")]) == 0
        assert main(["suspects", "--embeddings", arguments[1], arguments[3], "--output", out]) == 0
        assert main(["compare", out, out, "--permutations", "9", "--resamples", "9", "--output", out]) == 0
    names = {"metrics.json", "per_query.csv", "suspects.csv", "suspects.html", "compare.json", "compare.html"}
    assert {path.name for path in (folder / "out").iterdir()} == names
    assert (folder / "page.html").exists()


@pytest.mark.parametrize("name", ["x" * 256, "\0"])
@pytest.mark.parametrize("option", ["--query", "--gallery", "--output"])
def test_a_name_that_no_file_can_have(files, capsys, option, name):
    arguments, _, folder = files
    assert main([*arguments, option, str(folder / name)]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and ("File name too long" in captured.err or "null" in captured.err)


def test_numbers_beyond_all_images(files, capsys):
    """k1 and k2 of any size act as the number of images allows."""
    outputs = []
    for number in ("1000", "9" * 400):
        assert main([*files[0], "--rerank", "--k1", number, "--k2", number]) == 0
        outputs.append(capsys.readouterr().out.splitlines()[1:])  # the first line names k1 and k2
    assert outputs[0] == outputs[1]
    assert main([*files[0], "--query-expansion", "2", "--alpha", "1e308"]) == 2
    assert capsys.readouterr().err == "error: Query expansion needs an alpha from 0 to 1000000, got 1e+308.\n"
    assert main([*files[0], "--query-expansion", "2", "--alpha", "1e6"]) == 0
    assert "nan" not in capsys.readouterr().out


def test_a_table_or_calibration_that_cannot_be_made_does_not_cost_the_metrics(files, capsys):
    arguments, data, folder = files
    out, page = folder / "out", folder / "page.html"
    assert main([*arguments, "--calibrate", "platt", "--output", str(out)]) == 0
    for side in "qg":
        with np.load(folder / f"{side}.npz") as archive:
            arrays = dict(archive)
        np.savez(folder / f"{side}.npz", **{**arrays, "pids": np.zeros_like(arrays["pids"])})
    capsys.readouterr()
    assert main([*arguments, "--roc", "--calibrate", "platt", "--output", str(out), "--page", str(page)]) == 2
    captured = capsys.readouterr()
    result = evaluate_embeddings(*data[:2], np.zeros(20), np.zeros(60), *data[4:])
    assert f"mAP {result.mAP:.2%}" in captured.out
    assert f"removed: {out}/calibration.json, which was of an earlier evaluation." in captured.out.splitlines()
    assert json.loads((out / "metrics.json").read_text(encoding="utf-8"))["mAP"] == result.mAP
    assert page.exists() and not (out / "calibration.json").exists()
    assert captured.err.startswith(f"error: {folder}/g.npz: pids holds no identity but the queries' own")
    assert "identities. Also: a calibration needs pairs of one identity and of two" in captured.err
    assert captured.err.count("\n") == 1
