"""Train, query and gallery from images of one's own: ``python -m datasets.split``."""

import csv
import random
import re
import shutil
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets import init_dataset, split, validate
from datasets.readers.numbering import Entry
from datasets.split import SplitOptions, choose_queries, divide
from tests.datasets.conftest import write_image
from tests.launch import forbid_modules, run_module
from utils.errors import UserError

# identity -> camera of each image
PEOPLE = {
    **{f"{pid:04d}": [1, 1, 2, 3] for pid in range(1, 9)},
    "0101": [4, 4, 4],  # one camera only
    "0102": [2],  # one image only
    "0103": [5],
}


def draw_folders(root, people=PEOPLE, cameras=True):
    number = 0
    for pid, shots in people.items():
        for place, camera in enumerate(shots):
            number += 1
            write_image(root / pid / f"{place}{f'_c{camera}' if cameras else ''}.png", number)
    return root


def read(path):
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def by_subset(path):
    subsets = defaultdict(list)
    for row in read(path):
        subsets[row["split"]].append(row)
    return subsets


def failed(capsys, *arguments):
    """The one line of an error, at status 2."""
    with pytest.raises(SystemExit) as ended:
        split.main([str(argument) for argument in arguments])
    assert ended.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.fixture
def loaded(make_cfg):
    def load(table, *options):
        module = init_dataset("csv", cfg=make_cfg("", "DATASETS.CSV_PATH", str(table), *options))
        module.setup()
        return module

    return load


def test_a_folder_of_people(tmp_path, capsys, loaded):
    images, out = draw_folders(tmp_path / "crops"), tmp_path / "data.csv"
    split.main([str(images), "--by", "folder", "--out", str(out)])
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out.splitlines() == [
        "subset   |    ids |   images | cameras",
        "--------------------------------------",
        "train    |      5 |       19 |       4",
        "query    |      4 |        8 |       3",
        "gallery  |      6 |       10 |       4",
        "",
        "queries: 8 of 4 identities (4 with 2)",
        "1 identity, such as 0101, has no second camera, or only copies of one image: not evaluated, in train.",
        "2 identities, such as 0102, have one image only: not evaluated, in gallery, as distractors.",
        f"written: {out}",
    ]
    rows = by_subset(out)
    ids = {name: {row["pid"] for row in part} for name, part in rows.items()}
    assert not ids["train"] & (ids["query"] | ids["gallery"])
    assert "0101" in ids["train"]
    assert ids["gallery"] - ids["query"] == {"0102", "0103"}
    for query in rows["query"]:
        cameras = {row["camid"] for row in rows["gallery"] if row["pid"] == query["pid"]}
        assert cameras - {query["camid"]}
    assert all(len({row["camid"] for row in rows["query"] if row["pid"] == pid}) == 2 for pid in ids["query"])
    assert len(read(out)) == len({row["path"] for row in read(out)}) == sum(map(len, PEOPLE.values()))
    assert all((tmp_path / row["path"]).is_file() and not Path(row["path"]).is_absolute() for row in read(out))
    module = loaded(out)
    assert (len(module.train_list), len(module.query_list), len(module.gallery_list)) == (19, 8, 10)


def check_validated(table, capsys, out):
    options = ["INPUT.SIZE_TRAIN", "[24, 12]", "INPUT.SIZE_TEST", "[24, 12]", "SOLVER.IMS_PER_BATCH", "2"]
    options += ["DATALOADER.NUM_INSTANCE", "2", "DATALOADER.NUM_WORKERS", "0", "DATASETS.NAMES", "csv"]
    assert validate.main(["--out", str(out), *options, "DATASETS.CSV_PATH", str(table)]) == 0
    assert "errors: none" in capsys.readouterr().out


@pytest.mark.parametrize("cameras", [True, False])
def test_validate_has_no_errors(tmp_path, capsys, cameras):
    draw_folders(tmp_path / "crops", cameras=cameras)
    split.main([str(tmp_path / "crops"), "--by", "folder", "--out", str(tmp_path / "data.csv")])
    assert ("No cameras:" in capsys.readouterr().out) is not cameras
    check_validated(tmp_path / "data.csv", capsys, tmp_path / "report")


def test_copies_are_no_queries(tmp_path, capsys):
    """Without cameras, a copy in the gallery would be found first by its query, and say nothing."""
    images = draw_folders(tmp_path / "crops", {f"p{i}": [0] * 4 for i in range(8)}, cameras=False)
    for i in range(8):
        shutil.copy(images / f"p{i}/0.png", images / f"p{i}/copy.png")
    for place in range(1, 4):
        shutil.copy(images / "p0/0.png", images / f"p0/{place}.png")
    out = tmp_path / "data.csv"
    split.main([str(images), "--by", "folder", "--query-per-id", "9", "--train", "0.3", "--out", str(out)])
    said = capsys.readouterr().out
    assert "1 identity, such as p0, has no second camera, or only copies of one image: not evaluated, in train." in said
    assert f"19 images with the content of another of their identity, such as {images}/p0/0.png = {images}/p0/1" in said
    rows = by_subset(out)
    assert len(rows["query"]) == 5 * 3
    assert not any("copy" in row["path"] or "/0." in row["path"] for row in rows["query"])
    check_validated(out, capsys, tmp_path / "report")


def test_the_content_of_another_identity_is_said(tmp_path, capsys):
    images = draw_folders(tmp_path / "crops")
    shutil.copy(images / "0001/0_c1.png", images / "0002/0_c1.png")
    split.main([str(images), "--by", "folder", "--out", str(tmp_path / "data.csv")])
    assert (
        "warning: 1 image with the content of an image of another identity, such as "
        f"{images}/0001/0_c1.png (0001) = {images}/0002/0_c1.png (0002): one of the two labels is wrong."
    ) in capsys.readouterr().out


def test_a_table_with_odd_names_elsewhere(tmp_path, capsys, loaded):
    """Commas, quotes, line breaks, white space and other scripts, in tables in and beside the images' folder."""
    names = ['a, "b"', "zwei\nZeilen", "käse ", " 李"]
    rows = []
    for number, name in enumerate(names * 3):
        path = write_image(tmp_path / "images" / f" {name}" / f"{number}, {name}.png", number)
        rows.append((path.relative_to(tmp_path / "images"), f"{name.strip()}, jr", f"cam, {number // 4}"))
    table = tmp_path / "images/list.csv"
    with table.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("path", "pid", "camid"), *((f"./{path}", *rest) for path, *rest in rows)])
    for out in (tmp_path / "images/data.csv", tmp_path / "elsewhere/data.csv"):
        split.main([str(table), "--by", "csv", "--query-per-id", "1", "--out", str(out)])
        assert capsys.readouterr().err == ""
        module = loaded(out)
        found = [path for path, *_ in [*module.train_list, *module.query_list, *module.gallery_list]]
        assert {Path(path).resolve() for path in found} == {tmp_path / "images" / path for path, *_ in rows}
        assert {(row["pid"], row["camid"]) for row in read(out)} == {(pid, camera) for _, pid, camera in rows}
        assert len(module.query_list) == 2


def test_the_same_seed_gives_the_same_table(tmp_path, monkeypatch):
    images = draw_folders(tmp_path / "crops")

    def table(*options):
        out = tmp_path / "data.csv"
        split.main([str(images), "--by", "folder", "--force", "--out", str(out), *options])
        return out.read_bytes()

    first = table()
    listing = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: sorted(listing(path), reverse=True))
    assert table() == first == table("--seed", "0")
    assert table("--seed", "1") != first


def test_errors(tmp_path, capsys):
    images, out = draw_folders(tmp_path / "crops"), tmp_path / "data.csv"
    few = draw_folders(tmp_path / "few", {"1": [1, 2], "2": [1, 2], "3": [3, 3], "4": [1]})
    same = draw_folders(tmp_path / "same", {"7": [1, 2], "007": [1, 2], "8": [1, 2], "9": [2, 1]})
    for subset in ("train", "query", "gallery"):
        draw_folders(tmp_path / "done" / subset, {"1": [1]})
    (tmp_path / "empty").mkdir()

    def listed(*rows, to=out):
        path = tmp_path / f"list{len(list(tmp_path.glob('list*')))}.csv"
        path.write_text("path,pid,camid\n" + "\n".join(rows) + "\n")
        return path, "--by", "csv", "--out", to or path, "--force"

    missing = r"Image .*nowhere.png does not exist; .*list\d.csv names 1 missing image"
    for arguments, message in (
        ((images, "--by", "folder", "--out", tmp_path / "few"), "--out .*few exists; name another file, or overwrite"),
        ((images, "--by", "folder", "--out", "data.parquet"), "written as CSV, but DATASETS.CSV_PATH would read"),
        ((images, "--by", "folder"), "required: --out"),
        ((images, "--out", out), "required: --by"),
        ((images, "--by", "folder", "--out", out, "--query", "3"), "unrecognized arguments: --query"),
        ((images, "--by", "folder", "--out", out, "--train", "1"), "it is '1'; expected a number above 0 and below 1"),
        ((images, "--by", "folder", "--out", out, "--query-per-id", "0"), "it is '0'; expected a whole number, 1 or"),
        ((images, "--by", "folder", "--out", out, "--train", "0.9"), "gives 7 to training and 1 to query and gallery"),
        ((tmp_path / "nowhere", "--by", "folder", "--out", out), "nowhere is not a folder"),
        ((tmp_path / "nowhere.csv", "--by", "csv", "--out", out), "nowhere.csv does not exist; expected a CSV or"),
        ((tmp_path / "empty", "--by", "folder", "--out", out), "empty holds no images"),
        ((tmp_path / "done", "--by", "folder", "--out", out), "done is divided already, into train, query, gallery"),
        (
            (few, "--by", "folder", "--out", out),
            r"has 4 identities, of which 2 can be evaluated \(1 have one image only, 1 have no second camera or only "
            r"copies of one image\). That gives 1 to training and 1 to query and gallery; expected 2 or more for each",
        ),
        ((same, "--by", "folder", "--out", out), "identities '007' and '7', which are one number"),
        (listed("few/1/0_c1.png,1,1", "few/../few/1/0_c1.png,1,1"), "names the image .* twice, with the same identity"),
        (listed("few/1/0_c1.png,1,1", "./few/1/0_c1.png,2,1"), "twice, with the identities '1' and '2'; name it once"),
        (listed("few/1/0_c1.png,1,1", "few/1/1_c2.png,1,"), r"0_c1.png has a camera \(1\), but .*1_c2.png has none"),
        (listed("few/1/0_c1.png,,1"), "line 2: pid is empty"),
        (listed("nowhere.png,1,1"), missing),
        ((*listed("few/1/0_c1.png,1,1"), "--camera-from", "folder"), "--camera-from is for --by folder; with --by csv"),
        (listed("few/1/0_c1.png,1,1", to=None), r"list\d.csv is the table that is read; name another"),
    ):
        said = failed(capsys, *arguments)
        assert re.search(message, said), said
    assert not out.exists()
    assert (tmp_path / "few").is_dir()


def test_names_that_a_table_cannot_hold(tmp_path, capsys):
    images = draw_folders(tmp_path / "crops")
    for name, message in (("odd\udcff", "is not valid UTF-8"), (" 0001", "begins or ends with white space")):
        (images / "0001").rename(images / name)
        said = failed(capsys, images, "--by", "folder", "--out", tmp_path / "data.csv")
        assert message in said
        (images / name).rename(images / "0001")


@pytest.mark.slow
def test_force_and_the_program_itself(tmp_path):
    images, out = draw_folders(tmp_path / "crops"), tmp_path / "data.csv"
    out.write_text("mine")
    arguments = ("datasets.split", images, "--by", "folder", "--out", out)
    done = run_module(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: --out {out} exists; name another file, or overwrite it with --force.\n"
    assert out.read_text() == "mine"
    done = run_module(*arguments, "--force")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(read(out)) == 37
    done = run_module("datasets.split", "--help", env=forbid_modules(tmp_path, "torch", "numpy"))
    assert done.returncode == 0
    assert "--query-per-id" in done.stdout


def entries_of(people):
    return [Entry(f"{pid}/{place}", pid, camera) for pid, shots in people.items() for place, camera in enumerate(shots)]


@settings(max_examples=60, deadline=None)
@given(
    people=st.dictionaries(
        st.text("abcdef", min_size=1, max_size=4),
        st.lists(st.sampled_from("1234"), max_size=7),
        min_size=1,
        max_size=12,
    ),
    has_cameras=st.booleans(),
    share=st.floats(0.1, 0.9),
    queries=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_every_division_can_be_evaluated(people, has_cameras, share, queries, seed):
    entries = [entry if has_cameras else entry._replace(camera="") for entry in entries_of(people)]
    options = SplitOptions(share, queries, seed)
    try:
        found = divide(entries, options)
    except UserError:
        able = [shots for shots in people.values() if len(shots if not has_cameras else set(shots)) > 1]
        trained = int(share * len(able) + 0.5)
        assert min(trained, len(able) - trained) < 2
        return
    assert sorted([*found.train, *found.query, *found.gallery]) == sorted(entries)
    assert not {image.pid for image in found.train} & {image.pid for image in (*found.query, *found.gallery)}
    assert all(count >= 2 for count in Counter(image.pid for image in found.train).values())
    assert max(Counter(image.pid for image in found.query).values()) <= queries
    for query in found.query:
        assert any(
            other.pid == query.pid and (not has_cameras or other.camera != query.camera) for other in found.gallery
        )
    random.Random(seed).shuffle(entries)
    assert divide(entries, options) == found


@pytest.mark.parametrize(
    ("shots", "most", "number", "cameras"),
    [
        ("12", 2, 1, 1),
        ("1122", 2, 2, 2),
        ("1234", 3, 3, 3),
        ("11112", 9, 4, 1),
        ("11222333", 3, 3, 3),
        ("122", 1, 1, 1),
    ],
)
def test_queries_are_spread_over_cameras(shots, most, number, cameras):
    images = entries_of({"a": shots})
    sizes = set()
    for seed in range(20):
        chosen = choose_queries(images, most, set(), random.Random(seed))
        sizes.add((len(chosen), len({image.camera for image in chosen})))
    assert max(sizes) == (number, cameras)


@pytest.mark.parametrize("junk", ["-1", "-1.0"])
def test_junk_goes_to_the_gallery(junk):
    found = divide(entries_of({**dict.fromkeys("abcdef", "12"), junk: "1122"}), SplitOptions())
    assert [image.pid for image in found.gallery].count(junk) == 4
    assert "4 images of identity -1: in gallery, neither match nor distractor." in found.notes
    found = divide(entries_of({**dict.fromkeys("abcdef", "12"), "-1": "1", "-1.0": "1122"}), SplitOptions())
    assert [image.pid for image in found.gallery].count("-1.0") == 4
    assert "5 images of identity -1: in gallery, neither match nor distractor." in found.notes


def test_deeper_folders_are_read_and_that_is_said(tmp_path, capsys):
    """As people of their folder or, where it is asked for, as images of a camera."""
    images = draw_folders(tmp_path / "crops", cameras=False)
    first = min(images.glob("*/*.png"))
    first.parent.joinpath("old").mkdir()
    moved = first.rename(first.parent / "old" / first.name)
    given = [str(images), "--by", "folder", "--out", str(tmp_path / "data.csv")]
    split.main(given)
    line = (
        f"{images}: 1 image(s) in folders below those of the identities are read as images of the identity (such as "
        f"{moved}); if these folders are cameras, give --camera-from folder."
    )
    assert capsys.readouterr().out.splitlines().count(line) == 1
    pids = {tmp_path / row["path"]: row["pid"] for row in read(tmp_path / "data.csv")}
    assert pids[moved] == moved.parent.parent.name
    for number, path in enumerate(sorted(images.glob("*/*.png"))):
        camera = path.parent / f"cam{number % 2}"
        camera.mkdir(exist_ok=True)
        path.rename(camera / path.name)
    split.main([*given, "--camera-from", "folder", "--force"])
    assert "folders below" not in capsys.readouterr().out


def test_a_camera_that_the_table_cannot_give_back_is_refused(tmp_path, capsys):
    for number, camera in enumerate(("door", "door ", "door", "door ")):
        write_image(tmp_path / "images" / f"p{number // 2}" / camera / f"{number}.png", number)
    given = (tmp_path / "images", "--by", "folder", "--camera-from", "folder", "--out", tmp_path / "data.csv")
    assert "the camera 'door ' (" in failed(capsys, *given)
    assert not (tmp_path / "data.csv").exists()
