"""The check before a training: what it finds in labels and files, what it writes, and how it ends."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from datasets import init_dataset
from datasets.bases import Splits
from datasets.checking.charts import Chart, chart_text, draw_charts
from datasets.checking.checks import (
    check_batches,
    check_counts,
    check_files,
    check_labels,
    images_per_camera,
    images_per_identity,
)
from datasets.checking.scan import ImageFacts, scan_images
from datasets.counts import Published, count, find_evaluation_problem, find_unmatched
from datasets.validate import configured_world_size, main
from tests.datasets.conftest import write_folders, write_image
from tests.launch import forbid_modules, run_module
from utils.errors import UserError
from utils.labels import Names

GOOD = {
    "train": {1: [1, 2], 2: [1, 2, 3], 3: [2, 1], 4: [1, 1, 2, 2, 3]},
    "query": {11: [1], 12: [1, 2]},
    "gallery": {0: [3], 11: [2, 1], 12: [3, 3]},
}


def make(root: Path, subsets=GOOD) -> Path:
    write_folders(root / "market1501", subsets)
    return root


def run(root, *options, out="out"):
    arguments = ["INPUT.SIZE_TRAIN", "[24, 12]", "INPUT.SIZE_TEST", "[24, 12]", "SOLVER.IMS_PER_BATCH", "2"]
    arguments += ["DATALOADER.NUM_INSTANCE", "2", "DATALOADER.NUM_WORKERS", "0", "DATASETS.ROOT_DIR", str(root)]
    return main(["--out", str(root / out), *arguments, *map(str, options)])


def files(root, folder):
    return sorted((root / "market1501" / folder).iterdir())


# --- labels


label = st.tuples(st.just("x.jpg"), st.integers(0, 3), st.integers(0, 2))


@settings(max_examples=100)
@given(st.lists(label, min_size=1, max_size=6), st.lists(label, min_size=1, max_size=6), st.sets(st.integers(0, 5)))
def test_labels_are_checked_as_a_plain_loop_does(query, gallery, trained):
    unmatched = sum(not any(g[1] == q[1] and g[2] != q[2] for g in gallery) for q in query)
    assert len(find_unmatched(query, gallery)) == unmatched
    assert (find_evaluation_problem(query, gallery) is not None) is (unmatched == len(query))
    for one_numbering in (True, False):
        findings = check_labels(trained, query, gallery, one_numbering)
        fatal = [finding for finding in findings if finding.is_fatal]
        warned = [finding for finding in findings if not finding.is_error]
        leaks = [finding for finding in findings if finding.is_error and not finding.is_fatal]
        assert len(fatal) == (unmatched == len(query))
        assert len(warned) == (0 < unmatched < len(query))
        assert all(f"{unmatched} of {len(query)} queries" in finding.text for finding in warned)
        shared = sorted(trained & {image[1] for image in query + gallery}) if one_numbering else []
        assert [finding.details for finding in leaks] == ([[f"identity {pid}" for pid in shared]] if shared else [])


@pytest.mark.parametrize("world_size", [1, 2])
def test_batches_of_an_epoch_are_counted_by_running_it(market, make_cfg, monkeypatch, world_size):
    monkeypatch.setenv("WORLD_SIZE", str(world_size))
    module = init_dataset("market1501", cfg=make_cfg(market))
    module.setup()
    batches, findings = check_batches([sample[1] for sample in module.train_list], 2, 2, world_size)
    with pytest.warns(UserWarning, match="fewer than 2 images"):
        loader = module.train_dataloader()
    for epoch, number in enumerate(batches):
        loader.sampler.set_epoch(epoch)
        assert sum(1 for _ in loader) == number
    assert [(finding.is_error, finding.details) for finding in findings] == [(False, ["identity 3"])]


@pytest.mark.parametrize(
    ("identities", "world_size", "advice"),
    [
        (9, 4, "Set SOLVER.IMS_PER_BATCH to at most 2."),
        (9, 9, "Set SOLVER.IMS_PER_BATCH to at most 1."),
        (9, 1000, "Use at most 9 processes"),
        (0, 1, "add some"),
    ],
)
def test_the_advice_on_batches_can_be_followed(identities, world_size, advice):
    (_, finding) = check_batches([*range(identities), *range(identities), 100], 16, 2, world_size)[1]
    assert finding.is_fatal
    assert advice in finding.text
    assert "at most 0" not in finding.text


def test_a_training_with_too_many_processes_is_told_their_number(market, make_cfg, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1000")
    with pytest.raises(UserError, match=r"Use at most 5 processes .GPU_IDS"), pytest.warns(UserWarning):
        init_dataset("market1501", cfg=make_cfg(market)).train_dataloader()


def test_too_few_identities_are_fatal():
    batches, findings = check_batches([1, 1, 2, 2, 3, 3, 4], identities=2, instances=2, world_size=2)
    assert batches == []
    assert [finding.is_fatal for finding in findings] == [False, True]
    assert "2 for each of 2 process(es), but 3 have two or more images. Set SOLVER.IMS_PER_BATCH to at most 1." in (
        findings[1].text
    )


@settings(max_examples=50)
@given(st.lists(st.integers(1, 40), max_size=20))
def test_every_identity_is_in_the_bin_of_its_size(sizes):
    images = [("x.jpg", pid, pid % 3) for pid, size in enumerate(sizes) for _ in range(size)]
    bins = images_per_identity(images)
    assert sum(bins.values()) == len(sizes)
    for label, number in bins.items():
        low, _, high = label.partition("-")
        assert number == sum(int(low) <= size <= int(high or low) for size in sizes)
    assert images_per_camera(images) == {
        str(camid + 1): number for camid, number in sorted(Counter(image[2] for image in images).items())
    }


# --- files


def facts_of(**sizes_and_digests):
    return {path: ImageFacts(path, *size, digest.encode()) for path, (size, digest) in sizes_and_digests.items()}


@pytest.mark.parametrize(
    ("placed", "is_error", "word"),
    [
        ([("train", 1, 0), ("query", 1, 0)], True, "both in the training set and in query or gallery"),
        (
            [("train", 1, 0), ("gallery", 7, 1), ("query", 7, 2)],
            True,
            "both in the training set and in query or gallery",
        ),
        ([("query", 7, 0), ("gallery", 7, 0)], False, "same identity and camera"),
        ([("query", 7, 0), ("gallery", 7, 1)], True, "in query and gallery under different cameras; scores will be"),
        ([("query", 7, 0), ("gallery", 8, 0)], True, "in query and gallery under different identities; scores will"),
        ([("train", 1, 0), ("train", 2, 0)], False, "in one split under different identities"),
        ([("gallery", 7, 0), ("gallery", 7, 1)], False, "in one split more than once"),
        ([("gallery", 7, 0)], None, ""),
    ],
)
def test_the_same_bytes_twice(placed, is_error, word):
    splits = {"train": [("a", 5, 0)], "query": [("b", 6, 0)], "gallery": [("c", 6, 1)]}
    facts = facts_of(a=((12, 24), "a"), b=((12, 24), "b"), c=((12, 24), "c"))
    for number, (name, pid, camid) in enumerate(placed):
        splits[name].append((f"copy{number}", pid, camid))
        facts |= facts_of(**{f"copy{number}": ((12, 24), "same")})
    findings = check_files(splits, facts, dict.fromkeys(splits, (24, 12)))
    if is_error is None:
        assert findings == []
        return
    (finding,) = findings
    assert finding.is_error is is_error
    assert finding.text.startswith("1 image is ")
    assert word in finding.text
    (detail,) = finding.details
    assert all(f"{name}: copy{number}" in detail for number, (name, _, _) in enumerate(placed))


@pytest.mark.parametrize(
    ("gallery", "is_error", "text"),
    [
        (
            ("copy1", 7, 1),
            False,
            "1 image is in query and gallery; without cameras each query's own image is left out of its ranking "
            "(TEST.SELF_MATCH drop).",
        ),
        (("copy1", 8, 1), True, "1 image is in query and gallery under different identities; scores will be wrong."),
    ],
)
def test_the_query_itself_in_a_gallery_without_cameras(gallery, is_error, text):
    splits = {"train": [], "query": [("copy0", 7, 0)], "gallery": [gallery]}
    facts = facts_of(copy0=((12, 24), "same"), copy1=((12, 24), "same"))
    (finding,) = check_files(splits, facts, dict.fromkeys(splits, (24, 12)), has_cameras=False)
    assert (finding.is_error, finding.text) == (is_error, text)


@pytest.mark.parametrize(
    ("size", "tiny", "odd"),
    [
        ((16, 32), False, False),
        ((15, 32), True, False),
        ((16, 31), True, False),
        ((96, 64), False, False),  # three times as wide as usual
        ((97, 64), False, True),
        ((64, 384), False, False),
        ((64, 385), False, True),
    ],
)
def test_tiny_and_odd_pictures(size, tiny, odd):
    splits = {"train": [(name, 1, 0) for name in "abcd"] + [("odd one", 2, 0)], "query": [], "gallery": []}
    facts = facts_of(**{name: ((64, 128), name) for name in "abcd"}, **{"odd one": (size, "odd")})
    findings = check_files(splits, facts, dict.fromkeys(splits, (256, 128)))
    assert [("tiny" in finding.text, "ratio" in finding.text) for finding in findings] == (
        [(True, False)] * tiny + [(False, True)] * odd
    )
    for finding in findings:
        assert not finding.is_error
        assert finding.details == [f"odd one ({size[0]} x {size[1]})"]


def test_tiny_is_measured_by_what_the_network_sees_of_that_split():
    splits = {name: [(name, 1, 0)] for name in ("train", "query", "gallery")}
    facts = facts_of(**{name: ((10, 20), name) for name in splits})
    sizes = {"train": (256, 128), "query": (24, 12), "gallery": (24, 12)}
    (finding,) = check_files(splits, facts, sizes)
    assert finding.details == ["train (10 x 20)"]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_files_are_read_alike_by_any_number_of_processes(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.checking.scan.WORTH_A_PROCESS", 5)
    paths = [str(write_image(tmp_path / f"{i}.png", i % 7, (4 + i % 3, 8))) for i in range(40)]
    Path(paths[3]).write_bytes(b"none")
    missing = str(tmp_path / "missing.png")
    facts = scan_images([*paths, *paths[:5], missing], num_workers=2)
    assert facts == scan_images([*paths, missing], num_workers=0)
    assert list(facts) == [*paths, missing]
    assert (facts[paths[5]].width, facts[paths[5]].height) == (6, 8)
    assert len({fact.digest for fact in facts.values() if not fact.error}) == 21
    assert [path for path, fact in facts.items() if fact.error] == [paths[3], missing]
    assert facts[paths[3]].error.startswith(f"Image {paths[3]} cannot be read")
    assert facts[missing].error.startswith(f"Image {missing} does not exist")


# --- charts


def test_a_chart_as_text():
    text = chart_text(Chart("query", "images by camera", {"1": 40, "10": 1, "11": 0}))
    assert text.splitlines() == [
        "query: images by camera",
        f"   1       40 {'#' * 40}",
        "  10        1 #",
        "  11        0",
    ]
    assert chart_text(Chart("query", "nothing", {})) == "query: nothing"


@pytest.mark.parametrize("bars", [0, 1, 5, 300])
def test_bars_are_as_high_as_their_counts(bars):
    chart = Chart("train", "title", {str(i): i for i in range(bars)})
    picture = np.asarray(draw_charts([[chart, chart], [chart]]))
    assert picture.shape == (560, 840, 3)
    blue = (picture[:280, :420] == (0x48, 0x78, 0xA8)).all(2).sum(0)
    heights = [height for height in blue if height]
    assert heights == sorted(heights)
    assert bool(heights) is (bars > 1)
    assert (picture != 255).any(2)[:, :420].any(1).nonzero()[0].max() < 560


# --- the command


def test_a_good_data_set(tmp_path, capsys):
    assert run(make(tmp_path)) == 0
    output = capsys.readouterr().out
    assert "train    |      4 |       12 |       3" in output
    assert "on each of 1 process(es), of 2 identities x 2 images" in output
    assert "gallery: images by camera\n  1        1 ##########" in output
    assert "errors: none\nwarnings: none\n" in output
    with Image.open(tmp_path / "out" / "histograms.png") as picture:
        assert picture.size == (3 * 420, 2 * 280)
    written = (tmp_path / "out" / "report.txt").read_text()
    assert output == written + "".join(f"written: {tmp_path / 'out' / n}\n" for n in ("report.txt", "histograms.png"))


def test_warnings_alone_are_no_failure(tmp_path, capsys):
    make(tmp_path, GOOD | {"train": GOOD["train"] | {5: [1]}, "query": GOOD["query"] | {13: [1]}})
    query = files(tmp_path, "query")[0]
    (tmp_path / "market1501/bounding_box_test/0011_c1s9_1.jpg").write_bytes(query.read_bytes())
    write_image(files(tmp_path, "bounding_box_train")[0], 500, (8, 2))
    assert run(tmp_path) == 0
    output = capsys.readouterr().out
    assert "errors: none\nwarnings: 5\n" in output
    warned = [line for line in output.splitlines() if line.startswith("  warning: ")]
    words = ("1 of 4 queries have no", "1 training identity has one image", "tiny", "ratio", "same identity and")
    assert [word in line for word, line in zip(words, warned, strict=True)] == [True] * 5


def test_all_errors_are_listed_and_files_named(tmp_path, capsys):
    make(tmp_path, GOOD | {"gallery": GOOD["gallery"] | {4: [1]}})
    train, gallery = files(tmp_path, "bounding_box_train"), files(tmp_path, "bounding_box_test")
    for path in train[:7]:
        path.write_bytes(b"no picture")
    gallery[0].write_bytes(train[-1].read_bytes())
    assert run(tmp_path, "SOLVER.IMS_PER_BATCH", 3, "GPU_IDS", "[0, 1]") == 1
    output = capsys.readouterr().out
    report = (tmp_path / "out" / "report.txt").read_text()
    assert "errors: 4\n" in output
    for text in (output, report):
        assert "1 training identity is in query or gallery as well" in text
        assert "    identity 4\n" in text
        assert "Too few identities for one batch: SOLVER.IMS_PER_BATCH is 3 for each of 2" in text
        assert "7 images of 21 cannot be read" in text
        assert f"    train: {train[-1]} = gallery: {gallery[0]}\n" in text
    assert "and 2 more (all are in report.txt)" in output
    assert sum(f"Image {path} cannot be read" in report for path in train[:7]) == 7
    assert sum(f"Image {path} cannot be read" in output for path in train[:7]) == 5


def test_keys_of_the_data_that_have_no_effect_and_a_default_folder_are_named(tmp_path, capsys):
    make(tmp_path)
    assert run(tmp_path, "DATASETS.CSV_PATH", "a.csv", "TEST.RERANK_K1", "3") == 0
    shown = capsys.readouterr().out
    assert "  warning: DATASETS.CSV_PATH a.csv has no effect: DATASETS.NAMES is market1501.\n" in shown
    assert "RERANK" not in shown
    assert main(["--out", str(tmp_path / "out")]) == 1
    assert "It is '/home/data', the default: nothing sets DATASETS.ROOT_DIR." in capsys.readouterr().out


def test_labels_that_cannot_be_read_are_an_error_of_the_data_set(tmp_path, capsys):
    make(tmp_path)
    write_image(tmp_path / "market1501" / "query" / "somebody.jpg")
    assert run(tmp_path) == 1
    output = capsys.readouterr().out
    assert "errors: 1\n  error: " in output
    assert "somebody.jpg: identity and camera cannot be read" in output
    assert (tmp_path / "out" / "report.txt").read_text() == output


def test_numbers_of_coco_files_are_not_compared(coco, capsys):
    options = ["DATASETS.NAMES", "df1", "DATASETS.JSON_TRAIN_PATH", coco / "train_reid.json"]
    text = (coco / "train_reid.json").read_text().replace('"pair_id": 9', '"pair_id": 3')
    (coco / "train_reid.json").write_text(text)
    run(coco, *options)
    output = capsys.readouterr().out
    assert "Identities of training and test are not compared" in output
    assert "training identit" not in output


def test_data_without_cameras(tmp_path, capsys):
    rows = [("train", 1), ("train", 1), ("train", 2), ("train", 2), ("query", 3), ("gallery", 3)]
    for number, _ in enumerate(rows):
        write_image(tmp_path / f"{number}.png", number)
    lines = [f"{number}.png,{pid},{split}" for number, (split, pid) in enumerate(rows)]
    (tmp_path / "mine.csv").write_text("\n".join(["path,pid,split", *lines]))
    assert run(tmp_path, "DATASETS.NAMES", "csv", "DATASETS.CSV_PATH", tmp_path / "mine.csv") == 0
    output = capsys.readouterr().out
    assert "the same-camera filter is off" in output
    assert "by camera" not in output
    assert "errors: none\nwarnings: none" in output
    (tmp_path / "5.png").write_bytes((tmp_path / "4.png").read_bytes())  # the query itself is the gallery
    assert run(tmp_path, "DATASETS.NAMES", "csv", "DATASETS.CSV_PATH", tmp_path / "mine.csv") == 0
    assert "warning: 1 image is in query and gallery; without cameras each query's own" in capsys.readouterr().out


TABLE = [
    *("1.png,ann,train,cam0", "2.png,ann,train,cam1", "3.png,bob,train,cam1", "4.png,bob,train,cam0"),
    *("5.png,cid,query,cam0", "6.png,dee,query,cam0", "7.png,cid,gallery,cam1", "8.png,dee,gallery,cam0"),
    *("9.png,-1,gallery,cam1", "10.png,eve,train,cam0"),
]


def write_table(folder, lines=TABLE, header="path,pid,split,camid"):
    for line in lines:
        write_image(folder / line.split(",")[0], int(line.split(".")[0]))
    (folder / "mine.csv").write_text("\n".join([header, *lines]) + "\n")
    return folder / "mine.csv"


def test_a_table_is_named_and_its_names_are_kept(tmp_path, capsys):
    path = write_table(tmp_path)
    assert run(tmp_path, "DATASETS.NAMES", "csv", "DATASETS.CSV_PATH", path, "DATASETS.ROOT_DIR", "") == 0
    output = capsys.readouterr().out
    assert output.startswith(f"csv (DATASETS.CSV_PATH {path}, relative paths from {tmp_path})\n")
    assert "names of the cameras, by camid: 0 = cam0, 1 = cam1\n" in output
    assert "train: images by camera\n  cam0        3 ###" in output
    text = (tmp_path / "out" / "report.txt").read_text()
    for part in (
        "warnings: 3\n",
        f"  warning: Passed over in {path}: 1 image of pid -1, which marks junk ({tmp_path / '9.png'}).\n"
        f"    {tmp_path / '9.png'}\n",
        "1 of 2 queries have no gallery image of their identity from another camera; they are left out of every score."
        f"\n    {tmp_path / '6.png'} (identity dee)\n",
        "will not be trained on.\n    identity eve\n",
    ):
        assert part in text


def test_what_is_read_is_named(coco, market, make_cfg):
    path = coco / "train_reid.json"
    options = ("DATASETS.JSON_TRAIN_PATH", str(path), "DATASETS.CSV_PATH", "lists/mine.csv")
    sources = {
        "market1501": f"DATASETS.ROOT_DIR {market}",
        "df1": f"DATASETS.JSON_TRAIN_PATH {path}, DATASETS.ROOT_DIR {market}",
        "csv": f"DATASETS.CSV_PATH lists/mine.csv, relative paths from {market}",
    }
    sources["market1501+csv+dukemtmcreid"] = f"{sources['market1501']}; {sources['csv']}"
    for name, source in sources.items():
        assert init_dataset(name, cfg=make_cfg(market, *options)).describe_source() == source
    for root in ("", "/home/data"):
        module = init_dataset("csv", cfg=make_cfg(root, *options))
        assert module.describe_source() == "DATASETS.CSV_PATH lists/mine.csv, relative paths from lists"


def test_names_of_test_identities_are_not_those_of_joint_training(tmp_path, capsys):
    """Joint sets number their training identities anew: 2 would be cid in the table, and is eve here."""
    make(tmp_path)
    path = write_table(tmp_path)
    run(tmp_path, "DATASETS.NAMES", "csv+market1501", "DATASETS.CSV_PATH", path, "DATASETS.ROOT_DIR", tmp_path)
    output = capsys.readouterr().out
    assert "will not be trained on.\n    identity 2\n" in output
    assert "     cam0        3 #" in output
    assert "1 (set 2)        5 #" in output


def test_a_subset_of_a_published_set_is_said_to_be_one(tmp_path, capsys):
    assert run(make(tmp_path)) == 0
    assert "20 of 32217 published images; taken for a subset, counts not checked.\n" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".JPG", ".jpeg", ".png"])
def test_half_of_the_queries_with_another_suffix(tmp_path, suffix, capsys):
    root = make(tmp_path) / "market1501"
    for path in sorted((root / "query").iterdir())[::2]:
        write_image(path.with_suffix(suffix), int(path.stem.split("_")[2]))
        path.unlink()
    (root / "query" / "list.txt").write_text("")
    assert run(tmp_path) == 0
    said, other = capsys.readouterr()
    assert "query    |      2 |        3 |       2" in said
    assert (
        f"  warning: Passed over in {root}: 1 file that is not an image by its suffix ({root / 'query/list.txt'}).\n"
        f"    {root / 'query/list.txt'}\n"
    ) in said
    assert not other


def test_a_camera_of_two_digits_is_an_error_that_names_the_way_out(tmp_path, capsys):
    root = make(tmp_path) / "market1501"
    path = write_image(root / "bounding_box_test" / "0011_c10s1_000000_00.jpg")
    assert run(tmp_path) == 1
    assert (
        f"errors: 1\n  error: {path}: camera 10 is out of range; expected 1 to 6. For data of your own use "
        "DATASETS.NAMES folder or csv, which take any identities and cameras.\n"
    ) in capsys.readouterr().out


def test_merged_training_sets(tmp_path, capsys):
    make(tmp_path)
    write_folders(tmp_path / "DukeMTMC-reID", GOOD)
    for path in (tmp_path / "DukeMTMC-reID").rglob("*.jpg"):  # other pictures than Market's
        write_image(path, int(path.stem.split("_")[2]) + 100)
    assert run(tmp_path, "DATASETS.NAMES", "market1501+dukemtmcreid", "SOLVER.IMS_PER_BATCH", "8") == 0
    output = capsys.readouterr().out
    assert "train    |      8 |       24" in output
    assert "Identities of training and test are not compared" in output


@pytest.mark.parametrize(("missing", "warned"), [(0, False), (1, True), (11, False)])
def test_counts_other_than_the_published_ones_are_a_warning(missing, warned):
    splits = Splits(*([(f"{name}{i}", i // 2, i % 2) for i in range(6)] for name in "tqg"))
    published = Published(*(count(images) for images in splits[:3]))
    kept = splits._replace(train=splits.train[: 6 - min(missing, 5)], query=splits.query[: 6 - max(0, missing - 5)])
    kept = kept._replace(query=kept.query or splits.query[:1])
    findings = check_counts(kept, published)
    assert check_counts(kept, None) == []
    assert [finding.is_error for finding in findings] == [False] * warned
    assert all("train has 3 ids, 5 images, 2 cameras (published: 3 ids, 6 images" in f.text for f in findings)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 1),
        ({"GPU_IDS": [0, 1, 5]}, 3),
        ({"GPU_IDS": []}, 1),
        ({"GPU_IDS": [0, 1], "TRAINER.NUM_NODES": 4}, 8),
        ({"GPU_IDS": [0, 1], "TRAINER.ACCELERATOR": "cpu"}, 1),
        ({"GPU_IDS": [0, 1], "TRAINER.ACCELERATOR": "cpu", "SOLVER.DIST_BACKEND": "ddp_cpu"}, 2),
    ],
)
def test_the_configured_number_of_processes(tmp_path, make_cfg, options, expected):
    cfg = make_cfg(tmp_path, *(part for pair in options.items() for part in pair))
    assert configured_world_size(cfg) == expected


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["DATASETS.ROOT_DIR", "{root}/nowhere"], 1, ""),
        (["DATASETS.NAMES", "nobody"], 2, "error: DATASETS.NAMES is 'nobody'; valid names"),
        (["SOLVER.IMS_PER_BTCH", "2"], 2, "error: Unknown config key"),
        (
            ["--out", "{root}/file/below", "DATASETS.ROOT_DIR", "{root}"],
            2,
            "error: {root}/file/below/report.txt cannot",
        ),
        (["--world-size", "0"], 2, "error: argument --world-size: it is '0'; expected a whole number, 1"),
        (["--world-size", "x"], 2, "error: argument --world-size: it is 'x'; expected a whole number, 1"),
    ],
)
def test_exit_status(tmp_path, arguments, status, words):
    make(tmp_path)
    (tmp_path / "file").write_text("")
    given = [argument.format(root=tmp_path) for argument in arguments]
    done = run_module("datasets.validate", *given, "OUTPUT_DIR", tmp_path / "logs")
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    if status == 2:
        assert done.stderr.startswith(words.format(root=tmp_path))
        assert done.stderr.count("\n") == 1
    else:
        assert (tmp_path / "logs" / "report.txt").exists()


def test_help_needs_no_torch(tmp_path):
    done = run_module("datasets.validate", "--help", env=forbid_modules(tmp_path, "torch"))
    assert done.returncode == 0, done.stderr
    assert "--world-size" in done.stdout
    assert "python -m datasets.validate --config_file" in done.stdout


# --- the trainer


@pytest.mark.parametrize(
    ("query", "where"),
    [
        ([("q", 7, 0), ("r", 8, 0)], " from another camera"),  # 8 is in the gallery, seen by the same camera
        ([("q", 7, 0), ("r", 9, 0)], ""),  # 9 is not there at all
        ([("q", 7, 0), ("r", 8, 1), ("r", 9, 0)], ""),
    ],
)
def test_cameras_are_named_only_where_they_are_the_reason(query, where):
    gallery = [("g", 7, 1), ("h", 8, 0)]
    (finding,) = check_labels([3], query, gallery, True, Names({8: "eight", 9: "nine"}))
    assert finding.text == (
        f"1 of {len(query)} queries have no gallery image of their identity{where}; they are left out of every score."
    )
    assert finding.details == [f"r (identity {'eight' if where else 'nine'})"]


def test_identities_are_called_by_their_names():
    names = Names({3: "carl", 7: "ann"})
    findings = check_labels([3, 7], [("q", 7, 0)], [("g", 7, 1)], True, names)
    assert findings[0].details == ["identity ann"]
    findings = check_batches([3, 7, 7, 8, 8], 1, 2, 1, names)[1]
    assert findings[0].details == ["identity carl"]


def test_cameras_are_called_by_their_names():
    images = [("a", 1, 0), ("b", 1, 2), ("c", 1, 2), ("d", 1, 3)]
    assert images_per_camera(images, Names({}, {0: "door", 2: "0"})) == {"door": 1, "0": 2, "4": 1}


def test_findings_of_the_labels_alone():
    query, gallery = [("q", 7, 0), ("r", 8, 0)], [("g", 7, 1), ("h", 8, 0)]
    findings = check_labels([3, 7], query, gallery, one_numbering=True)
    assert [finding.is_fatal for finding in findings] == [False, False]
    assert "1 of 2 queries have no gallery image" in findings[0].text
    assert "1 training identity is in query" in findings[1].text
    (fatal,) = check_labels([3], query, gallery[1:], one_numbering=True)
    assert fatal.is_fatal
    assert "one camera" in fatal.text


def test_the_data_module_keeps_the_numbers_of_the_data_set(market, make_cfg):
    module = init_dataset("market1501", cfg=make_cfg(market))
    module.setup()
    assert module.train_pids == [2, 7, 11, 30, 31, 44]
    assert module.one_numbering
