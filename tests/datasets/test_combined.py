"""DATASETS.COMBINEALL: query and gallery images join the training images."""

from pathlib import Path

import pytest

from datasets import init_dataset
from datasets.combined import combine_all
from datasets.hand_filled import ReidBaseDataModule
from tests.datasets.conftest import MARKET, write_folders, write_image
from tests.datasets.test_published_sets import write_vehicleid
from utils.errors import UserError

TRAIN = [("t0.jpg", 3, 0), ("t1.jpg", 8, 1)]


def described(samples):
    return [(Path(path).name, pid, camid) for path, pid, camid, *_ in samples]


def test_one_numbering_keeps_one_class_for_an_identity():
    train, note = combine_all(TRAIN, [("q.jpg", 8, 2), ("g.jpg", 9, 0)], "Mine", one_numbering=True)
    assert train == [*TRAIN, ("q.jpg", 8, 2), ("g.jpg", 9, 0)]
    assert note == (
        "DATASETS.COMBINEALL: Mine trains on 2 images of query and gallery besides its 2 training images (further "
        "identities: 1). Tests on Mine measure images that were trained on."
    )


def test_other_numberings_share_no_identity():
    train, note = combine_all(TRAIN, [("q.jpg", 0, 2), ("g.jpg", 8, 0)], "Mine", one_numbering=False)
    assert train == [*TRAIN, ("q.jpg", 9, 2), ("g.jpg", 17, 0)]
    assert "(further identities: 2)" in note


def test_what_is_no_identity_is_left_out_and_counted_and_no_file_is_trained_on_twice():
    evaluated = [("q.jpg", 5, 1), ("t0.jpg", 3, 0), ("q.jpg", 5, 1), ("far.jpg", 0, 2), ("junk.jpg", -1, 2)]
    train, note = combine_all(TRAIN, evaluated, "Mine", one_numbering=True, left_out=(0,))
    assert train == [*TRAIN, ("q.jpg", 5, 1)]
    assert "(further identities: 1; distractors and junk, which are left out: 2, such as far.jpg). " in note
    assert combine_all(TRAIN, [("far.jpg", 0, 2)], "Mine", one_numbering=True)[0][-1] == ("far.jpg", 0, 2)


def test_market_trains_on_all_but_its_distractors(market, make_cfg, caplog):
    module = init_dataset("market1501", cfg=make_cfg(market, "DATASETS.COMBINEALL", True))
    module.setup("fit")
    trained = {pid for split in MARKET.values() for pid in split} - {0}
    assert module.train_pids == sorted(trained)
    assert module.num_classes == len(trained)
    assert len(module.train_list) == 24 + 3 + 4
    assert len(module.gallery_list) == 5
    (note,) = [line for line in caplog.messages if "COMBINEALL" in line]
    assert "Market1501 trains on 7 images of query and gallery besides its 24 training images" in note
    assert "(further identities: 3; distractors and junk, which are left out: 1, such as " in note


def test_a_test_and_the_default_read_the_training_set_alone(market, make_cfg, caplog):
    for options, stage in (((), "fit"), (("DATASETS.COMBINEALL", True), "test")):
        module = init_dataset("market1501", cfg=make_cfg(market, *options))
        module.setup(stage)
        assert len(module.train_list) == 24
        assert not module.is_combined
    assert "COMBINEALL" not in caplog.text


def test_each_of_several_sets_is_combined_by_itself_and_stand_ins_are_no_cameras(tmp_path, make_cfg):
    """VehicleID: its gallery has camid 1 for want of cameras, which is none of Market-1501's nor one of its own."""
    write_folders(tmp_path / "market1501", MARKET)
    write_vehicleid(tmp_path)
    cfg = make_cfg(tmp_path, "DATASETS.COMBINEALL", True, "DATASETS.NAMES", "market1501+vehicleid_800")
    module = init_dataset("market1501+vehicleid_800", cfg=cfg)
    module.setup("fit")
    assert module.is_combined
    assert module.num_classes == 9 + 5
    assert max(camid for path, _, camid, _ in module.train_list if "market1501" in path) == 5
    (stand_in,) = {camid for path, _, camid, _ in module.train_list if "VehicleID" in path}
    assert stand_in == 6


def test_coco_files_number_their_identities_apart(coco, make_cfg):
    options = ("DATASETS.NAMES", "df1", "DATASETS.JSON_TRAIN_PATH", str(coco / "train_reid.json"))
    module = init_dataset("df1", cfg=make_cfg(coco, *options, "DATASETS.COMBINEALL", True))
    module.setup("fit")
    assert module.train_pids == [4, 9, 12, 13 + 3, 13 + 8, 13 + 40]


class ByHand(ReidBaseDataModule):
    def setup(self):
        super().setup()
        rows = [(str(write_image(Path(self.cfg.DATASETS.ROOT_DIR) / f"{i}.jpg", i)), i // 2, i % 2) for i in range(8)]
        self.train_list = [(*row, 0) for row in rows[:4]]
        self.query_list, self.gallery_list = [(*rows[4], 0), (*rows[6], 0)], [(*rows[5], 0), (*rows[7], 0)]
        self.train_dict = {pid: [row for row in self.train_list if row[1] == pid] for pid in (0, 1)}
        self.train, self.val = self.train_dict, [*self.query_list, *self.gallery_list]


def test_lists_that_are_filled_by_hand_are_refused_unless_joined_with_others(market, make_cfg):
    cfg = make_cfg(market, "DATASETS.COMBINEALL", True)
    with pytest.raises(UserError, match=r"^DATASETS.COMBINEALL is True, but ByHand fills its lists by hand in setup"):
        ByHand(cfg).setup("fit")
    ByHand(cfg).setup("test")
    module = init_dataset(f"market1501+{__name__}:ByHand", cfg=cfg)
    module.setup("fit")
    assert module.num_classes == 9 + 4
