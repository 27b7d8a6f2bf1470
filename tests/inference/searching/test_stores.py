"""Galleries in Milvus: the same results, written once, replaced whole."""

import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pymilvus
import pytest
from milvus_lite.adapter.grpc.server import start_server_in_thread
from milvus_lite.server_manager import server_manager_instance

from inference.searching import stores
from inference.searching.search import SearchOptions, search, search_gallery
from inference.searching.stores import MilvusStore
from utils.errors import UserError


def drawn(rows, seed, dims=16):
    return np.random.default_rng(seed).standard_normal((rows, dims)).astype(np.float32)


def names(rows):
    return [f"gallery/ä {i}.jpg" for i in range(rows - 1)] + ["gallery/\udcff.jpg"]  # the last is not UTF-8 on disk


QUERY = drawn(150, 1)


def found(uri, gallery, paths=None, **options):
    paths = names(len(gallery)) if paths is None else paths
    return search(QUERY, gallery, SearchOptions(store=f"milvus:{uri}", **options), gallery_paths=paths)


@pytest.fixture
def file(tmp_path):
    return str(tmp_path / "new folder" / "gallery.db")


@pytest.fixture
def server(tmp_path):
    """A Milvus server in another folder: the embedded one, reached through its address."""
    running, database, port = start_server_in_thread(str(tmp_path / "server"))
    yield f"http://127.0.0.1:{port}"
    running.stop(grace=0)
    database.close()


@pytest.fixture
def client(file):
    """The embedded store as another program sees it."""
    opened = []
    Path(file).parent.mkdir()

    def connect():
        opened.append(pymilvus.MilvusClient(file))
        return opened[-1]

    yield connect
    for one in opened:
        one.close()
    server_manager_instance.release_server(file)


@pytest.mark.parametrize(
    "options", [{}, {"normalize": True, "topk": 7}, {"metric": "cosine", "max_distance": 0.6}], ids=str
)
def test_embedded_search_is_exact(file, options):
    gallery = drawn(400, 0)
    result = found(file, gallery, **options)
    indices, distances = search_gallery(QUERY, gallery, **options)
    assert result.recall == 1.0
    assert result.note == f"milvus:{file}: recall@{indices.shape[1]} 1.0000 against exact search, over 50 queries"
    np.testing.assert_allclose(result.distances, distances, rtol=1e-4, atol=1e-5)
    assert (result.indices == indices).mean() > 0.995  # rounding swaps some that are as good as equal


def test_a_server_is_searched_in_the_same_way(server):
    gallery = drawn(400, 0)
    for topk in (10, 3):
        result = found(f"{server}#shoes", gallery, topk=topk)
        assert result.recall > 0.95
        assert result.indices.shape == (150, topk)
    client = pymilvus.MilvusClient(server)
    assert client.describe_alias("shoes")["collection_name"] == client.list_collections()[0]
    client.close()


def test_gallery_is_written_once_and_replaced_when_it_changes(file, client):
    gallery = drawn(300, 0)
    other = gallery.copy()
    other[299] += 1
    galleries = [
        (gallery, names(300)),
        (gallery, names(300)),
        (other, names(300)),
        (other, names(301)[1:]),  # other names
        (other[:200], names(200)),
    ]
    written = []
    for embeddings, paths in galleries:
        store = MilvusStore(file, "gallery")
        written.append(store.keep(embeddings, paths, unit=False))
        indices, _ = store.search(embeddings[-2:], 1, unit=False)
        assert indices[:, 0].tolist() == [len(embeddings) - 2, len(embeddings) - 1]
        store.close()
    assert written == [True, False, True, True, True]
    assert len(client().list_collections()) == 1


def test_other_programs_read_the_gallery_by_its_name(file, client):
    gallery = drawn(30, 0)
    found(file, gallery)
    found(file, gallery, normalize=True)
    milvus = client()
    milvus.load_collection("gallery")
    hit = milvus.search("gallery", data=[gallery[12] + 0.01], limit=1, output_fields=["path", "embedding"])[0][0]
    assert hit["id"] == 12
    assert hit["entity"]["path"] == "gallery/ä 12.jpg"
    np.testing.assert_allclose(hit["entity"]["embedding"], gallery[12])
    milvus.load_collection("gallery_unit")
    unit = milvus.get("gallery_unit", ids=[12], output_fields=["embedding"])[0]["embedding"]
    assert np.linalg.norm(unit) == pytest.approx(1)


def test_an_interrupted_write_leaves_the_old_gallery(file, client, monkeypatch):
    old, new = drawn(100, 0), drawn(300, 2)
    found(file, old)
    monkeypatch.setattr(stores, "INSERT_BYTES", 4 * 16 * 100)
    store = MilvusStore(file, "gallery")
    insert, calls = pymilvus.MilvusClient.insert, []

    def cut_off(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return insert(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pymilvus.MilvusClient, "insert", cut_off)
        store.keep(new, names(300), unit=False)
    assert store.search(old[[42]], 1, unit=False)[0].tolist() == [[42]]
    store.close()

    assert found(file, new, topk=5).recall == 1.0
    assert len(client().list_collections()) == 1


def test_collections_of_others_are_left_alone(file, client):
    milvus = client()
    for name in ("gallery", "gallery_of_cars", "other_0123456789abcdef"):
        milvus.create_collection(name, dimension=4)
    milvus.close()
    with pytest.raises(UserError, match=r"collection gallery that was not made by this program.*#NAME"):
        found(file, drawn(30, 0))
    found(f"{file}#mine", drawn(30, 0))
    left = [name for name in client().list_collections() if not name.startswith("mine_")]
    assert sorted(left) == ["gallery", "gallery_of_cars", "other_0123456789abcdef"]


def test_fewer_items_than_asked_for(file):
    result = found(file, drawn(5, 0), topk=100)
    assert result.indices.shape == (150, 5)
    assert (np.sort(result.indices, 1) == np.arange(5)).all()


def test_errors_are_explained(file, capfd):
    gallery = drawn(30, 0)
    with pytest.raises(UserError, match="30 embeddings but 29 paths"):
        found(file, gallery, names(29))
    with pytest.raises(UserError, match="at most 16384 results"):
        found(file, np.zeros((16385, 16), np.float32), topk=0)
    with pytest.raises(UserError, match="path is 70000 bytes long"):
        found(file, gallery, ["x" * 70000] * 30)
    with pytest.raises(UserError, match=r"the store http://127.0.0.1:1 answers: .*connect"):
        found("http://127.0.0.1:1", gallery)
    (Path(file).parent.parent / "taken").write_text("")
    with pytest.raises(UserError, match=r"taken/a.db cannot be used .*name another file"):
        found(str(Path(file).parent.parent / "taken" / "a.db"), gallery)
    assert "Traceback" not in capfd.readouterr().err


def test_a_file_of_another_program_is_left_alone(tmp_path):
    other = tmp_path / "mine.db"
    with closing(sqlite3.connect(other)) as database:
        database.execute("create table t (a)")
        database.commit()
    before = other.read_bytes()
    with pytest.raises(UserError, match=r"mine.db cannot be opened .*expected a store of Milvus.*: name another one"):
        found(str(other), drawn(30, 0))
    assert other.read_bytes() == before


@pytest.mark.parametrize("package", ["pymilvus", "milvus_lite"])
def test_missing_packages_are_named(package, file, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"needs the package {package}.*pip install 'centroids-reid\[search\]'"):
        found(file, drawn(30, 0))
