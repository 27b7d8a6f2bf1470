"""Images that a text file or a table lists, here and behind URLs."""

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from inference.galleries.opening import open_source
from inference.galleries.sources import CHUNK
from tests.inference.galleries.test_shards import everything, jpeg
from utils.errors import MissingPathError, UserError


@pytest.fixture
def folder(tmp_path):
    """The folder of two images, one in a subfolder; behind memory://listed too."""
    for root in (str(tmp_path), "memory://listed"):
        for number, name in enumerate(("ä 1.jpg", "in/2.jpg")):
            with fsspec.open(f"{root}/{name}", "wb", auto_mkdir=True) as file:
                file.write(jpeg(number))
    return tmp_path


def write(path, text, encoding="utf-8"):
    with fsspec.open(str(path), "wb") as file:
        file.write(text.encode(encoding, "surrogateescape"))
    return str(path)


def test_a_list_here(folder):
    text = "\ufeffä 1.jpg\r\n\n" + f"{folder}/in/2.jpg\nmemory://listed/in/2.jpg"
    source = open_source(write(folder / "all.txt", text))
    items = everything(source)
    first, second = f"{folder}/ä 1.jpg", f"{folder}/in/2.jpg"
    assert [item.path for item in items] == [first, second, "memory://listed/in/2.jpg"]
    assert [item.image for item in items[:2]] == [first, second]
    assert items[2].image.read() == jpeg(1)
    assert {item.label for item in items} == {None}
    assert source.about["root"] == str(folder)


def test_a_list_behind_a_url(folder, embedder):
    source = open_source(write("memory://listed/all.txt", "ä 1.jpg\nin/2.jpg\nin/3.jpg\n"))
    items = everything(source)
    assert [item.path for item in items] == [f"memory://listed/{name}" for name in ("ä 1.jpg", "in/2.jpg", "in/3.jpg")]
    (batch,) = embedder.embed_batches([item.image for item in items], "skip")
    assert "memory://listed/in/3.jpg does not exist" in str(batch.errors[2])
    np.testing.assert_array_equal(batch.embeddings, embedder.embed([jpeg(0), jpeg(1)]))


def test_images_behind_a_url_without_a_list(folder, caplog):
    write("memory://listed/in/notes.md", "")
    write("memory://listed/all.txt", "")
    source = open_source("memory://listed")
    assert [item.path for item in everything(source)] == ["memory://listed/in/2.jpg", "memory://listed/ä 1.jpg"]
    assert "Passed over in memory://listed: 2 files that are not images." in caplog.text
    assert [item.path for item in everything(open_source("memory://listed/in/*.jpg"))] == ["memory://listed/in/2.jpg"]


def test_a_list_in_chunks_keeps_the_order(folder, tmp_path):
    names = [f"memory://many/{i:05}.jpg" for i in range(CHUNK + 100)]
    for i, name in enumerate(names):
        write(name, str(i))
    source = open_source(write(tmp_path / "many.txt", "\n".join(names)))
    assert [chunk.count for chunk in source.chunks()] == [CHUNK, 100]
    assert [int(item.image.read()) for item in everything(source)] == list(range(CHUNK + 100))
    first = source.read(source.chunks()[0])
    next(first)
    first.close()  # ends its threads


def test_a_name_that_is_no_text(folder):
    name = "\udcff.jpg"  # the byte 255
    (folder / name).touch()  # a warning with this name could not be sent to pytest's main process
    items = everything(open_source(write(folder / "all.txt", name)))
    assert items[0].path == f"{folder}/{name}"


TABLE = [["ä 1.jpg", "7", "1"], ["in/2.jpg", "8", "2"]]


def save_table(path, rows, header=("path", "pid", "camid")):
    if str(path).endswith(".csv"):
        return write(path, "\n".join(",".join(row) for row in [header, *rows]))
    columns = {name: [row[i] for row in rows] for i, name in enumerate(header)}
    with fsspec.open(str(path), "wb") as file:
        pq.write_table(pa.table(columns), file)
    return str(path)


@pytest.mark.parametrize("root", ["", "memory://listed"])
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table(folder, root, suffix):
    root = root or str(folder)
    source = open_source(save_table(f"{root}/all{suffix}", TABLE))
    items = everything(source)
    assert [item.path for item in items] == [f"{root}/ä 1.jpg", f"{root}/in/2.jpg"]
    assert [item.label for item in items] == [(7, 1), (8, 2)]
    other = open_source(save_table(f"{root}/all{suffix}", [TABLE[0], ["in/2.jpg", "9", "2"]]))
    assert source.digest() != other.digest()


@pytest.mark.parametrize(
    ("header", "rows", "fields", "labels"),
    [
        (("path", "note"), [["a.jpg", "x"]], None, [None]),
        (("path", "pid"), [["a.jpg", "007"], ["b.jpg", "7"]], None, [("007", None), ("7", None)]),
        (("path", "pid", "camid"), [["a.jpg", "1", ""], ["b.jpg", "2", ""]], None, [(1, None), (2, None)]),
        (("who", "path", "cam"), [["Ann", "a.jpg", "left"]], ["who", "cam"], [("Ann", "left")]),
        (("path", "camid"), [["a.jpg", "1"]], None, [None]),
        (("path", "camid"), [["a.jpg", "1"]], ["camid"], [(1, None)]),
    ],
)
def test_labels_of_a_table(tmp_path, header, rows, fields, labels):
    source = open_source(save_table(tmp_path / "a.csv", rows, header), fields)
    assert [item.label for item in everything(source)] == labels


def test_passwords_that_a_gallery_would_hold_are_told(tmp_path, caplog):
    (tmp_path / "a.txt").write_text("memory://me:secret@host/a.jpg\n")
    open_source(str(tmp_path / "a.txt"))
    assert "a.txt: addresses with a password, which the gallery will hold" in caplog.text
    assert "secret" not in caplog.text


def test_cameras_without_identities_are_passed_over_and_said(tmp_path, caplog):
    open_source(save_table(tmp_path / "a.csv", [["a.jpg", "1"]], ("path", "camid")))
    assert "has cameras but no column pid: the gallery gets neither." in caplog.text


@pytest.mark.parametrize(
    ("name", "text", "error"),
    [
        ("a.txt", "\n \r\n", "a.txt lists no images"),
        ("a.txt", "x.jpg\nb.jpg\nx.jpg", "a.txt, line 3: x.jpg is listed above already; leave one of them out"),
        ("a.csv", "path,pid\n", "a.csv lists no images"),
        ("a.csv", "", "a.csv has no column path; found nothing, expected path and optionally pid, camid"),
        ("a.csv", "file\nx.jpg", "a.csv has no column path; found file"),
        ("a.csv", "path,path\nx.jpg,y.jpg", "a.csv has two columns named path"),
        ("a.csv", "path,pid,pid\nx.jpg,1,2", "a.csv has two columns named pid"),
        ("a.csv", "path,pid\nx.jpg,1\ny.jpg,", "a.csv, line 3: pid is empty"),
        ("a.csv", "path,pid\nx.jpg,1\n,2", "a.csv, line 3: path is empty"),
        ("a.csv", "path,pid,camid\nx.jpg,1,1\ny.jpg,1,", "a.csv: some images have a camera, some have none"),
        ("a.csv", "path,pid\nx.jpg,1\nx.jpg,2", "a.csv, line 3: x.jpg is listed above already"),
        ("a.txt", "x.jpg\n././/x.jpg", "a.txt, line 2: ././/x.jpg is listed above already"),
        ("a.parquet", "path", "a.parquet cannot be read as a Parquet file"),
        ("a.json", "", "a.json is not one of the sources: expected a list"),
    ],
)
@pytest.mark.parametrize("root", ["", "memory://wrong"])
def test_what_cannot_be_used_is_named(tmp_path, root, name, text, error):
    path = write(f"{root or tmp_path}/{name}", text)
    with pytest.raises(UserError) as raised:
        open_source(path)
    assert f"{root or tmp_path}/{error}" in str(raised.value)


def test_label_fields(tmp_path):
    table = save_table(tmp_path / "a.csv", [["a.jpg", "1"]], ("path", "who"))
    with pytest.raises(UserError, match=r"a.csv has no column where; found path, who, expected path, who, where\."):
        open_source(table, ["who", "where"])
    twice = save_table(tmp_path / "b.csv", [["a.jpg", "1", "1"]], ("path", "who", "who"))
    with pytest.raises(UserError, match="b.csv has two columns named who"):
        open_source(twice, ["who"])
    with pytest.raises(UserError, match="--label-fields has no use for .*a.txt, which lists paths alone"):
        open_source(write(tmp_path / "a.txt", "a.jpg"), ["who"])


def test_other_files_and_missing_ones(tmp_path, caplog):
    with pytest.raises(UserError, match=r"a.txt is no text in UTF-8 \(it has zero bytes, as UTF-16 does\)"):
        open_source(write(tmp_path / "a.txt", "a.jpg", "utf-16"))
    for name in ("nothing.txt", "nothing.csv", "nothing.pq"):
        with pytest.raises(MissingPathError, match=f"{name} does not exist"):
            open_source(str(tmp_path / name))
    with pytest.raises(UserError, match="nothere://a/b.txt cannot be read"):
        open_source("nothere://a/b.txt")
    with pytest.raises(UserError, match="nothere://a.jpg cannot be read"):
        open_source(write(tmp_path / "b.txt", "nothere://a.jpg"))
    open_source(write(tmp_path / "c.txt", "gone.jpg"))
    assert f"the first image, {tmp_path}/gone.jpg, does not exist. Relative paths start from the folder" in caplog.text
