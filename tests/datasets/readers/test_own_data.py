"""Data of the user's own: tables and folders, with and without cameras, and several sets at once."""

import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config import cfg
from datasets import init_dataset
from datasets.bases import NO_CAMERAS, Splits
from datasets.counts import find_evaluation_problem
from datasets.merged import merge_splits
from datasets.readers.numbering import SUBSETS, Entry, build_splits, number_cameras, number_identities
from datasets.readers.table import DEFAULT_ROOT_DIR
from tests.datasets.conftest import MARKET, write_folders, write_image
from utils.errors import MissingPathError, UserError
from utils.labels import Names

pytestmark = pytest.mark.filterwarnings("ignore:.*fewer than 2 images")

# path, pid, split, camid
ROWS = [
    ("a/1.jpg", "ann", "train", "door"),
    ("a/2.png", "ann", "train", ""),
    ("b/1.jpg", "bob", "train", "roof"),
    ("q/1.jpg", "cid", "query", "roof"),
    ("g/1.jpg", "cid", "gallery", "door"),
    ("g/2.jpg", "dee, the second", "gallery", "roof"),
]


def write_csv(path, rows=ROWS, header="path,pid,split,camid", draw=True):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [",".join(f'"{cell}"' if "," in cell else cell for cell in row) for row in rows]
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    for row in rows if draw else ():
        write_image(path.parent / row[0])
    return path


def write_tree(root, names):
    for name in names:
        write_image(root / name)
    return root


@pytest.fixture
def read(make_cfg):
    """read(name, root, KEY, value, ...) -> the data module, set up."""

    def set_up(name, root=DEFAULT_ROOT_DIR, *options):
        module = init_dataset(name, cfg=make_cfg(root, *options))
        module.setup()
        return module

    return set_up


def parsed(module):
    return [
        [sample[1:3] for sample in samples] for samples in (module.train_list, module.query_list, module.gallery_list)
    ]


# --- tables


def test_a_csv_file(tmp_path, read):
    path = write_csv(tmp_path / "list.csv")
    module = read("csv", DEFAULT_ROOT_DIR, "DATASETS.CSV_PATH", str(path))
    # Names become places in sorted order: ann 0, bob 1, cid 2, dee 3; door 0, roof 1.
    assert parsed(module) == [[(0, 0), (0, 0), (1, 1)], [(2, 1)], [(2, 0), (3, 1)]]
    assert module.has_cameras
    assert module.title == str(path)
    assert module.num_classes == 2
    images, *_ = next(iter(module.val_dataloader()))
    assert images.shape == (3, 3, 16, 8)


def test_numbers_are_kept_columns_may_stand_anywhere_and_spaces_do_not_matter(tmp_path, read):
    rows = [(" 007", "train", "x", "1.jpg"), ("7 ", "query", "x", "2.jpg"), ("9", " gallery", "x", "3.jpg")]
    path = write_csv(tmp_path / "list.csv", rows, "pid,split ,comment,path", draw=False)
    with pytest.raises(UserError, match=r"identities '007' and '7', which are one number"):
        for row in rows:
            write_image(tmp_path / row[3])
        read("csv", DEFAULT_ROOT_DIR, "DATASETS.CSV_PATH", str(path))
    path.write_text("\ufeff" + path.read_text().replace("007", "7") + "\n")
    module = read("csv", DEFAULT_ROOT_DIR, "DATASETS.CSV_PATH", str(path))
    assert parsed(module) == [[(0, 0)], [(7, 0)], [(9, 1)]]
    assert not module.has_cameras


def test_no_cameras_switch_the_filter_off_and_the_log_says_so(tmp_path, read, caplog):
    rows = [("1.jpg", "a", "train"), ("2.jpg", "b", "query"), ("3.jpg", "b", "gallery"), ("4.jpg", "c", "gallery")]
    path = write_csv(tmp_path / "list.csv", rows, "path,pid,split")
    with caplog.at_level("INFO"):
        module = read("csv", DEFAULT_ROOT_DIR, "DATASETS.CSV_PATH", str(path))
    assert parsed(module) == [[(0, 0)], [(1, 0)], [(1, 1), (2, 1)]]
    assert find_evaluation_problem(module.query_list, module.gallery_list) is None
    assert [record.getMessage().count(NO_CAMERAS) for record in caplog.records] == [1]
    assert [line.split()[-1] for line in caplog.text.splitlines() if " | " in line] == ["cameras", "-", "-", "-"]


def test_relative_paths(tmp_path, read):
    """From ROOT_DIR where it is given, else from the folder of the table; absolute paths are taken as they are."""
    assert DEFAULT_ROOT_DIR == cfg.DATASETS.ROOT_DIR
    rows = [*ROWS[:-1], (str(tmp_path / "far.jpg"), "cid", "gallery", "door")]
    path = write_csv(tmp_path / "lists" / "list.csv", rows)
    for name, *_ in rows[:-1]:
        write_image(tmp_path / "images" / name)
    for root, folder in (("", "lists"), (DEFAULT_ROOT_DIR, "lists"), (str(tmp_path / "images"), "images")):
        module = read("csv", root, "DATASETS.CSV_PATH", str(path))
        assert module.train_list[0][0] == str(tmp_path / folder / "a/1.jpg")
        assert module.gallery_list[-1][0] == str(tmp_path / "far.jpg")


@pytest.mark.parametrize(
    "columns",
    [
        {"pid": [3, 3, 4, 9, 9, 12], "camid": [2.0, None, 5.0, 5.0, 2.0, 5.0]},
        {"pid": ["3", "3", "4", "9", "9", "12"], "camid": ["2", "", "5", "5", "2", "5"]},
    ],
    ids=["numbers", "text"],
)
def test_a_parquet_file(tmp_path, read, columns):
    paths, splits = [row[0] for row in ROWS], [row[2] for row in ROWS]
    table = pyarrow.table({"more": [None] * 6, "split": splits, "path": paths, **columns})
    pyarrow.parquet.write_table(table, tmp_path / "list.parquet")
    write_tree(tmp_path, paths)
    module = read("csv", DEFAULT_ROOT_DIR, "DATASETS.CSV_PATH", str(tmp_path / "list.parquet"))
    assert parsed(module) == [[(0, 0), (0, 0), (1, 1)], [(9, 1)], [(9, 0), (12, 1)]]


def test_parquet_errors_are_named(tmp_path, read, monkeypatch):
    path = tmp_path / "list.pq"
    options = (DEFAULT_ROOT_DIR, "DATASETS.CSV_PATH", str(path))
    with pytest.raises(MissingPathError, match=r"list.pq does not exist"):
        read("csv", *options)
    path.write_bytes(b"PAR1 but no more")
    with pytest.raises(UserError, match=r"list.pq cannot be read as a Parquet file"):
        read("csv", *options)
    pyarrow.parquet.write_table(pyarrow.table({"path": ["a.jpg"], "pid": [1]}), path)
    with pytest.raises(UserError, match=r"list.pq has no column split; found path, pid, expected path, pid, split"):
        read("csv", *options)
    pyarrow.parquet.write_table(pyarrow.table({"path": ["a.jpg"], "pid": [None], "split": ["train"]}), path)
    with pytest.raises(UserError, match=r"list.pq, row 1: pid is empty"):
        read("csv", *options)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(
        UserError, match=r"list.pq is a Parquet file: reading it needs the package pyarrow, .*: pip install"
    ):
        read("csv", *options)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no column path, pid, split; found nothing"),
        ("path;pid;split\n", "has no column path, pid, split; found path;pid;split, expected path, pid, split"),
        ("path,pid,split,pid\n", "has two columns named pid"),
        ("path,pid,split\n1.jpg,4\n", "line 2: 2 values for 3 columns"),
        ("path,pid,split\n1.jpg,4,train\n1,1.jpg,4,train\n", "line 3: 4 values for 3 columns; put values"),
        ("path,pid,split\n1.jpg,4,test\n", "line 2: split is 'test'; expected one of train, query, gallery"),
        ("path,pid,split\n1.jpg,,train\n", "line 2: pid is empty"),
        ("path,pid,split\n,4,train\n", "line 2: path is empty"),
        ("path,pid,split\n1.jpg,4,train\n", "has no query images; expected at least one each"),
        ("path,pid,split\n1.jpg,4,query\n1.jpg,4,gallery\n", "has no train images"),
        ("path,pid,split\nno.jpg,4,train\n", "no.jpg does not exist; .*list.csv names 1 missing"),
        ('path,pid,split\n"1.jpg,4,train\n', "cannot be read as CSV"),
        (b"path,pid,split\n\xff.jpg,4,train\n", "cannot be read as CSV in UTF-8"),
        (
            "path,pid,split,camid\n1.jpg,4,train,\n1.jpg,4,query,1\n2.jpg,4,gallery,\n",
            r"1.jpg has a camera \(1\), but .*2.jpg has none. Give one for every query and gallery image, or for none",
        ),
    ],
)
def test_a_bad_table_is_named(tmp_path, read, text, message):
    path = tmp_path / "list.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    write_tree(tmp_path, ["1.jpg", "2.jpg"])
    with pytest.raises(UserError, match=message) as caught:
        read("csv", DEFAULT_ROOT_DIR, "DATASETS.CSV_PATH", str(path))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(("path", "message"), [("", "DATASETS.CSV_PATH is empty"), ("no.csv", "no.csv does not exist")])
def test_a_missing_table_is_named(read, path, message):
    with pytest.raises(UserError, match=message):
        read("csv", DEFAULT_ROOT_DIR, "DATASETS.CSV_PATH", path)


# --- folders

TREE = (
    *("train/ann/2_c1.jpg", "train/ann/1.JPG", "train/bob/x_c12s3.png", "train/bob/.hidden.jpg", "train/.cache/a.jpg"),
    *("query/cid/a_c12.jpg", "gallery/cid/b_c1.jpeg", "gallery/dee/deeper/c_c3.jpg", "gallery/eve/d_c2.jpg"),
)


def test_folders(tmp_path, read):
    write_tree(tmp_path, TREE)
    (tmp_path / "train" / "ann" / "notes.txt").write_text("")
    module = read("folder", tmp_path)
    # ann 0, bob 1, cid 2, dee 3, eve 4; cameras 1, 2, 3, 12.
    assert parsed(module) == [[(0, 0), (0, 0), (1, 3)], [(2, 3)], [(2, 0), (3, 2), (4, 1)]]
    assert [Path(sample[0]).name for sample in module.train_list] == ["1.JPG", "2_c1.jpg", "x_c12s3.png"]
    assert module.has_cameras


def test_folders_without_cameras_or_with_numbers(tmp_path, read):
    write_tree(tmp_path, ["train/0002/a.jpg", "train/0010/a.jpg", "query/0003/cat.jpg", "gallery/0003/my_cat.jpg"])
    module = read("folder", tmp_path)
    assert parsed(module) == [[(0, 0), (1, 0)], [(3, 0)], [(3, 1)]]
    assert not module.has_cameras


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("train", None), "/train does not exist; DATASETS.ROOT_DIR must hold train, query and gallery"),
        (("gallery", None), "/gallery does not exist"),
        (("query/cid/a_c12.jpg", None), "/query holds no images"),
        (("query/cid/a_c12.jpg", "query/cid/a.jpg"), "has a camera .*, but .*query/cid/a.jpg has none"),
        (("query/cid/a_c12.jpg", "query/a_c12.jpg"), "query/a_c12.jpg is not in the folder of an identity"),
        (("gallery/eve/d_c2.jpg", "gallery/eve/d_c012.jpg"), "cameras '012' and '12', which are one number"),
    ],
)
def test_a_bad_tree_is_named(tmp_path, read, change, message):
    write_tree(tmp_path, TREE)
    old, new = change
    (tmp_path / old).rename(tmp_path / (new or "elsewhere"))
    with pytest.raises(UserError, match=message):
        read("folder", tmp_path)


@pytest.mark.parametrize("name", ["csv", "folder"])
def test_a_test_alone_needs_no_training_images(tmp_path, read, name):
    write_tree(tmp_path, TREE[-4:])
    write_csv(tmp_path / "list.csv", ROWS[3:])
    only_test = ("TEST.ONLY_TEST", True, "MODEL.PRETRAIN_PATH", "any.ckpt")
    options = ("DATASETS.CSV_PATH", str(tmp_path / "list.csv"), *only_test)
    module = read(name, tmp_path, *options)
    assert (module.num_classes, len(module.val)) == (0, 4 if name == "folder" else 3)
    with pytest.raises(UserError, match="train"):
        read(name, tmp_path, *options[:2])


# --- what is left out, and what keeps its name


def notes_of(module):
    return [str(note) for note in module.read_splits().notes]


def test_deeper_folders_are_read_as_images_of_the_identity_and_that_is_said(tmp_path, read, caplog):
    names = ["train/ann/a.jpg", "train/ann/cam1/b.jpg", "train/bob/x/y/c.jpg", "train/bob/d.jpg"]
    write_tree(tmp_path, [*names, "query/cid/1/a.jpg", "gallery/cid/b.jpg"])
    module = read("folder", tmp_path)
    assert parsed(module) == [[(0, 0), (0, 0), (1, 0), (1, 0)], [(2, 0)], [(2, 1)]]
    assert [Path(sample[0]).name for sample in module.train_list] == ["a.jpg", "b.jpg", "d.jpg", "c.jpg"]
    assert not module.has_cameras
    deeper = tmp_path / "train/ann/cam1/b.jpg"
    expected = (
        f"{tmp_path}: 3 image(s) in folders below those of the identities are read as images of the identity (such as "
        f"{deeper}); if these folders are cameras, set DATASETS.CAMERA_FROM folder."
    )
    assert [r.getMessage() for r in caplog.records if r.levelname == "WARNING"] == [expected]
    assert [Path(path).name for path in module.read_splits().notes[0].files] == ["b.jpg", "c.jpg", "a.jpg"]


def test_the_folder_below_the_identity_may_be_the_camera(tmp_path, read, caplog):
    names = ["train/ann/roof/a_c9.jpg", "train/bob/door/more/b.jpg", "query/cid/roof/c.jpg"]
    write_tree(tmp_path, [*names, "gallery/cid/door/d.jpg", "gallery/cid/10/e.jpg"])
    module = read("folder", tmp_path, "DATASETS.CAMERA_FROM", "folder")
    # 10, door, roof
    assert parsed(module) == [[(0, 2), (1, 1)], [(2, 2)], [(2, 0), (2, 1)]]
    assert module.has_cameras
    assert module.names.cameras == {0: "10", 1: "door", 2: "roof"}
    assert [record for record in caplog.records if record.levelname == "WARNING"] == []
    path = write_image(tmp_path / "gallery/cid/f.jpg")
    with pytest.raises(UserError) as caught:
        read("folder", tmp_path, "DATASETS.CAMERA_FROM", "folder")
    assert str(caught.value) == (
        f"{path} lies in the folder of its identity; with DATASETS.CAMERA_FROM folder expected that of a camera: "
        f"{tmp_path / 'gallery/cid/<camera>/f.jpg'}."
    )


def test_folders_tell_what_they_pass_over(tmp_path, read):
    write_tree(tmp_path, [*TREE, "val/ann/1.jpg"])
    (tmp_path / "train" / "ann" / "notes.txt").write_text("")
    (tmp_path / "train" / "zoe").mkdir()
    (tmp_path / "train" / "ann" / "again").symlink_to(tmp_path / "train" / "ann")
    (tmp_path / "train" / "ann" / "far").symlink_to(tmp_path / "val" / "ann")
    module = read("folder", tmp_path)
    assert [Path(sample[0]).name for sample in module.train_list] == ["1.JPG", "2_c1.jpg", "1.jpg", "x_c12s3.png"]
    (note, deeper) = notes_of(module)
    train = tmp_path / "train"
    assert note == (
        f"Passed over in {tmp_path}: 1 folder beside those that are read ({tmp_path / 'val'}), 2 hidden files and "
        f"folders (such as {train / '.cache'}), 1 file that is not an image by its suffix ({train / 'ann/notes.txt'}), "
        f"1 link to a folder above it ({train / 'ann/again'}), 1 folder without images ({train / 'zoe'})."
    )
    assert "2 image(s) in folders below" in deeper


@pytest.mark.parametrize("where", ["train/ann/up", "train/ann/deep/up", "train/loop"])
@pytest.mark.parametrize("target", [".", "train", ".."])
def test_links_to_folders_above_bring_no_images_of_others(tmp_path, read, where, target):
    root = write_tree(tmp_path / "data", ["train/ann/1.jpg", "train/bob/1.jpg", "query/cid/1.jpg", "gallery/cid/2.jpg"])
    link = root / where
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(root / target)
    module = read("folder", root)
    assert [len(images) for images in parsed(module)] == [2, 1, 1]
    (note,) = notes_of(module)
    assert f"1 link to a folder above it ({link})" in note


def test_a_link_that_leads_back_by_another_folder_ends_there(tmp_path, read):
    root = write_tree(tmp_path / "data", ["train/ann/1.jpg", "query/cid/1.jpg", "gallery/cid/2.jpg"])
    write_image(tmp_path / "more" / "2.jpg")
    (root / "train" / "ann" / "far").symlink_to(tmp_path / "more")
    (tmp_path / "more" / "back").symlink_to(root / "train" / "ann")
    module = read("folder", root)
    assert [Path(sample[0]).name for sample in module.train_list] == ["1.jpg", "2.jpg"]
    assert f"1 link to a folder above it ({root / 'train/ann/far/back'})" in notes_of(module)[0]


def test_a_link_that_leads_nowhere_is_no_folder(tmp_path, read):
    root = write_tree(tmp_path, ["train/ann/1.jpg", "query/cid/1.jpg", "gallery/cid/2.jpg"])
    (root / "train" / "ann" / "me").symlink_to("me")
    (root / "train" / "ann" / "gone").symlink_to("nowhere")
    assert notes_of(read("folder", root)) == [
        f"Passed over in {root}: 2 files that are not images by their suffix (such as {root / 'train/ann/gone'})."
    ]


def test_images_that_are_named_twice_are_told(tmp_path, read):
    path = write_csv(tmp_path / "list.csv")
    assert notes_of(read("csv", DEFAULT_ROOT_DIR, "DATASETS.CSV_PATH", str(path))) == []
    # Once in each of two splits is another matter.
    write_csv(
        path, [*ROWS, ROWS[-1], ROWS[0], ("a/1.jpg", "other", "train", "door"), ("q/1.jpg", "cid", "gallery", "2")]
    )
    module = read("csv", DEFAULT_ROOT_DIR, "DATASETS.CSV_PATH", str(path))
    assert notes_of(module) == [
        f"{path}: 2 images are in one split more than once (such as {tmp_path / 'a/1.jpg'}); each row counts."
    ]
    assert [len(images) for images in parsed(module)] == [5, 1, 4]


def test_pid_minus_one_is_junk_in_folders(tmp_path, read):
    names = [f"{split}/-1/{split}_junk.jpg" for split in ("train", "query", "gallery")]
    write_tree(tmp_path, [*names, "train/3/a_c1.jpg", "query/5/b_c1.jpg", "gallery/5/c_c2.jpg", "gallery/0/d_c2.jpg"])
    module = read("folder", tmp_path)
    # Neither a match nor a distractor; the other identities keep their numbers.
    assert parsed(module) == [[(0, 0)], [(5, 0)], [(0, 1), (5, 1)]]
    assert module.train_pids == [3]
    assert notes_of(module) == [
        f"Passed over in {tmp_path}: 3 images of pid -1, which marks junk (such as {tmp_path / names[0]})."
    ]


@pytest.mark.parametrize("junk", ["-1", "-1.0"])
def test_pid_minus_one_is_junk_in_tables(tmp_path, read, junk):
    rows = [("1.jpg", "7", "train"), ("2.jpg", "9", "query"), ("3.jpg", "9", "gallery"), ("4.jpg", junk, "gallery")]
    path = write_csv(tmp_path / "list.csv", rows, "path,pid,split")
    module = read("csv", DEFAULT_ROOT_DIR, "DATASETS.CSV_PATH", str(path))
    assert parsed(module) == [[(0, 0)], [(9, 0)], [(9, 1)]]
    assert notes_of(module) == [f"Passed over in {path}: 1 image of pid -1, which marks junk ({tmp_path / '4.jpg'})."]
    write_csv(path, [*rows[:2], rows[3]], "path,pid,split")
    with pytest.raises(UserError, match=r"has no gallery images; expected .* 1 image of pid -1, which marks junk"):
        read("csv", DEFAULT_ROOT_DIR, "DATASETS.CSV_PATH", str(path))


def test_junk_needs_no_camera():
    entries = {name: [Entry("a.jpg", "1", camera)] for name, camera in zip(SUBSETS, "112", strict=True)}
    entries["gallery"].append(Entry("junk.jpg", "-1", ""))
    assert build_splits(entries, "it").has_cameras


def test_other_negative_numbers_are_names(tmp_path, read):
    rows = [("1.jpg", "7", "train"), ("2.jpg", "-2", "query"), ("3.jpg", "-2", "gallery")]
    path = write_csv(tmp_path / "list.csv", rows, "path,pid,split")
    module = read("csv", DEFAULT_ROOT_DIR, "DATASETS.CSV_PATH", str(path))
    assert parsed(module) == [[(0, 0)], [(0, 0)], [(0, 1)]]
    assert module.names.pids == {0: "-2", 1: "7"}


def test_names_stay_with_the_samples(tmp_path, read):
    path = write_csv(tmp_path / "list.csv")
    module = read("csv", DEFAULT_ROOT_DIR, "DATASETS.CSV_PATH", str(path))
    assert module.names.pids == {0: "ann", 1: "bob", 2: "cid", 3: "dee, the second"}
    assert module.names.cameras == {0: "door", 1: "roof"}
    assert module.val_dataloader().dataset.names == module.names


def test_numbers_have_names_where_they_are_written_in_another_way(tmp_path, read):
    write_tree(tmp_path, ["train/0002/a_c0.jpg", "query/10/b_c0.jpg", "gallery/10/c_c5.jpg"])
    names = read("folder", tmp_path).names
    assert names.pids == {2: "0002"}
    assert names.cameras == {0: "0", 1: "5"}
    assert (names.pid(10), names.pid(2)) == ("10", "0002")


def test_a_published_set_has_no_names(market, read):
    module = read("market1501", market)
    assert module.names == module.val.names == Names()


@pytest.mark.parametrize("column", ["camera", "Camid", "cam_id", "CAMERA-ID"])
def test_a_column_that_looks_like_cameras_is_told(tmp_path, read, column):
    path = write_csv(tmp_path / "list.csv", header=f"path,pid,split,{column}")
    module = read("csv", DEFAULT_ROOT_DIR, "DATASETS.CSV_PATH", str(path))
    assert not module.has_cameras
    assert notes_of(module) == [f"Passed over in {path}: 1 column that is not called camid ({column})."]
    write_csv(path, [(*row, "x") for row in ROWS], f"path,pid,split,camid,{column}x")
    assert notes_of(read("csv", DEFAULT_ROOT_DIR, "DATASETS.CSV_PATH", str(path))) == []


def test_a_missing_image_names_the_folder_that_paths_start_from(tmp_path, read):
    path = write_csv(tmp_path / "lists" / "list.csv")
    other = tmp_path / "data of the configuration file"
    missing = f"Image {other / 'a/1.jpg'} does not exist; {path} names 6 missing image(s). "
    with pytest.raises(MissingPathError) as caught:
        read("csv", str(other), "DATASETS.CSV_PATH", str(path))
    assert str(caught.value) == (
        f"{missing}Relative paths start from DATASETS.ROOT_DIR, which is {other} (by the command line or the "
        f"configuration file); DATASETS.ROOT_DIR '' lets them start from the folder of the table, {path.parent}."
    )
    (path.parent / "g/2.jpg").unlink()
    with pytest.raises(MissingPathError) as caught:
        read("csv", "", "DATASETS.CSV_PATH", str(path))
    assert str(caught.value).endswith(
        f"names 1 missing image(s). Relative paths start from the folder of the table, {path.parent}, unless "
        "DATASETS.ROOT_DIR names one."
    )


# --- numbering

NAMES = st.sets(st.text("0123456789ab_ ", min_size=1, max_size=4) | st.integers(0, 10**19).map(str), max_size=6)


@given(NAMES)
@settings(deadline=None, max_examples=60)
def test_every_identity_and_camera_has_a_number_of_its_own(names):
    try:
        pids, cameras = number_identities(names, "it"), number_cameras(names, "it")
    except UserError as error:
        assert "which are one number" in str(error)
        assert all(name.isdecimal() for name in names)
        assert len({int(name) for name in names}) < len(names)
        return
    assert pids.keys() == cameras.keys() == names
    assert len(set(pids.values())) == len(names)
    assert sorted(cameras.values()) == list(range(len(names)))
    if all(name.isdecimal() and int(name) < 10**18 for name in names):
        assert pids == {name: int(name) for name in names}
        assert sorted(names, key=int) == sorted(names, key=cameras.__getitem__)


def test_cameras_of_training_images_do_not_matter():
    def entries(camera):
        return [Entry("a.jpg", "1", camera)]

    with_cameras = {"train": entries(""), "query": entries("4"), "gallery": entries("2")}
    assert build_splits(with_cameras, "it")[:4] == ([("a.jpg", 1, 0)], [("a.jpg", 1, 1)], [("a.jpg", 1, 0)], True)
    without = {"train": entries("4"), "query": entries(""), "gallery": entries("")}
    assert build_splits(without, "it")[:4] == ([("a.jpg", 1, 0)], [("a.jpg", 1, 0)], [("a.jpg", 1, 1)], False)


# --- several sets at once


def test_merged_sets_train_on_all_and_test_on_the_first(market, read, caplog):
    duke = {"train": {2: [1, 8], 5000: [7, 8]}, "query": {6: [8]}, "gallery": {6: [1]}}
    write_folders(market / "DukeMTMC-reID", duke)
    alone = read("market1501", market)
    with caplog.at_level("INFO"):
        module = read("market1501 + dukemtmcreid", market)
    assert module.train_list[: len(alone.train_list)] == alone.train_list
    # Six identities and six cameras of the first come before those of the second.
    added = module.train_list[len(alone.train_list) :]
    assert [sample[1:3] for sample in added] == [(6, 6), (6, 13), (7, 12), (7, 13)]
    assert [sample[3] for sample in module.train_list] == list(range(len(MARKET["train"][7]) + 15 + 4))
    assert (module.query_list, module.gallery_list) == (alone.query_list, alone.gallery_list)
    assert module.num_classes == 8
    assert "Market1501+DukeMTMCreID:" in caplog.text
    assert "DukeMTMCreID: 6 of 36411 published images" in caplog.text
    pids = {pid for batch in module.train_dataloader() for pid in batch[1].tolist()}
    assert pids <= set(range(8)) and pids & {6, 7}
    swapped = read("dukemtmcreid+market1501", market)
    assert [sample[1:3] for sample in swapped.query_list] == [(6, 7)]
    assert [sample[1] for sample in swapped.train_list][:5] == [0, 0, 1, 1, 2]


def test_merged_with_data_of_ones_own(market, read):
    path = write_csv(market / "list.csv", [(name, pid, split) for name, pid, split, _ in ROWS], "path,pid,split")
    options = ("DATASETS.CSV_PATH", str(path))
    module = read("csv+market1501", market, *options)
    assert not module.has_cameras
    assert module.num_classes == 2 + len(MARKET["train"])
    assert {sample[2] for sample in module.train_list[:3]} == {0}
    assert min(sample[2] for sample in module.train_list[3:]) == 2
    assert read("market1501+csv", market, *options).has_cameras


@given(
    st.lists(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=6), min_size=1, max_size=4)
)
@settings(deadline=None, max_examples=50)
def test_merging_keeps_identities_and_cameras_apart(parts):
    test = [("t", 8, 9)]
    splits = [Splits([(f"{i}", *image) for image in images], test, test) for i, images in enumerate(parts)]
    merged = merge_splits(splits)
    assert (merged.query, merged.gallery) == (test, test)
    original = [(i, *image) for i, images in enumerate(parts) for image in images]
    for column in (1, 2):  # the same number if and only if the same part and the same number there
        keys = [(row[0], row[column]) for row in original]
        numbers = [row[column] for row in merged.train]
        assert len(set(zip(keys, numbers, strict=True))) == len(set(keys)) == len(set(numbers))
    assert {pid for _, pid, _ in merged.train} == set(range(len({row[:2] for row in original})))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("market1501+market1501", "joins Market1501 and Market1501, which show the same identities"),
        ("df1+occluded_duke+dukemtmcreid", "joins OccludedDuke and DukeMTMCreID, which"),
        ("msmt17_v1+msmt17_v2", "joins MSMT17V1 and MSMT17V2"),
        ("cuhk03np_labeled+cuhk03np_detected", "joins CUHK03NPLabeled and CUHK03NPDetected"),
        ("vehicleid_800+vehicleid_2400", "joins VehicleID800 and VehicleID2400"),
        ("market1501+", "'market1501+', which joins ''"),
    ],
)
def test_sets_that_cannot_be_merged(names, message):
    with pytest.raises(UserError) as caught:
        init_dataset(names)
    assert message in str(caught.value)


def test_two_names_for_the_same_files_are_refused(coco, read):
    with pytest.raises(UserError, match=r"train_0.jpg is in two of the training sets"):
        read("df1+street2shop", coco, "DATASETS.JSON_TRAIN_PATH", str(coco / "train_reid.json"))
