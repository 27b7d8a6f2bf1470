"""create_embeddings.py --from, from the command line to the gallery."""

import numpy as np
import pytest

from inference import create_embeddings
from inference.embedding.embedder import Embedder
from inference.galleries.gallery import read_gallery
from tests.inference.galleries.test_listed import save_table
from tests.inference.galleries.test_shards import jpeg, labelled, tar_bytes

KEYS = ("INPUT.SIZE_TEST", "[64, 32]", "TRAINER.PROGRESS_BAR", "False", "DATALOADER.NUM_WORKERS", "1")


@pytest.fixture
def keys(legacy_checkpoint, tmp_path):
    return ("MODEL.PRETRAIN_PATH", str(legacy_checkpoint), "OUTPUT_DIR", str(tmp_path / "out"), *KEYS)


@pytest.fixture
def shards(tmp_path):
    """Two tar files of six images each, the second of which is cut off."""
    for number in range(2):
        content = tar_bytes(labelled([f"{number}{i}" for i in range(6)], 6 * number))
        (tmp_path / f"{number:03}.tar").write_bytes(content[: len(content) - 9000 * number])
    return tmp_path


def test_shards(shards, keys, embedder, capsys):
    """What is whole stays, what is cut off is named, and a mended file gives the rest."""
    source = ("--from", str(shards / "{000..001}.tar"))
    with pytest.raises(SystemExit) as ended:
        create_embeddings.main([*source, *keys])
    assert ended.value.code == 2
    assert f"{shards}/001.tar cannot be read to its end as a tar file (it is cut off)" in capsys.readouterr().err
    create_embeddings.main([*source, "--resume", "--on-error", "skip", *keys])
    gallery = read_gallery(shards / "out")
    count = len(gallery.paths)
    assert 6 < count < 12
    assert (shards / "out" / "skipped.txt").read_text().split() == [f"{shards}/001.tar"]
    (shards / "001.tar").write_bytes(tar_bytes(labelled([f"1{i}" for i in range(6)], 6)))
    create_embeddings.main([*source, "--append", *keys])
    gallery = read_gallery(shards / "out")
    assert [str(path) for path in gallery.paths] == [f"{shards}/00{n}.tar/{n}{i}.jpg" for n in (0, 1) for i in range(6)]
    assert gallery.labels == [(n // 2, n % 2) for n in range(12)]
    np.testing.assert_allclose(gallery.embeddings, embedder.embed([jpeg(n) for n in range(12)]), atol=1e-5)
    assert gallery.about["source"] == {"from": source[1]}


def test_a_table_with_labels_and_its_centroids(tmp_path, keys, embedder, caplog):
    caplog.set_level("INFO")
    for number in range(4):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(number))
    rows = [[f"{number}.jpg", "Ann" if number % 2 else "Bob", "3"] for number in range(4)]
    table = save_table(tmp_path / "a.csv", rows, ("path", "who", "cam"))
    given = ("--from", table, "--label-fields", "who,cam", *keys, "DATASETS.ROOT_DIR", "/nowhere")
    create_embeddings.main([*given])
    gallery = read_gallery(tmp_path / "out")
    assert gallery.labels == [("Bob", 3), ("Ann", 3), ("Bob", 3), ("Ann", 3)]
    assert f"DATASETS.ROOT_DIR has no effect: --from {table} names the images." in caplog.text
    images = embedder.embed([jpeg(number) for number in range(4)])
    create_embeddings.main(
        [*given, "MODEL.USE_CENTROIDS", "True", "--pid-from", "x", "OUTPUT_DIR", f"{tmp_path}/means"]
    )
    assert f"The identities are those that the labels of {table} tell; --pid-from has no effect." in caplog.text
    rows = [[f"{tmp_path}/4.jpg", "Bob", "3"], [f"{tmp_path}/0.jpg", "Bob", "3"]]
    (tmp_path / "4.jpg").write_bytes(jpeg(4))
    more = save_table(tmp_path / "b.csv", rows, ("path", "who", "cam"))
    create_embeddings.main(
        [
            *("--append", "--from", more, "--label-fields", "who,cam", *keys, "MODEL.USE_CENTROIDS", "True"),
            *("--pid-from", "x", "OUTPUT_DIR", f"{tmp_path}/means"),
        ]
    )
    images = [*images, embedder.embed(jpeg(4))[0]]
    means = read_gallery(tmp_path / "means")
    assert [str(name) for name in means.paths] == ["Bob", "Ann"]
    np.testing.assert_allclose(means.embeddings, [np.mean(images[::2], 0), np.mean(images[1::2], 0)], atol=1e-5)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--from", "a.txt", "--split", "gallery"], "--from and --split exclude each other"),
        (["--from", "a.txt", "--csv", "b.csv"], "--from and --csv exclude each other"),
        (["--from", "a.txt", "--images-in-subfolders"], "--from and --images-in-subfolders exclude each other"),
        (["--label-fields", "a"], "--label-fields needs --from"),
        (["--from", "a.txt", "--label-fields", "a,b,c"], "'a,b,c' is not PID or PID,CAMID"),
        (["--from", "a.txt", "--label-fields", "a,a"], "'a,a' is not PID or PID,CAMID"),
        (["--from", "missing.txt"], "missing.txt does not exist"),
    ],
)
def test_contradictions(options, text, keys, capsys):
    with pytest.raises(SystemExit) as ended:
        create_embeddings.main([*options, *keys])
    assert ended.value.code == 2
    assert text in capsys.readouterr().err


def test_tar_files_with_other_labels_are_not_appended(tmp_path, keys, capsys):
    """Nor twice, however they are written."""
    kinds = {"none": [("a.jpg", jpeg(0))], "number": labelled(["a"], 0)}
    for name, members in kinds.items():
        (tmp_path / f"{name}.tar").write_bytes(tar_bytes(members))
    create_embeddings.main(["--from", f"{tmp_path}/number.tar", *keys])
    before = [(tmp_path / "out" / f"{name}.npy").read_bytes() for name in ("paths", "pids", "embeddings")]
    with pytest.raises(SystemExit) as ended:
        create_embeddings.main(["--append", "--from", f"{tmp_path}/none.tar", *keys])
    assert ended.value.code == 2
    assert "but the first image of the tar files has no label: append images with labels" in capsys.readouterr().err
    create_embeddings.main(["--append", "--from", f"{tmp_path}/./number.tar", *keys])
    assert [(tmp_path / "out" / f"{name}.npy").read_bytes() for name in ("paths", "pids", "embeddings")] == before


def test_an_image_is_not_replaced_under_another_label(tmp_path, keys, capsys):
    (tmp_path / "1.tar").write_bytes(tar_bytes(labelled(["a"], 0)))
    create_embeddings.main(["--from", f"{tmp_path}/1.tar", *keys])
    (tmp_path / "1.tar").write_bytes(tar_bytes(labelled(["a"], 8)))
    with pytest.raises(SystemExit) as ended:
        create_embeddings.main(["--replace", "--from", f"{tmp_path}/1.tar", *keys])
    assert ended.value.code == 2
    expected = "identity 0, camera 0 for {}/1.tar/a.jpg, but here it is identity 4, camera 0: delete the image"
    assert expected.format(tmp_path) in capsys.readouterr().err
    assert read_gallery(tmp_path / "out").labels == [(0, 0)]


def test_another_dtype_is_refused_before_anything_is_embedded(tmp_path, keys, capsys, monkeypatch):
    (tmp_path / "1.tar").write_bytes(tar_bytes(labelled(["a"], 0)))
    create_embeddings.main(["--from", f"{tmp_path}/1.tar", *keys])
    (tmp_path / "2.tar").write_bytes(tar_bytes(labelled(["b"], 0)))
    monkeypatch.setattr(Embedder, "embed_given_batches", None)
    with pytest.raises(SystemExit) as ended:
        create_embeddings.main(["--append", "--from", f"{tmp_path}/2.tar", *keys, "GALLERY.DTYPE", "float16"])
    assert ended.value.code == 2
    assert "holds float32, but GALLERY.DTYPE is float16: set it to float32" in capsys.readouterr().err
