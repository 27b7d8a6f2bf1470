"""Galleries of tracklets: which images make one, what its row is, and that they are evaluated like single images."""

import json
import os
import shutil

import numpy as np
import pytest
import torch

from evaluation import __main__ as evaluate
from inference import create_embeddings, get_similar
from inference.embedding.embedder import Embedder
from inference.galleries import grouping
from inference.galleries.gallery import read_gallery
from inference.galleries.grouping import Grouping, column_function, folder_function, group_gallery
from inference.galleries.storing import GalleryWriter
from tests.inference.conftest import draw_picture
from tests.inference.test_scripts import keys, load, script_error
from tests.launch import run_script
from utils.aggregation import AGGREGATIONS, aggregate
from utils.errors import UserError


def write_gallery(folder, paths, labels=(), dimension=4):
    rows = np.random.default_rng(0).normal(size=(len(paths), dimension)).astype(np.float32)
    about = {"embedder": {"dimension": dimension}, "root": "r", "in_subfolders": True, "pid_from": None, "source": None}
    with GalleryWriter(folder, about) as writer:
        writer.add(rows, paths, labels)
        writer.finish()
    return rows


@pytest.mark.parametrize("how", AGGREGATIONS)
@pytest.mark.parametrize("at_once", [1, 5, 1000])
@pytest.mark.parametrize("mixed", [False, True])
def test_rows_are_those_of_plain_loops(tmp_path, monkeypatch, how, at_once, mixed):
    """Rows of a group together or not, read a few groups at a time or all."""
    monkeypatch.setattr(grouping, "_ROWS", at_once)
    paths = [f"r/{name}/{number}.jpg" for name, count in (("b", 6), ("a", 1), ("c", 3)) for number in range(count)]
    paths = np.random.default_rng(1).permutation(paths).tolist() if mixed else paths
    labels = [({"a": 7, "b": 9, "c": 7}[path.split("/")[1]], 2) for path in paths]
    rows = write_gallery(tmp_path / "images", paths, labels)
    count = group_gallery(tmp_path / "images", tmp_path, Grouping("folder", how, folder_function("r")))
    found = read_gallery(tmp_path)
    names = list(dict.fromkeys(path.split("/")[1] for path in paths))
    assert (count, found.paths.tolist(), found.holds) == (3, names, "groups of images")
    assert found.labels == [({"a": 7, "b": 9, "c": 7}[name], 2) for name in names]
    expected = [aggregate(rows[[f"/{name}/" in path for path in paths]], how) for name in names]
    np.testing.assert_allclose(found.embeddings, torch.stack(expected), rtol=1e-6)
    told = {key: found.about[key] for key in ("group", "aggregate", "root", "count")}
    assert told == {"group": "folder", "aggregate": how, "root": "r", "count": 3}
    assert found.about["images"] == 10


def test_groups_are_made_by_whoever_is_left(tmp_path):
    """The process that made the gallery of images may have died before it made the groups."""
    images, groups = tmp_path / "images", Grouping("folder", "mean", folder_function("r"))
    write_gallery(images, ["r/a/1.jpg", "r/b/1.jpg"])
    assert not grouping.is_grouped(images, tmp_path)
    group_gallery(images, tmp_path, groups)
    assert grouping.is_grouped(images, tmp_path)
    later = (tmp_path / "gallery.json").stat().st_mtime_ns + 10**9
    os.utime(images / "gallery.json", ns=(later, later))  # made anew since
    assert not grouping.is_grouped(images, tmp_path)


def test_folders_of_one_name_are_two_groups():
    name_of = folder_function("/data/people/")
    paths = [
        "/data/people/cam_a/7/1.jpg",
        "/data/people/cam_b/7/1.jpg",
        "/data/people/1.jpg",
        "/data/people/x/../8/1.jpg",
    ]
    assert list(map(name_of, paths)) == ["cam_a/7", "cam_b/7", "people", "8"]
    assert name_of("/elsewhere/7/1.jpg") == "/elsewhere/7"


@pytest.mark.parametrize("label", [(8, 1), (7, 2), (8, None)])
def test_a_group_of_two_identities_or_cameras_is_named(tmp_path, label):
    first = (7, None if label[1] is None else 1)
    write_gallery(tmp_path / "images", ["r/a/1.jpg", "r/a/2.jpg"], [first, label])
    what = " and of ".join(
        f"identity {pid}" + f", camera {camera}" * (camera is not None) for pid, camera in (first, label)
    )
    with pytest.raises(UserError, match=f"the group 'a' .--group folder. has images of {what}, such as r/a/2.jpg"):
        group_gallery(tmp_path / "images", tmp_path, Grouping("folder", "mean", folder_function("r")))
    assert not (tmp_path / "paths.npy").exists()


def test_columns_of_a_table(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("path,split,clip\na/1.jpg,query, x 1 \nb.jpg,query,2\na/1.jpg,train,other\n")
    name_of = column_function(str(table), "clip", "query", str(tmp_path))
    assert [name_of(str(tmp_path / name)) for name in ("a/1.jpg", "b.jpg")] == ["x 1", "2"]
    with pytest.raises(UserError, match=r"c.jpg has no row of split query in .*t.csv, so nothing tells its clip"):
        name_of("c.jpg")
    for rows, message in (
        ("a.jpg,query,\n", r"t.csv, line 2: clip is empty; give every image of query"),
        ("a.jpg,query,1\n./a.jpg,query,2\n", r"t.csv, line 3: ./a.jpg is of clip '2', but of '1' in an earlier row"),
    ):
        table.write_text(f"path,split,clip\n{rows}")
        with pytest.raises(UserError, match=message):
            column_function(str(table), "clip", "query", str(tmp_path))
    with pytest.raises(UserError, match="has no column track; found path, split, clip"):
        column_function(str(table), "track", "query", str(tmp_path))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Four people seen by two cameras, three images in each tracklet: a folder each, and a table that names them."""
    root = tmp_path_factory.mktemp("tracklets")
    lines = ["path,pid,camid,split,tracklet"]
    for pid in range(4):
        for camera, split in ((0, "query"), (1, "gallery")):
            for number in range(3):
                name = f"{split}/{pid}c{camera}/{number}.png"
                draw_picture(root / name, 7 * pid)
                lines.append(f"{name},{pid},{camera},{split},T{pid}{camera}")
    draw_picture(root / "gallery/0c1/2.png", 99)  # a detection that slipped: someone else
    (root / "table.csv").write_text("\n".join(lines) + "\n")
    return root


def test_tracklets_of_a_table_are_evaluated_like_images(drawn, legacy_checkpoint, tmp_path, capsys, caplog):
    """By the real program, then in this process; the mean without outliers leaves out the detection that slipped."""
    shutil.copytree(drawn, tmp_path / "set")
    table = tmp_path / "set" / "table.csv"

    def arguments(split, *more):
        given = keys("", legacy_checkpoint, tmp_path / split)
        grouped = ["--csv", str(table), "--split", split, "--group", "csv:tracklet", "--aggregate", "robust"]
        return [*grouped, *more, *given]

    done = run_script("inference/create_embeddings.py", *arguments("gallery"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[1:] == [
        f"{tmp_path}/gallery/images: 12 images, 12 images embedded now",
        f"{tmp_path}/gallery: 4 groups (robust of each)",
    ]
    create_embeddings.main(arguments("query"))
    rows, names, pids, camids = load(tmp_path / "gallery", "embeddings", "paths", "pids", "camids")
    assert names.tolist() == ["T01", "T11", "T21", "T31"]
    assert (pids.tolist(), camids.tolist()) == ([0, 1, 2, 3], [1, 1, 1, 1])
    images = np.load(tmp_path / "gallery" / "images" / "embeddings.npy")
    np.testing.assert_allclose(rows[0], images[0], atol=1e-5)  # without the third
    capsys.readouterr()
    assert evaluate.main(["--query", str(tmp_path / "query"), "--gallery", str(tmp_path / "gallery")]) == 0
    assert "mAP 100.00%" in capsys.readouterr().out

    about = json.loads((tmp_path / "gallery" / "gallery.json").read_text())
    assert (about["group"], about["source"]["subset"]) == ("csv:tracklet", "gallery")

    caplog.set_level("INFO")  # another aggregation of what is embedded
    create_embeddings.main(arguments("gallery", "--aggregate", "mean", "--resume"))
    assert "12 images, 0 images embedded now" in caplog.text
    np.testing.assert_allclose(load(tmp_path / "gallery", "embeddings")[0][0], images[:3].mean(0), rtol=1e-5)


def test_folders_are_tracklets_as_in_a_program(drawn, legacy_checkpoint, tmp_path, caplog):
    (tmp_path / "people").mkdir()
    shutil.copytree(drawn / "gallery", tmp_path / "people", dirs_exist_ok=True)
    for number in range(3):
        (tmp_path / "people" / "3c1" / f"{number}.png").write_bytes(b"no image")
    given = keys(tmp_path / "people", legacy_checkpoint, tmp_path / "out")
    create_embeddings.main(["--group", "folder", "--images-in-subfolders", "--on-error", "skip", *given])
    assert "1 groups have no image that could be read, and no row, such as '3c1'" in caplog.text
    tracks = {pid: sorted(map(str, (tmp_path / "people" / pid).glob("*.png"))) for pid in ("0c1", "1c1", "2c1")}
    expected, names = Embedder.from_checkpoint(legacy_checkpoint, "cpu").embed_tracks(tracks)
    rows, paths = load(tmp_path / "out", "embeddings", "paths")
    assert paths.tolist() == names
    np.testing.assert_allclose(rows, expected, rtol=1e-4, atol=1e-5)

    other = keys(tmp_path / "people" / "0c1", legacy_checkpoint, tmp_path / "found")
    searched = ["--gallery_data", str(tmp_path / "out"), "--topk", "1", "--format", "jsonl", *other]
    get_similar.main(searched)
    lines = [json.loads(line) for line in (tmp_path / "found" / "results.jsonl").read_text().splitlines()]
    assert lines[0]["results"][0]["path"] == "0c1"
    script_error(get_similar.main, "--exclude-self", *searched)


def test_what_does_not_go_together(drawn, legacy_checkpoint, tmp_path, capsys):
    table = ("--csv", drawn / "table.csv", "--split", "query")
    for arguments, message in (
        (("--group", "tracklet"), "--group is 'tracklet'; expected folder, or csv: and the name of a column."),
        (("--group", "csv:"), "--group is 'csv:'; expected folder"),
        (("--group", "folder", "MODEL.USE_CENTROIDS", "True"), "--group and MODEL.USE_CENTROIDS True exclude each"),
        (("--group", "folder", "--append"), "--append adds images, but rows with --group are of groups"),
        (("--group", "csv:tracklet"), "--group csv:tracklet needs --csv and --split"),
        ((*table, "--group", "csv:clip"), "has no column clip; found path, pid, camid, split, tracklet"),
        ((*table, "--group", "csv:split"), "the group 'query' (--group csv:split) has images of identity 0, camera 0"),
    ):
        root = "" if table[0] in arguments else drawn / "query" / "0c0"
        script_error(create_embeddings.main, *arguments, *keys(root, legacy_checkpoint, tmp_path / "out"))
        assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out" / "images").exists()  # nothing was embedded before


def test_the_script_offers_what_there_is():
    (choices,) = (action.choices for action in create_embeddings.parser()._actions if action.dest == "aggregate")
    assert choices == tuple(AGGREGATIONS)
