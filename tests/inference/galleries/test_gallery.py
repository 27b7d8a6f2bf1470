"""Galleries on disk. A stand-in for the model makes many small runs cheap; the scripts' tests use a real one."""

import gc
import itertools
import json
import os
import shutil
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch

from inference.embedding.embedder import EmbeddedBatch
from inference.embedding.images import get_all_images
from inference.galleries.creation import GalleryOptions, create_gallery
from inference.galleries.editing import delete_rows
from inference.galleries.gallery import check_comparable, npy_header, read_gallery
from inference.galleries.labels import LabelledImages
from inference.galleries.parts import finished_parts
from inference.galleries.runs import EmbeddingRun
from inference.galleries.sources import folder_source, labelled_source
from inference.galleries.storing import GalleryWriter
from utils.centroids import identity_centroids
from utils.errors import MissingPathError, UserError

FINAL = {"embeddings.npy", "paths.npy", "gallery.json"}


SUMS = {"sums.npy", "counts.npy", "images.npy", "image_rows.npy"}  # of a gallery of centroids


class FakeEmbedder:
    """Embeds a file by its content, three files a batch; "bad" cannot be read."""

    def __init__(self, dimension=5, weights="w", batch_size=3):
        self.identity = {"weights": weights, "dimension": dimension, "size": [4, 2], "dtype": "float32"}
        self.dimension, self.batch_size = dimension, batch_size
        self.seen = []

    def row(self, path):
        seed = Path(path).read_bytes()
        return np.random.default_rng(list(seed)).standard_normal(self.identity["dimension"]).astype(np.float32)

    def embed_given_batches(self, batches, on_error="stop"):
        assert on_error == "skip"
        start = 0
        for paths in batches:
            bad = [i for i, path in enumerate(paths) if Path(path).read_bytes() == b"bad"]
            kept = [i for i in range(len(paths)) if i not in bad]
            rows = np.array([self.row(paths[i]) for i in kept], np.float32).reshape(-1, self.dimension)
            self.seen += [Path(paths[i]).name for i in kept]
            errors = {start + i: UserError(f"{paths[i]} is bad.") for i in bad}
            yield EmbeddedBatch(start, rows, [start + i for i in kept], errors)
            start += len(paths)


@pytest.fixture
def files(tmp_path):
    """Ten files of four identities, of which the names tell."""
    folder = tmp_path / "files"
    folder.mkdir()
    for number in range(10):
        (folder / f"{'pqrs'[number % 4]}_{number}.png").write_text(f"content {number}")
    return folder


@pytest.fixture
def create(files, tmp_path):
    def run(embedder=None, root=files, in_subfolders=False, **options):
        source = folder_source(root, in_subfolders, chunk_size=3)
        options = GalleryOptions(progress=False, **options)
        return create_gallery(embedder or FakeEmbedder(), source, tmp_path / "out", options)

    return run


def expected_of(files, embedder=None):
    embedder = embedder or FakeEmbedder()
    paths = get_all_images(files)
    return np.array([embedder.row(path) for path in paths]), paths


def assert_gallery(folder, rows, paths):
    found = read_gallery(folder)
    assert list(found.paths) == list(paths)
    np.testing.assert_array_equal(found.embeddings, rows)
    assert (folder / "embeddings.npy").stat().st_size == 128 + found.embeddings.nbytes


def test_files_and_their_kinds(create, files, tmp_path):
    created = create()
    assert (created.count, created.embedded, created.skipped) == (10, 10, ())
    assert {path.name for path in (tmp_path / "out").iterdir()} == FINAL
    embeddings, paths = np.load(tmp_path / "out/embeddings.npy"), np.load(tmp_path / "out/paths.npy")
    assert embeddings.dtype == np.float32
    assert embeddings.flags.c_contiguous
    assert paths.dtype.kind == "U"
    assert_gallery(tmp_path / "out", *expected_of(files))
    about = json.loads((tmp_path / "out/gallery.json").read_text())
    assert (about["count"], about["embedder"]["dimension"], about["root"]) == (10, 5, str(files))


@pytest.mark.parametrize("shape", [(0, 1), (3,), (1_000_000_000, 4096)])
def test_header_is_numpys(shape):
    header = npy_header("<f4", shape)
    assert len(header) == 128
    stream = BytesIO(header)
    assert np.lib.format.read_magic(stream) == (1, 0)
    assert np.lib.format.read_array_header_1_0(stream) == (shape, False, np.dtype("<f4"))
    assert stream.tell() == 128


def test_centroids(create, files, tmp_path):
    created = create(pid_from="filename")
    assert (created.count, created.embedded) == (4, 10)
    rows, paths = expected_of(files)
    names = [Path(path).name[0] for path in paths]
    centroids, ids = identity_centroids(torch.from_numpy(rows), names)
    assert_gallery(tmp_path / "out", centroids.numpy(), ids)
    assert read_gallery(tmp_path / "out").of_centroids
    assert {path.name for path in (tmp_path / "out").iterdir()} == FINAL | SUMS


def test_one_file_and_odd_names(create, files, tmp_path):
    assert create(root=files / "p_0.png").count == 1
    names = ["p_a\nb.png", "p_ü.png", "p_\udcff.png"]
    for name in names:
        (files / name).write_bytes(name.encode("utf-8", "surrogateescape"))
    assert create().count == 13
    assert_gallery(tmp_path / "out", *expected_of(files))


# ------------------------------------------------------------------------------------------- killed, resumed, extended


class Killed(BaseException):
    """As a kill, no handler of errors sees it."""


def kill_at(monkeypatch, step):
    """Let the ``step``-th operation on the disk raise instead; returns the count of operations."""
    count = [0]

    def wrap(owner, name, original=None):
        original = original or getattr(owner, name)

        def wrapped(*args, **kwargs):
            count[0] += 1
            if count[0] == step:
                raise Killed
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, wrapped)

    wrap(Path, "replace")
    wrap(Path, "unlink")
    wrap(os, "fsync", lambda descriptor: None)  # the process is not killed in truth, and this takes long
    wrap(shutil, "rmtree")
    return count


@pytest.mark.parametrize("centroids", [False, True])
def test_rows_of_a_run_that_was_killed_at_its_very_end_are_added_once(create, files, tmp_path, centroids):
    """The gallery counts, and with it the run is over, although its parts are still there; whatever is edited then."""
    options = {"pid_from": "filename"} if centroids else {}
    create(**options)
    count = len(read_gallery(tmp_path / "out").paths)
    (files / "new_late.png").write_text("late")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(EmbeddingRun, "discard", lambda run: (_ for _ in ()).throw(Killed()))
        create(append=True, **options)
    gallery = read_gallery(tmp_path / "out")
    assert len(gallery.paths) == count + 1
    gone = str(gallery.paths[0])
    delete_rows(tmp_path / "out", [gone])
    for path in files.glob(f"{gone}_*" if centroids else Path(gone).name):
        path.unlink()
    create(append=True, **options)
    names = [str(path) for path in read_gallery(tmp_path / "out").paths]
    assert len(names) == len(set(names))
    if centroids:
        assert np.load(tmp_path / "out" / "counts.npy")[names.index("new")] == 1
    else:
        assert gone not in names


def test_a_run_that_was_stopped_leaves_no_file_open(create, files):
    """A program that keeps the error keeps its frames; what they would still write must not reach a finished chunk."""

    class Dying(FakeEmbedder):
        def embed_given_batches(self, batches, on_error="stop"):
            yield from itertools.islice(super().embed_given_batches(batches, on_error), 2)
            raise Killed

    Path(get_all_images(files)[0]).write_text("bad")
    with pytest.raises(UserError, match="is bad") as held:
        create()
    with pytest.raises(Killed):
        create(Dying(), resume=True, on_error="skip")
    del held
    gc.collect()
    assert create(resume=True, on_error="skip").count == 9


def test_a_replacement_by_another_list_is_not_over_with_the_one_that_was_killed(create, files, tmp_path):
    create()
    images = get_all_images(files)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(GalleryWriter, "finish", lambda *_, **__: (_ for _ in ()).throw(Killed()))
        create(root=images[0], replace=True)
    Path(images[1]).write_text("changed")
    create(root=images[1], replace=True)
    np.testing.assert_array_equal(read_gallery(tmp_path / "out").embeddings[1], FakeEmbedder().row(images[1]))


@pytest.mark.parametrize("kind", ["fresh", "over an old one", "centroids", "append", "skip"])
def test_killed_at_every_step(create, files, tmp_path, kind):
    """Whatever the step: no wrong gallery, and --resume ends where an undisturbed run ends, embedding little again."""
    options = {"pid_from": "filename"} if kind == "centroids" else {}
    options |= {"append": True} if kind == "append" else {}
    options |= {"on_error": "skip"} if kind == "skip" else {}
    late = files / "s_late.png"
    if kind == "skip":
        (files / "q_bad.png").write_text("bad")
    out = tmp_path / "out"
    step = 0
    while True:
        step += 1
        shutil.rmtree(out, ignore_errors=True)
        late.unlink(missing_ok=True)
        old = None
        if kind in ("over an old one", "append"):
            create()
            old = expected_of(files)
        late.write_text("late")
        with pytest.MonkeyPatch.context() as patch:
            count = kill_at(patch, step)
            try:
                first = FakeEmbedder()
                create(first, **options)
            except Killed:
                pass
        if count[0] < step:  # it ended undisturbed
            break
        assert_nothing_wrong(out, old, new_of(files, kind))
        second = FakeEmbedder()
        create(second, resume=True, **options)
        rows, paths = new_of(files, kind)
        assert_gallery(out, rows, paths)
        also = {"skip": {"skipped.txt"}, "centroids": SUMS}
        assert {path.name for path in out.iterdir()} == FINAL | also.get(kind, set())
        again = set(first.seen) & set(second.seen)
        assert len(again) <= 3 or not second.seen  # at most the chunk that was under way
    assert step > 15


def new_of(files, kind):
    if kind == "skip":
        paths = [path for path in get_all_images(files) if "bad" not in path]
        return np.array([FakeEmbedder().row(path) for path in paths]), paths
    rows, paths = expected_of(files)
    if kind == "append":  # the new ones come last
        order = sorted(range(len(paths)), key=lambda i: "late" in paths[i])
        return rows[order], [paths[i] for i in order]
    if kind == "centroids":
        centroids, names = identity_centroids(torch.from_numpy(rows), [Path(path).name[0] for path in paths])
        return centroids.numpy(), names
    return rows, paths


def assert_nothing_wrong(out, old, new):
    """There is the gallery of before, the new one, or none if there was none."""
    try:
        found = read_gallery(out)
    except MissingPathError:
        assert old is None
        return
    assert any(
        each is not None and list(found.paths) == list(each[1]) and np.array_equal(found.embeddings, each[0])
        for each in (old, new)
    )


def start_and_stop(create, files, batches=2):
    """An unfinished run: the file after ``batches`` batches is bad, and mended afterwards."""
    bad = Path(get_all_images(files)[3 * batches])
    content = bad.read_bytes()
    bad.write_text("bad")
    with pytest.raises(UserError, match=rf"{bad.name} is bad. {3 * batches} images are embedded: --resume continues"):
        create()
    bad.write_bytes(content)


def test_resume_after_a_torn_chunk(create, files, tmp_path):
    """Rows without their list of paths do not count, nor does what a process was writing."""
    start_and_stop(create, files)
    parts = tmp_path / "out" / "embeddings.parts"
    assert {path.name for path in parts.glob("0*")} >= {
        f"0000000{i}.{kind}" for i in (0, 1) for kind in ("npy", "json")
    }
    (parts / "00000002.npy.new").write_bytes(b"half of the rows")
    (parts / "00000003.npy").write_bytes(b"rows without paths")
    paths = get_all_images(files)
    assert [list(part.paths) for part in finished_parts(tmp_path / "out")] == [paths[:3], paths[3:6]]
    embedder = FakeEmbedder()
    assert create(embedder, resume=True).embedded == 4
    assert len(embedder.seen) == 4
    assert_gallery(tmp_path / "out", *expected_of(files))


def test_resume_of_a_folder_that_changed(create, files, tmp_path):
    start_and_stop(create, files)
    (files / "a_new.png").write_text("new")
    assert create(resume=True).embedded == 5
    found = read_gallery(tmp_path / "out")
    assert sorted(found.paths) == get_all_images(files)
    np.testing.assert_array_equal(found.embeddings, [FakeEmbedder().row(path) for path in found.paths])


def test_resume_of_what_is_complete_does_nothing(create, files, tmp_path, caplog):
    create()
    embedder = FakeEmbedder()
    assert create(embedder, resume=True).count == 10
    assert not embedder.seen
    assert not caplog.records
    # ... but another model, or another folder, starts anew, and says so
    again = f"All images are embedded again: {tmp_path / 'out'} holds a gallery of another"
    assert create(FakeEmbedder(weights="other"), resume=True).embedded == 10
    assert [record.getMessage() for record in caplog.records] == [f"{again} embedder."]
    (files / "a_new.png").write_text("new")
    assert create(resume=True, pid_from="filename").embedded == 11
    assert caplog.records[-1].getMessage() == f"{again} embedder, pid_from, list of images (--append adds new ones)."
    caplog.clear()
    (files / "another_new.png").write_text("new")
    assert create(resume=True, pid_from="filename").embedded == 12
    assert [record.getMessage() for record in caplog.records] == [f"{again} list of images (--append adds new ones)."]


def test_one_identity_for_all_images_is_said(create, files, caplog):
    """As the name of the one folder gives it, which hardly anybody means."""
    assert create(pid_from="parent").count == 1
    (record,) = caplog.records
    assert record.getMessage() == (
        "All 10 images have the identity 'files' (--pid-from parent): the gallery will have one row. Identities in "
        "folders of their own are read with --images-in-subfolders, those in file names with --pid-from."
    )
    caplog.clear()
    assert create(pid_from="filename").count == 4
    assert create(root=files / "p_0.png", pid_from="parent").count == 1
    assert not caplog.records


def test_resume_of_what_an_older_version_completed_does_nothing(create, files, tmp_path):
    """Its description lacks what that version did not know; a different value there is a difference."""
    create()
    about = json.loads((tmp_path / "out" / "gallery.json").read_text())
    new = FakeEmbedder()
    new.identity = {**new.identity, "exif_orientation": True}
    assert create(new, resume=True).embedded == 0
    assert create(new, append=True).embedded == 0
    about["embedder"]["exif_orientation"] = False
    (tmp_path / "out" / "gallery.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match="was made with exif_orientation False, but here it is True"):
        create(new, append=True)
    assert create(new, resume=True).embedded == 10


@pytest.mark.parametrize("key", ["resize", "flip", "pooling", "neck_feat"])
def test_galleries_of_older_versions_are_stretched_and_of_one_view(create, files, tmp_path, caplog, key):
    """They do not tell, but could not be otherwise."""
    pairs = {"resize": ("stretch", "pad"), "flip": (False, True), "pooling": ("avg", "gem")}
    values = (pairs | {"neck_feat": ("after", "before")})[key]
    older, other = FakeEmbedder(), FakeEmbedder()
    older.identity = {**older.identity, key: values[0]}
    other.identity = {**other.identity, key: values[1]}
    create()
    gallery = read_gallery(tmp_path / "out")
    assert create(older, append=True).embedded == create(older, resume=True).embedded == 0
    check_comparable(gallery, older.identity, tmp_path / "out")
    assert not caplog.records
    check_comparable(gallery, other.identity, tmp_path / "out")
    assert f"differ in {key}; distances" in caplog.text
    with pytest.raises(UserError, match=f"was made with {key} {values[0]}, but here it is {values[1]}"):
        create(other, append=True)
    assert create(other, resume=True).embedded == 10
    start_and_stop(create, files)
    with pytest.raises(UserError, match=f"unfinished run.* was made with {key} {values[0]}, but here it is"):
        create(other, resume=True)


def test_without_resume_it_starts_over(create, files, tmp_path, caplog):
    start_and_stop(create, files)
    assert create().embedded == 10
    assert "Discarding an unfinished run of 6 images" in caplog.text
    assert_gallery(tmp_path / "out", *expected_of(files))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embedder": FakeEmbedder(weights="other")}, "made with weights w.*here it is other"),
        ({"embedder": FakeEmbedder(dimension=6)}, "made with dimension 5, but here it is 6"),
        ({"pid_from": "filename"}, "pid_from None.*'filename'.*run without --resume"),
    ],
)
def test_resume_with_other_options(create, files, tmp_path, options, message):
    start_and_stop(create, files)
    with pytest.raises(UserError, match=message):
        create(resume=True, **options)
    assert create(resume=True).embedded == 4  # nothing was lost by asking


@pytest.mark.parametrize("content", [None, b"cut off"])
def test_resume_without_the_rows(create, files, tmp_path, content):
    start_and_stop(create, files)
    path = tmp_path / "out/embeddings.parts/00000001.npy"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(UserError, match=r"remove (both|.*00000001.json) to embed that chunk again"):
        create(resume=True)


def test_append(create, files, tmp_path):
    create(append=True)  # nothing to extend yet
    old_rows, old_paths = expected_of(files)
    (files / "a_new.png").write_text("new")
    embedder = FakeEmbedder()
    created = create(embedder, append=True)
    assert (created.count, created.embedded, embedder.seen) == (11, 1, ["a_new.png"])
    new = str(files / "a_new.png")
    assert_gallery(tmp_path / "out", [*old_rows, FakeEmbedder().row(new)], [*old_paths, new])
    before = (tmp_path / "out/embeddings.npy").stat().st_mtime_ns
    assert create(append=True).embedded == 0
    assert (tmp_path / "out/embeddings.npy").stat().st_mtime_ns == before
    other = tmp_path / "other"
    other.mkdir()
    (other / "x.png").write_text("x")
    assert create(root=other, append=True).count == 12


def test_append_knows_files_by_whatever_name(create, files, tmp_path, monkeypatch, caplog):
    create()
    monkeypatch.chdir(tmp_path)
    for root in ("files", "./files", f"{tmp_path}/out/../files/"):
        assert create(root=root, append=True).embedded == 0
    (files / "a_new.png").write_text("new")
    assert create(root="files", append=True).count == 11
    assert "not in" not in caplog.text


def test_append_keeps_rows_of_files_that_have_gone(create, files, tmp_path, caplog):
    create()
    rows, paths = expected_of(files)
    for path in paths[:2]:
        Path(path).unlink()
    assert create(append=True).count == 10
    assert_gallery(tmp_path / "out", rows, paths)
    assert f"2 images of the gallery are not in {files}; their rows stay" in caplog.text


def test_append_to_a_gallery_without_description(create, files, tmp_path, caplog):
    """As the original wrote it, here with numbers of another width and order."""
    out = tmp_path / "out"
    create()
    rows, paths = expected_of(files)
    np.save(out / "embeddings.npy", np.asfortranarray(rows[:4].astype(">f8")))
    np.save(out / "paths.npy", np.array(paths[:4]))
    (out / "gallery.json").unlink()
    assert create(append=True).embedded == 6
    assert_gallery(out, rows, paths)
    assert f"Nothing in {out} tells which model made its rows" in caplog.text


@pytest.mark.parametrize(
    ("first", "then", "message"),
    [
        ({}, {"embedder": FakeEmbedder(dimension=6)}, "made with dimension 5, but here it is 6"),
        ({}, {"embedder": FakeEmbedder(weights="other")}, "made with weights w"),
        ({"pid_from": "filename"}, {}, "a row for each of its identities: --append needs MODEL.USE_CENTROIDS True"),
        ({"pid_from": "parent"}, {"pid_from": "filename"}, "and --pid-from parent, or another OUTPUT_DIR"),
        ({}, {"pid_from": "filename"}, "a row for each of its images: --append needs MODEL.USE_CENTROIDS False"),
    ],
)
def test_append_to_another_gallery(create, files, tmp_path, first, then, message):
    create(**first)
    before = (tmp_path / "out/embeddings.npy").read_bytes()
    (files / "a_new.png").write_text("new")
    with pytest.raises(UserError, match=message):
        create(append=True, **then)
    assert (tmp_path / "out/embeddings.npy").read_bytes() == before
    read_gallery(tmp_path / "out")


def test_skip_lists_what_was_left_out(create, files, tmp_path, caplog):
    for name in ("p_0.png", "q_5.png", "ü_bad.png"):
        (files / name).write_text("bad")
    created = create(on_error="skip")
    bad = [str(files / name) for name in ("p_0.png", "q_5.png", "ü_bad.png")]
    assert created.count == 8
    assert list(created.skipped) == bad
    assert (tmp_path / "out/skipped.txt").read_text(encoding="utf-8").splitlines() == bad
    assert f"skipped {bad[0]}: {bad[0]} is bad." in caplog.text
    assert not set(read_gallery(tmp_path / "out").paths) & set(bad)
    (files / "p_0.png").write_text("mended")
    (files / "ü_bad.png").unlink()
    assert create(on_error="skip", append=True).embedded == 1
    assert (tmp_path / "out/skipped.txt").read_text(encoding="utf-8").splitlines() == bad[1:2]
    (files / "q_5.png").write_text("mended")
    assert create(on_error="skip", append=True).embedded == 1
    assert not (tmp_path / "out/skipped.txt").exists()


def test_an_append_from_elsewhere_keeps_what_skipped_txt_lists(create, files, tmp_path):
    for name in ("p_0.png", "q_5.png"):
        (files / name).write_text("bad")
    create(on_error="skip")
    more = tmp_path / "more"
    more.mkdir()
    (more / "r_1.png").write_text("new")
    (more / "r_2.png").write_text("bad")
    assert create(root=more, on_error="skip", append=True).embedded == 1
    bad = [str(path) for path in (files / "p_0.png", files / "q_5.png", more / "r_2.png")]
    assert (tmp_path / "out/skipped.txt").read_text(encoding="utf-8").splitlines() == bad
    (files / "q_5.png").write_text("mended")
    assert create(root=tmp_path, in_subfolders=True, on_error="skip", append=True).embedded == 1
    assert (tmp_path / "out/skipped.txt").read_text(encoding="utf-8").splitlines() == [bad[0], bad[2]]


def test_nothing_that_can_be_read(create, files, tmp_path):
    for path in files.iterdir():
        path.write_text("bad")
    with pytest.raises(UserError, match="none of the 10 images"):
        create(on_error="skip")
    assert not list((tmp_path / "out").iterdir())


def test_an_image_without_identity_is_known_of_before_embedding(create, files):
    (files / "nobody.png").write_text("x")
    embedder = FakeEmbedder()
    with pytest.raises(UserError, match="nobody.png"):
        create(embedder, pid_from="filename")
    assert not embedder.seen


def test_a_folder_that_cannot_be_written(create, files, tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UserError, match="OUTPUT_DIR: cannot write to"):
        create()


# ----------------------------------------------------------------------------------------------------------- galleries


def write(folder, embeddings, paths):
    folder.mkdir(exist_ok=True)
    np.save(folder / "embeddings.npy", embeddings)
    np.save(folder / "paths.npy", paths)
    return folder


@pytest.mark.parametrize(
    ("embeddings", "paths", "message"),
    [
        (np.zeros((3, 4), np.float32), np.array(["a", "b"]), "has 3 rows but .*paths.npy has 2"),
        (np.zeros(3, np.float32), np.array(["a", "b", "c"]), r"embeddings.npy has the shape \[3\]"),
        (np.zeros((3, 4), np.int64), np.array(["a", "b", "c"]), "of int64"),
        (np.zeros((3, 4), np.float32), np.arange(3), "paths.npy has the shape .* expected text"),
        (np.zeros((3, 4), np.float32), np.array(["a", 1, None], dtype=object), "paths.npy cannot be read"),
    ],
)
def test_galleries_that_do_not_fit(tmp_path, embeddings, paths, message):
    with pytest.raises(UserError, match=message):
        read_gallery(write(tmp_path / "g", embeddings, paths))


def test_galleries_that_are_not_there(tmp_path, create, files):
    with pytest.raises(MissingPathError, match="embeddings.npy does not exist"):
        read_gallery(tmp_path)
    start_and_stop(create, files)
    with pytest.raises(MissingPathError, match="There is an unfinished run: --resume finishes it"):
        read_gallery(tmp_path / "out")
    (tmp_path / "embeddings.npy").write_bytes(b"\x93NUMPY cut off")
    (tmp_path / "paths.npy").touch()
    with pytest.raises(UserError, match="embeddings.npy cannot be read"):
        read_gallery(tmp_path)


def test_comparable(tmp_path, create, caplog):
    create()
    found = read_gallery(tmp_path / "out")
    check_comparable(found, FakeEmbedder().identity, "g")
    assert not caplog.text
    check_comparable(found, FakeEmbedder(weights="other").identity, "g")
    assert "The gallery in g and the queries differ in weights" in caplog.text
    with pytest.raises(UserError, match="g has 5 dimensions, but the queries have 6"):
        check_comparable(found, FakeEmbedder(dimension=6).identity, "g")


@pytest.mark.parametrize("content", ["something else", "{}", "[]"])
def test_a_run_that_is_none(create, tmp_path, content):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "embeddings.run.json").write_text(content)
    with pytest.raises(UserError, match="embeddings.run.json is damaged .*: remove it, which discards"):
        create()


# ------------------------------------------------------------------------------------------------------------- labels


def labelled(files, pids=None, camids=None, order=None):
    paths = get_all_images(files)[:: order or 1]
    pids = [int(Path(path).name[2:-4]) // 3 for path in paths] if pids is None else pids
    camids = [int(Path(path).name[2:-4]) % 2 for path in paths] if camids is None else camids
    source = {"data_set": "a table", "subset": "gallery"}
    return LabelledImages(paths, list(zip(pids, camids, strict=True)), source)


@pytest.fixture
def embed(files, tmp_path):
    def run(images, embedder=None, **options):
        source = folder_source(files, chunk_size=3) if images is None else labelled_source(files, images, 3)
        options = GalleryOptions(progress=False, **options)
        return create_gallery(embedder or FakeEmbedder(), source, tmp_path / "out", options)

    return run


def assert_labels(folder, images, left_out=()):
    kept = [(path, label) for path, label in zip(images.paths, images.labels, strict=True) if path not in left_out]
    paths, labels = zip(*kept, strict=True)
    assert_gallery(folder, [FakeEmbedder().row(path) for path in paths], paths)
    pids, camids = np.load(folder / "pids.npy"), np.load(folder / "camids.npy")
    assert list(zip(pids.tolist(), camids.tolist(), strict=True)) == list(labels)
    assert read_gallery(folder).labels == list(labels)
    return pids.dtype, camids.dtype


def test_labels_stand_beside_their_rows(embed, files, tmp_path):
    images = labelled(files, order=-1)  # not in the order of the names
    embed(images)
    assert assert_labels(tmp_path / "out", images) == (np.int64, np.int64)
    assert json.loads((tmp_path / "out/gallery.json").read_text())["source"] == images.source
    names = labelled(files, pids=["ann, a", "bö\udcff", *"cdefghij"], camids=["door"] * 10)
    embed(names)
    assert [dtype.kind for dtype in assert_labels(tmp_path / "out", names)] == ["U", "U"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == FINAL | {"pids.npy", "camids.npy"}


def test_no_labels_are_left_of_an_earlier_gallery(embed, create, files, tmp_path):
    embed(labelled(files))
    embed(labelled(files, camids=[None] * 10))
    assert {path.name for path in (tmp_path / "out").iterdir()} == FINAL | {"pids.npy"}
    create()
    assert {path.name for path in (tmp_path / "out").iterdir()} == FINAL
    assert read_gallery(tmp_path / "out").labels == []


def test_skipped_images_have_no_label(embed, files, tmp_path):
    for name in ("r_2.png", "p_8.png"):
        (files / name).write_bytes(b"bad")
    images = labelled(files)
    assert len(embed(images, on_error="skip").skipped) == 2
    assert_labels(tmp_path / "out", images, {str(files / "r_2.png"), str(files / "p_8.png")})


def test_labels_survive_an_interruption(embed, files, tmp_path):
    """An image twice, with two labels, where the run stops between both."""
    images = labelled(files)
    images.paths.append(images.paths[0])
    images.labels.append((-5, 5))
    (files / "s_7.png").write_bytes(b"bad")
    with pytest.raises(UserError, match="--resume"):
        embed(images)
    (files / "s_7.png").write_bytes(b"good")
    again = FakeEmbedder()
    embed(images, again, resume=True)
    assert 0 < len(again.seen) < 11
    assert_labels(tmp_path / "out", images)
    embed(images, again, resume=True)
    assert len(again.seen) < 11  # complete already
    images.labels[3] = (55, 0)
    embed(images, again, resume=True)  # other labels: another gallery
    assert_labels(tmp_path / "out", images)


def test_a_run_with_other_labels_is_not_continued(embed, files):
    images = labelled(files)
    (files / "s_7.png").write_bytes(b"bad")
    with pytest.raises(UserError, match="--resume"):
        embed(images)
    images.labels[0] = (9, 1)
    with pytest.raises(
        UserError, match=r"has identity 0, camera 0 for .*p_0.png, but here it is identity 9, camera 1: run"
    ):
        embed(images, resume=True)
    with pytest.raises(UserError, match="unfinished run .* has source"):
        embed(None, resume=True)


def test_append_extends_the_labels_or_refuses(embed, create, files, tmp_path):
    images = labelled(files)
    first = LabelledImages(images.paths[:4], images.labels[:4], images.source)
    embed(first)
    embedder = FakeEmbedder()
    embed(images, embedder, append=True)
    assert len(embedder.seen) == 6
    assert_labels(tmp_path / "out", images)
    for wrong, message in (
        (labelled(files, pids=[str(i) for i in range(10)]), "has numbers for identities, but here are names"),
        (labelled(files, camids=[None] * 10), "has numbers for cameras, but here are none"),
        (
            labelled(files, camids=[4] * 10),
            r"has identity 0, camera 0 for .*p_0.png, but here it is identity 0, camera 4",
        ),
        (None, "has identities of its images, but here are none: append images whose labels agree"),
    ):
        with pytest.raises(UserError, match=message):
            embed(wrong, append=True)
    assert_labels(tmp_path / "out", images)
    create()
    with pytest.raises(UserError, match="has none, but here are identities of its images"):
        embed(images, append=True)


def test_labels_that_do_not_fit(embed, files, tmp_path):
    embed(labelled(files))
    for wrong in (np.arange(9), np.zeros((10, 1), int), np.zeros(10)):
        np.save(tmp_path / "out/pids.npy", wrong)
        with pytest.raises(UserError, match=r"pids.npy has the shape .* expected whole numbers or text \[10\]"):
            read_gallery(tmp_path / "out")


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"embedder": 3}'])
def test_a_damaged_description_is_said(create, tmp_path, content):
    create()
    (tmp_path / "out/gallery.json").write_bytes(content)
    with pytest.raises(UserError, match=r"gallery.json is damaged .*, so nothing tells which model made the gallery"):
        read_gallery(tmp_path / "out")


def test_a_damaged_gallery_is_embedded_again_with_a_word(create, tmp_path, caplog):
    create()
    (tmp_path / "out/gallery.json").write_bytes(b"{")
    assert create(resume=True).embedded == 10
    assert "All images are embedded again: " in caplog.text
