"""The drawn data set: repeatable, in the layouts that the data modules read, and refused with a reason."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from scripts import make_toy_dataset as toy
from tests.launch import run_code, run_script

SMALL: dict[str, Any] = {"ids": 8, "cameras": 3, "images_per_id": 6, "size": (48, 24)}
NAME = re.compile(r"([-\d]+)_c(\d)")


def draw(out: Path, force: bool = False, **changes: Any) -> Path:
    toy.make_toy_dataset(out, toy.Options(**{**SMALL, **changes}), force, progress=False)
    return out


def digests(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def parse_market(folder: Path) -> list[tuple[int, int]]:
    """(pid, camera) of every image, by the pattern of the contract."""
    matches = [NAME.search(path.name) for path in sorted(folder.glob("*.jpg"))]
    assert all(matches)
    return [(int(match[1]), int(match[2])) for match in matches if match]


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("toy") / "out")


@pytest.mark.parametrize("layout", toy.LAYOUTS)
def test_the_same_seed_gives_the_same_bytes(tmp_path: Path, layout: str) -> None:
    first, second = draw(tmp_path / "a", layout=layout), draw(tmp_path / "b", layout=layout)
    assert digests(first) == digests(second)


def test_another_seed_gives_other_pictures(market: Path, tmp_path: Path) -> None:
    assert not set(digests(market).values()) & set(digests(draw(tmp_path, seed=1)).values())


def test_an_image_does_not_depend_on_those_before_it() -> None:
    options = toy.Options(**SMALL)
    shots = toy.plan(options)
    forward = [np.asarray(toy.draw_shot(shot, options.size, options.seed)) for shot in shots]
    toy.scene.cache_clear()
    backward = [np.asarray(toy.draw_shot(shot, options.size, options.seed)) for shot in reversed(shots)]
    np.testing.assert_array_equal(forward, backward[::-1])


def test_people_do_not_change_with_their_number() -> None:
    assert toy.make_identities(12, seed=3)[:5] == toy.make_identities(5, seed=3)


def test_people_share_parts_but_no_two_look_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOWER_COLOURS", "PATTERNS", "LOWER_KINDS", "HATS", "BAGS", "SKINS", "HAIRS"):
        monkeypatch.setattr(toy, name, getattr(toy, name)[:2])  # a poor wardrobe, so that chance alone would repeat
    people = toy.make_identities(60, seed=0)
    pairs = [a.differences(b) for number, a in enumerate(people) for b in people[:number]]
    assert min(pairs) == 2


@pytest.mark.parametrize(("cameras", "images_per_id"), [(2, 4), (3, 6), (6, 5), (6, 13), (4, 8)])
def test_market_layout(tmp_path: Path, cameras: int, images_per_id: int) -> None:
    root = draw(tmp_path, cameras=cameras, images_per_id=images_per_id, size=(16, 16)) / "market1501"
    train, query, gallery = (parse_market(root / name) for name in ("bounding_box_train", "query", "bounding_box_test"))
    identities = [{pid for pid, _ in subset} for subset in (train, query, gallery)]
    assert identities[0] == set(range(1, 7))
    assert identities[1] == {7, 8}
    assert identities[2] == {7, 8, 0, -1}
    assert sorted(query) == sorted({seen for seen in query + gallery if seen[0] > 0})  # one for each (identity, camera)
    for pid, camera in query:
        assert any(other == pid and seen != camera for other, seen in gallery)
    assert {camera for _, camera in train + gallery} <= set(range(1, cameras + 1))
    test_images = [pid for pid, _ in query + gallery if pid > 0]
    assert len(train) == 6 * images_per_id
    assert len(test_images) == 2 * images_per_id
    assert {pid for pid, _ in train} == {pid for pid in range(1, 7) if len({c for p, c in train if p == pid}) > 1}


@pytest.mark.parametrize("images_per_id", [4, 6])
def test_coco_layout(tmp_path: Path, images_per_id: int) -> None:
    draw(tmp_path, layout="coco", images_per_id=images_per_id)
    pairs = {}
    for subset in ("train", "query", "gallery"):
        index = json.loads((tmp_path / "train_coco_reid.json".replace("train", subset)).read_text(encoding="utf-8"))
        images = {image["id"]: image for image in index["images"]}
        assert len(images) == len(index["images"]) == len(index["annotations"])
        assert {image["file_name"] for image in images.values()} == {p.name for p in (tmp_path / subset).iterdir()}
        for image in images.values():
            with Image.open(tmp_path / subset / image["file_name"]) as picture:
                assert picture.size == (image["width"], image["height"])
        categories = {category["id"] for category in index["categories"]}
        for annotation in index["annotations"]:
            assert annotation["category_id"] in categories
            assert annotation["area"] == annotation["bbox"][2] * annotation["bbox"][3] == 48 * 24
            name = images[annotation["image_id"]]["file_name"]
            match = NAME.search(name)
            assert match and int(match[1]) == annotation["pair_id"]
        pairs[subset] = [annotation["pair_id"] for annotation in index["annotations"]]
    assert set(pairs["train"]) == set(range(1, 7))
    assert set(pairs["query"]) == set(pairs["gallery"]) == {7, 8}
    assert len(pairs["query"]) + len(pairs["gallery"]) == 2 * images_per_id


@pytest.mark.parametrize("size", [(128, 64), (60, 90)])
def test_size_and_content(tmp_path: Path, size: tuple[int, int]) -> None:
    draw(tmp_path, ids=4, train_fraction=0.5, images_per_id=4, size=size)
    files = sorted(tmp_path.rglob("*.jpg"))
    assert files
    for file in files:
        with Image.open(file) as image:
            assert image.format == "JPEG"
            assert image.size == (size[1], size[0])
            assert np.asarray(image.convert("RGB")).std() > 10  # a picture, not a plain area


def test_cameras_change_the_pixels_more_than_people_do() -> None:
    """Mean colours: the gap between cameras exceeds the gap between people under one camera."""
    people, cameras = toy.make_identities(24, 0), toy.make_cameras(4, 0)
    colours = np.array(
        [
            [
                np.asarray(
                    toy.draw_shot(toy.Shot("", "", pid, person, camera, toy.SEED_IMAGE, (pid, number)), (64, 32), 0)
                ).mean(axis=(0, 1))
                for number, camera in enumerate(cameras)
            ]
            for pid, person in enumerate(people)
        ]
    )
    between_cameras = colours.mean(axis=0).std(axis=0).mean()
    between_people = colours.mean(axis=1).std(axis=0).mean()
    assert between_cameras > 1.3 * between_people


def test_every_two_cameras_differ_in_their_cast() -> None:
    for seed in range(20):
        gains = np.array([camera.gain for camera in toy.make_cameras(6, seed)])
        casts = gains / gains.sum(axis=1, keepdims=True)
        gaps = np.linalg.norm(casts[:, None] - casts[None], axis=-1)[~np.eye(6, dtype=bool)]
        assert gaps.min() > 0.01


def test_an_existing_set_is_kept_unless_forced(market: Path) -> None:
    before = digests(market)
    with pytest.raises(toy.ToyDatasetError, match=r"market1501 exists and is not empty.*--force"):
        draw(market, seed=5)
    assert digests(market) == before


@pytest.mark.parametrize("layout", toy.LAYOUTS)
def test_force_replaces_the_whole_set_and_nothing_else(tmp_path: Path, layout: str) -> None:
    root = tmp_path / "toy"
    root.mkdir()
    (root / "notes.txt").write_text("mine")
    draw(root, layout=layout, ids=10, images_per_id=7)
    draw(root, force=True, layout=layout)
    replaced = digests(root)
    assert replaced.pop("notes.txt")
    assert replaced == digests(draw(tmp_path / "fresh", layout=layout))


def note_beside_pictures(folder: Path) -> Path:
    (folder / "notes.txt").write_text("mine")
    return folder / "notes.txt"


def picture_of_mine(folder: Path) -> Path:
    Image.new("RGB", (24, 48)).save(folder / "0001_c1s1_000000_01.jpg")
    return folder / "0001_c1s1_000000_01.jpg"


def link_to_mine(folder: Path) -> Path:
    (folder / "linked").symlink_to(folder.parents[2], target_is_directory=True)
    return folder / "linked"


def index_of_mine(folder: Path) -> Path:
    (folder / "train_coco_reid.json").write_text('{"info": {"description": "mine"}}')
    return folder / "train_coco_reid.json"


@pytest.mark.parametrize("add", [note_beside_pictures, picture_of_mine, link_to_mine, index_of_mine])
@pytest.mark.parametrize("layout", toy.LAYOUTS)
def test_force_keeps_what_was_not_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], layout: str, add: Callable[[Path], Path]
) -> None:
    root = draw(tmp_path / "toy", layout=layout, ids=4, train_fraction=0.5, images_per_id=4, size=(16, 16))
    foreign = add(root / toy.LAYOUTS[layout][0])
    before = digests(root)
    assert toy.main([str(root), "--layout", layout, "--force"]) == 2
    error = capsys.readouterr().err
    assert f"{foreign} was not drawn" in error
    assert "remove the old set yourself" in error
    assert digests(root) == before
    assert foreign.exists()


def test_force_keeps_a_coco_file_that_was_not_drawn(tmp_path: Path) -> None:
    foreign = index_of_mine(tmp_path)
    with pytest.raises(toy.ToyDatasetError, match=f"{foreign} was not drawn"):
        draw(tmp_path, force=True, layout="coco")
    assert json.loads(foreign.read_text()) == {"info": {"description": "mine"}}


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def fail_late(*_: object) -> Image.Image:
        drawn.append(1)
        if len(drawn) > 5:
            raise OSError(28, "No space left on device")
        return Image.new("RGB", (8, 8))

    monkeypatch.setattr(toy, "draw_shot", fail_late)
    with pytest.raises(toy.ToyDatasetError, match="No space left on device"):
        draw(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ids", "3"], "--ids is 3; expected 4 to 1501"),
        (["--ids", "1502"], "--ids is 1502"),
        (["--cameras", "1"], "--cameras is 1; expected 2 to 6"),
        (["--cameras", "7"], "--cameras is 7"),
        (["--images-per-id", "3"], "--images-per-id is 3"),
        (["--size", "8", "64"], r"--size \(height\) is 8"),
        (["--size", "64", "8"], r"--size \(width\) is 8"),
        (["--seed", "-1"], "--seed is -1"),
        (["--train-fraction", "nan"], "--train-fraction is nan"),
        (["--train-fraction", "1"], "--train-fraction is 1"),
        (["--ids", "8", "--train-fraction", "0.9"], "leaves 7 for training and 1 for the test"),
        (["--layout", "duke"], "invalid choice: 'duke'"),
    ],
)
def test_bad_arguments_exit_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    status: object
    try:
        status = toy.main([str(tmp_path / "out"), *arguments])
    except SystemExit as stop:  # argparse's own
        status = stop.code
    assert status == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_way_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert toy.main([str(tmp_path / "file")]) == 2
    assert f"cannot write to {tmp_path / 'file'}" in capsys.readouterr().err


def test_as_a_script(tmp_path: Path) -> None:
    script = "scripts/make_toy_dataset.py"
    arguments = [str(tmp_path / "out"), "--ids", "4", "--train-fraction", "0.5", "--images-per-id", "4"]
    done = run_script(script, *arguments, "--size", "32", "16", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "out") in done.stdout
    counts = dict(re.findall(r"market1501/(\S+) +\d+ +(\d+) +\d+", done.stdout))
    for folder, images in counts.items():
        assert len(list((tmp_path / "out" / "market1501" / folder).glob("*.jpg"))) == int(images)
    assert len(counts) == 3
    again = run_script(script, *arguments, cwd=tmp_path)
    assert again.returncode == 2
    assert "--force" in again.stderr and "Traceback" not in again.stderr


def test_help_loads_no_training_code(tmp_path: Path) -> None:
    code = (
        "import sys; from scripts import make_toy_dataset as t\n"
        "try: t.main(['--help'])\n"
        "except SystemExit as stop: assert not stop.code\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'cv2', 'lightning', 'pytorch_lightning')))"
    )
    done = run_code(code)
    assert done.returncode == 0, done.stderr
    assert "--images-per-id" in done.stdout
