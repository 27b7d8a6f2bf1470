"""The data sets by name: what they read, and what they say about bad input."""

import json
import os
import shutil
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from datasets import init_dataset
from datasets.bases import ReidDataModule
from datasets.counts import find_evaluation_problem, statistics_table
from datasets.readers.coco import derive_json_path
from tests.datasets.conftest import MARKET, write_folders, write_image
from tests.support import GOLDEN, golden
from utils.errors import MissingPathError, UnknownNameError, UserError

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fewer than 2 images"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
]


def relative(samples, root):
    return [os.path.relpath(sample[0], root) for sample in samples]


# --- what is read


@pytest.fixture(scope="module")
def recorded_images(tmp_path_factory):
    root = tmp_path_factory.mktemp("e2e")
    with tarfile.open(GOLDEN / "e2e_s0_images.tar.xz") as archive:
        archive.extractall(root, filter="data")
    return root


def test_the_recorded_images_are_parsed_as_recorded(recorded_images, make_cfg):
    recorded = json.loads((GOLDEN / "e2e_s0.json").read_text())
    validated = golden("e2e_s0")
    module = init_dataset("market1501", cfg=make_cfg(recorded_images))
    module.setup()
    assert (module.num_query, module.num_classes) == (recorded["num_query"], recorded["num_classes"])
    paths = relative(module.train_list, recorded_images)
    parsed = [[path, *sample[1:3]] for path, sample in zip(paths, module.train_list, strict=True)]
    assert parsed == sorted(recorded["train"])
    evaluated = module.query_list + module.gallery_list
    found = {path: sample[1:3] for path, sample in zip(relative(evaluated, recorded_images), evaluated, strict=True)}
    expected = zip(validated["val_paths"], validated["val_labels"], validated["val_camids"], strict=True)
    assert found == {str(path): (pid, camid) for path, pid, camid in expected}
    assert set(relative(module.query_list, recorded_images)) == set(validated["val_paths"][: module.num_query])


def test_market_samples_and_labels(market, make_cfg):
    module = init_dataset("market1501", cfg=make_cfg(market))
    module.setup()
    assert isinstance(module, ReidDataModule)
    assert module.num_classes == len(MARKET["train"]) == len(module.train_dict)
    assert list(module.train_dict) == list(range(6))
    assert [len(images) for images in module.train_dict.values()] == [3, 9, 2, 1, 4, 5]
    assert [sample[3] for sample in module.train_list] == list(range(24))
    assert [sample for images in module.train_dict.values() for sample in images] == module.train_list
    assert [sample[2] for sample in module.train_dict[1]] == sorted(camera - 1 for camera in MARKET["train"][7])
    # Identities of the test set keep their numbers; the distractor stays.
    assert [sample[1:] for sample in module.query_list] == [(5, 0, 0), (6, 1, 1), (6, 2, 2)]
    assert [sample[1:] for sample in module.gallery_list] == [(0, 3, 3), (5, 0, 4), (5, 1, 5), (6, 0, 6), (9, 2, 7)]
    assert module.num_query == 3
    assert (len(module.train), len(module.val)) == (6, 8)


def test_labels_follow_numbers_even_if_names_are_not_padded(tmp_path, make_cfg):
    root = tmp_path / "market1501"
    for folder, names in {
        "bounding_box_train": ["10_c1.jpg", "9_c1.jpg", "9_c2.jpg", "10_c3.jpg"],
        "query": ["3_c1.jpg"],
        "bounding_box_test": ["-1_c2.jpg", "3_c2.jpg", "notes.txt", "3_c4.pdf"],
    }.items():
        for name in names:
            write_image(root / folder / name) if name.endswith(".jpg") else (root / folder / name).write_text("")
    module = init_dataset("market1501", cfg=make_cfg(tmp_path))
    module.setup()
    assert [(Path(path).name, pid) for path, pid, _, _ in module.train_list] == [
        ("10_c1.jpg", 1),
        ("10_c3.jpg", 1),
        ("9_c1.jpg", 0),
        ("9_c2.jpg", 0),
    ]
    assert list(module.train_dict) == [0, 1]
    assert len(module.gallery_list) == 1  # junk and other files left out


def test_duke_has_eight_cameras(tmp_path, make_cfg):
    subsets = {"train": {1: [1, 8], 5000: [7, 8]}, "query": {2: [8]}, "gallery": {2: [1]}}
    write_folders(tmp_path / "DukeMTMC-reID", subsets)
    module = init_dataset("dukemtmcreid", cfg=make_cfg(tmp_path))
    module.setup()
    assert [sample[1:3] for sample in module.train_list] == [(0, 0), (0, 7), (1, 6), (1, 7)]


@pytest.mark.parametrize("name", ["df1", "street2shop"])
def test_coco_samples_and_labels(coco, make_cfg, name):
    module = init_dataset(name, cfg=make_cfg(coco, "DATASETS.JSON_TRAIN_PATH", str(coco / "train_reid.json")))
    module.setup()
    # 5 has one image; 4, 9, 12 become 0, 1, 2.
    assert [pid for _, pid, _, _ in module.train_list] == [1, 0, 1, 0, 1, 2, 2]
    assert relative(module.train_list, coco) == [f"train/train_{i}.jpg" for i in (0, 1, 2, 4, 5, 6, 7)]
    assert list(module.train_dict) == [0, 1, 2]
    assert [sample[1:] for sample in module.query_list] == [(3, 0, 0), (8, 0, 1)]
    assert [sample[1:] for sample in module.gallery_list] == [(8, 1, 2), (3, 1, 3), (3, 1, 4), (40, 1, 5)]
    images, pids, camids, numbers = next(iter(module.val_dataloader()))
    assert images.shape == (4, 3, 16, 8)
    assert (pids.tolist(), camids.tolist(), numbers.tolist()) == ([3, 8, 8, 3], [0, 0, 1, 1], [0, 1, 2, 3])


def test_only_the_file_name_is_changed():
    assert (
        str(derive_json_path("/data/train/train_reid_cropped.json", "query")) == "/data/train/query_reid_cropped.json"
    )


# --- the module


def test_setup_reads_once(market, make_cfg):
    module = init_dataset("market1501", cfg=make_cfg(market))
    module.setup("fit")
    train, samples = module.train, module.train_list
    shutil.rmtree(market / "market1501")
    module.setup()
    assert module.train is train
    assert module.train_list is samples


def test_loaders_set_up_by_themselves_and_are_kept(market, make_cfg):
    module = init_dataset("market1501", cfg=make_cfg(market), num_workers=0, anything="else")
    assert module.train_dataloader() is module.train_dataloader()
    assert module.val_dataloader() is module.test_dataloader()
    images, pids, camids, is_real = next(iter(module.train_dataloader()))
    assert images.shape == (4, 3, 16, 8)
    assert (pids.dtype, camids.dtype, is_real.dtype) == (torch.int64, torch.int64, torch.bool)


def test_validation_is_query_then_gallery(market, make_cfg):
    module = init_dataset("market1501", cfg=make_cfg(market))
    batches = list(module.val_dataloader())
    assert [len(batch[0]) for batch in batches] == [4, 4]
    expected = module.query_list + module.gallery_list
    for part in (1, 2, 3):
        assert torch.cat([batch[part] for batch in batches]).tolist() == [sample[part] for sample in expected]


@pytest.mark.parametrize(("num_instances", "resample", "has_blanks"), [(4, False, True), (4, True, False)])
def test_the_configuration_reaches_sampler_and_items(market, make_cfg, num_instances, resample, has_blanks):
    options = ("DATALOADER.NUM_INSTANCE", num_instances, "DATALOADER.USE_RESAMPLING", resample)
    module = init_dataset("market1501", cfg=make_cfg(market, *options, "SOLVER.IMS_PER_BATCH", 5))
    (images, pids, _, is_real), *_ = module.train_dataloader()
    assert pids.view(5, 4).unique().numel() == 5
    assert torch.equal(pids.view(5, 4).amin(1), pids.view(5, 4).amax(1))
    assert is_real.all().item() is not has_blanks
    assert torch.equal(images.flatten(1).any(1), is_real)


@pytest.mark.parametrize(
    ("argument", "key", "environment", "expected"),
    [
        (None, 3, {}, 3),
        (None, 0, {}, 0),
        (2, 3, {}, 2),
        (0, 3, {}, 0),
        (None, -1, {}, 8),
        (-1, 3, {}, 8),
        (-1, 3, {"LOCAL_WORLD_SIZE": "3"}, 2),
        (-1, 3, {"LOCAL_WORLD_SIZE": "16"}, 0),
        (2, 3, {"LOCAL_WORLD_SIZE": "3"}, 2),
        (5, 3, {"LOCAL_WORLD_SIZE": "3"}, 2),
        (None, 12, {}, 8),
        (None, 6, {"LOCAL_WORLD_SIZE": "2"}, 4),
    ],
)
def test_number_of_workers(market, make_cfg, monkeypatch, argument, key, environment, expected):
    monkeypatch.setattr("utils.devices.count_cpus", lambda: 8)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    module = init_dataset("market1501", cfg=make_cfg(market, "DATALOADER.NUM_WORKERS", key), num_workers=argument)
    for loader in (module.train_dataloader(), module.val_dataloader()):
        assert loader.num_workers == expected
        assert loader.persistent_workers is (expected > 0)


FIRST_SEED = 41  # what the first process has


def stand_in_trainer(**options):
    """What a data module asks of its Trainer."""
    progress = SimpleNamespace(current=SimpleNamespace(processed=3))
    return SimpleNamespace(
        strategy=SimpleNamespace(root_device=torch.device("cpu"), broadcast=lambda seed: FIRST_SEED),
        fit_loop=SimpleNamespace(epoch_progress=progress),
        **options,
    )


def test_the_trainer_tells_the_place_of_this_process(market, make_cfg, monkeypatch):
    monkeypatch.setattr("utils.devices.count_cpus", lambda: 8)
    monkeypatch.setenv("WORLD_SIZE", "5")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    module: Any = init_dataset("market1501", cfg=make_cfg(market), num_workers=-1)
    # Two machines with two processes each.
    module.trainer = stand_in_trainer(world_size=4, global_rank=3, num_devices=2)
    module.cfg.SOLVER.IMS_PER_BATCH = 1
    loader = module.train_dataloader()
    sampler = loader.sampler
    assert (sampler.world_size, sampler.rank, sampler.epoch) == (4, 3, 3)
    assert loader.num_workers == 4
    assert not loader.pin_memory
    module.trainer = stand_in_trainer(world_size=1, global_rank=0, num_devices=1)
    assert (module.train_dataloader().sampler.world_size, module.train_dataloader().num_workers) == (1, 8)


def test_all_processes_draw_with_the_seed_of_the_first(market, make_cfg):
    """An unseeded run has another seed in each; lists of different lengths would make them wait for ever."""
    module: Any = init_dataset("market1501", cfg=make_cfg(market, "SOLVER.IMS_PER_BATCH", 1), num_workers=0, seed=7)
    module.trainer = stand_in_trainer(world_size=2, global_rank=1, num_devices=2)
    assert (module.train_dataloader().sampler.seed, module.train.seed) == (FIRST_SEED, FIRST_SEED)


def test_an_initialised_process_group_tells_the_place_of_this_process(market, make_cfg, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "5")
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    sampler: Any = init_dataset("market1501", cfg=make_cfg(market)).train_dataloader().sampler
    assert (sampler.world_size, sampler.rank) == (2, 1)


@pytest.mark.parametrize("drop_last", [True, False])
def test_seed_and_drop_last_are_passed_on(market, make_cfg, drop_last):
    module: Any = init_dataset("market1501", cfg=make_cfg(market, "DATALOADER.DROP_LAST", drop_last), seed=7)
    loader = module.train_dataloader()
    assert (loader.sampler.seed, module.train.seed) == (7, 7)
    assert loader.drop_last is drop_last
    assert loader.batch_sampler.sampler is loader.sampler


def test_only_cores_that_the_process_may_use_are_counted(monkeypatch):
    from utils.devices import count_cpus

    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5, 6}, raising=False)
    assert count_cpus() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert count_cpus() == 64


def test_statistics_table():
    samples = [("a", 0, 0, 0), ("b", 0, 1, 1), ("c", 4, 1, 2)]
    table = statistics_table({"train": samples, "query": samples[:1]})
    rows = [[cell.strip() for cell in line.split("|")] for line in table.splitlines()]
    assert rows[0] == ["subset", "ids", "images", "cameras"]
    assert rows[2:] == [["train", "2", "3", "2"], ["query", "1", "1", "1"]]
    assert len({len(line) for line in table.splitlines()}) == 1


def test_the_table_is_logged_once(market, make_cfg, caplog):
    module = init_dataset("market1501", cfg=make_cfg(market))
    with caplog.at_level("INFO"):
        module.setup()
        module.setup()
    assert sum(record.message.count("gallery") for record in caplog.records) == 1


# --- bad input


def test_an_unknown_name_lists_the_valid_ones():
    with pytest.raises(
        KeyError, match="'market'; valid names: market1501, dukemtmcreid, .*df1, street2shop, csv, "
    ) as caught:
        init_dataset("market")
    assert isinstance(caught.value, UnknownNameError)
    with pytest.raises(UnknownNameError, match=r"'market1501\+duke', which joins 'duke'; valid names: "):
        init_dataset("market1501+duke")


def test_a_number_of_workers_below_minus_one_is_refused(market, make_cfg):
    with pytest.raises(UserError, match=r"DATALOADER.NUM_WORKERS is -2"):
        init_dataset("market1501", cfg=make_cfg(market), num_workers=-2)


@pytest.mark.parametrize("folder", ["", "bounding_box_train", "query", "bounding_box_test"])
def test_a_missing_folder_is_named(market, make_cfg, folder):
    shutil.rmtree(market / "market1501" / folder)
    with pytest.raises(
        MissingPathError, match=rf"market1501/{folder or 'bounding_box_train'} does not exist.*ROOT_DIR"
    ):
        init_dataset("market1501", cfg=make_cfg(market)).setup()


@pytest.mark.parametrize("left", [[], ["-1_c1s1_000000_00.jpg"], ["0001_c1s1_000000_00.pdf"]])
def test_an_empty_subset_is_named(market, make_cfg, left):
    folder = market / "market1501" / "query"
    shutil.rmtree(folder)
    folder.mkdir()
    for name in left:
        write_image(folder / name)
    with pytest.raises(UserError, match="market1501/query holds no images") as caught:
        init_dataset("market1501", cfg=make_cfg(market)).setup()
    told = f"1 file that is not an image by its suffix ({folder / '0001_c1s1_000000_00.pdf'})."
    assert (told in str(caught.value)) is any(name.endswith("pdf") for name in left)


@pytest.mark.parametrize(
    ("name", "file_name", "message"),
    [
        ("market1501", "portrait.jpg", "identity and camera cannot be read"),
        ("market1501", "0002-c1.jpg", "identity and camera cannot be read"),
        ("market1501", "1-2_c1.jpg", "identity and camera cannot be read"),
        ("market1501", "0002_c7s1_0.jpg", "camera 7 is out of range; expected 1 to 6"),
        ("market1501", "0002_c0s1_0.jpg", "camera 0 is out of range"),
        ("market1501", "1502_c1s1_0.jpg", "identity 1502 is out of range; expected 0 to 1501"),
        ("market1501", "-2_c1s1_0.jpg", "identity -2 is out of range"),
        ("dukemtmcreid", "0002_c9_f0.jpg", "camera 9 is out of range; expected 1 to 8"),
        ("dukemtmcreid", "-1_c2_f0.jpg", "identity -1 is out of range; expected 0 or more"),
    ],
)
def test_a_bad_file_name_is_named(tmp_path, make_cfg, name, file_name, message):
    root = write_folders(tmp_path / {"market1501": "market1501", "dukemtmcreid": "DukeMTMC-reID"}[name], MARKET)
    write_image(root / "bounding_box_test" / file_name)
    with pytest.raises(UserError, match=message) as caught:
        init_dataset(name, cfg=make_cfg(tmp_path)).setup()
    assert str(root / "bounding_box_test" / file_name) in str(caught.value)


@pytest.mark.parametrize(("batch_size", "world_size"), [(6, 1), (2, 3), (64, 1)])
def test_too_few_identities_for_a_batch(market, make_cfg, monkeypatch, batch_size, world_size):
    monkeypatch.setenv("WORLD_SIZE", str(world_size))
    module = init_dataset("market1501", cfg=make_cfg(market, "SOLVER.IMS_PER_BATCH", batch_size))
    module.val_dataloader()  # testing needs no training batch
    with pytest.raises(
        UserError, match=rf"SOLVER.IMS_PER_BATCH is {batch_size}.*has 5 with.*at most {5 // world_size}"
    ):
        module.train_dataloader()


@pytest.mark.filterwarnings("default:.*fewer than 2 images")
def test_identities_with_one_image_are_counted_once(market, make_cfg, recwarn):
    module = init_dataset("market1501", cfg=make_cfg(market))
    for _ in range(2):
        list(module.train_dataloader())
    assert [str(warning.message) for warning in recwarn] == [
        "1 of 6 identities have fewer than 2 images and are left out of training.",
        "The sampler is iterated again in epoch 0: the same identities, images and augmentations as before. In a loop "
        "of your own, call loader.sampler.set_epoch(epoch) before each epoch.",
    ]


@pytest.mark.parametrize(
    ("query", "gallery", "message"),
    [
        ({5: [2]}, {5: [2], 6: [2]}, "are from one camera. "),
        (
            {5: [1], 6: [2]},
            {5: [1], 6: [2, 2]},
            "No query has a gallery image of the same identity from another camera",
        ),
        ({5: [1]}, {6: [2]}, "No query has a gallery image of the same identity, so no mAP can be computed"),
        ({5: [1], 6: [2]}, {5: [1], 6: [1]}, None),
    ],
)
def test_a_test_set_that_cannot_be_scored_is_found(tmp_path, make_cfg, query, gallery, message):
    write_folders(tmp_path / "market1501", {"train": MARKET["train"], "query": query, "gallery": gallery})
    module = init_dataset("market1501", cfg=make_cfg(tmp_path))
    module.setup()
    problem = find_evaluation_problem(module.query_list, module.gallery_list)
    assert (problem is None) if message is None else (message in problem)


def edit(change):
    """A function that rewrites a JSON file after ``change`` has worked on its content."""

    def rewrite(path):
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return rewrite


def number_pairs(content):
    for i, annotation in enumerate(content["annotations"]):
        annotation["pair_id"] = i


@pytest.mark.parametrize(
    ("file_name", "break_it", "message"),
    [
        ("query", lambda path: path.unlink(), "does not exist"),
        ("gallery", lambda path: path.write_text('{"images": ['), "cannot be read as JSON"),
        ("gallery", lambda path: path.write_bytes(b"\xff\xfe\x00"), "cannot be read as JSON"),
        ("train", lambda path: path.write_text("[]"), "expected an object"),
        ("train", edit(lambda c: c.pop("images")), 'has no list "images"'),
        ("query", edit(lambda c: c.pop("annotations")), 'has no list "annotations"'),
        ("query", edit(lambda c: c["annotations"].clear()), "has no annotations"),
        ("train", edit(lambda c: c["images"][2].pop("file_name")), 'images[2] has no "file_name"'),
        ("train", edit(lambda c: c["images"][1].pop("id")), 'images[1] has no "id"'),
        ("query", edit(lambda c: c["annotations"][1].pop("pair_id")), 'annotations[1] has no "pair_id"'),
        ("query", edit(lambda c: c["annotations"][0].pop("image_id")), 'annotations[0] has no "image_id"'),
        ("query", edit(lambda c: c["annotations"].insert(0, 5)), 'annotations[0] has no "image_id"'),
        (
            "query",
            edit(lambda c: c["images"][0].update(id=100)),
            "images[1] has the id 100 of another image, query_1.jpg",
        ),
        ("query", edit(lambda c: c["annotations"][0].update(image_id=7)), "refers to image_id 7"),
        ("query", edit(lambda c: c["annotations"][0].update(pair_id="x")), "pair_id 'x'; expected an integer"),
        ("query", edit(lambda c: c["annotations"][0].update(pair_id=True)), "pair_id True; expected an integer"),
        (
            "query",
            edit(lambda c: c["annotations"][0].update(pair_id=2**70)),
            "expected an integer that fits in 64 bits",
        ),
        (
            "query",
            edit(lambda c: c["annotations"][1].update(pair_id=2**63)),
            "expected an integer that fits in 64 bits",
        ),
        ("query", edit(lambda c: c["annotations"][0].update(image_id=[1])), "has image_id [1]; expected a number or"),
        ("query", edit(lambda c: c["annotations"][0].update(image_id=True)), "has image_id True"),
        ("query", edit(lambda c: c["images"][1].update(id={})), "images[1] has id {}; expected a number or text"),
        ("query", lambda path: path.write_text("[" * 100_000 + "]" * 100_000), "cannot be read as JSON"),
        ("train", edit(number_pairs), "no pair_id has two or more images"),
    ],
)
def test_a_bad_coco_file_is_named(coco, make_cfg, file_name, break_it, message):
    path = coco / f"{file_name}_reid.json"
    break_it(path)
    with pytest.raises(UserError) as caught:
        init_dataset("df1", cfg=make_cfg(coco, "DATASETS.JSON_TRAIN_PATH", str(coco / "train_reid.json"))).setup()
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


def test_coco_files_tell_what_they_pass_over(coco, make_cfg):
    edit(lambda content: content["annotations"].pop(3))(coco / "gallery_reid.json")
    edit(lambda content: content["annotations"].append(content["annotations"][0]))(coco / "query_reid.json")
    path = coco / "train_reid.json"
    notes = init_dataset("df1", cfg=make_cfg(coco, "DATASETS.JSON_TRAIN_PATH", str(path))).read_splits().notes
    assert notes == (
        f"Passed over in {path}: 1 image without an annotation ({coco / 'gallery/gallery_3.jpg'}).",
        f"Passed over in {path}: 1 training image that is the only one of its identity ({coco / 'train/train_3.jpg'}).",
    )


def test_boxes_of_several_identities_in_one_coco_image_are_not_cut_out_and_that_is_said(coco, make_cfg):
    def share(content):
        first, second, *_ = content["annotations"]
        second["image_id"] = first["image_id"]

    path = coco / "query_reid.json"
    edit(share)(path)
    rows = json.loads(path.read_text())
    name = {image["id"]: image["file_name"] for image in rows["images"]}[rows["annotations"][0]["image_id"]]
    train = str(coco / "train_reid.json")
    note, *_ = init_dataset("df1", cfg=make_cfg(coco, "DATASETS.JSON_TRAIN_PATH", train)).read_splits().notes
    text = "2 boxes of images that have several identities, which are read whole (such as "
    assert f"{text}{coco / 'query' / name})" in note


@pytest.mark.parametrize(
    ("path", "message"),
    [("", "DATASETS.JSON_TRAIN_PATH is empty"), ("/train/coco.json", 'file name must contain "train"')],
)
def test_a_coco_path_without_train_is_refused(coco, make_cfg, path, message):
    with pytest.raises(UserError, match=message):
        init_dataset("df1", cfg=make_cfg(coco, "DATASETS.JSON_TRAIN_PATH", path)).setup()


def test_missing_coco_images_and_folders_are_named(coco, make_cfg):
    cfg = make_cfg(coco, "DATASETS.JSON_TRAIN_PATH", str(coco / "train_reid.json"))
    (coco / "gallery" / "gallery_1.jpg").unlink()
    with pytest.raises(
        MissingPathError, match=r"gallery/gallery_1.jpg does not exist; .*gallery_reid.json names 1 miss"
    ):
        init_dataset("df1", cfg=cfg).setup()
    shutil.rmtree(coco / "query")
    with pytest.raises(MissingPathError, match=r"/query does not exist; DATASETS.ROOT_DIR"):
        init_dataset("df1", cfg=cfg).setup()


def test_coco_images_may_lie_in_subfolders(coco, make_cfg):
    (coco / "gallery" / "sub").mkdir()
    (coco / "gallery" / "gallery_1.jpg").rename(coco / "gallery" / "sub" / "a.jpg")
    edit(lambda content: content["images"][2].update(file_name="sub/a.jpg"))(coco / "gallery_reid.json")
    module = init_dataset("df1", cfg=make_cfg(coco, "DATASETS.JSON_TRAIN_PATH", str(coco / "train_reid.json")))
    module.setup()
    assert relative(module.gallery_list, coco)[1] == "gallery/sub/a.jpg"


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_corrupt_training_image_is_named(market, make_cfg, num_workers):
    for path in (market / "market1501" / "bounding_box_train").iterdir():
        path.write_bytes(path.read_bytes()[:60])
    module = init_dataset("market1501", cfg=make_cfg(market), num_workers=num_workers)
    with pytest.raises(UserError, match=r"bounding_box_train/\d+_c\ds1_\d+_01.jpg cannot be read"):
        next(iter(module.train_dataloader()))
