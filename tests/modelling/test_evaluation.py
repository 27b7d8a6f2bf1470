"""An evaluation in which a protocol leaves no query anything to find."""

import csv
import warnings

import pytest
import torch
from pytorch_lightning import Trainer
from torch import nn
from torch.utils.data import DataLoader

from config import cfg as shared_cfg
from datasets.loading import BaseDatasetLabelled
from evaluation.retrieval import RetrievalSet
from modelling.evaluation import OwnImages, evaluate_protocols
from tests.modelling.test_trajectories import MetricRecorder
from train_ctl_model import CTLModel
from utils.errors import NoValidQueryError
from utils.labels import Names

EMBEDDINGS = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.1], [0.1, 1.0]])
PIDS = torch.tensor([0, 1, 0, 1])
# The gallery's cameras differ from the queries', but the published protocol looks them up among the queries'.
CAMIDS = torch.tensor([0, 0, 1, 1])
ONE_CAMERA = torch.zeros(4, dtype=torch.int64)
WARNING = "leaves no query a centroid .* only the strict protocol is computed"


def centroid_cfg(use_centroids=True):
    cfg = shared_cfg.clone()
    cfg.merge_from_list(["MODEL.NAME", "resnet18", "MODEL.BACKBONE_EMB_SIZE", 2, "MODEL.PRETRAINED", False])
    cfg.merge_from_list(["MODEL.USE_CENTROIDS", use_centroids, "MODEL.KEEP_CAMID_CENTROIDS", True])
    return cfg


def test_the_published_protocol_without_a_valid_query_is_left_out_with_a_warning():
    with pytest.warns(UserWarning, match=WARNING):
        results = evaluate_protocols(RetrievalSet.of_rows(EMBEDDINGS, PIDS, CAMIDS, 2), centroid_cfg())
    assert list(results) == ["centroid_strict"]
    assert results["centroid_strict"].mAP == 1


def test_both_protocols_are_computed_where_both_can_be():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # A gallery longer than the list of queries: its last images keep their cameras.
        rows, camids = torch.tensor([0, 1, 2, 3, 2, 3]), torch.tensor([0, 0, 1, 1, 1, 1])
        results = evaluate_protocols(RetrievalSet.of_rows(EMBEDDINGS[rows], PIDS[rows], camids, 2), centroid_cfg())
    assert list(results) == ["centroid_strict", "centroid"]


def test_no_valid_query_in_the_strict_protocol_ends_the_evaluation():
    with pytest.raises(NoValidQueryError):
        evaluate_protocols(RetrievalSet.of_rows(EMBEDDINGS, PIDS, ONE_CAMERA, 2), centroid_cfg())


def test_no_valid_query_among_single_images_ends_the_evaluation():
    with warnings.catch_warnings(), pytest.raises(NoValidQueryError):
        warnings.simplefilter("error")
        evaluate_protocols(RetrievalSet.of_rows(EMBEDDINGS, PIDS, ONE_CAMERA, 2), centroid_cfg(use_centroids=False))


class Given(nn.Module):
    """The backbone that takes an image for its embedding."""

    def forward(self, x):
        return None, x


def test_the_strict_numbers_stand_in_for_those_of_the_published_protocol():
    model = CTLModel(centroid_cfg(), num_query=2, num_classes=2)
    model.backbone, metrics = Given(), MetricRecorder()
    images = EMBEDDINGS[[0, 1, 3, 3]]  # the first query finds the other identity as near as its own
    loader = DataLoader(list(zip(images, PIDS.tolist(), CAMIDS.tolist(), range(4), strict=True)), batch_size=4)
    options = {"accelerator": "cpu", "devices": 1, "enable_checkpointing": False, "enable_progress_bar": False}
    with pytest.warns(UserWarning, match=WARNING):
        Trainer(logger=metrics, **options).validate(model, loader, verbose=False)
    ((_, logged),) = [record for record in metrics.records if "mAP" in record[1]]
    for name in ("mAP", "Top-1", "Top-5"):
        assert logged[name] == logged[f"strict_{name}"]
    assert 0 < logged["mAP"] <= 1


# -------------------------------------------------------------------- the queries' own images, where no camera is known


class Files(BaseDatasetLabelled):
    """Images of no content beside the files and names that a data set knows."""

    names = Names({0: "Ann"}, {})

    def __init__(self, files, camids=CAMIDS):
        self.data = [(file,) for file in files]
        self.camids = camids
        self.images = EMBEDDINGS[[0, 1, 0, 3]]

    def __len__(self):
        return 4

    def __getitem__(self, i):
        return self.images[i], int(PIDS[i]), int(self.camids[i]), i


FILES = ["q/0.jpg", "q/1.jpg", "q/0.jpg", "g/1.jpg"]


def validate(caplog, files=FILES, times=1, camids=CAMIDS, **facts):
    model = CTLModel(centroid_cfg(use_centroids=False), num_query=2, num_classes=2, **facts)
    model.backbone, metrics = Given(), MetricRecorder()
    options = {"accelerator": "cpu", "devices": 1, "enable_checkpointing": False, "enable_progress_bar": False}
    caplog.set_level("INFO")
    trainer = Trainer(logger=metrics, **options)
    for _ in range(times):
        trainer.validate(model, DataLoader(Files(files, camids), batch_size=4), verbose=False)
    return model, metrics.records


SAID = "validation: the gallery holds 1 of the 2 queries themselves, as the same file or a copy of it (the first is q"


def test_own_images_are_left_out_and_said_once_where_there_are_no_cameras(caplog):
    _, records = validate(caplog, times=2, has_cameras=False)
    assert caplog.text.count(SAID) == 1
    assert "single images (1 queries against 2 items, 1 without a match left out)" in caplog.text
    assert [record["mAP"] for _, record in records] == [1, 1]


def test_data_with_cameras_is_not_compared(caplog):
    validate(caplog, camids=[0, 1, 1, 0])
    assert "the gallery holds" not in caplog.text
    assert "single images (2 queries against 2 items)" in caplog.text


def test_cameras_that_filter_nothing_are_as_good_as_none(caplog):
    """As in the fashion sets: all queries have one camera, and the gallery another one."""
    validate(caplog)
    assert caplog.text.count(SAID) == 1
    assert "single images (1 queries against 2 items, 1 without a match left out)" in caplog.text


def test_no_own_images_and_unknown_files_say_nothing(caplog):
    validate(caplog, files=["a", "b", "c", "d"], has_cameras=False)
    assert "the gallery holds" not in caplog.text
    retrieval = RetrievalSet.of_rows(EMBEDDINGS, PIDS, CAMIDS, 2)
    assert OwnImages().leave_out(retrieval, centroid_cfg(), "test", None).self_matches is None


def test_own_images_of_another_set_are_looked_for_again(caplog):
    caplog.set_level("INFO")
    own = OwnImages()
    first, second = (
        RetrievalSet.of_rows(EMBEDDINGS, PIDS, CAMIDS, 2, files) for files in (FILES, ["a", "b", "c", "b"])
    )
    for retrieval, queries in ((first, [0, -1]), (second, [-1, 0])):
        found = own.leave_out(retrieval, centroid_cfg(), "validation", None)
        assert found.self_matches.queries.tolist() == queries
        assert not found.has_cameras


def test_own_images_may_be_kept():
    retrieval = RetrievalSet.of_rows(EMBEDDINGS, PIDS, CAMIDS, 2, FILES)
    cfg = centroid_cfg()
    cfg.merge_from_list(["TEST.SELF_MATCH", "keep"])
    kept = OwnImages().leave_out(retrieval, cfg, "test", None)
    assert (kept.has_cameras, kept.self_matches) == (True, None)


def test_names_of_the_data_set_reach_the_table(caplog, tmp_path):
    model = CTLModel(centroid_cfg(use_centroids=False), num_query=2, num_classes=2)
    model.hparams.OUTPUT_DIR = str(tmp_path)
    model.backbone = Given()
    options = {"accelerator": "cpu", "devices": 1, "enable_checkpointing": False, "enable_progress_bar": False}
    Trainer(logger=False, **options).validate(model, DataLoader(Files(FILES), batch_size=4), verbose=False)
    rows = list(csv.DictReader((tmp_path / "evaluation" / "per_query.csv").read_text().splitlines()))
    assert [row["pid"] for row in rows] == ["Ann", "1"]


def test_tests_print_intervals_and_validations_do_not(caplog):
    model, _ = validate(caplog, files=["a", "b", "c", "d"], has_cameras=False)
    options = {"accelerator": "cpu", "devices": 1, "enable_checkpointing": False, "enable_progress_bar": False}
    loader = DataLoader(Files(["a", "b", "c", "d"]), batch_size=4)
    Trainer(logger=False, **options).test(model, loader, verbose=False)
    lines = [record.getMessage() for record in caplog.records if "single images" in record.getMessage()]
    assert [line.partition(",")[0] for line in lines] == ["validation", "test"]
    assert lines[0].splitlines()[1].startswith("    mAP 100.00%  Top-1 100.00%  ")
    assert lines[1].splitlines()[1].startswith("    mAP 100.00% [100.00, 100.00]  Top-1 100.00% [100.00, 100.00]  ")


# ------------------------------------------------------------------------------------------------ a loop of one's own


def test_the_numbers_of_published_centroids_are_called_inflated_in_each_line(capsys):
    model = CTLModel(centroid_cfg(), num_query=2, num_classes=2)
    images = torch.cat((EMBEDDINGS, EMBEDDINGS[2:])), torch.cat((PIDS, PIDS[2:])), torch.tensor([0, 1, 1, 0, 1, 0])
    model.get_val_metrics(*images)
    assert "inflated" not in capsys.readouterr().out
    for respect_camids in (True, False):
        model.get_val_metrics(*model.validation_create_centroids(*images, respect_camids))
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith("mAP: 100.0%")
        assert len(lines) == 6
        assert [("  (inflated by the published code's" in line) for line in lines] == [respect_camids] * 6
