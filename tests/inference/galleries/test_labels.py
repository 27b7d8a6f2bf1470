"""Subsets of data sets whose images go into a gallery with their labels."""

import pytest

from datasets import init_dataset
from inference.galleries.labels import check_labels, read_subset
from tests.datasets.conftest import write_image
from tests.small import small_config
from utils.errors import UserError


def test_a_table_of_one_subset_is_enough(tmp_path):
    rows = [f"{i}.jpg,{i % 2},c{i // 2},train" for i in range(4)]
    for i in range(4):
        write_image(tmp_path / f"{i}.jpg")
    (tmp_path / "own.csv").write_text("\n".join(["path,pid,camid,split", *rows]) + "\n")
    cfg = small_config(**{"DATASETS.CSV_PATH": str(tmp_path / "own.csv"), "DATASETS.NAMES": "csv"})
    found = read_subset(init_dataset("csv", cfg=cfg, num_workers=0), "train")
    assert found.labels == [(0, "c0"), (1, "c0"), (0, "c1"), (1, "c1")]
    with pytest.raises(UserError, match=r"own\.csv has no query images; expected at least one each of query\."):
        read_subset(init_dataset("csv", cfg=cfg, num_workers=0), "query")


def test_labels_are_compared_however_the_paths_are_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = (["./a.jpg"], [(2, None)])
    with pytest.raises(UserError, match=f"the gallery has identity 1 for {tmp_path}/a.jpg, but here it is identity 2"):
        check_labels([f"{tmp_path}/a.jpg"], [(1, None)], images, "the gallery", "stop.")
    check_labels([f"{tmp_path}/a.jpg"], [(2, None)], images, "the gallery", "stop.")
