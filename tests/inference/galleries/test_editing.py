"""Rows that are deleted or replaced by path, centroids that are added to, and the program edit_gallery.py."""

import json

import numpy as np
import pytest
import torch

from inference import edit_gallery
from inference.embedding.images import get_all_images
from inference.galleries.centroids import CentroidWriter, IdentitySums
from inference.galleries.editing import Deletion, delete_rows, replace_rows
from inference.galleries.gallery import read_gallery
from inference.galleries.parts import PartWriter
from inference.galleries.runs import EmbeddingRun
from inference.galleries.sources import FileList
from inference.galleries.storing import GalleryWriter
from inference.searching.search import SearchOptions, search
from tests.inference.galleries.test_gallery import FakeEmbedder, create, expected_of, files  # noqa: F401
from tests.inference.galleries.test_storing import ALL, LABELS, PATHS, ROWS, assert_holds, files_of, write
from tests.launch import run_script
from utils import rows as rows_module
from utils.centroids import identity_centroids
from utils.errors import MissingPathError, UserError


@pytest.fixture(params=[5, 23])
def gallery(request, tmp_path):
    """Of 23 rows, in one file or in five."""
    return write(tmp_path / "gallery", rows_per_file=request.param)


@pytest.mark.parametrize("gone", [[0], [22], [1, 2, 11], [5, 6, 7, 8, 9], list(range(1, 23)), [20, 21, 22]])
def test_deleted_rows_are_gone_and_files_without_them_untouched(gallery, gone):
    before = {path.name: path.stat().st_ino for path in gallery.glob("*.npy")}
    found = delete_rows(gallery, [*(PATHS[i] for i in gone), "nowhere.png"])
    assert found == Deletion(len(gone), 23 - len(gone), ("nowhere.png",))
    assert_holds(gallery, [i for i in ALL if i not in gone])
    untouched = {f"{i // 5:05d}" for i in ALL} - {f"{i // 5:05d}" for i in gone}
    for name, inode in before.items():
        if "-" in name:
            there = (gallery / name).exists() and (gallery / name).stat().st_ino == inode
            assert there == (name[-9:-4] in untouched)


def test_names_are_paths_however_written_or_patterns(gallery, monkeypatch):
    monkeypatch.chdir(gallery)
    names = [f"{gallery}/{PATHS[3]}", f"./{PATHS[4]}", "*long1*.png", "images/[!l]*"]
    found = delete_rows(gallery, [*names, "images/5", "none*"], dry_run=True)
    matched = [i for i in ALL if i in (3, 4) or "long1" in PATHS[i] or not PATHS[i].startswith("images/l")]
    assert found == Deletion(len(matched), 23 - len(matched), ("images/5", "none*"))
    assert_holds(gallery, ALL)
    delete_rows(gallery, names)
    assert_holds(gallery, [i for i in ALL if i not in matched])
    before = {path: path.read_bytes() for path in gallery.iterdir()}
    assert delete_rows(gallery, ["none*"]).count == 0
    assert {path: path.read_bytes() for path in gallery.iterdir()} == before


def test_a_path_with_brackets_is_no_pattern(tmp_path):
    folder = tmp_path / "gallery"
    with GalleryWriter(folder, {"embedder": {}, "pid_from": None}) as writer:
        writer.add(ROWS[:3], ["img[1].png", "img1.png", "img2.png"])
        writer.finish()
    assert delete_rows(folder, ["img[1].png"]) == Deletion(1, 2, ())
    assert list(read_gallery(folder).paths) == ["img1.png", "img2.png"]
    assert delete_rows(folder, ["img[1].png"]) == Deletion(1, 1, ())


def test_what_cannot_be_deleted(gallery, tmp_path):
    with pytest.raises(UserError, match="would delete all 23 rows .*; remove the folder instead"):
        delete_rows(gallery, ["*"])
    assert_holds(gallery, ALL)
    with pytest.raises(MissingPathError, match=r"embeddings.npy does not exist"):
        delete_rows(tmp_path / "none", ["a"])
    assert not (tmp_path / "none").exists()


def test_rows_are_not_deleted_while_a_run_adds_to_the_gallery(gallery):
    """Whether such a run has added its rows already is told by how many there are."""
    about = read_gallery(gallery).about
    source = FileList(["new.png"], {"root": "", "in_subfolders": False, "source": None})
    run = EmbeddingRun.start(gallery, {"about": about, "base": 23, "launch": None}, source)
    with pytest.raises(UserError, match="a run that adds to .* is not finished: finish it first .*--resume"):
        delete_rows(gallery, [PATHS[0]])
    assert_holds(gallery, ALL)
    run.discard()
    assert delete_rows(gallery, [PATHS[0]]).left == 22


def test_an_edited_gallery_says_so(gallery):
    about = json.loads((gallery / "gallery.json").read_text())
    (gallery / "gallery.json").write_text(json.dumps({**about, "files": "digest of the images"}))
    (gallery / "skipped.txt").write_text("bad.png\n")
    delete_rows(gallery, [PATHS[0]])
    first = read_gallery(gallery).about
    delete_rows(gallery, [PATHS[1]])
    assert "files" not in first
    assert first["revision"] != read_gallery(gallery).about["revision"]
    assert (gallery / "skipped.txt").read_text() == "bad.png\n"


def test_an_old_gallery_without_gallery_json(tmp_path):
    np.save(tmp_path / "embeddings.npy", ROWS)
    np.save(tmp_path / "paths.npy", np.array(PATHS))
    delete_rows(tmp_path, [PATHS[2]])
    assert_holds(tmp_path, [i for i in ALL if i != 2], labels=None)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("rows_per_file", [5, 23])
def test_replaced_rows_stay_in_their_places(tmp_path, dtype, rows_per_file):
    folder = write(tmp_path, rows_per_file=rows_per_file, dtype=dtype, labels=None)
    kept = (tmp_path / "embeddings-00001.npy").stat().st_ino if rows_per_file == 5 else 0
    new = np.random.default_rng(9).standard_normal((4, 4)).astype(np.float32)
    assert replace_rows(folder, [PATHS[22], "new.png", f"./{PATHS[0]}", PATHS[12]], new) == 24
    expected = np.concatenate([ROWS, new[1:2]])
    expected[[22, 0, 12]] = new[[0, 2, 3]]
    found = read_gallery(folder)
    np.testing.assert_array_equal(np.asarray(found.embeddings), expected.astype(dtype))
    assert found.paths[:].tolist() == [*PATHS, "new.png"]
    assert found.about["embedder"]["weights"] == "w"
    with GalleryWriter.extending(folder, {"embedder": {}}, rows_per_file=rows_per_file) as writer:
        writer.add(new[:1], ["newer.png"])
        writer.finish()
    assert read_gallery(folder).about["revision"] == found.about["revision"]  # Milvus looks at few rows
    if kept:
        assert (tmp_path / "embeddings-00001.npy").stat().st_ino == kept
    with pytest.raises(UserError, match="has the dimension 4, but here it is 3"):
        replace_rows(folder, [PATHS[0]], new[:1, :3])


def test_an_image_with_two_rows_is_replaced_in_both_and_keeps_its_labels(tmp_path):
    with GalleryWriter(tmp_path, {"embedder": {}}) as writer:
        writer.add(ROWS[:3], ["a", "b", "a"], LABELS[:3])
        writer.finish()
    replace_rows(tmp_path, ["a"], ROWS[5:6])
    found = read_gallery(tmp_path)
    np.testing.assert_array_equal(found.embeddings, ROWS[[5, 1, 5]])
    assert found.labels == LABELS[:3]


# ---------------------------------------------------------------------------------------------------------- centroids

OF_CENTROIDS = {"embedder": {"dimension": 4}, "root": "", "pid_from": r"(\d)\.png"}


def write_centroids(folder, *parts, batch=4, **options):
    for turn, positions in enumerate(parts):
        with CentroidWriter(folder, OF_CENTROIDS, extends=turn > 0, **options) as writer:
            for start in range(0, len(positions), batch):
                rows = positions[start : start + batch]
                writer.add(ROWS[rows], [PATHS[i] for i in rows])
            writer.finish(skipped=["bad"])
    return folder


@pytest.mark.parametrize("batch", [1, 23])
def test_centroids_are_those_of_all_images_at_once(tmp_path, batch):
    expected, names = identity_centroids(torch.from_numpy(ROWS), [path[-5] for path in PATHS])
    write_centroids(tmp_path / "once", ALL, batch=batch)
    found = read_gallery(tmp_path / "once")
    assert np.asarray(found.embeddings).tobytes() == expected.numpy().tobytes()
    assert (found.paths.tolist(), found.about["count"], found.about["images"]) == (names, 10, 23)
    assert found.of_centroids
    assert found.images.tolist() == PATHS
    write_centroids(tmp_path / "twice", range(7), range(7, 20), range(20, 23), batch=batch)
    assert files_of(tmp_path / "once", "") == files_of(tmp_path / "twice", "")


def test_sums_grow_with_identities_only():
    sums = IdentitySums(4)
    for start in range(0, 23, 3):
        sums.add(ROWS[start : start + 3], [path[-5] for path in PATHS[start : start + 3]])
    assert sums.sums.shape == (10, 4)
    assert sums._sums.shape[0] < 20
    assert sums.counts.sum() == 23
    np.testing.assert_allclose(sums.sums[0], ROWS[[0, 10, 20]].astype(np.float64).sum(0), rtol=1e-15)


def test_an_identity_is_deleted_with_its_sums_and_images(tmp_path):
    write_centroids(tmp_path, range(15), rows_per_file=4)
    assert delete_rows(tmp_path, ["3", "[89]", PATHS[0]]) == Deletion(3, 7, (PATHS[0],))
    found = read_gallery(tmp_path)
    left = [i for i in range(15) if i % 10 not in (3, 8, 9)]
    assert (found.paths[:].tolist(), found.images.tolist()) == (list("0124567"), [PATHS[i] for i in left])
    assert found.about["images"] == len(left)
    with CentroidWriter(tmp_path, OF_CENTROIDS, extends=True) as writer:
        writer.add(ROWS[15:], PATHS[15:])
        writer.finish()
    found = read_gallery(tmp_path)
    rows = [*left, *range(15, 23)]
    expected, names = identity_centroids(torch.from_numpy(ROWS[rows]), [PATHS[i][-5] for i in rows])
    assert found.paths[:].tolist() == names
    np.testing.assert_array_equal(np.asarray(found.embeddings), expected.numpy())
    assert np.load(tmp_path / "image_rows.npy").tolist() == [names.index(PATHS[i][-5]) for i in rows]


def test_centroids_that_cannot_be_added_to(tmp_path):
    write_centroids(tmp_path, range(9), dtype="float16")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for pid_from, dtype, message in [
        (
            "parent",
            "float16",
            r"has pid_from '\(\\\\d\)\\\\.png', but here it is 'parent': append with the same options",
        ),
        (OF_CENTROIDS["pid_from"], "float32", "holds float16, but GALLERY.DTYPE is float32"),
    ]:
        with pytest.raises(UserError, match=message):
            CentroidWriter(tmp_path, OF_CENTROIDS | {"pid_from": pid_from}, dtype, extends=True).__enter__()
    with pytest.raises(UserError, match="holds centroids of identities; only rows of images can be replaced"):
        replace_rows(tmp_path, ["3"], ROWS[:1])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    (tmp_path / "sums.npy").unlink()  # as older versions
    with pytest.raises(UserError, match=r"does not hold the sums .* embed all images again, without --append"):
        CentroidWriter(tmp_path, OF_CENTROIDS, "float16", extends=True).__enter__()
    delete_rows(tmp_path, ["3"])
    assert len(read_gallery(tmp_path).paths) == 8


# ----------------------------------------------------------------------------------------------- with create_gallery


@pytest.mark.parametrize("rows_per_file", [4, 99])
def test_images_are_embedded_again_in_their_places(create, files, tmp_path, rows_per_file, monkeypatch):  # noqa: F811
    create(rows_per_file=rows_per_file)
    paths = get_all_images(files)
    (files / "z_new.png").write_text("new")
    for path, content in ((paths[2], "changed"), (paths[9], "bad")):
        (files / path).write_text(content)
    again = {"replace": True, "rows_per_file": rows_per_file}
    with pytest.raises(UserError, match="is bad"):
        create(**again)
    with pytest.raises(UserError, match="was begun with --replace: continue it so, or run without --resume"):
        create(append=True, resume=True)
    (files / paths[9]).write_text("mended")
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(GalleryWriter, "finish", lambda *_, **__: 1 // 0)
        create(resume=True, **again)
    embedder = FakeEmbedder()
    assert create(embedder, resume=True, **again).count == 11
    assert embedder.seen == []
    (files / paths[4]).write_text("another")
    created = create(root=paths[4], **again)
    assert (created.count, created.embedded) == (11, 1)
    found = read_gallery(tmp_path / "out")
    assert found.paths[:].tolist() == [*paths, str(files / "z_new.png")]
    np.testing.assert_array_equal(np.asarray(found.embeddings), expected_of(files)[0])
    create(pid_from="filename")
    with pytest.raises(UserError, match="--replace needs a gallery of images"):
        create(pid_from="filename", replace=True)


@pytest.mark.parametrize("labelled", [False, True])
def test_an_unfinished_gallery_is_read_up_to_its_first_gap(tmp_path, labelled, monkeypatch):
    monkeypatch.setattr(rows_module, "MOST_OPEN", 2)
    labels = LABELS if labelled else None
    source = FileList(PATHS, {"root": "", "in_subfolders": False, "source": None}, labels or (), chunk_size=4)
    about = {"embedder": {"dimension": 4}, **source.about, "pid_from": None}
    run = EmbeddingRun.start(tmp_path, {"about": about, "base": None, "launch": None}, source)

    def finish(number):
        positions = list(ALL)[4 * number : 4 * number + 4]
        part = PartWriter(tmp_path, number, 4)
        part.add(ROWS[positions], [PATHS[i] for i in positions], [LABELS[i] for i in positions] if labels else [], [])
        part.finish()

    for number in (0, 2, 3):
        finish(number)
    assert len(read_gallery(tmp_path, unfinished=True).paths) == 4
    finish(1)
    found = read_gallery(tmp_path, unfinished=True)
    assert found.unfinished
    assert (list(found.paths), found.labels) == (PATHS[:16], LABELS[:16] if labels else [])
    np.testing.assert_array_equal(np.asarray(found.embeddings), ROWS[:16])
    result = search(
        ROWS[9:10], found.embeddings, SearchOptions(index="faiss:flat", topk=1), gallery_file=tmp_path / "e.npy"
    )
    assert result.indices.tolist() == [[9]]
    with pytest.raises(MissingPathError, match="--resume finishes it"):
        read_gallery(tmp_path)
    run.rewrite(about={**about, "pid_from": "parent"})
    with pytest.raises(
        UserError, match="is becoming a gallery of centroids, which can be searched once it is finished"
    ):
        read_gallery(tmp_path, unfinished=True)
    run.discard()
    with pytest.raises(UserError, match="has changed while it was being read"):
        np.asarray(found.embeddings)
    write(tmp_path)
    assert not read_gallery(tmp_path, unfinished=True).unfinished


# ---------------------------------------------------------------------------------------------------------- the program


def test_the_program(tmp_path, capsys):
    gallery = write(tmp_path / "gallery", rows_per_file=5)
    listed = tmp_path / "gone.txt"
    listed.write_bytes(b"images/0.png\r\n\n" + f"{PATHS[3]}\nimages/none.png\n".encode())
    edit_gallery.main([str(gallery), "--delete", str(listed), "images/long1*", "--dry-run"])
    out = capsys.readouterr().out
    assert out == f"{gallery}: 5 of 23 rows would be deleted, 18 would stay\nnot in the gallery: images/none.png\n"
    assert_holds(gallery, ALL)
    run = run_script("inference/edit_gallery.py", str(gallery), "--delete", str(listed), *(f"x{i}" for i in range(7)))
    assert run.stdout == (
        f"{gallery}: 2 of 23 rows deleted, 21 stay\nnot in the gallery: images/none.png, x0, x1, x2, x3 and 3 more\n"
    )
    assert_holds(gallery, [i for i in ALL if i not in (0, 3)])
    listed.write_text("\n")
    for arguments, message in [
        ([gallery, "--delete", listed], f"--delete: there is no path in {listed}."),
        ([gallery, "--delete", "none.txt"], "--delete: none.txt cannot be read"),
        ([tmp_path, "--delete", "a"], "embeddings.npy does not exist"),
    ]:
        with pytest.raises(SystemExit) as ended:
            edit_gallery.main(list(map(str, arguments)))
        assert ended.value.code == 2
        assert message in capsys.readouterr().err
