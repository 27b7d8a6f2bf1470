"""python -m evaluation suspects: what it prints and writes, and how it fails."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from evaluation.__main__ import main
from tests.launch import forbid_modules, run_module


@pytest.fixture
def people(tmp_path):
    """Six people, four images each; the first image of ann is called bob. One image of theirs is junk."""
    names = np.array(["ann", "bob", "cat", "dan", "eve", "<f>"]).repeat(4)
    feats = np.eye(6).repeat(4, 0) + 0.02 * np.random.default_rng(0).normal(size=(24, 6))
    labels = np.array([*names, "-1"])
    labels[0] = "bob"
    paths = [str(tmp_path / f"{name}&{i}.png") for i, name in enumerate(["ann", *labels[1:]])]
    for i, path in enumerate(paths[:-1]):
        if i != 5:
            Image.new("RGB", (8, 16), (10 * i, 0, 0)).save(path.replace("<f>", "_f_"))
    paths = np.array([path.replace("<f>", "_f_") for path in paths])
    cameras = np.array(["south", "north"] * 12 + ["north"])
    arrays = {"embeddings": np.r_[feats, feats[:1]], "pids": labels, "camids": cameras, "paths": paths}
    np.savez(tmp_path / "all.npz", **arrays)
    return arrays, tmp_path


def test_prints_and_writes(people, capsys):
    _, folder = people
    arguments = ["suspects", "--embeddings", str(folder / "all.npz"), "--output", str(folder / "out")]
    assert main([*arguments, "--top", "3", "--limit", "7"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "note: 1 of 25 images have pid -1, which marks junk, and are left out."
    assert lines[1].startswith("24 images of 6 identities: ")
    assert lines[2].split() == ["rank", "score", "kind", "identity", "other", "images"]
    assert lines[3].split() == ["1", lines[3].split()[1], "move", "bob", "ann", str(folder / "ann&0.png")]
    assert lines[6:] == [f"written: {folder / 'out' / name}" for name in ("suspects.csv", "suspects.html")]
    rows = list(csv.DictReader((folder / "out" / "suspects.csv").open(encoding="utf-8")))
    assert [row["rank"] for row in rows] == list("1234567")
    assert float(rows[0].pop("score")) == pytest.approx(float(lines[3].split()[1]), abs=0.06)
    assert rows[0].pop("compared_row") in "123"
    assert rows[0].pop("compared_path").startswith(str(folder / "ann&"))
    assert rows[0] == {
        "rank": "1",
        "kind": "move",
        "identity": "bob",
        "other_identity": "ann",
        "images": "1",
        "rows": "0",
        "paths": str(folder / "ann&0.png"),
        "cameras": "south",
    }
    split = next(row for row in rows if row["kind"] == "split")
    assert len(split["rows"].split()) == len(split["paths"].split("|")) == int(split["images"])
    assert split["other_identity"] == ""


def test_the_page_shows_the_images_and_escapes_names(people):
    _, folder = people
    arguments = ["suspects", "--embeddings", str(folder / "all.npz"), "--output", str(folder), "--limit", "30"]
    assert main(arguments) == 0
    page = (folder / "suspects.html").read_text(encoding="utf-8")
    first = page.split("<article>")[1]
    assert "Another identity?" in first
    assert first.count('<img src="data:image/jpeg;base64,') == 1 + 3 + 3  # itself, those of ann, those of bob but one
    assert "bob&amp;5.png: not to be read" in first
    assert "cam south" in first
    assert "&lt;f&gt;" in page and "<f>" not in page
    assert "http" not in page.replace("http-equiv", "")


def test_several_inputs_are_one_set_and_need_no_cameras_or_paths(people, capsys):
    arrays, folder = people
    for name, rows in (("a", slice(0, 10)), ("b", slice(10, 24))):
        (folder / name).mkdir()
        for key in ("embeddings", "pids"):
            np.save(folder / name / f"{key}.npy", arrays[key][rows])
        (folder / name / "gallery.json").write_text(json.dumps({"embedder": {"weights": name}}))
    arguments = ["suspects", "--embeddings", str(folder / "a"), str(folder / "b"), "--output", str(folder / "out")]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].endswith("without camids: taken as images without cameras (--ignore-cameras).")
    assert lines[3].split()[2:] == ["move", "bob", "ann", "row", "0"]
    assert [path.name for path in (folder / "out").iterdir()] == ["suspects.csv"]
    assert err == (
        f"warning: {folder / 'b'} and {folder / 'a'} differ in weights of the network; distances between them may mean "
        "little.\n"
    )


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"pids": ["ann"] * 25}, "all 25 images have one identity: labels can only"),
        ({"pids": [-1] * 25}, "all images have pid -1, which marks junk: none is left to check."),
        ({"pids": range(25)}, "each of the 25 identities has one image"),
        ({"embeddings": np.full((25, 2), np.inf)}, "embeddings[0, 0] is inf: every embedding must be finite."),
        ({"embeddings": np.ones((0, 2)), "pids": []}, "embeddings is empty"),
        ({"pids": [1, 2]}, "pids has 2 entries but"),
        ({"camids": [1, 2]}, "camids has 2 entries but"),
        ({"paths": ["a"]}, "paths has 1 entries but"),
        ({"pids": [0.5] * 25}, "pids[0] is 0.5; expected a whole number."),
    ],
)
def test_what_cannot_be_checked_is_one_line(people, capsys, changed, message):
    arrays, folder = people
    np.savez(folder / "bad.npz", **(arrays | {key: np.array(value) for key, value in changed.items()}))
    assert main(["suspects", "--embeddings", str(folder / "bad.npz"), "--output", str(folder / "out")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {folder / 'bad.npz'}: ") and message in err and err.count("\n") == 1
    assert not list((folder / "out").glob("*"))


def test_files_of_different_networks_and_kinds_of_labels(people, capsys):
    arrays, folder = people
    np.savez(folder / "wide.npz", **(arrays | {"embeddings": np.ones((25, 9))}))
    np.savez(folder / "numbers.npz", **(arrays | {"pids": np.arange(25)}))
    for name, message in (("wide", "has 9 dimensions, but"), ("numbers", "pids are text ('bob'), but in")):
        files = [str(folder / "all.npz"), str(folder / f"{name}.npz")]
        assert main(["suspects", "--embeddings", *files]) == 2
        assert message in capsys.readouterr().err
    assert main(["suspects", "--embeddings", files[0], "--device", "tpu"]) == 2
    assert capsys.readouterr().err.startswith("error: --device: ")


def test_help_needs_neither_torch_nor_numpy(tmp_path):
    done = run_module("evaluation", "suspects", "--help", env=forbid_modules(tmp_path, "torch", "numpy"))
    assert done.returncode == 0, done.stderr
    assert "python -m evaluation suspects" in done.stdout


@pytest.mark.parametrize("option", ["--top", "--limit"])
def test_counts_are_checked(option, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["suspects", "--embeddings", "a.npz", option, "0"])
    assert "'0' is not a whole number above 0" in capsys.readouterr().err
