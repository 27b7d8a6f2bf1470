"""The data sets that a run tests on, and what must be said of those that it was trained on."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from engine.start import Start, StartPoint
from engine.tested_sets import (
    COMBINED,
    EvaluatedSet,
    caveat_of_training,
    describe_training,
    read_test_set,
    read_test_sets,
)
from evaluation.places import EvaluationPlace
from tests.datasets.conftest import MARKET, write_folders, write_image
from tests.small import small_config
from utils.errors import MissingPathError, UnknownNameError, UserError

TRAINING = StartPoint(Start.FRESH, 0)


def a_test_of(**recorded):
    return StartPoint(Start.TEST, 0, "a.ckpt", recorded={"DATASETS": recorded} if recorded else {})


def test_no_other_set_is_tested_unless_it_is_named():
    data = object()
    (only,) = read_test_sets(small_config(), TRAINING, data, 2, True)
    assert (only.data, only.place.run, only.place.test_set, only.place.caveat) == (data, 2, "", "")


def test_cameras_and_queries_are_those_of_each_set(caplog):
    """Also after a set without cameras, for which the centroids of single cameras are switched off."""
    caplog.set_level("INFO")
    places, hparams = [], small_config()
    model = SimpleNamespace(hparams=hparams, evaluate_at=places.append)
    cases = (
        ("vehicleid_800", False, True),
        ("veri776", True, True),
        ("market1501", True, False),
        ("df1", False, False),
    )
    for name, cameras, wanted in cases:
        place, data = EvaluationPlace(None, name), SimpleNamespace(num_query=len(name), has_cameras=cameras)
        EvaluatedSet(place, data, wanted).prepare(model)
        assert places[-1] == place
        assert (hparams.num_query, hparams.has_cameras) == (len(name), cameras)
        assert (cameras and wanted) == hparams.MODEL.KEEP_CAMID_CENTROIDS
    line = "vehicleid_800: MODEL.KEEP_CAMID_CENTROIDS True is taken as False: the data has no cameras."
    assert caplog.messages == [line]


def test_a_set_that_cannot_be_evaluated_is_named(tmp_path):
    folder = write_folders(tmp_path / "market1501", MARKET | {"query": {}})
    write_image(folder / "query" / "0009_c3s1_000001_01.jpg")  # from the camera of its only gallery image
    with pytest.raises(UserError, match=r"^market1501: No query has a gallery image of the same identity from another"):
        read_test_set(small_config(**{"DATASETS.ROOT_DIR": str(tmp_path)}), "market1501", 0)


def test_a_table_without_training_images_can_be_tested_on(tmp_path):
    rows = [(f"{i}.jpg", i % 2, f"c{i // 2}", "query" if i < 2 else "gallery") for i in range(4)]
    for path, *_ in rows:
        write_image(tmp_path / path)
    text = "path,pid,camid,split\n" + "".join(",".join(map(str, row)) + "\n" for row in rows)
    (tmp_path / "own.csv").write_text(text)
    cfg = small_config(**{"DATASETS.CSV_PATH": str(tmp_path / "own.csv"), "DATASETS.TESTS": "csv"})
    data = read_test_set(cfg, "csv", 0)
    assert (data.num_query, len(data.gallery_list), data.num_classes) == (2, 2, 0)
    assert (cfg.DATASETS.NAMES, cfg.TEST.ONLY_TEST) == ("market1501", False)


def test_a_set_that_is_not_there_is_called_by_its_key(tmp_path):
    cfg = small_config(**{"DATASETS.ROOT_DIR": str(tmp_path)})
    with pytest.raises(UnknownNameError, match=r"^DATASETS.TESTS is 'nowhere'; valid names: market1501, "):
        read_test_set(cfg, "nowhere", 0)
    with pytest.raises(MissingPathError, match=f"^Folder {tmp_path}/market1501.* does not exist"):
        read_test_set(cfg, "market1501", 0)


def test_images_that_were_trained_on_are_told_by_the_training():
    cfg = small_config(**{"DATASETS.NAMES": "dukemtmcreid+veri776"})
    assert caveat_of_training(cfg, TRAINING, "veri776") == ""
    cfg.DATASETS.COMBINEALL = True
    assert caveat_of_training(cfg, TRAINING, "veri776") == COMBINED
    assert caveat_of_training(cfg, TRAINING, "occluded_duke") == COMBINED  # the same people
    assert caveat_of_training(cfg, TRAINING, "market1501") == ""
    assert caveat_of_training(cfg, a_test_of(NAMES="market1501", COMBINEALL=True), "veri776") == ""
    assert caveat_of_training(cfg, a_test_of(NAMES="market1501", COMBINEALL=True), "market1501") == COMBINED
    assert caveat_of_training(cfg, a_test_of(), "veri776") == ""  # weights that record nothing


def test_a_table_is_the_same_data_if_it_is_the_same_file():
    cfg = small_config(**{"DATASETS.NAMES": "csv", "DATASETS.CSV_PATH": "a.csv"})
    recorded = {"NAMES": "csv", "COMBINEALL": True}
    assert caveat_of_training(cfg, a_test_of(**recorded, CSV_PATH="a.csv"), "csv") == COMBINED
    assert caveat_of_training(cfg, a_test_of(**recorded, CSV_PATH=f"{Path.cwd()}/x/../a.csv"), "csv") == COMBINED
    assert caveat_of_training(cfg, a_test_of(**recorded, CSV_PATH="b.csv"), "csv") == ""


def test_what_was_trained_on():
    cfg = small_config(**{"DATASETS.NAMES": "veri776"})
    assert describe_training(cfg, TRAINING) == "veri776"
    assert describe_training(cfg, a_test_of(NAMES="market1501")) == "market1501"
    assert describe_training(cfg, a_test_of()) == "a.ckpt"
