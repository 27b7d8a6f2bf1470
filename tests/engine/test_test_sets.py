"""The data sets that a run tests on, and what must be said of those that it was trained on."""

import pytest

from engine.start import Start, StartPoint
from engine.test_sets import COMBINED, caveat_of_training, describe_training, read_test_set, read_test_sets
from tests.small import small_config
from utils.errors import MissingPathError, UnknownNameError

TRAINING = StartPoint(Start.FRESH, 0)


def test_of(**recorded):
    return StartPoint(Start.TEST, 0, "a.ckpt", recorded={"DATASETS": recorded} if recorded else {})


test_of.__test__ = False


def test_no_other_set_is_tested_unless_it_is_named():
    data = object()
    (only,) = read_test_sets(small_config(), TRAINING, data, 2, True)
    assert (only.data, only.place.run, only.place.test_set, only.place.caveat) == (data, 2, "", "")


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
    assert caveat_of_training(cfg, test_of(NAMES="market1501", COMBINEALL=True), "veri776") == ""
    assert caveat_of_training(cfg, test_of(NAMES="market1501", COMBINEALL=True), "market1501") == COMBINED
    assert caveat_of_training(cfg, test_of(), "veri776") == ""  # weights that record nothing


def test_a_table_is_the_same_data_if_it_is_the_same_file():
    cfg = small_config(**{"DATASETS.NAMES": "csv", "DATASETS.CSV_PATH": "a.csv"})
    recorded = {"NAMES": "csv", "COMBINEALL": True}
    assert caveat_of_training(cfg, test_of(**recorded, CSV_PATH="a.csv"), "csv") == COMBINED
    assert caveat_of_training(cfg, test_of(**recorded, CSV_PATH="b.csv"), "csv") == ""


def test_what_was_trained_on():
    cfg = small_config(**{"DATASETS.NAMES": "veri776"})
    assert describe_training(cfg, TRAINING) == "veri776"
    assert describe_training(cfg, test_of(NAMES="market1501")) == "market1501"
    assert describe_training(cfg, test_of()) == "a.ckpt"
