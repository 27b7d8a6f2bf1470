"""The original's files in utils/ are doors: their names are those of the rooms, and nothing is computed twice."""

import importlib
import subprocess
import sys

import pytest
import torch

from modelling.backbones import get_backbone as find_backbone
from tests.support import ROOT
from utils.errors import UnknownNameError
from utils.misc import get_backbone
from utils.visrank import rank_for_display

# door -> the room that each of its names comes from
DOORS = {
    "utils.misc": {
        "run_main": "engine.run",
        "run_single": "engine.run",
        "run_script": "engine.run",
        "run_untrained": "engine.run",
        "build_trainer": "engine.trainer",
        "build_loggers": "engine.loggers",
        "get_backbone": "utils.misc",  # builds what modelling.backbones finds
    },
    "utils.eval_reid": {
        "eval_func": "evaluation.metrics",
        "evaluate_embeddings": "evaluation.metrics",
        "evaluate_distances": "evaluation.metrics",
        "metrics_dict": "evaluation.metrics",
        "EvalResult": "evaluation.retrieval",
        "TOPK_RANKS": "evaluation.retrieval",
    },
    "utils.reid_metric": {
        "get_euclidean": "utils.distances",
        "get_cosine": "utils.distances",
        "get_dist_func": "utils.distances",
        "R1_mAP": "utils.reid_metric",
    },
    "utils.visrank": {
        "Ranking": "evaluation.ranked_images",
        "rank_for_display": "utils.visrank",  # takes arrays
        "render_rankings": "evaluation.ranked_images",
    },
}


@pytest.mark.parametrize("door", DOORS)
def test_names_are_those_of_the_rooms(door):
    module = importlib.import_module(door)
    assert set(module.__all__) == set(DOORS[door])
    for name, room in DOORS[door].items():
        assert getattr(module, name) is getattr(importlib.import_module(room), name)


def test_the_published_command_still_works():
    command = [sys.executable, "-m", "utils.evaluate", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "python -m evaluation" in done.stdout


def test_a_network_by_its_name(caplog):
    torch.manual_seed(2)
    net = get_backbone("resnet18")
    assert not caplog.records
    torch.manual_seed(2)
    expected = find_backbone("resnet18").build(1).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in net.state_dict().items())
    with torch.device("meta"):
        assert get_backbone("resnet18", last_stride=2)(torch.zeros(1, 3, 64, 32)).shape == (1, 512, 2, 1)
        assert get_backbone("resnet50_ibn_a", num_classes=5, pretrained=True).fc.out_features == 5
        get_backbone(name="resnet34", pretrained=True)
    assert ["resnet50_ibn_a" in record.getMessage() for record in caplog.records] == [True, False]
    with pytest.raises(UnknownNameError, match=r"'resnet20'; valid names: resnet18, .*resnet152_ibn_a"):
        get_backbone("resnet20")


def test_rankings_of_arrays():
    arrays = ([[0.0], [5.0]], [[0.1], [0.2], [4.9]], [7, 8], [7, 9, 8], [0, 0], [1, 1, 1])
    first, second = rank_for_display(*arrays, topk=2, metric="euclidean")
    assert (first.images.tolist(), second.images.tolist()) == ([0, 1], [2, 1])
    assert first.right.tolist() == [True, False]
    (only,) = rank_for_display(*arrays, queries=[1, 0], max_number=1)
    assert only.query == 1
