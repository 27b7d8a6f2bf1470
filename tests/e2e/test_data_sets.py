"""Training on data of one's own and on several sets at once, and testing what came of it on another set."""

import csv
import json
import shutil

import pytest
import torch

from engine.run import run_main
from tests.e2e.conftest import draw
from train_ctl_model import CTLModel


def newest(folder):
    (path,) = folder.glob("*/version_0/auto_checkpoints/*.pth")
    return path


def images_of(toy):
    """Split -> image files of a drawn Market-1501 tree, without junk."""
    folders = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
    return {
        split: [path for path in sorted((toy / "market1501" / folder).iterdir()) if not path.name.startswith("-")]
        for split, folder in folders.items()
    }


def test_a_table_without_cameras(toy, tiny_cfg, tmp_path, caplog):
    rows = [f"{p},p{p.name[:4]},{split}" for split, paths in images_of(toy).items() for p in paths]
    table = tmp_path / "people.csv"
    table.write_text("\n".join(["path,pid,split", *rows]) + "\n")
    options = {
        "DATASETS.NAMES": "csv",
        "DATASETS.CSV_PATH": str(table),
        "SOLVER.MAX_EPOCHS": 1,
        "MODEL.KEEP_CAMID_CENTROIDS": True,
    }
    with caplog.at_level("INFO"):
        (metrics,) = run_main(tiny_cfg(**options), CTLModel, "run")
    assert "No cameras: the same-camera filter is off" in caplog.text
    assert "MODEL.KEEP_CAMID_CENTROIDS True is taken as False" in caplog.text
    # One centroid for each identity and no filter: the protocols differ in the distractor alone, which has no query.
    assert 0 < metrics["centroids"]["strict_mAP"] <= metrics["centroids"]["mAP"] <= 1
    written = json.loads((tmp_path / "out" / "evaluation" / "metrics.json").read_text())
    assert written["settings"]["same_camera_filter"] is False
    assert written["settings"]["keep_camids"] is False
    identities = {path.name[:4] for path in images_of(toy)["gallery"]}
    assert written["protocols"]["centroid_strict"]["gallery_items"] == len(identities)
    checkpoint = torch.load(newest(tmp_path / "out"), weights_only=True)
    assert checkpoint["hyper_parameters"]["has_cameras"] is False
    # The cameras count again where there are some.
    again = {"TEST.ONLY_TEST": True, "MODEL.PRETRAIN_PATH": str(newest(tmp_path / "out"))}
    run_main(tiny_cfg(**again), CTLModel, "run")
    written = json.loads((tmp_path / "out" / "evaluation" / "metrics.json").read_text())
    assert written["settings"]["same_camera_filter"] is True


@pytest.mark.parametrize("self_match", ["drop", "keep"])
def test_queries_among_the_gallery(toy, tiny_cfg, tmp_path, caplog, self_match):
    """A table without cameras whose gallery holds two queries: one as the same file, one as a copy."""
    images = images_of(toy)
    copy = tmp_path / "copy.jpg"
    shutil.copy(images["query"][1], copy)
    known = {copy: images["query"][1].name[:4]}
    images["gallery"] += [images["query"][0], copy]
    rows = [f"{p},p{known.get(p, p.name[:4])},{split}" for split, paths in images.items() for p in paths]
    table = tmp_path / "people.csv"
    table.write_text("\n".join(["path,pid,split", *rows]) + "\n")
    options = {"DATASETS.NAMES": "csv", "DATASETS.CSV_PATH": str(table), "TEST.SELF_MATCH": self_match}
    with caplog.at_level("INFO"):
        run_main(tiny_cfg(**options), CTLModel, "run")
    written = json.loads((tmp_path / "out" / "evaluation" / "metrics.json").read_text())
    with (tmp_path / "out" / "evaluation" / "per_query.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["camera"] for row in rows} == {""}
    # An image finds itself at once.
    firsts = {row["protocol"]: int(row["first_match_rank"]) for row in rows if row["query"] == "0"}
    counted = {row["query"]: int(row["relevant"]) for row in rows if row["protocol"] == "instance"}
    identity = [sum(known.get(p, p.name[:4]) == q.name[:4] for p in images["gallery"]) for q in images["query"][:2]]
    said = caplog.text.count("validation: the gallery holds 2 of the")
    caveat = written["protocols"]["centroid"]["note"].partition("The scores are ")[2]
    if self_match == "keep":
        assert (said, written["settings"]["own_images_left_out"], caveat) == (0, 0, "")
        assert firsts["instance"] == 1
        assert [counted["0"], counted["1"]] == identity
    else:
        assert (said, written["settings"]["own_images_left_out"]) == (1, 2)  # once, for two validations and a test
        assert caplog.text.count("the gallery holds") == 1
        assert caveat.startswith("inflated by queries' own images")
        assert [counted["0"], counted["1"]] == [n - 1 for n in identity]
        assert f"(the first is {images['query'][0]})" in caplog.text


def test_queries_of_one_camera_and_gallery_of_another(toy, tiny_cfg, tmp_path, caplog):
    """The published look-up finds the queries' camera for every gallery image, and leaves no centroid to be found."""
    cameras = {"train": "door", "query": "door", "gallery": "stairs"}
    images = images_of(toy)
    images["gallery"] = images["gallery"][: len(images["query"])]  # further ones would be looked up in the gallery
    rows = [f"{p},p{p.name[:4]},{split},{cameras[split]}" for split, paths in images.items() for p in paths]
    table = tmp_path / "people.csv"
    table.write_text("\n".join(["path,pid,split,camid", *rows]) + "\n")
    options = {"DATASETS.NAMES": "csv", "DATASETS.CSV_PATH": str(table), "MODEL.USE_CENTROIDS": True}
    with pytest.warns(UserWarning, match="only the strict protocol is computed"), caplog.at_level("INFO"):
        (metrics,) = run_main(tiny_cfg(**options, **{"SOLVER.MAX_EPOCHS": 1}), CTLModel, "run")
    assert 0 < metrics["centroids"]["strict_mAP"] == metrics["centroids"]["mAP"] <= 1  # what the best is chosen by
    assert 0 < metrics["instances"]["mAP"] <= 1
    written = json.loads((tmp_path / "out" / "evaluation" / "metrics.json").read_text())
    assert set(written["protocols"]) == {"centroid_strict", "instance"}
    assert written["mAP"] == pytest.approx(metrics["instances"]["mAP"])  # no other number takes its name
    assert written["strict_mAP"] == pytest.approx(metrics["centroids"]["strict_mAP"])


def test_identity_folders(tiny_cfg, tmp_path, caplog):
    people = draw(tmp_path / "people", "--ids", "10", "--cameras", "3", "--images-per-id", "6", "--layout", "folder")
    cfg = tiny_cfg(**{"DATASETS.NAMES": "folder", "DATASETS.ROOT_DIR": str(people), "SOLVER.MAX_EPOCHS": 1})
    with caplog.at_level("INFO"):
        (metrics,) = run_main(cfg, CTLModel, "run")
    assert "No cameras" not in caplog.text
    assert metrics["instances"]["mAP"] > 0
    rows = [line.split(" | ") for line in caplog.text.splitlines() if " | " in line]
    assert [[int(cell) for cell in row[1:]] for row in rows[1:]] == [[8, 48, 3], [2, 6, 3], [2, 6, 3]]


def test_two_sets_are_trained_on_and_each_is_tested(two_sets, tiny_cfg, tmp_path):
    options = {"DATASETS.ROOT_DIR": str(two_sets), "DATASETS.NAMES": "market1501+dukemtmcreid", "SOLVER.MAX_EPOCHS": 1}
    (metrics,) = run_main(tiny_cfg(**options), CTLModel, "run")
    path = newest(tmp_path / "out")
    found = torch.load(path, weights_only=True)
    assert found["state_dict"]["fc_query.weight"].shape[0] == 12 + 8
    assert found["hyper_parameters"]["num_query"] == len(images_of(two_sets)["query"])
    only_test = {"TEST.ONLY_TEST": True, "MODEL.PRETRAIN_PATH": str(path), "DATASETS.ROOT_DIR": str(two_sets)}
    (first,) = run_main(tiny_cfg(**only_test, **{"DATASETS.NAMES": "market1501"}), CTLModel, "run")
    assert first["instances"]["mAP"] == pytest.approx(metrics["instances"]["mAP"])
    (second,) = run_main(tiny_cfg(**only_test, **{"DATASETS.NAMES": "dukemtmcreid"}), CTLModel, "run")
    written = json.loads((tmp_path / "out" / "evaluation" / "metrics.json").read_text())
    assert written["protocols"]["instance"]["queries"] == len(list((two_sets / "DukeMTMC-reID/query").iterdir()))
    assert 0 < second["instances"]["mAP"] <= 1
