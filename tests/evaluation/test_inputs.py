"""What python -m evaluation reads: text labels, junk, folders of create_embeddings, images without cameras."""

import csv
import hashlib
import json
import re

import numpy as np
import pytest

from evaluation.__main__ import main
from evaluation.metrics import evaluate_embeddings
from tests.launch import run_module

RNG = np.random.default_rng(3)
PIDS = RNG.integers(0, 5, 50)
CAMIDS = RNG.integers(0, 3, 50)
FEATS = (RNG.normal(size=(5, 4))[PIDS] + RNG.normal(size=(50, 4))).astype(np.float32)
PATHS = np.array([f"images/{i}.jpg" for i in range(50)])
PEOPLE = np.array(["Ann", "bob", "Çem", "dee", "eve"])
PLACES = np.array(["yard", "door", "stairs"])


def arrays(rows, **more):
    found = {"embeddings": FEATS, "pids": PIDS, "camids": CAMIDS, "paths": PATHS} | more
    return {name: values[rows] for name, values in found.items() if values is not None}


QUERIES, GALLERY = slice(0, 12), slice(12, 50)


def save_files(folder, **more):
    for name, rows in (("q", QUERIES), ("g", GALLERY)):
        np.savez(folder / f"{name}.npz", **arrays(rows, **more))
    return ["--query", str(folder / "q.npz"), "--gallery", str(folder / "g.npz")]


def save_folder(folder, rows, about=None, **more):
    folder.mkdir()
    for name, values in arrays(rows, **more).items():
        np.save(folder / f"{name}.npy", values)
    if about is not None:
        (folder / "gallery.json").write_text(json.dumps(about))
    return str(folder)


def save_folders(folder, q_about=None, g_about=None, **more):
    query = save_folder(folder / "query", QUERIES, q_about, **more)
    return ["--query", query, "--gallery", save_folder(folder / "gallery", GALLERY, g_about, **more)]


def read(folder):
    return list(csv.DictReader((folder / "per_query.csv").read_text(encoding="utf-8").splitlines()))


def expected(queries=QUERIES, gallery=GALLERY, cameras=CAMIDS):
    labels = (PIDS[queries], PIDS[gallery], cameras[queries], cameras[gallery])
    return evaluate_embeddings(FEATS[queries], FEATS[gallery], *labels)


def test_text_is_numbered_alike_and_keeps_its_names(tmp_path, capsys):
    files = save_files(tmp_path, pids=PEOPLE[PIDS], camids=PLACES[CAMIDS])
    assert main([*files, "--output", str(tmp_path / "out")]) == 0
    assert f"mAP {expected().mAP:.2%}" in capsys.readouterr().out
    rows = read(tmp_path / "out")
    assert [row["pid"] for row in rows] == PEOPLE[PIDS[QUERIES]].tolist()
    assert [row["camera"] for row in rows] == PLACES[CAMIDS[QUERIES]].tolist()


@pytest.mark.parametrize("name", ["pids", "camids"])
def test_text_beside_numbers_is_refused(tmp_path, name, capsys):
    files = save_files(tmp_path)
    np.savez(tmp_path / "g.npz", **arrays(GALLERY, **{name: PEOPLE[PIDS]}))
    assert main(files) == 2
    first = PEOPLE[PIDS[12]]
    assert capsys.readouterr().err == (
        f"error: {tmp_path}/g.npz: {name} are text ('{first}'), but in {tmp_path}/q.npz they are int64: give both as "
        "text, or both as whole numbers.\n"
    )


@pytest.mark.parametrize("as_text", [False, True])
def test_junk_is_left_out_and_counted(tmp_path, as_text, capsys):
    junk = np.array([3, 7, 20, 21, 22])
    pids = PIDS.copy()
    pids[junk] = -1
    files = save_files(tmp_path, pids=pids.astype(str) if as_text else pids)
    assert main([*files, "--output", str(tmp_path / "out")]) == 0
    result = expected(np.setdiff1d(np.arange(12), junk), np.setdiff1d(np.arange(12, 50), junk))
    out = capsys.readouterr().out
    assert f"note: {tmp_path}/q.npz: 2 of 12 queries have pid -1, which marks junk, and are left out: not eval" in out
    assert f"note: {tmp_path}/g.npz: 3 of 38 gallery images have pid -1, which marks junk, and are left out: nei" in out
    assert f"({len(result.first_match)} queries against 35 items; [" in out
    assert f"mAP {result.mAP:.2%}" in out
    assert [row["path"] for row in read(tmp_path / "out")] == np.delete(PATHS[QUERIES], [3, 7]).tolist()


def test_junk_that_a_table_made_a_float_of(tmp_path, capsys):
    pids = PIDS.astype(str).astype("U4")
    pids[[3, 20]] = "-1.0", "-1"
    assert main(save_files(tmp_path, pids=pids)) == 0
    assert capsys.readouterr().out.count(" have pid -1, which marks junk") == 2


def test_nothing_but_junk(tmp_path, capsys):
    pids = PIDS.copy()
    pids[GALLERY] = -1
    assert main(save_files(tmp_path, pids=pids)) == 2
    assert "g.npz: all 38 gallery images have pid -1, which marks junk: none is left" in capsys.readouterr().err


def test_junk_does_not_hide_arrays_that_do_not_fit(tmp_path, capsys):
    files = save_files(tmp_path)
    np.savez(tmp_path / "g.npz", **arrays(GALLERY) | {"pids": np.r_[-1, PIDS[13:50]], "camids": CAMIDS[:5]})
    assert main(files) == 2
    assert "g.npz: camids has 5 entries but gallery has 38" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("camids", "message"),
    [
        (
            None,
            "q.npz lacks camids; it holds embeddings, pids, paths. If the images have no cameras, give --ignore-cam",
        ),
        (CAMIDS + 0.5, "expected a whole number. Number identities and cameras, alike in query and gallery, with"),
    ],
)
def test_errors_about_cameras_name_the_way_without(tmp_path, camids, message, capsys):
    assert main(save_files(tmp_path, camids=camids)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.endswith("If the images have no cameras, give --ignore-cameras.\n")
    assert main([*save_files(tmp_path, camids=camids), "--ignore-cameras"]) == 0


def own_paths():
    """The first four gallery images are queries."""
    paths = PATHS.astype("U40")
    paths[12:16] = ["images/../images/5.jpg", "images/0.jpg", "./images/1.jpg", "images/2.jpg"]
    return paths


def test_a_query_among_the_gallery(tmp_path):
    """As the command is used: python -m utils.evaluate."""
    feats, pids = FEATS.copy(), PIDS.copy()
    for item, query in ((12, 5), (13, 0), (14, 1), (15, 2)):
        feats[item], pids[item] = feats[query], pids[query]
    files = save_files(tmp_path, embeddings=feats, pids=pids, camids=None, paths=own_paths())
    done = run_module("utils.evaluate", *files, "--ignore-cameras", "--output", tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "")
    note = (
        "note: the gallery holds 4 of the 12 queries themselves, as the same file or a copy of it (the first is "
        "images/0.jpg); they are left out of the queries' own rankings (--self-match keep: they count).\n"
    )
    assert done.stdout.startswith(note)
    cameras = np.r_[np.arange(12), np.full(38, 99)]
    cameras[12:16] = [5, 0, 1, 2]
    labels = (pids[QUERIES], pids[GALLERY], cameras[QUERIES], cameras[GALLERY])
    result = evaluate_embeddings(feats[QUERIES], feats[GALLERY], *labels)
    assert f"mAP {result.mAP:.2%}" in done.stdout
    assert {row["camera"] for row in read(tmp_path / "out")} == {""}
    kept = run_module("utils.evaluate", *files, "--ignore-cameras", "--self-match", "keep")
    with_own = evaluate_embeddings(feats[QUERIES], feats[GALLERY], *labels[:2], np.zeros(12), np.ones(38))
    assert "note:" not in kept.stdout
    assert f"mAP {with_own.mAP:.2%}" in kept.stdout
    assert with_own.mAP > result.mAP


def test_a_query_of_another_identity_in_the_gallery_is_counted_apart(tmp_path, capsys):
    pids = PIDS.copy()
    pids[12:16] = [PIDS[5], PIDS[0] + 9, PIDS[1], PIDS[2] + 9]
    assert main([*save_files(tmp_path, pids=pids, paths=own_paths()), "--ignore-cameras"]) == 0
    own = ": they count); of 2 of them the gallery has another identity, under which it stays a wrong result.\n"
    assert own in capsys.readouterr().out


def test_paths_of_no_name_are_no_images_of_a_query(tmp_path, capsys):
    assert main([*save_files(tmp_path, paths=np.array([""] * 50)), "--ignore-cameras"]) == 0
    out = capsys.readouterr().out
    assert "note:" not in out
    cameras = np.r_[np.zeros(12, np.int64), np.ones(38, np.int64)]
    assert f"mAP {expected(cameras=cameras).mAP:.2%}" in out


@pytest.mark.parametrize(
    ("paths", "kind"), [(np.arange(50), r"int64 of shape \[12\]"), (PATHS[:, None], r"<U13 of shape \[12, 1\]")]
)
def test_paths_that_are_none(tmp_path, paths, kind, capsys):
    assert main([*save_files(tmp_path, paths=paths), "--ignore-cameras"]) == 2
    assert re.search(rf"q\.npz: paths are {kind}; expected text, one for each image\.", capsys.readouterr().err)


def test_bytes_are_text(tmp_path, capsys):
    people = np.array([f"person {pid}" for pid in PIDS])
    files = save_files(tmp_path, pids=people, paths=own_paths())
    np.savez(tmp_path / "q.npz", **arrays(QUERIES, pids=people.astype("S"), paths=own_paths().astype("S")))
    assert main([*files, "--ignore-cameras", "--output", str(tmp_path / "out")]) == 0
    assert "the gallery holds 4 of the 12 queries themselves" in capsys.readouterr().out
    assert read(tmp_path / "out")[0]["path"] == "images/0.jpg"


def test_without_paths_it_is_said_that_nothing_was_compared(tmp_path, capsys):
    assert main([*save_files(tmp_path, camids=None, paths=None), "--ignore-cameras"]) == 0
    assert capsys.readouterr().out.startswith("note: queries and gallery are not compared, since not both have paths")


def test_with_cameras_queries_are_not_compared(tmp_path, capsys):
    files = save_files(tmp_path, paths=own_paths())
    assert main(files) == 0
    assert "note" not in capsys.readouterr().out
    assert main([*files, "--self-match", "drop"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("note: --self-match drop has no effect: the same-camera filter decides.\n")
    assert f"mAP {expected().mAP:.2%}" in out


def test_folders_are_read_as_files_are(tmp_path, capsys):
    embedder = {"weights": "ab", "dimension": 4, "size": [64, 32]}
    about = {"embedder": embedder, "pid_from": None}
    folders = save_folders(tmp_path, about, about, pids=PEOPLE[PIDS])
    assert main([*folders, "--output", str(tmp_path / "out")]) == 0
    captured = capsys.readouterr()
    assert f"mAP {expected().mAP:.2%}" in captured.out
    assert captured.err == "" and captured.out.count("note: ") == 1  # that of --normalize
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    gallery = written["inputs"]["gallery"]
    untold = {"resize": "stretch", "flip": False, "pooling": "avg", "neck_feat": "after"}  # of those that do not say
    untold["draft_decoding"] = False
    assert gallery["embedder"] == embedder | untold
    digest = hashlib.sha256((tmp_path / "gallery" / "pids.npy").read_bytes()).hexdigest()
    assert gallery["sha256"]["pids.npy"] == digest
    assert sorted(gallery["sha256"]) == ["camids.npy", "embeddings.npy", "paths.npy", "pids.npy"]
    assert main([folders[0], folders[1], "--gallery", save_files(tmp_path, pids=PEOPLE[PIDS])[3]]) == 0  # of each kind


def test_metrics_json_names_files_versions_and_command(tmp_path):
    files = save_files(tmp_path)
    done = run_module("evaluation", *files, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    digest = hashlib.sha256((tmp_path / "q.npz").read_bytes()).hexdigest()
    assert written["inputs"]["query"] == {"path": files[1], "sha256": {"q.npz": digest}}
    assert written["versions"]["numpy"] == np.__version__
    assert f"-m evaluation --query {files[1]}" in written["command"]


def test_a_folder_without_cameras(tmp_path, capsys):
    folders = save_folders(tmp_path, camids=None)
    assert main(folders) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"note: {tmp_path}/query and {tmp_path}/gallery without camids: taken as images without cam")
    result = expected(cameras=np.r_[np.zeros(12), np.ones(38)])
    assert f"mAP {result.mAP:.2%}" in out
    assert main([*folders, "--ignore-cameras"]) == 0
    assert "note" not in capsys.readouterr().out
    np.save(tmp_path / "query" / "camids.npy", CAMIDS[QUERIES])  # one side alone
    assert main(folders) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"note: {tmp_path}/gallery without camids: taken as images without cameras")
    assert f"mAP {result.mAP:.2%}" in out


def test_folders_of_two_networks_are_warned_of(tmp_path, capsys):
    mine = {"weights": "ab", "size": [64, 32], "mean": [0.5]}
    folders = save_folders(tmp_path, {"embedder": mine}, {"embedder": {**mine, "weights": "cd", "size": [32, 16]}})
    assert main(folders) == 0
    assert capsys.readouterr().err == (
        f"warning: {folders[3]} and {folders[1]} differ in size, weights of the network; distances between them may "
        "mean little.\n"
    )


def test_it_is_said_where_a_training_would_have_normalized(tmp_path, capsys):
    folders = save_folders(tmp_path, q_about={"embedder": {"dimension": 4}})
    for more, said in (((), 1), (("--normalize",), 0), (("--metric", "cosine"), 0)):
        assert main([*folders, *more]) == 0
        assert (
            capsys.readouterr().out.count("note: embeddings are compared at the length they have; a training") == said
        )
    assert main([*save_files(tmp_path)]) == 0  # nobody knows where those are from
    assert "note" not in capsys.readouterr().out


def spoil_centroids(folder):
    (folder / "gallery" / "gallery.json").write_text('{"pid_from": "parent"}')


def spoil_description(folder):
    (folder / "gallery" / "gallery.json").write_text('{"embedder": "cut')


def spoil_pids(folder):
    (folder / "gallery" / "pids.npy").unlink()


def spoil_file(folder):
    (folder / "gallery" / "pids.npy").write_text("text")


def spoil_archive(folder):
    (folder / "gallery" / "pids.npy").write_bytes(b"PK\x03\x04 no archive")


def spoil_kind(folder):
    with (folder / "gallery" / "pids.npy").open("wb") as stream:
        np.savez(stream, pids=PIDS)


def spoil_embedder(folder):
    (folder / "gallery" / "gallery.json").write_text('{"embedder": [1]}')


def empty_file(folder):
    (folder / "gallery" / "pids.npy").write_bytes(b"")


def spoil_dimension(folder):
    np.save(folder / "gallery" / "embeddings.npy", FEATS[GALLERY][:, :3])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_centroids, "gallery holds centroids of identities (gallery.json: pid_from 'parent')"),
        (spoil_pids, "gallery lacks pids.npy; it holds embeddings.npy, camids.npy, paths.npy. create_embeddings.py"),
        (spoil_file, "pids.npy cannot be read as a .npy file of numbers or text"),
        (spoil_archive, "pids.npy cannot be read as a .npy file of numbers or text"),
        (spoil_kind, "pids.npy cannot be read as a .npy file of numbers or text (it is an .npz file)"),
        (spoil_embedder, "gallery.json is damaged (not an object), so nothing tells which model made the gallery"),
        (empty_file, "pids.npy cannot be read as a .npy file of numbers or text"),
        (spoil_dimension, "dimensions"),
        (spoil_description, "gallery.json is damaged (Unterminated string"),
    ],
)
def test_folders_that_cannot_be_evaluated(tmp_path, spoil, message, capsys):
    folders = save_folders(tmp_path)
    spoil(tmp_path)
    assert main(folders) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert (captured.err.count("\n"), captured.out) == (1, "")
