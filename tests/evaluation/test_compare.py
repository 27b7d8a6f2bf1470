"""python -m evaluation compare: what it prints and writes, and how it fails."""

import json

import numpy as np
import pytest
from PIL import Image

from evaluation import compare
from evaluation.__main__ import COMMANDS, build_parser, main
from evaluation.bootstrap import LEVEL, PERMUTATIONS, RESAMPLES, Clusters, sign_flip_p_values
from evaluation.metrics import evaluate_embeddings
from evaluation.retrieval import RetrievalSet
from evaluation.tables import write_evaluation
from tests.launch import run_code, run_module


@pytest.fixture
def runs(data, tmp_path):
    """Two folders of evaluations of the same queries, of which one has an image; the second has no centroids."""
    Image.new("RGB", (8, 16)).save(tmp_path / "0.png")
    paths = [str(tmp_path / f"{i}.png") for i in range(12)]
    query, gallery, *labels = data
    noise = np.random.default_rng(0).normal(size=gallery.shape).astype(np.float32)
    for name, moved, protocols in (
        ("a", 0, ("instance", "centroid_strict")),
        ("b", 1, ("centroid_strict", "instance")),
    ):
        images = query, gallery + moved * noise, *labels
        results = [evaluate_embeddings(*images, protocol=protocol) for protocol in protocols]
        write_evaluation(tmp_path / name, results, RetrievalSet(*images, q_paths=paths), {"moved": moved})
    return [str(tmp_path / "a"), str(tmp_path / "b")], tmp_path


def test_text_json_and_page_say_the_same(runs, capsys):
    folders, root = runs
    assert main(["compare", *folders, "--resamples", "200", "--permutations", "300", "--output", str(root / "c")]) == 0
    out = capsys.readouterr().out
    document = json.loads((root / "c" / "compare.json").read_text())
    expected = {"resamples": 200, "permutations": 300, "level": 0.95, "seed": 0, "protocol": "instance", "queries": 11}
    assert {key: document[key] for key in expected} == expected
    assert document["versions"]["torch"] and "compare" not in document["versions"]
    for side, folder in zip("AB", folders, strict=True):
        own = json.loads((root / folder / "metrics.json").read_text())["protocols"]["instance"]
        assert document["metrics"]["mAP"][side] == pytest.approx(own["mAP"], abs=1e-6)
        assert document["metrics"]["Top-5"][side] == own["topk"]["5"]
    assert document["differs"] == {"settings.moved": [0, 1]}
    assert f"mAP {document['metrics']['mAP']['A']:>13.2%}" in out
    assert out.splitlines()[-2:] == [f"written: {root}/c/compare.json", f"written: {root}/c/compare.html"]
    assert len(document["changed"]["gained"]) + len(document["changed"]["lost"]) > 5
    text = (root / "c" / "compare.html").read_text()
    assert f"{document['metrics']['mAP']['p_value']:.4g}</td>" in text
    assert "settings.moved is 0 in A, 1 in B" in text


@pytest.mark.parametrize(("option", "protocol"), [([], "instance"), (["--protocol", "strict"], "centroid_strict")])
def test_the_protocol(runs, capsys, option, protocol):
    folders, root = runs
    assert main(["compare", *folders, *option, "--top", "0", "--output", str(root / "c")]) == 0
    assert "most" not in capsys.readouterr().out
    document = json.loads((root / "c" / "compare.json").read_text())
    assert (document["protocol"], document["changed"]) == (protocol, {"gained": [], "lost": []})


def error_of(capsys, *arguments):
    assert main(["compare", *map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1 and captured.out == ""
    return captured.err


def test_errors_are_one_line_and_nothing_is_written(runs, capsys):
    (a, b), root = runs
    assert "Not both evaluations have the protocol centroid: " in error_of(capsys, a, b, "--protocol", "centroid")
    table = root / "a" / "per_query.csv"
    lines = table.read_text().splitlines()
    (root / "few").mkdir()
    (root / "few" / "per_query.csv").write_text("\n".join(lines[:5]) + "\n")
    text = error_of(capsys, a, root / "few", "--output", root / "out")
    assert "by their path, 4 are in both, 8 only in" in text
    (root / "few" / "per_query.csv").write_text("\n".join([lines[0], *lines[13:]]) + "\n")
    text = error_of(capsys, root / "few", a, "--protocol", "instance", "--output", root / "out")
    assert f"{root}/few/per_query.csv has centroid_strict; {table} has instance, centroid_strict." in text
    assert not (root / "out").exists()
    assert "nowhere does not exist" in error_of(capsys, a, root / "nowhere")
    assert "--seed is -1; expected 0 or more." in error_of(capsys, a, b, "--seed", "-1")
    assert "--top is -1; expected 0 or more." in error_of(capsys, a, b, "--top", "-1")
    assert "--output: cannot write to" in error_of(capsys, a, b, "--output", table)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        *(("--level", value, "is not a number between 0 and 1") for value in ("0", "1", "nan", "x")),
        *(
            ("--resamples", value, "is not a whole number from 1 to 1000000")
            for value in ("0", "-1", "1.5", "1000001", "9" * 5000)
        ),
        ("--permutations", "10000001", "is not a whole number from 1 to 10000000"),
    ],
)
def test_a_wrong_option_is_explained(capsys, option, value, message):
    with pytest.raises(SystemExit) as ended:
        main(["compare", "a", "b", option, value])
    assert ended.value.code == 2
    assert f"argument {option}: {value!r} {message}" in capsys.readouterr().err


def test_as_a_module(runs):
    done = run_module("evaluation", "compare", *runs[0])
    assert (done.returncode, done.stderr) == (0, "")
    assert "queries that lost most (AP in A, in B):" in done.stdout


def test_help_names_the_commands_and_theirs_needs_no_numpy():
    text = build_parser().format_help()
    assert all(f"python -m evaluation {command} " in text for command in COMMANDS)
    heavy = "any(m in sys.modules for m in ('torch', 'numpy'))"
    code = "import sys; from evaluation.compare import build_parser as b; b().format_help(); "
    assert run_code(f"{code}sys.exit({heavy})").returncode == 0
    assert "per_query.csv" in compare.build_parser().format_help()


def test_what_is_not_given_is_as_programs_have_it():
    args = compare.build_parser().parse_args(["a", "b"])
    assert (args.level, args.resamples, args.permutations) == (LEVEL, RESAMPLES, PERMUTATIONS) == (0.95, 1000, 10_000)
    clusters = Clusters.of(np.arange(9), np.arange(9.0)[:, None] - 3)
    assert sign_flip_p_values(clusters) == sign_flip_p_values(clusters, args.permutations, args.seed)
