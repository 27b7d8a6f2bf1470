"""Losses of pytorch-metric-learning through the real scripts: trained, resumed, and tested without the package."""

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from config.load import load_config
from engine.run import run_main
from tests.launch import forbid_modules
from train_ctl_model import CTLModel
from utils.errors import UserError

EXTRA = {
    "LOSSES.EXTRA": "['subcenter_arcface', 'circle']",
    "LOSSES.EXTRA_WEIGHTS": "[0.1, 0.01]",
    "LOSSES.EXTRA_ARGS": "[{'sub_centers': 2}, {'m': 0.25, 'gamma': 128}]",
    "SOLVER.SOFT_MARGIN": True,
}
WEIGHT = "extra_losses.subcenter_arcface.loss.W"


def weights_in(path):
    return torch.load(path, weights_only=True)["state_dict"]


@pytest.mark.by_hand
def test_they_are_trained_resumed_and_not_needed_afterwards(run_script, tiny, tmp_path, toy):
    done = run_script("train_ctl_model.py", *tiny(**EXTRA | {"SOLVER.MAX_EPOCHS": 1}))
    assert done.returncode == 0, done.stderr
    assert "no effect" not in done.stderr
    folder = tmp_path / "out" / "train_ctl_model" / "version_0"
    events = EventAccumulator(str(folder))
    events.Reload()
    total = events.Scalars("epoch_train_loss")[0].value
    parts = [events.Scalars(name)[0].value for name in (*CTLModel.losses_names, "subcenter_arcface", "circle")]
    assert total == pytest.approx(sum(parts), rel=1e-5)
    first = folder / "auto_checkpoints" / "checkpoint_0.pth"
    assert weights_in(first)[WEIGHT].shape == (512, 2 * 12)

    resume = {"MODEL.RESUME_TRAINING": True, "MODEL.PRETRAIN_PATH": str(first)}
    run_main(load_config("", tiny(**EXTRA)), CTLModel, "whole")
    run_main(load_config("", tiny(**EXTRA | resume)), CTLModel, "rest")
    (again,) = tmp_path.glob("out/rest/version_*/auto_checkpoints/checkpoint_1.pth")
    rest, whole = weights_in(again), weights_in(next(tmp_path.glob("out/whole/*/auto_checkpoints/checkpoint_1.pth")))
    assert rest.keys() == whole.keys()
    assert all(torch.equal(rest[key], value) for key, value in whole.items())
    assert not torch.equal(rest[WEIGHT], weights_in(first)[WEIGHT])
    other = {"LOSSES.EXTRA_ARGS": "[{'sub_centers': 3}, {'m': 0.25, 'gamma': 128}]"}
    with pytest.raises(UserError, match=r"LOSSES.EXTRA_ARGS \[{'sub_centers': 2}, {.*}\]: continue with the same"):
        run_main(load_config("", tiny(**EXTRA | resume | other)), CTLModel, "other")

    forbidden = forbid_modules(tmp_path, "pytorch_metric_learning")
    test = {"TEST.ONLY_TEST": True, "MODEL.PRETRAIN_PATH": str(again)}
    done = run_script("train_ctl_model.py", *tiny(**EXTRA | test), env=forbidden)
    assert done.returncode == 0, done.stderr
    assert "mAP" in done.stderr
    images = {"DATASETS.ROOT_DIR": str(toy / "market1501" / "query"), "MODEL.PRETRAIN_PATH": str(again)}
    done = run_script("inference/create_embeddings.py", *tiny(**images), env=forbidden)
    assert done.returncode == 0, done.stderr
    assert np.load(tmp_path / "out" / "embeddings.npy").shape[1] == 512


def test_without_the_package_a_training_names_the_extra(run_script, tiny, tmp_path):
    (tmp_path / "pytorch_metric_learning.py").write_text("raise ImportError('not here')\n")
    done = run_script("train_ctl_model.py", *tiny(**EXTRA), env={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "error: LOSSES.EXTRA subcenter_arcface needs the package pytorch_metric_learning, which cannot be imported "
        "(not here): pip install 'centroids-reid[losses]'"
    )
    assert "Traceback" not in done.stderr
