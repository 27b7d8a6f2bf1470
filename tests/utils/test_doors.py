"""The original's files in utils/ are doors: their names are those of the rooms, and nothing is computed twice."""

import importlib
import subprocess
import sys

import pytest

from tests.support import ROOT

# door -> the room that each of its names comes from
DOORS = {
    "utils.misc": {
        "run_main": "engine.run",
        "run_single": "engine.run",
        "run_script": "engine.run",
        "run_untrained": "engine.run",
        "build_trainer": "engine.trainer",
        "build_loggers": "engine.loggers",
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
        "rank_for_display": "evaluation.ranked_images",
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
