"""Images in tar files, here and behind URLs."""

import gzip
import io
import json
import tarfile
import threading
import tracemalloc

import fsspec
import numpy as np
import pytest
from PIL import Image

from inference.galleries import shards
from inference.galleries.opening import open_source
from utils import remote
from utils.errors import MissingPathError, UserError


def jpeg(seed, size=(16, 32)):
    stream = io.BytesIO()
    colour = tuple(np.random.default_rng(seed).integers(0, 256, 3).tolist())
    Image.new("RGB", size, colour).save(stream, "JPEG")
    return stream.getvalue()


def tar_bytes(members):
    """An archive of (name, content); a content that is text is a link to that name."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in members:
            header = tarfile.TarInfo(name)
            if isinstance(content, str):
                header.type, header.linkname = tarfile.SYMTYPE, content
                archive.addfile(header)
            else:
                header.size = len(content)
                archive.addfile(header, io.BytesIO(content))
    return stream.getvalue()


def labelled(names, first=0):
    """Samples of a person and a camera each."""
    for number, name in enumerate(names, first):
        yield f"{name}.json", json.dumps({"pid": number // 2, "camid": number % 2, "note": "x"}).encode()
        yield f"{name}.jpg", jpeg(number)


@pytest.fixture
def put(tmp_path):
    """Write a tar file; the name may be a URL."""

    def write(name, members, edit=lambda content: content):
        content = edit(tar_bytes(members) if not isinstance(members, bytes) else members)
        path = name if "://" in name else str(tmp_path / name)
        with fsspec.open(path, "wb") as file:
            file.write(content)
        return path

    return write


def everything(source):
    return [item for chunk in source.chunks() for item in source.read(chunk)]


@pytest.mark.parametrize("place", ["", "memory://people/"])
def test_each_shard_is_a_chunk_in_order(put, tmp_path, place):
    names = [put(f"{place}{number:03}.tar", labelled([f"{number}/ü_{i}" for i in range(3)])) for number in (9, 10, 11)]
    root = place.rstrip("/") or str(tmp_path)
    for pattern in (f"{root}/{{009..011}}.tar", f"{root}/*.tar", root):
        source = open_source(pattern)
        assert [chunk.name for chunk in source.chunks()] == names
        items = everything(source)
        assert [item.path for item in items] == [
            f"{root}/{n:03}.tar/{n}/ü_{i}.jpg" for n in (9, 10, 11) for i in range(3)
        ]
        assert [item.label for item in items] == 3 * [(0, 0), (0, 1), (1, 0)]
        assert items[4].image.read() == jpeg(1)
        assert source.about == {"root": root, "in_subfolders": False, "source": {"from": pattern}}
    assert source.digest() == open_source(f"{root}/*.tar").digest() != open_source(f"{root}/*1*.tar").digest()
    put(f"{place}010.tar", labelled(["a"]))
    assert source.digest() != open_source(root).digest()


def test_an_embedder_takes_the_images_and_names_a_bad_one(put, embedder):
    path = put("a.tar", [*labelled("ab"), ("c.json", b'{"pid": 5, "camid": 0}'), ("c.jpg", b"no image")])
    items = everything(open_source(path))
    (batch,) = embedder.embed_batches([item.image for item in items], "skip")
    assert batch.kept == [0, 1]
    assert f"{path}/c.jpg" in str(batch.errors[2])
    np.testing.assert_array_equal(batch.embeddings, embedder.embed([jpeg(0), jpeg(1)]))


@pytest.mark.parametrize("suffix", [".tar.gz", ".tgz"])
def test_compressed(put, suffix):
    path = put(f"a{suffix}", labelled("abc"), gzip.compress)
    assert len(everything(open_source(path))) == 3
    half = put(f"half{suffix}", labelled([f"{i}" for i in range(200)]), lambda content: gzip.compress(content)[:-3000])
    whole, error = until_error(open_source(half), half)
    assert 0 < len(whole) < 200
    assert "cannot be read to its end as a tar file" in error


def until_error(source, path):
    """The items of a shard up to its error."""
    items = []
    with pytest.raises(UserError, match=f"^{path}") as raised:
        for item in source.read(next(chunk for chunk in source.chunks() if chunk.name == path)):
            items.append(item)
    return items, str(raised.value)


@pytest.mark.parametrize("missing", [10240 - 2 * 512 - 1, 10240, 10240 + 300, 1024])
def test_a_truncated_archive_gives_what_is_whole_and_is_named(put, missing):
    """Cut inside an image, inside a header, and where a member ends, which tarfile takes for the end."""
    members = list(labelled([f"{i}" for i in range(20)]))
    content = tar_bytes(members).rstrip(b"\0")
    content += b"\0" * (-len(content) % 512)  # without the mark of the end
    path = put("a.tar", content, lambda content: content[: len(content) - missing + 1024])
    whole, error = until_error(open_source(path), path)
    assert [item.image.read() for item in whole] == [jpeg(i) for i in range(len(whole))]
    assert 5 < len(whole) <= 20
    assert "members before that are whole. Copy or make it anew." in error


def test_a_damaged_header_is_not_taken_for_the_end(put):
    content = bytearray(tar_bytes(labelled("abcdef")))
    place = content.index(b"d.json")
    content[place : place + 6] = b"damage"
    path = put("a.tar", bytes(content))
    whole, error = until_error(open_source(path), path)
    assert len(whole) == 2  # the third might have had more members
    assert "a header is damaged" in error


def test_a_broken_shard_does_not_hide_the_others(put, tmp_path):
    bad, good = put("0.tar", b"no archive at all" * 99), put("1.tar", labelled("ab"))
    source = open_source(str(tmp_path / "*.tar"))
    assert until_error(source, bad)[0] == []
    assert len(list(source.read(source.chunks()[1]))) == 2
    assert good in source.chunks()[1].name


def test_members_that_are_no_images(put, caplog):
    path = put(
        "a.tar",
        [
            *(("readme.txt", b"x"), ("1.jpg", jpeg(1)), ("1.mask.png", jpeg(2)), ("1.txt", b"x"), ("._1.jpg", b"x")),
            *(("2.txt", "1.txt"), ("3.txt", b"x"), ("./4.jpg", jpeg(4))),
        ],
    )
    names = [item.path.removeprefix(f"{path}/") for item in everything(open_source(path))]
    assert names == ["1.jpg", "1.mask.png", "4.jpg"]
    assert f"Passed over in {path}: 2 samples without an image, such as 'readme.txt'." in caplog.messages


@pytest.mark.parametrize(
    ("members", "text"),
    [
        ([], "holds no images"),
        ([("a.txt", b"")], "holds no images"),
        ([("a.jpg", b"x"), ("a.jpg", b"x")], "has two members called a.jpg"),
        ([("a.jpg", b"x"), ("b.jpg", "a.jpg")], "b.jpg is a symbolic link: write it with tar --dereference"),
        ([("a.jpg", b"x"), ("a.json", b"{")], "/a.json cannot be read as JSON"),
        ([("a.jpg", b"x"), ("a.json", b"[7]")], "/a.json holds a list"),
        (
            [("a.jpg", b"x"), ("a.json", b'{"pid": [7]}')],
            r"/a.json: pid is \[7\]; expected a whole number of up to 18 digits, or text",
        ),
        ([("a.jpg", b"x"), ("a.json", b'{"pid": 12345678901234567890}')], "expected a whole number of up to 18 digits"),
        ([("a.jpg", b"x"), ("a.json", b'{"pid": "a\\u0000b"}')], "expected a whole number of up to 18 digits, or text"),
        ([("a.jpg", b"x"), ("a.cls", b"cat")], "/a.cls holds 'cat'; expected the number"),
    ],
)
def test_what_cannot_be_used_is_named(put, members, text):
    path = put("a.tar", members)
    with pytest.raises(UserError, match=f"^{path}.*{text}"):
        open_source(path)


def test_sources_that_are_not_there(put, tmp_path):
    put("000.tar", labelled("a"))
    for name in ("{000..002}.tar", "001.tar"):
        with pytest.raises(MissingPathError, match="001.tar does not exist"):
            open_source(str(tmp_path / name))
    with pytest.raises(MissingPathError, match=r"no file is called .*x\*\.tar; expected a list"):
        open_source(str(tmp_path / "x*.tar"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty holds no tar files .* goes into DATASETS.ROOT_DIR"):
        open_source(str(tmp_path / "empty"))


def test_labels(put):
    names = [("a.jpg", jpeg(0)), ("a.cls", b"3\n"), ("b.jpg", jpeg(1)), ("b.cls", b"4")]
    assert [item.label for item in everything(open_source(put("cls.tar", names)))] == [(3, None), (4, None)]
    asked = [("a.json", b'{"who": "Ann", "where": 2.0}'), ("a.jpg", jpeg(0)), ("a.png", jpeg(0))]
    path = put("fields.tar", asked)
    assert [item.label for item in everything(open_source(path, ["who", "where"]))] == 2 * [("Ann", 2)]
    assert [item.label for item in everything(open_source(path))] == [None, None]
    with pytest.raises(UserError, match=r"/a.json has no name \(--label-fields\); found who, where"):
        open_source(path, ["name"])
    with pytest.raises(UserError, match=r"/a.jpg has no .json member beside it; --label-fields"):
        open_source(put("cls.tar", names), ["who"])


@pytest.mark.parametrize(
    ("last", "text"),
    [
        ([], "has no label, but the first image of all shards has a number for identity and none for camera"),
        ([("b.json", b'{"pid": "Ann"}')], "has a name for identity and none for camera, but"),
    ],
)
def test_labels_of_two_kinds(put, last, text, tmp_path):
    put("0.tar", [("a.jpg", jpeg(0)), ("a.json", b'{"pid": 1}')])
    path = put("1.tar", [("b.jpg", jpeg(0)), *last])
    with pytest.raises(UserError, match=f"^{path}/b.jpg {text}"):
        everything(open_source(str(tmp_path / "*.tar")))


def test_a_shard_is_never_in_memory(put):
    """Nor its members' names; and whoever stops early leaves no thread and no open file behind."""
    noise = np.random.default_rng(0).bytes(200_000)
    path = put("a.tar", [(f"{i:04}.jpg", noise) for i in range(200)])  # 40 MB
    source = open_source(path)
    tracemalloc.start()
    try:
        assert sum(len(item.image.read()) for item in source.read(source.chunks()[0])) == 200 * len(noise)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.5 * shards._BLOCK_BYTES * shards._BLOCKS_AHEAD
    items = source.read(source.chunks()[0])
    next(items)
    items.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("shard")]


def test_a_url_that_fails_for_good_is_named_after_what_was_read(put, monkeypatch):
    monkeypatch.setattr(remote, "WAITS", (0.0, 0.0))
    path = put("memory://lost/a.tar", [(f"{i:04}.jpg", jpeg(i) + bytes(100_000)) for i in range(40)])
    source = open_source(path)
    read = fsspec.implementations.memory.MemoryFile.read

    def fails(self, *count):
        if self.tell() > 2_000_000:
            raise ConnectionResetError("gone")
        return read(self, *count)

    monkeypatch.setattr(fsspec.implementations.memory.MemoryFile, "read", fails)
    whole, error = until_error(source, path)
    assert 5 < len(whole) < 40
    assert "cannot be read, tried 3 times (ConnectionResetError: gone)" in error
