"""The original's files that are doors: their names are those of the rooms, and nothing is computed twice."""

import importlib

import numpy as np
import pytest
import torch
from PIL import Image

from modelling.backbones import NetworkOptions
from modelling.backbones import get_backbone as find_backbone
from tests.launch import run_module
from tests.test_imports import DOORS as ALL_DOORS
from utils.errors import UnknownNameError, UserError
from utils.eval_reid import k_list, top_k_retrieval
from utils.misc import get_backbone
from utils.visrank import rank_for_display, visualize_ranked_results

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
        "k_list": "utils.eval_reid",
        "top_k_retrieval": "utils.eval_reid",
    },
    "utils.reid_metric": {
        "cosine_similarity": "utils.distances",
        "get_euclidean": "utils.distances",
        "get_cosine": "utils.distances",
        "get_dist_func": "utils.distances",
        "R1_mAP": "utils.reid_metric",
    },
    "utils.visrank": {
        "Ranking": "evaluation.ranked_images",
        "rank_for_display": "utils.visrank",  # takes arrays
        "render_rankings": "evaluation.ranked_images",
        "visualize_ranked_results": "utils.visrank",
    },
    "callbacks.chechpointer_callback": {"ModelCheckpointPeriodic": "callbacks.chechpointer_callback"},
    "datasets.hand_filled": {"ReidBaseDataModule": "datasets.bases", "COCODatasetBase": "datasets.bases"},
    "datasets.samplers.distributed_pids_sampler": {"RandomIdentitySampler": "datasets.samplers.random_identity"},
}


@pytest.mark.parametrize("door", DOORS)
def test_names_are_those_of_the_rooms(door):
    module = importlib.import_module(door)
    assert set(module.__all__) == set(DOORS[door])
    for name, room in DOORS[door].items():
        assert getattr(module, name) is getattr(importlib.import_module(room), name)


def test_every_door_is_in_the_table():
    assert set(DOORS) == ALL_DOORS - {"utils.evaluate"}  # a command


def test_the_published_command_still_works():
    done = run_module("utils.evaluate", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "python -m evaluation" in done.stdout


def test_a_network_by_its_name(caplog):
    torch.manual_seed(2)
    net = get_backbone("resnet18")
    assert not caplog.records
    torch.manual_seed(2)
    expected = find_backbone("resnet18").build(NetworkOptions(1)).state_dict()
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


@pytest.mark.parametrize("row", [[0, 0, 1, 0, 0, 1], np.array([False, False, True]), torch.tensor([0, 0, 1])])
def test_whether_a_match_is_among_the_first(row):
    assert k_list == [1, 5, 10, 20, 50]
    assert top_k_retrieval(row) == [0, 1, 1, 1, 1]
    assert top_k_retrieval(row, k=[2, 3]) == [0, 1]
    assert all(type(value) is int for value in top_k_retrieval(row))


def test_no_match_at_all():
    assert top_k_retrieval([0] * 60) == top_k_retrieval([]) == [0] * 5
    assert top_k_retrieval([0] * 9 + [1]) == [0, 0, 1, 1, 1]  # the tenth result is the last of the first ten


SHADES = [(0, 0, 255), (10, 10, 10), (90, 90, 90), (200, 200, 200)]


@pytest.fixture
def retrieved(tmp_path):
    """Two queries and three gallery images as tuples, and their distances."""
    paths = [str(tmp_path / name) for name in ("q.png", "g0.png", "g1.png", "g2.png")]
    for path, shade in zip(paths, SHADES, strict=True):
        Image.new("RGB", (32, 64), shade).save(path)
    query = [(paths[0], 7, 0, 0), (paths[0], 8, 0, 1)]
    # g0 is nearest to the first query, but comes from its camera.
    gallery = [(paths[1], 7, 0, "a"), (paths[2], 9, 1, "b"), (paths[3], 7, 1, "c")]
    return np.array([[0.1, 0.2, 0.3], [0.1, 0.3, 0.2]]), (query, gallery)


def test_distances_are_shown_without_results_of_the_same_camera(retrieved, tmp_path):
    distmat, dataset = retrieved
    out = tmp_path / "out" / "strips"
    written = visualize_ranked_results(distmat, dataset, width=40, height=80, save_dir=str(out), topk=2)
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in written.values())
    cells = {}
    for query, path in written.items():
        strip = np.asarray(Image.open(path))
        assert strip.shape == (80, 40 + 2 * (40 + 4) + 2 * 4, 3)
        lefts = [40 + 12, 40 + 12 + 44]
        cells[query] = [(tuple(strip[0, left].tolist()), tuple(strip[40, left + 20].tolist())) for left in lefts]
    green, red = (0, 255, 0), (255, 0, 0)
    assert cells == {0: [(red, SHADES[2]), (green, SHADES[3])], 1: [(red, SHADES[1]), (red, SHADES[3])]}


def test_only_the_first_queries_are_shown_and_tensors_do_too(retrieved, tmp_path):
    distmat, dataset = retrieved
    written = visualize_ranked_results(torch.from_numpy(distmat), dataset, "image", 8, 16, tmp_path, 1, max_number=1)
    assert list(written) == [0]
    assert Image.open(written[0]).size == (8 + 8 + 4 + 8, 16)


def test_what_cannot_be_shown_is_refused(retrieved, tmp_path):
    distmat, dataset = retrieved
    with pytest.raises(UserError, match="data_type is 'video'; only 'image'"):
        visualize_ranked_results(distmat, dataset, data_type="video", save_dir=tmp_path)
    with pytest.raises(UserError, match=r"\[3, 2\]; expected \[2, 3\]"):
        visualize_ranked_results(distmat.T, dataset, save_dir=tmp_path)
