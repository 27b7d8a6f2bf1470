"""Data sets as published: drawn trees with the real names, and the counts that a real copy is compared with."""

from pathlib import Path

import pytest

from datasets import init_dataset
from datasets.counts import Counts, Published, count, find_count_problem
from datasets.draws import draw_one_each
from datasets.notes import PassedOver
from datasets.readers.files import check_images, find_folder
from datasets.readers.named_files import NameRule, read_folder
from datasets.registry import DATASETS, REGISTRY
from datasets.vehicleid import split_test_list
from tests.datasets.conftest import write_image
from tests.support import ROOT
from utils.errors import MissingPathError, UserError

MSMT_TRAIN = [
    "0000/0000_000_01_0303morning_0015_0.jpg 0",
    "0000/0000_005_14_0303morning_0020_1_ex.jpg 0",
    "0002/0002_003_15_0304noon_0112_0.jpg 2",
]
MSMT_LISTS = {
    "train": MSMT_TRAIN,
    "val": ["0002/0002_009_07_0304noon_0200_0.jpg 2"],
    "query": ["0000/0000_001_03_0303morning_0071_0.jpg 0"],
    "gallery": ["0000/0000_000_01_0303morning_0012_2.jpg 0", "0001/0001_004_11_0113afternoon_0900_0.jpg 1"],
}


def write_msmt17(root: Path, folder: str = "MSMT17_V1", train: str = "train", test: str = "test") -> Path:
    for name, lines in MSMT_LISTS.items():
        for line in lines:
            write_image(root / folder / (train if name in ("train", "val") else test) / line.split()[0])
        (root / folder / f"list_{name}.txt").write_text("\n".join(lines) + "\n")
    return root / folder


VEHICLE_LISTS = {
    "train_list": ["0000001 1", "0000002 1", "0000003 5", "0000004 5"],
    "test_list_800": ["0000010 20", "0000011 20", "0000012 20", "0000013 7", "0000014 7", "0000015 9"],
    "test_list_1600": ["0000013 7", "0000014 7", "0000016 8", "0000012 20", "0000011 20", "0000010 20"],
    "test_list_2400": ["0000013 7", "0000014 7"],
}


def write_vehicleid(root: Path, folder: str = "VehicleID_V1.0") -> Path:
    lists = root / folder / "train_test_split"
    lists.mkdir(parents=True)
    for name, lines in VEHICLE_LISTS.items():
        (lists / f"{name}.txt").write_text("\n".join(lines) + "\n")
        for line in lines:
            write_image(root / folder / "image" / f"{line.split()[0]}.jpg")
    return root / folder


# Name -> files, and what training, query and gallery are: (file name, pid, camid).
FOLDER_SETS = {
    "occluded_duke": (
        "Occluded_Duke",
        {
            "bounding_box_train": [("0001_c2_f0046182.jpg", 0, 1), ("0020_c8_f0123456.jpg", 1, 7)],
            "query": [("0005_c3_f0000001.jpg", 5, 2)],
            "bounding_box_test": [("0005_c1_f0056001.jpg", 5, 0), ("7140_c5_f0160000.jpg", 7140, 4)],
        },
    ),
    "cuhk03np_labeled": (
        "cuhk03-np/labeled",
        {
            "bounding_box_train": [("0003_c1_21.png", 0, 0), ("0003_c2_26.png", 0, 1), ("1467_c2_6.png", 1, 1)],
            "query": [("0001_c1_1.png", 1, 0)],
            "bounding_box_test": [("0001_c2_6.png", 1, 1)],
        },
    ),
    "cuhk03np_detected": (
        "CUHK03-NP/detected",
        {
            "bounding_box_train": [("0003_c1_21.png", 0, 0)],
            "query": [("0001_c1_1.png", 1, 0)],
            "bounding_box_test": [("0001_c2_6.png", 1, 1)],
        },
    ),
    "veri776": (
        "VeRi",
        {
            "image_train": [("0001_c001_00016450_0.jpg", 0, 0), ("0776_c020_00084225_0.jpg", 1, 19)],
            "image_query": [("0002_c002_00030600_0.jpg", 2, 1)],
            "image_test": [("0002_c002_00030600_0.jpg", 2, 1), ("0002_c013_00030600_1.jpg", 2, 12)],
        },
    ),
}


def described(samples):
    return [(Path(path).name, pid, camid) for path, pid, camid, _ in samples]


@pytest.mark.parametrize("name", FOLDER_SETS)
def test_sets_whose_file_names_tell_all(tmp_path, make_cfg, name):
    folder, subsets = FOLDER_SETS[name]
    for subfolder, images in subsets.items():
        for file_name, _, _ in images:
            write_image(tmp_path / folder / subfolder / file_name)
    (tmp_path / folder / "Thumbs.db").write_text("")
    module = init_dataset(name, cfg=make_cfg(tmp_path))
    module.setup()
    read = [described(samples) for samples in (module.train_list, module.query_list, module.gallery_list)]
    assert read == list(subsets.values())
    assert module.has_cameras


@pytest.mark.parametrize(
    ("name", "file_name", "message"),
    [
        ("veri776", "0002_c021_00030600_0.jpg", "camera 21 is out of range; expected 1 to 20"),
        ("veri776", "0777_c001_00030600_0.jpg", "identity 777 is out of range"),
        ("cuhk03np_labeled", "0001_c3_1.png", "camera 3 is out of range; expected 1 to 2"),
        ("cuhk03np_labeled", "portrait.png", "expected one such as 0001_c1_1.png"),
        ("occluded_duke", "0001_c9_f0046182.jpg", "camera 9 is out of range; expected 1 to 8"),
    ],
)
def test_names_that_such_a_set_does_not_have(tmp_path, make_cfg, name, file_name, message):
    folder, subsets = FOLDER_SETS[name]
    path = write_image(tmp_path / folder / next(iter(subsets)) / file_name)
    with pytest.raises(UserError, match=message) as caught:
        init_dataset(name, cfg=make_cfg(tmp_path)).setup()
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "folders"),
    [("msmt17_v1", ("MSMT17_V1", "train", "test")), ("msmt17_v2", ("MSMT17_V2", "mask_train_v2", "mask_test_v2"))],
)
def test_msmt17_reads_its_lists(tmp_path, make_cfg, name, folders):
    write_msmt17(tmp_path, *folders)
    module = init_dataset(name, cfg=make_cfg(tmp_path))
    module.setup()
    lines = [line.split()[0].split("/")[1] for line in MSMT_LISTS["train"] + MSMT_LISTS["val"]]
    assert described(module.train_list) == list(zip(lines, [0, 0, 1, 1], [0, 13, 14, 6], strict=True))
    assert [sample[1:3] for sample in module.query_list] == [(1041, 2)]  # numbers start anew in the test
    assert [sample[1:3] for sample in module.gallery_list] == [(1041, 0), (1042, 10)]


@pytest.mark.parametrize(
    ("list_name", "text", "message"),
    [
        ("train", "0000/0000_000_01_0303morning_0015_0.jpg\n", "line 1: .*expected an image and the number"),
        ("val", "\n0002/0002_009_07_0304noon_0200_0.jpg two\n", "line 2: .*expected an image and the number"),
        ("query", "0000/0000_001_16_0303morning_0071_0.jpg 0", "camera 16 of .* is out of range; expected 1 to 15"),
        ("query", "0000/0000.jpg 0", "the camera cannot be read from 0000/0000.jpg"),
        ("gallery", "0009/0009_001_03_0303morning_0071_0.jpg 9", "0009_001_03_.* does not exist; .* names 1 missing"),
        ("gallery", "\n", "is empty"),
        ("gallery", None, "list_gallery.txt does not exist; DATASETS.ROOT_DIR"),
    ],
)
def test_a_bad_list_is_named(tmp_path, make_cfg, list_name, text, message):
    path = write_msmt17(tmp_path) / f"list_{list_name}.txt"
    path.unlink()
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        init_dataset("msmt17_v1", cfg=make_cfg(tmp_path)).setup()
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("folder", ["VehicleID_V1.0", "VehicleID"])
def test_vehicleid_puts_one_image_of_each_identity_into_the_gallery(tmp_path, make_cfg, folder):
    write_vehicleid(tmp_path, folder)
    module = init_dataset("vehicleid_800", cfg=make_cfg(tmp_path), seed=1)
    module.setup()
    assert [sample[1] for sample in module.train_list] == [0, 0, 1, 1]
    assert [sample[1] for sample in module.gallery_list] == [7, 9, 20]
    assert [sample[1] for sample in module.query_list] == [20, 20, 7]  # 9 has one image
    tested = {Path(sample[0]).stem for sample in module.query_list + module.gallery_list}
    assert tested == {line.split()[0] for line in VEHICLE_LISTS["test_list_800"]}
    assert not module.has_cameras
    assert {sample[2] for sample in module.train_list + module.query_list} == {0}
    assert {sample[2] for sample in module.gallery_list} == {1}


def test_the_vehicleid_gallery_is_always_the_same(tmp_path, make_cfg):
    """Neither the run's seed nor the order nor the length of the list changes it."""
    write_vehicleid(tmp_path)
    drawn = {}
    for name in ("vehicleid_800", "vehicleid_1600", "vehicleid_2400"):
        for seed in (0, 7):
            module = init_dataset(name, cfg=make_cfg(tmp_path), seed=seed)
            module.setup()
            for path, pid, _, _ in module.gallery_list:
                assert drawn.setdefault(pid, path) == path
    # Pinned, so that numbers of different versions can be compared.
    assert {pid: Path(path).stem for pid, path in drawn.items()} == PINNED_GALLERY


PINNED_GALLERY = {7: "0000013", 8: "0000016", 9: "0000015", 20: "0000010"}


def test_the_vehicleid_draw_is_fair():
    images = [(f"{pid}_{i}", pid) for pid in range(300) for i in range(3)]
    _, gallery = split_test_list(images)
    chosen = [int(name.split("_")[1]) for name, _ in gallery]
    assert all(70 < chosen.count(i) < 130 for i in range(3))


def test_further_vehicleid_draws_are_others_and_always_the_same(tmp_path, make_cfg):
    """Neither the run's seed nor the order of the list nor the other identities change them."""
    write_vehicleid(tmp_path)
    chosen = {}
    for name, seed in (("vehicleid_800", 0), ("vehicleid_1600", 7)):
        module = init_dataset(name, cfg=make_cfg(tmp_path), seed=seed)
        module.setup()
        samples = module.query_list + module.gallery_list
        assert len(module.val.gallery_draws) == 10
        assert [part.tolist() for part in module.val.gallery_draws[0]] == [
            [sample[3] for sample in part] for part in (module.query_list, module.gallery_list)
        ]
        for number, (query, gallery) in enumerate(module.val.gallery_draws):
            assert sorted([*query, *gallery]) == list(range(len(samples)))
            for i in gallery:
                assert chosen.setdefault((number, samples[i][1]), samples[i][0]) == samples[i][0]
    # Pinned, so that numbers of different versions can be compared.
    assert [chosen[number, 20][-6:-4] for number in range(10)] == PINNED_DRAWS


PINNED_DRAWS = ["10", "10", "10", "12", "10", "12", "11", "10", "10", "12"]


def test_one_image_is_drawn_of_a_name_that_is_listed_twice():
    images = [("b", 2), ("a", 1), ("b", 2), ("c", 1)]
    draw = draw_one_each("x", images, 3)
    assert draw.gallery[1] == 0 and draw.gallery[0] in (1, 3)
    assert draw.query == [4 - draw.gallery[0]]


def test_vehicleid_without_a_second_image(tmp_path, make_cfg):
    lists = write_vehicleid(tmp_path) / "train_test_split"
    (lists / "test_list_800.txt").write_text("0000010 20\n0000013 7\n")
    with pytest.raises(UserError, match=r"test_list_800.txt has one image of each identity"):
        init_dataset("vehicleid_800", cfg=make_cfg(tmp_path)).setup()
    (tmp_path / "VehicleID_V1.0" / "image" / "0000003.jpg").unlink()
    with pytest.raises(MissingPathError, match=r"0000003.jpg does not exist; .*train_list.txt names 1 missing"):
        init_dataset("vehicleid_1600", cfg=make_cfg(tmp_path)).setup()


# --- counts


FIVE = Published(Counts(2, 4, 2), Counts(1, 2, None), Counts(1, 2, 2))


@pytest.mark.parametrize(
    ("found", "problem"),
    [
        (FIVE, None),
        (FIVE._replace(query=Counts(1, 2, 9)), None),  # cameras of the query are not published
        (FIVE._replace(train=Counts(2, 3, 2)), "train has 2 ids, 3 images, 2 cameras (published: 2 ids, 4 images"),
        (FIVE._replace(query=Counts(2, 2, 1)), "query has 2 ids, 2 images (published: 1 ids, 2 images"),
        (FIVE._replace(gallery=Counts(1, 2, 1)), "gallery has 1 ids, 2 images, 1 cameras (published: 1 ids"),
    ],
)
def test_counts_are_compared(found, problem):
    text = find_count_problem(found, FIVE)
    assert (text is None) if problem is None else text.startswith(problem)


def test_cameras_are_not_counted_where_there_are_none():
    assert count([("a", 1, 0, 0), ("b", 2, 0, 1)], has_cameras=False) == Counts(2, 2, None)


@pytest.mark.parametrize(
    ("published", "level", "message"),
    [
        (Published(Counts(6, 24, 6), Counts(2, 3, 3), Counts(4, 5, 4)), None, ""),
        (
            Published(Counts(6, 24, 6), Counts(2, 3, 3), Counts(4, 37, 4)),
            "WARNING",
            "Market1501 differs from the published data set: gallery has 4 ids, 5 images, 4 cameras (published: "
            "4 ids, 37 images, 4 cameras).",
        ),
        (
            Published(Counts(6, 24, 6), Counts(2, 3, 3), Counts(4, 38, 4)),
            "INFO",
            "Market1501: 32 of 65 published images",
        ),
    ],
    ids=["equal", "half", "less than half"],
)
def test_a_real_copy_is_compared_and_a_drawn_subset_is_not(
    market, make_cfg, caplog, monkeypatch, published, level, message
):
    monkeypatch.setattr(REGISTRY.find("market1501"), "published", published)
    with caplog.at_level("INFO", logger="datasets.bases"):
        init_dataset("market1501", cfg=make_cfg(market)).setup()
    records = [record for record in caplog.records if record.name == "datasets.bases"]
    assert [record.levelname for record in records] == ([level] if level else [])
    assert all(record.getMessage().startswith(message) for record in records)


# Data sets of the user's own making, whose sizes nobody has published.
WITHOUT_COUNTS = {"df1", "street2shop", "csv", "folder"}


@pytest.mark.parametrize("name", [name for name in DATASETS if name not in WITHOUT_COUNTS])
def test_docstrings_name_the_published_counts(name):
    module = REGISTRY.find(name)
    text = " ".join(part.__doc__ or "" for part in module.__mro__[:2])
    published = module.published
    assert published is not None
    for counts in published:
        assert str(counts.images) in text or name.startswith("vehicleid")
    total = published.query.images + published.gallery.images
    assert str(published.train.ids) in text
    assert str(published.train.images) in text
    assert str(total if name.startswith("vehicleid") else published.query.ids) in text


def test_the_documentation_names_every_data_set():
    for path in ("README.md", "config/defaults.py"):
        text = (ROOT / path).read_text(encoding="utf-8")
        assert [name for name in DATASETS if name not in text] == []


# --- files


def test_the_first_folder_that_exists_is_taken(tmp_path):
    assert find_folder(tmp_path, ("a", "b")) == tmp_path / "a"
    (tmp_path / "b").mkdir()
    assert find_folder(tmp_path, ("a", "b")) == tmp_path / "b"
    (tmp_path / "a").mkdir()
    assert find_folder(tmp_path, ("a", "b")) == tmp_path / "a"


def test_missing_images_are_counted(tmp_path):
    present = str(write_image(tmp_path / "a" / "1.png"))
    check_images([present], "list")
    check_images([], "list")
    missing = [str(tmp_path / "a" / "2.png"), str(tmp_path / "nowhere" / "3.png")]
    with pytest.raises(MissingPathError, match=r"a/2.png does not exist; list names 2 missing"):
        check_images([present, *missing], "list")


# --- cameras of several digits, and suffixes

OWN_DATA = "For data of your own use DATASETS.NAMES folder or csv, which take any identities and cameras."


@pytest.mark.parametrize(
    ("name", "file_name", "cameras"),
    [
        ("market1501", "market1501/query/0001_c10s1_000451_03.jpg", 6),
        ("dukemtmcreid", "DukeMTMC-reID/query/0002_c81_f0044158.jpg", 8),
        ("occluded_duke", "Occluded_Duke/query/0002_c10_f0044158.jpg", 8),
        ("cuhk03np_labeled", "cuhk03-np/labeled/query/0001_c21_1.png", 2),
        ("cuhk03np_detected", "cuhk03-np/detected/query/0001_c10_1.png", 2),
        ("veri776", "VeRi/image_query/0002_c200_00030600_0.jpg", 20),
    ],
)
def test_cameras_of_several_digits_are_read_whole(tmp_path, name, file_name, cameras):
    path = write_image(tmp_path / file_name)
    camera = int(path.name.split("_c")[1].split("_")[0].split("s")[0])
    with pytest.raises(UserError) as caught:
        read_folder(path.parent, REGISTRY.find(name).rule)
    assert str(caught.value) == f"{path}: camera {camera} is out of range; expected 1 to {cameras}. {OWN_DATA}"


def test_other_ranges_name_the_way_for_data_of_ones_own_too(tmp_path):
    for name in ("1502_c1s1_1.jpg", "somebody.jpg"):
        folder = write_image(tmp_path / name / name).parent
        with pytest.raises(UserError) as caught:
            read_folder(folder, REGISTRY.find("market1501").rule)
        assert str(caught.value).endswith(OWN_DATA)


@pytest.mark.parametrize("name", FOLDER_SETS)
def test_suffixes_are_read_in_any_case(tmp_path, make_cfg, name):
    folder, subsets = FOLDER_SETS[name]
    endings = [".JPG", ".jpeg", ".PNG"]
    expected = []
    for subfolder, images in subsets.items():
        renamed = [
            (Path(file_name).stem + ending, *label)
            for (file_name, *label), ending in zip(images, endings, strict=False)
        ]
        for file_name, *_ in renamed:
            write_image(tmp_path / folder / subfolder / file_name)
        expected.append(renamed)
    module = init_dataset(name, cfg=make_cfg(tmp_path))
    assert module.read_splits().notes == ()
    module.setup()
    assert [described(part) for part in (module.train_list, module.query_list, module.gallery_list)] == expected


def test_a_rule_may_still_name_its_suffixes(tmp_path):
    for name in ("0001_c1.jpg", "0001_c1.PNG", "0001_c2.png"):
        write_image(tmp_path / name)
    passed = PassedOver(tmp_path)
    read = read_folder(tmp_path, NameRule(num_cameras=6, suffixes=(".png",)), passed)
    assert [Path(path).name for path, _, _ in read] == ["0001_c1.PNG", "0001_c2.png"]
    assert passed.notes()[0].files == [str(tmp_path / "0001_c1.jpg")]


def test_vehicleid_finds_its_images_by_any_suffix(tmp_path, make_cfg):
    images = write_vehicleid(tmp_path) / "image"
    cfg = make_cfg(tmp_path)
    before = init_dataset("vehicleid_800", cfg=cfg).read_splits()
    (images / "0000001.jpg").rename(images / "0000001.JPG")
    (images / "0000010.jpg").rename(images / "0000010.png")
    write_image(images / "0000002.png")  # the .jpg, which is there, goes before it
    after = init_dataset("vehicleid_800", cfg=cfg).read_splits()
    names = [[Path(image[0]).name for image in part] for part in after[:3]]
    assert names[0] == ["0000001.JPG", "0000002.jpg", "0000003.jpg", "0000004.jpg"]
    assert "0000010.png" in names[1] + names[2]
    assert [[image[1:] for image in part] for part in after[:3]] == [[i[1:] for i in part] for part in before[:3]]
    (images / "0000010.jpeg").write_text("")
    with pytest.raises(UserError, match=r"image has 0000010.jpeg and 0000010.png, which a list does not tell apart"):
        init_dataset("vehicleid_800", cfg=cfg).read_splits()


def test_a_listed_name_that_differs_in_case_is_named(tmp_path, make_cfg):
    root = write_msmt17(tmp_path)
    image = root / "test" / MSMT_LISTS["query"][0].split()[0]
    image.rename(image.with_suffix(".JPG"))
    with pytest.raises(MissingPathError) as caught:
        init_dataset("msmt17_v1", cfg=make_cfg(tmp_path)).setup()
    assert str(caught.value) == (
        f"Image {image} does not exist; {root / 'list_query.txt'} names 1 missing image(s). The folder has "
        f"{image.stem}.JPG: write the name as the file has it, in upper and lower case."
    )


def test_a_second_copy_of_a_set_is_told(tmp_path, make_cfg):
    write_vehicleid(tmp_path)
    (tmp_path / "VehicleID").mkdir()
    (tmp_path / "VeRi-776").mkdir()
    for subfolder, images in FOLDER_SETS["veri776"][1].items():
        for file_name, _, _ in images:
            write_image(tmp_path / "VeRi" / subfolder / file_name)
    for name, other in (("vehicleid_800", "VehicleID"), ("veri776", "VeRi-776")):
        (note,) = init_dataset(name, cfg=make_cfg(tmp_path)).read_splits().notes
        assert note.endswith(f": 1 folder beside those that are read ({tmp_path / other}).")
