"""The fashion conversions against the recorded ones, interrupted, repeated, and on bad input."""

import hashlib
import json
import os
import re
import signal
import subprocess
import time
from io import BytesIO
from math import ceil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from scripts import conversion, convert_to_jpg, deep_fashion2reid, street2shop2coco, street2shop_coco2reid
from scripts.conversion import MAX_WORKERS, parallel
from scripts.crops import Crop, fit, make_crop, make_crops
from scripts.deep_fashion_lists import scaled_box
from scripts.street2shop_metadata import CATEGORIES, Category, Sighting
from tests.launch import forbid_modules, run_script, start_python
from tests.support import GOLDEN, ROOT
from utils.errors import UserError
from utils.image import pil_loader

EXPECTED = json.loads((GOLDEN / "fashion_s0_expected.json").read_text())
PARTITION, BOXES = "df/Eval/list_eval_partition.txt", "df/Anno/list_bbox_consumer2shop.txt"
FULL = '{"left": 1, "top": 1, "width": 5, "height": %s'  # without the last bracket
SMALL = ("--target-image-size", "64", "64")


def convert(module, *arguments):
    """Run a conversion in this process; returns its exit status."""
    return module.convert(module.build_parser().parse_args([str(argument) for argument in arguments]))


def convert_street2shop(root, *arguments, save_dir="meta_reid"):
    status = convert(street2shop2coco, "--root-dir-path", root)
    index = root / "meta" / "all_street_train.json"
    common = ("--train-json-path", index, "--root-dir-path", root, "--save-dir", save_dir)
    return status or convert(street2shop_coco2reid, *common, *SMALL, *arguments)


def convert_deep_fashion(root, *arguments):
    return convert(deep_fashion2reid, "--root-dir-path", root, *SMALL, *arguments)


def recorded(section, prefix):
    return {name: value for name, value in EXPECTED[section].items() if name.startswith(prefix)}


def assert_as_recorded(folder, prefix):
    """Every recorded JSON file equal, every recorded picture there with its shape and mean, and no others."""
    for name, content in recorded("json", prefix).items():
        assert json.loads((folder / name).read_text()) == content, name
    pictures = recorded("images", prefix)
    made = {str(path.relative_to(folder)) for path in (folder / prefix).glob("*cropped*/*/*")}
    assert made == set(pictures)
    for name, (shape, mean, deviation) in pictures.items():
        pixels = np.asarray(Image.open(folder / name))
        assert list(pixels.shape) == shape
        assert pixels.mean() == pytest.approx(mean, abs=2.0), name
        assert pixels.std() == pytest.approx(deviation, abs=10), name  # another JPEG library then, sharper in colour


def digests(*folders):
    files = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def stamps(folder):
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*.jpg"))}


# ------------------------------------------------------------------------------------------------- as the original did


def test_street2shop_is_converted_as_recorded(fashion):
    root = fashion / "s2s"
    raw = digests(root)
    assert convert_street2shop(root) == 0
    assert_as_recorded(fashion, "s2s")
    for name, text in recorded("txt", "s2s").items():
        lines = (fashion / name).read_text()
        if name.endswith("_products.txt"):  # in any order
            assert lines.splitlines() == sorted(text.splitlines())
        else:
            assert lines == text
    assert {path: digest for path, digest in digests(root).items() if path in raw} == raw


def test_deep_fashion_is_converted_as_recorded(fashion):
    raw = digests(fashion / "df")
    assert convert_deep_fashion(fashion / "df") == 0
    assert_as_recorded(fashion, "df")
    assert {path: digest for path, digest in digests(fashion / "df").items() if path in raw} == raw


def test_scripts_run_from_any_folder_and_other_folder_names_work(fashion):
    root = fashion / "s2s"
    (root / "meta").rename(root / "lists")
    (root / "images_jpg").rename(root / "photos")
    folders = ("--metadata-dir", "lists", "--images-dir", "photos", "--save-dir", "made", "--num-workers", 2)
    done = run_script("scripts/street2shop2coco.py", "--root-dir-path", root, *folders)
    assert done.returncode == 0, done.stderr
    index = "made/all_street_train.json"  # relative to the root
    options = ("--train-json-path", index, "--root-dir-path", root, *folders, *SMALL)
    done = run_script("scripts/street2shop_coco2reid.py", *options)
    assert done.returncode == 0, done.stderr
    for subset in ("train", "query", "gallery"):
        content = json.loads((root / "made" / f"{subset}_coco_reid.json").read_text())
        assert content == EXPECTED["json"][f"s2s/meta_reid/{subset}_coco_reid.json"]
        assert f"{subset}: {len(content['images'])} images" in done.stdout
    done = run_script("scripts/deep_fashion2reid.py", "--root-dir-path", fashion / "df", *SMALL, "--num-workers", 1)
    assert done.returncode == 0, done.stderr
    assert_as_recorded(fashion, "df")


# ------------------------------------------------------------------------------------------------ beside plain loops


@settings(max_examples=40)
@given(
    st.tuples(st.integers(1, 90), st.integers(1, 90)), st.tuples(st.integers(1, 40), st.integers(1, 40)), st.integers(0)
)
def test_fit_shrinks_only_and_centres_on_white(image_size, target, seed):
    pixels = np.random.default_rng(seed).integers(0, 200, (image_size[1], image_size[0], 3), dtype=np.uint8)
    result = np.asarray(fit(Image.fromarray(pixels), target)).astype(int)
    assert result.shape == (target[1], target[0], 3)
    rows, columns = (np.flatnonzero((result != 255).any(axis=(axis, 2))) for axis in (1, 0))
    width, height = columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1
    assert (columns[0], rows[0]) == ((target[0] - width) // 2, (target[1] - height) // 2)
    scale = min(1, target[0] / image_size[0], target[1] / image_size[1])
    for side, original in ((width, image_size[0]), (height, image_size[1])):
        assert abs(side - max(1, original * scale)) <= 1
    if scale == 1:
        np.testing.assert_array_equal(result[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], pixels)


def naive_street2shop(categories, minimum):
    """Rows (subset, file name, pair id, image id, area) by loops over everything for everything."""
    rows, pairs = [], []
    for one in categories:
        sets = {"train": [], "query": [(p, "user") for p in one.test], "gallery": []}
        sets["train"] = [(p, "user") for p in one.train]
        for shop in one.retrieval:
            trained = any(pair.product == shop.product for pair in one.train)
            sets["train" if trained else "gallery"].append((shop, "shop"))
        for subset, sightings in sets.items():
            for photo in sorted({f"{s.photo:09d}" for s, _ in sightings}):
                for index, (s, source) in enumerate([x for x in sightings if f"{x[0].photo:09d}" == photo]):
                    area = ceil(s.bbox[2] * s.bbox[3]) if s.bbox else 0
                    if s.bbox and (area < minimum or 0 in s.bbox[2:]):
                        continue
                    if (one.number, s.product) not in pairs:
                        pairs.append((one.number, s.product))
                    pair_id = pairs.index((one.number, s.product))
                    name = f"{photo}_{one.number}_{index}.jpg"
                    rows.append((subset, name, pair_id, len(rows) + 1, area, source))
    return rows


@pytest.mark.parametrize(("seed", "minimum"), [(0, 1), (1, 20), (2, 1)])
def test_the_plan_equals_a_plain_loop(seed, minimum):
    rng = np.random.default_rng(seed)

    def sightings(count, boxes):
        drawn = rng.integers(0, (12, 8), (count, 2)).tolist()  # photos and products occur again and again
        return [Sighting(*pair, tuple(rng.integers(0, 9, 4).tolist()) if boxes else None) for pair in drawn]

    categories = [
        Category(number, name, sightings(9, True), sightings(6, True), sightings(15, False))
        for number, name in enumerate(CATEGORIES)
    ]
    entries = street2shop_coco2reid.plan(categories, minimum)
    builders = street2shop_coco2reid.build_indexes(entries, (8, 9), {"info": "kept"})
    actual = []
    for subset, builder in builders.items():
        assert [annotation["id"] for annotation in builder.annotations] == list(range(1, len(builder.images) + 1))
        for image, annotation in zip(builder.images, builder.annotations, strict=True):
            assert (image["id"], image["width"], image["height"]) == (annotation["image_id"], 8, 9)
            row = (subset, image["file_name"], annotation["pair_id"], image["id"], annotation["area"])
            actual.append((*row, annotation["source"]))
    expected = naive_street2shop(categories, minimum)
    assert sorted(actual) == sorted(expected)
    assert len(expected) > 100


@pytest.mark.parametrize(("mode", "expected"), [("original", (6, 15, 6 + 61, 15 + 90)), ("corners", (6, 15, 61, 90))])
def test_the_box_is_scaled_and_truncated(mode, expected):
    # 100 x 50 to 205 x 150: 3 -> 6.15, 30 -> 61.5
    assert scaled_box((3, 5, 30, 30), (100, 50), (205, 150), mode) == expected


@pytest.mark.parametrize("mode", ["original", "corners"])
def test_both_box_modes_cut_what_they_say(fashion, mode):
    root = fashion / "df"
    assert convert_deep_fashion(root, "--bbox-mode", mode) == 0
    name = "Blouse/id_00000001/comsumer_02.jpg"  # its box in the list: 3 5 33 38
    low, high = (pil_loader(root / folder / "CLOTHING" / name) for folder in ("img", "img_highres"))
    x1, y1, x2, y2 = (int(v / low.size[i % 2] * high.size[i % 2]) for i, v in enumerate((3, 5, 33, 38)))
    pixels = np.asarray(high)
    cut = pixels[y1 : y1 + y2, x1 : x1 + x2] if mode == "original" else pixels[y1:y2, x1:x2]
    compressed = BytesIO()
    fit(Image.fromarray(cut), (64, 64)).save(compressed, "JPEG")
    actual = np.asarray(Image.open(root / "64_64_cropped_images/train/id_00000001_comsumer_02.jpg"))
    np.testing.assert_array_equal(actual, np.asarray(Image.open(compressed)))


# --------------------------------------------------------------------------------------------- again, and interrupted


def test_a_second_run_makes_only_what_is_missing_or_changed(fashion):
    root = fashion / "df"
    crops = root / "64_64_cropped_images"
    assert convert_deep_fashion(root) == 0
    first = stamps(crops)
    leftover, own = crops / "train" / f".{'0a' * 16}.tmp", crops / "train" / ".mine.tmp"
    for path in (leftover, own):
        path.write_bytes(b"half")
    gone = crops / "test" / "id_00000004_comsumer_01.jpg"
    gone.unlink()
    damaged = crops / "query" / "id_00000004_comsumer_02.jpg"
    damaged.write_bytes(damaged.read_bytes()[:100])
    source = root / "img_highres/CLOTHING/Dress/id_00000011/shop_01.jpg"
    pil_loader(source).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(source, quality=50)
    assert convert_deep_fashion(root) == 0
    again = stamps(crops)
    assert again.keys() == first.keys()
    changed = {str(path.relative_to(crops)) for path in first if first[path] != again[path]}
    assert changed == {
        *("test/id_00000004_comsumer_01.jpg", "query/id_00000004_comsumer_02.jpg", "train/id_00000011_shop_01.jpg")
    }
    assert (leftover.exists(), own.exists()) == (False, True)

    assert convert_deep_fashion(root, "--bbox-mode", "corners") == 0  # no crop of the other mode is taken for one of it
    kept = {path.name for path, stamp in stamps(crops).items() if again[path] == stamp}
    rows = [line.split() for line in (fashion / BOXES).read_text().splitlines()[2:]]
    from_origin = {"_".join(Path(row[0]).parts[-2:]) for row in rows if row[3:5] == ["0", "0"]}
    assert kept == from_origin  # for them the modes agree


def test_a_killed_run_leaves_whole_files_and_the_next_goes_on(fashion):
    root = fashion / "s2s"
    assert convert(street2shop2coco, "--root-dir-path", root) == 0
    command = [ROOT / "scripts/street2shop_coco2reid.py", "--root-dir-path", root, *SMALL]
    command += ["--train-json-path", "meta/all_street_train.json", "--save-dir", "meta_reid", "--num-workers", "2"]
    crops = root / "images_reid_cropped_64_64"
    process = start_python(*command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not any(crops.glob("train/*.jpg")) and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = stamps(crops)
    for path in finished:
        assert pil_loader(path).size == (64, 64)
    assert run_script(*command).returncode == 0
    assert {path: stamp for path, stamp in stamps(crops).items() if path in finished} == finished
    assert not list(crops.rglob(".*.tmp"))
    assert_as_recorded(fashion, "s2s")


def test_a_crop_that_fails_halfway_is_not_left_behind(tmp_path, monkeypatch):
    Image.new("RGB", (20, 20), "red").save(tmp_path / "a.png")
    target = tmp_path / "out" / "a.jpg"

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(UserError, match="a.jpg cannot be written .No space left on device"):
        make_crops([Crop(tmp_path / "a.png", target)], (8, 8), 2, "x")
    assert list(target.parent.iterdir()) == []


# ------------------------------------------------------------------------------------------------------ bad pictures


def test_street2shop_leaves_unreadable_photos_out_and_names_them(fashion, capsys):
    root = fashion / "s2s"
    photos = root / "images_jpg"
    missing, broken, cut = photos / "000000003.jpg", photos / "000000010.jpg", photos / "000000002.jpg"
    missing.unlink()
    broken.write_bytes(b"<html>not found</html>")
    cut.write_bytes(cut.read_bytes()[:-600])
    assert convert_street2shop(root) == 1
    err = capsys.readouterr().err
    assert all(str(path) in err for path in (missing, broken, cut))
    assert "3 image(s) failed" in err
    index = json.loads((root / "meta/all_street_train.json").read_text())
    sizes = {image["id"]: (image["width"], image["height"]) for image in index["images"]}
    assert (sizes[3], sizes[10]) == ((1, 1), (1, 1))
    assert sorted(sizes.values())[2] > (1, 1)
    for subset in ("train", "query", "gallery"):
        content = json.loads((root / f"meta_reid/{subset}_coco_reid.json").read_text())
        before = EXPECTED["json"][f"s2s/meta_reid/{subset}_coco_reid.json"]
        names, old = ([image["file_name"] for image in c["images"]] for c in (content, before))
        assert names == [name for name in old if not name.startswith(("000000003_", "000000010_", "000000002_"))]
        assert [a["image_id"] for a in content["annotations"]] == [image["id"] for image in content["images"]]


def test_deep_fashion_names_missing_pictures_with_their_line(fashion, capsys):
    root = fashion / "df"
    high = root / "img_highres/CLOTHING/Blouse/id_00000004/comsumer_01.jpg"
    low = root / "img/CLOTHING/Summer_Wear/id_00000008/shop_01.jpg"
    for path in (high, low):
        path.unlink()
    (root / "img_highres/CLOTHING/Dress/id_00000011/shop_01.jpg").write_bytes(b"nothing")
    assert convert_deep_fashion(root) == 1
    err = capsys.readouterr().err
    assert f"list_eval_partition.txt, line 13: Image {high} does not exist." in err
    assert f"list_eval_partition.txt, line 25: Image {low} does not exist." in err
    assert "id_00000011/shop_01.jpg cannot be read" in err
    assert "3 image(s) failed" in err
    for name, count in (("train", 20), ("val", 10), ("test", 20), ("query", 11), ("gallery", 13)):
        content = json.loads((root / f"{name}_reid_cropped_64_64.json").read_text())
        assert len(content["images"]) == len(content["annotations"]) == count


def test_a_box_outside_its_picture_is_a_reason(tmp_path):
    Image.new("RGB", (20, 10), "red").save(tmp_path / "a.png")
    reason = make_crop(Crop(tmp_path / "a.png", tmp_path / "b.jpg", (25, 0, 30, 5)), (8, 8))
    assert "a.png of 20 x 10 pixels: the box (25, 0, 30, 5) lies outside" in reason
    assert make_crop(Crop(tmp_path / "a.png", tmp_path / "b.jpg", (-5, -5, 30, 5)), None) == ""  # cut at the edge
    assert Image.open(tmp_path / "b.jpg").size == (20, 5)


def test_convert_to_jpg(tmp_path, capsys):
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    (source / "folder").mkdir()
    for name, mode in (("a.png", "RGBA"), ("b.gif", "P"), ("c.bmp", "L"), ("d.JPEG", "RGB"), ("e.tif", "CMYK")):
        Image.new(mode, (9, 7), 90 if mode in "LP" else tuple([200] * len(mode))).save(source / name)
    (source / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    (source / "a.webp").write_bytes((source / "a.png").read_bytes())
    assert convert(convert_to_jpg, "--source-dir-path", source, "--target-dir-path", target) == 1
    out = capsys.readouterr()
    assert str(source / "broken.jpg") in out.err
    assert "a.webp: " in out.err
    assert "2 image(s) failed" in out.err
    assert "5 of 7 files converted" in out.out
    assert sorted(path.name for path in target.iterdir()) == [f"{stem}.jpg" for stem in "abcde"]
    for path in target.iterdir():
        with Image.open(path) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (9, 7))


def to_jpg(source, target):
    return convert(convert_to_jpg, "--source-dir-path", source, "--target-dir-path", target)


def test_another_picture_of_the_same_name_size_and_time_is_converted_again(tmp_path):
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    picture = source / "a.bmp"
    Image.new("RGB", (9, 7), (200, 0, 0)).save(picture)
    first = picture.stat()
    assert to_jpg(source, target) == 0
    Image.new("RGB", (9, 7), (0, 0, 200)).save(picture)
    os.utime(picture, ns=(first.st_atime_ns, first.st_mtime_ns))
    assert (picture.stat().st_size, picture.stat().st_mtime_ns) == (first.st_size, first.st_mtime_ns)
    assert to_jpg(source, target) == 0
    assert pil_loader(target / "a.jpg").getpixel((4, 3)) == pytest.approx((0, 0, 200), abs=8)
    (made,) = stamps(target).values()
    os.utime(picture)  # a copy that lost its time: nothing has to be made
    assert to_jpg(source, target) == 0
    assert list(stamps(target).values()) == [made]


def test_convert_to_jpg_keeps_pictures_of_others_and_mends_half_ones(tmp_path, capsys):
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    target.mkdir()
    for name in ("mine", "half", "old"):
        Image.new("RGB", (9, 7), "red").save(source / f"{name}.png")
        Image.new("RGB", (90, 70), "blue").save(target / f"{name}.jpg")
    mine, half, old = (target / f"{name}.jpg" for name in ("mine", "half", "old"))
    half.write_bytes(half.read_bytes()[:-40])
    comment = b"old.png of 40 bytes, box None, fitted into None"  # as an earlier version wrote it
    Image.new("RGB", (9, 7), "blue").save(old, comment=comment)
    before = mine.read_bytes()
    for _ in range(2):
        assert to_jpg(source, target) == 1
        out = capsys.readouterr()
        assert "2 of 3 files converted" in out.out
        assert f"{source / 'mine.png'}: {mine} is another image" in out.err
        assert mine.read_bytes() == before
        assert pil_loader(half).size == pil_loader(old).size == (9, 7)
    mine.unlink()
    assert to_jpg(source, target) == 0


@pytest.mark.parametrize(("workers", "items"), [(100_000, 3), (100_000, 300), (2, 0)])
def test_no_more_threads_than_are_of_use(monkeypatch, workers, items):
    asked = []
    pool = conversion.ThreadPool
    monkeypatch.setattr(conversion, "ThreadPool", lambda count: asked.append(count) or pool(min(count, 4)))
    assert parallel(abs, range(items), workers, "x") == list(range(items))
    assert asked == [max(1, min(workers, items, MAX_WORKERS))]
    assert asked[0] <= 128


# ---------------------------------------------------------------------------------------------------------- bad input


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (PARTITION, "46\n", "47\n", "list_eval_partition.txt, line 1: says 47 rows, found 46"),
        (PARTITION, "46\n", "many\n", "line 1: expected the number of rows, found 'many'"),
        (PARTITION, "  id_00000001  train", "  id_00000001", "line 3: expected 4 fields, found 3"),
        (PARTITION, "id_00000003  val", "id_00000003  valid", "line 9: split 'valid'"),
        (PARTITION, "img/CLOTHING/Blouse/id_00000001/comsumer_01.jpg", "/etc/x/y.jpg", "3: image '/etc/x/y.jpg'"),
        (PARTITION, "id_00000001/shop_02.jpg", "id_00000001/shop_09.jpg", "line 4: .*shop_09.jpg has no row in .*bbox"),
        (BOXES, "2  2  5 0 18 18", "2  3  5 0 18 18", "list_bbox_consumer2shop.txt, line 3: source type '3'"),
        (BOXES, "2  2  5 0 18 18", "2  2  5 0 18 x", "line 3: clothes type and corners"),
        (BOXES, "2  2  5 0 18 18", f"2  2  5 0 18 {'9' * 400}", "line 3: a corner lies outside any image"),
        (BOXES, "2  2  5 0 18 18", f"2  2  5 -{'9' * 10} 18 18", "line 3: a corner lies outside any image"),
        (PARTITION, "46\n", "9" * 5000 + "\n", "line 1: expected the number of rows, found '9999"),
        (BOXES, "2  2  5 0 18 18", "2  2  5 0 18", "line 3: expected 7 fields, found 6"),
    ],
)
def test_malformed_lists_are_named_with_the_line(fashion_lists, file, old, new, message):
    edit(fashion_lists / file, old, new)
    with pytest.raises(UserError, match=message):
        convert_deep_fashion(fashion_lists / "df")
    assert not list((fashion_lists / "df").glob("*cropped*"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"photo": 1,\n "product"', "retrieval_hats.json, line 2: not JSON"),
        ('{"photo": 1}', "expected a list of photos, found a dict"),
        ('[{"photo": 1, "product": 1}, {"photo": "x", "product": 1}]', "entry 2: \"photo\" is 'x'"),
        ("[3]", "entry 1: expected an object, found 3"),
        ('[{"photo": 1, "product": 1, "bbox": {"left": 1}}]', "entry 1: bbox is .*left, top, width, height"),
        ('[{"photo": 1, "product": 1, "bbox": {"left": NaN, "top": 1, "width": 1, "height": 1}}]', "entry 1: bbox is"),
        (f'[{{"photo": 1, "product": 1, "bbox": {FULL % ("1" + "0" * 400)}}}}}]', "entry 1: bbox is"),
        (f'[{{"photo": 1, "product": 1, "bbox": {FULL % "1e308"}}}}}]', "entry 1: bbox is"),
        ("[" * 100_000 + "]" * 100_000, "retrieval_hats.json cannot be read as JSON"),
    ],
)
def test_malformed_metadata_is_named(fashion_lists, text, message):
    (fashion_lists / "s2s/meta/json/retrieval_hats.json").write_text(text)
    with pytest.raises(UserError, match=message):
        convert(street2shop2coco, "--root-dir-path", fashion_lists / "s2s")
    assert not (fashion_lists / "s2s/meta/all_street_train.json").exists()


@pytest.mark.parametrize("missing", [PARTITION, BOXES, "df/img", "df/img_highres", "df"])
def test_missing_parts_of_deep_fashion_are_named(fashion_lists, missing):
    (fashion_lists / missing).rename(fashion_lists / "elsewhere")
    with pytest.raises(FileNotFoundError, match=str(fashion_lists / missing)):
        convert_deep_fashion(fashion_lists / "df")


@pytest.mark.parametrize("missing", ["images_jpg", "meta/json", "meta/json/test_pairs_tops.json"])
def test_missing_parts_of_street2shop_are_named(fashion_lists, missing):
    (fashion_lists / "s2s" / missing).rename(fashion_lists / "elsewhere")
    with pytest.raises(FileNotFoundError, match=str(fashion_lists / "s2s" / missing)):
        convert(street2shop2coco, "--root-dir-path", fashion_lists / "s2s")


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("convert_to_jpg.py", ("--source-dir-path", "{0}", "--target-dir-path", "{0}/../{1}"), "are both"),
        ("convert_to_jpg.py", ("--source-dir-path", "{0}/no", "--target-dir-path", "{0}"), "no does not exist"),
        ("convert_to_jpg.py", ("--source-dir-path", "{0}", "--target-dir-path", "{0}/to"), "holds no files"),
        ("street2shop2coco.py", ("--root-dir-path", "{0}/no"), "no does not exist"),
        ("street2shop2coco.py", (), "--root-dir-path"),
        (
            "street2shop_coco2reid.py",
            ("--root-dir-path", "{0}", "--train-json-path", "no.json", "--images-dir", "."),
            "no.json does not exist, nor does .*street2shop2coco.py writes it",
        ),
        ("deep_fashion2reid.py", ("--root-dir-path", "{0}"), "img does not exist"),
        ("deep_fashion2reid.py", ("--root-dir-path", "{0}", "--target-image-size", "64", "0"), "'0' is not a whole"),
        ("deep_fashion2reid.py", ("--target-image-size", "65501", "10"), "'65501' is more than the 65500 pixels"),
        ("deep_fashion2reid.py", ("--root-dir-path", "{0}", "--num-workers", "9" * 5000), "'9{40}' is not a whole"),
        ("street2shop_coco2reid.py", ("--minimum-bbox-area", "nan"), "'nan' is not a number of 0 or more"),
        ("street2shop_coco2reid.py", ("--minimum-bbox-area", "x"), "'x' is not a number of 0 or more"),
    ],
)
def test_bad_input_is_one_message_and_status_2(tmp_path, script, arguments, message):
    arguments = [argument.format(tmp_path, tmp_path.name) for argument in arguments]
    done = run_script(f"scripts/{script}", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert re.search(message, done.stderr)


@pytest.mark.parametrize(
    "script", ["convert_to_jpg.py", "street2shop2coco.py", "street2shop_coco2reid.py", "deep_fashion2reid.py"]
)
def test_help_needs_no_library(tmp_path, script):
    environment = forbid_modules(tmp_path, "torch", "numpy", "PIL", "cv2", "tqdm")
    done = run_script(f"scripts/{script}", "--help", env=environment)
    assert done.returncode == 0, done.stderr
    assert f"python scripts/{script}" in done.stdout
    assert "default" in done.stdout


def test_two_crops_of_one_name_are_refused(fashion_lists):
    for path in (fashion_lists / PARTITION, fashion_lists / BOXES):
        path.write_text(path.read_text().replace("Dress/id_00000011", "Dress/id_00000001"))
    with pytest.raises(UserError, match=r"line 33: .*Dress/id_00000001/comsumer_01.jpg and .*Blouse.* would both be"):
        convert_deep_fashion(fashion_lists / "df")
