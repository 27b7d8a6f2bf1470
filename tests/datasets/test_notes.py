"""What readers pass over: one sentence with counts and examples, said once, and the files for the report."""

import pickle
from pathlib import Path

import pytest
from pytorch_lightning.utilities import rank_zero_only

from datasets import init_dataset
from datasets.bases import Splits
from datasets.merged import merge_splits
from datasets.notes import HIDDEN, NOT_AN_IMAGE, Note, PassedOver
from datasets.readers.files import find_folder, list_folder
from tests.datasets.conftest import MARKET_FOLDERS, write_image
from utils.errors import UserError
from utils.labels import Names

pytestmark = pytest.mark.filterwarnings("ignore:.*fewer than 2 images")


def test_one_sentence_with_each_count_and_an_example():
    passed = PassedOver(Path("data"))
    assert passed.notes() == ()
    passed.add(HIDDEN)
    assert passed.notes() == ()
    passed.add(NOT_AN_IMAGE, Path("b.txt"), "a.txt")
    passed.add(HIDDEN, ".x")
    passed.add(NOT_AN_IMAGE, "c.txt")
    (note,) = passed.notes()
    assert note == (
        "Passed over in data: 3 files that are not images by their suffix (such as b.txt), 1 hidden file or folder "
        "(.x)."
    )
    assert note.files == ["b.txt", "a.txt", "c.txt", ".x"]


def test_a_note_is_text_that_survives_a_process_boundary():
    note = pickle.loads(pickle.dumps(Note("text", ["a"])))
    assert (note, note.files) == ("text", ["a"])


def test_a_listing_tells_images_folders_and_the_rest(tmp_path):
    for name in ("b.JPG", "a.jpeg", "c.txt", ".d.jpg", "._a.jpg", "Thumbs.db", ".DS_Store", "desktop.ini"):
        (tmp_path / name).write_text("")
    for name in ("z", "x.jpg", ".git", "@eaDir", "__MACOSX"):
        (tmp_path / name).mkdir()
    passed = PassedOver(tmp_path)
    assert list_folder(tmp_path, passed) == (
        [tmp_path / "a.jpeg", tmp_path / "b.JPG"],
        [tmp_path / "x.jpg", tmp_path / "z"],
    )
    (note,) = passed.notes()
    # What operating systems leave everywhere is not worth a word; copies of their own making are no images.
    assert sorted(note.files) == [
        str(tmp_path / n) for n in ("._a.jpg", ".d.jpg", ".git", "@eaDir", "__MACOSX", "c.txt")
    ]
    assert list_folder(tmp_path, passed, (".TXT",))[0] == [tmp_path / "c.txt"]
    with pytest.raises(UserError, match=r"no cannot be read \(No such file or directory\)"):
        list_folder(tmp_path / "no", passed)


def test_a_second_folder_by_another_name_is_told(tmp_path):
    (tmp_path / "b").mkdir()
    passed = PassedOver(tmp_path)
    assert find_folder(tmp_path, ("a", "b"), passed) == tmp_path / "b"
    (tmp_path / "c").symlink_to(tmp_path / "b")  # as where case does not matter: one folder
    assert find_folder(tmp_path, ("b", "c"), passed) == tmp_path / "b"
    assert passed.notes() == ()
    (tmp_path / "a").mkdir()
    assert find_folder(tmp_path, ("a", "b"), passed) == tmp_path / "a"
    assert passed.notes() == (f"Passed over in {tmp_path}: 1 folder beside those that are read ({tmp_path / 'b'}).",)


def warnings_of(caplog):
    return [r.getMessage() for r in caplog.records if r.name == "datasets.bases" and r.levelname == "WARNING"]


def test_a_published_layout_says_once_what_it_passes_over(market, make_cfg, caplog):
    root = market / "market1501"
    extra = root / "query" / "more"
    (extra / "empty").mkdir(parents=True)
    for number in range(3):
        write_image(extra / f"0005_c2s1_{number}.jpg")
    (root / "bounding_box_train" / "list.txt").write_text("")
    module = init_dataset("market1501", cfg=make_cfg(market))
    module.setup()
    module.setup("test")
    assert warnings_of(caplog) == [
        f"Passed over in {root}: 1 file that is not an image by its suffix ({root / 'bounding_box_train/list.txt'}), "
        f"3 images in subfolders (such as {extra / '0005_c2s1_0.jpg'})."
    ]
    assert len(module.query_list) == 3


def test_litter_in_a_subfolder_is_not_worth_a_word(market, make_cfg):
    folder = market / "market1501" / "query" / "sub"
    folder.mkdir()
    (folder / "Thumbs.db").write_text("")
    assert init_dataset("market1501", cfg=make_cfg(market)).read_splits().notes == ()
    (folder / "up").symlink_to(folder.parent)
    (note,) = init_dataset("market1501", cfg=make_cfg(market)).read_splits().notes
    assert note.files == [str(folder / "up")]  # not the images of the folder above once more


def test_what_the_rules_of_a_set_leave_out_is_no_warning(coco, make_cfg, caplog):
    path = coco / "train_reid.json"
    module = init_dataset("df1", cfg=make_cfg(coco, "DATASETS.JSON_TRAIN_PATH", str(path)))
    with caplog.at_level("INFO"):
        module.setup()
    assert warnings_of(caplog) == []
    (note,) = module.read_splits().notes
    assert note == (
        f"Passed over in {path}: 1 training image that is the only one of its identity ({coco / 'train/train_3.jpg'})."
    )
    assert [r.levelname for r in caplog.records if r.getMessage() == note] == ["INFO"]


def test_a_clean_set_says_nothing(market, make_cfg, caplog):
    """Junk belongs to Market-1501, and its release has a Thumbs.db in each folder."""
    for folder in MARKET_FOLDERS.values():
        write_image(market / "market1501" / folder / "-1_c1s1_000000_00.jpg")
        (market / "market1501" / folder / "Thumbs.db").write_text("")
    module = init_dataset("market1501", cfg=make_cfg(market))
    assert module.read_splits().notes == ()
    module.setup()
    assert warnings_of(caplog) == []


def test_only_the_first_process_says_it(market, make_cfg, caplog, monkeypatch):
    (market / "market1501" / "query" / "list.txt").write_text("")
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    init_dataset("market1501", cfg=make_cfg(market)).setup()
    assert warnings_of(caplog) == []
    monkeypatch.setattr(rank_zero_only, "rank", 0)
    init_dataset("market1501", cfg=make_cfg(market)).setup()
    assert len(warnings_of(caplog)) == 1


def test_joint_sets_pass_the_notes_of_all_parts_on(market, make_cfg, caplog):
    write_image(market / "DukeMTMC-reID" / "bounding_box_train" / "0001_c1_1.jpg", 901)
    write_image(market / "DukeMTMC-reID" / "bounding_box_train" / "0001_c2_1.jpg", 902)
    write_image(market / "DukeMTMC-reID" / "query" / "0002_c1_1.jpg", 903)
    write_image(market / "DukeMTMC-reID" / "bounding_box_test" / "0002_c2_1.jpg", 904)
    for name in ("market1501", "DukeMTMC-reID"):
        (market / name / "query" / "list.txt").write_text("")
    init_dataset("market1501+dukemtmcreid", cfg=make_cfg(market)).setup()
    said = [message for message in warnings_of(caplog) if message.startswith("Passed over in ")]
    assert [message.split(":")[0] for message in said] == [
        f"Passed over in {market / name}" for name in ("market1501", "DukeMTMC-reID")
    ]


def test_joint_sets_keep_the_names_of_their_cameras_apart():
    test = [("q", 0, 0)], [("g", 0, 1)]
    named = Splits([("a", 0, 1)], *test, names=Names({0: "ann"}, {0: "door", 1: "2"}))
    plain = Splits([("b", 0, 1)], *test)
    merged = merge_splits([named, plain, named])
    assert merged.names.pids == {0: "ann"}
    assert merged.names.cameras == {
        0: "door",
        1: "2",
        2: "1 (set 2)",
        3: "2 (set 2)",
        4: "door (set 3)",
        5: "2 (set 3)",
    }
    assert [camid for _, _, camid in merged.train] == [1, 3, 5]
    assert merge_splits([plain, plain]).names.cameras == {}
