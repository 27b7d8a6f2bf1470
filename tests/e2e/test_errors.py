"""Bad input ends in one clear message before training starts; from a script with status 2 and no traceback."""

import shutil

import pytest
import torch

from engine.run import run_main
from tests.support import ROOT
from tests.thin import RESNET18
from train_ctl_model import CTLModel
from utils.errors import UserError


def broken(toy, tmp_path, change):
    """A copy of the data set after ``change(folder of the data set)``."""
    root = tmp_path / "broken"
    shutil.copytree(toy, root)
    change(root / "market1501")
    return str(root)


def empty(name):
    def change(folder):
        shutil.rmtree(folder / name)
        (folder / name).mkdir()

    return change


def one_camera(folder):
    for name in ("query", "bounding_box_test"):
        for path in (folder / name).iterdir():
            path.rename(path.with_name(path.name.replace("_c2", "_c1").replace("_c3", "_c1")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "market1501"),
        (lambda folder: shutil.rmtree(folder / "query"), "query"),
        (empty("query"), "query"),
        (empty("bounding_box_train"), "bounding_box_train"),
        (lambda folder: (folder / "query" / "holiday.jpg").touch(), "holiday.jpg"),
        (lambda folder: (folder / "query" / "0001_c9s1_000000_00.jpg").touch(), "0001_c9s1"),
        (one_camera, "one camera"),
    ],
    ids=["no data set", "no query folder", "empty query", "empty training", "name", "camera", "one camera"],
)
def test_data_set_that_is_not_as_expected(tiny_cfg, toy, tmp_path, change, message):
    cfg = tiny_cfg(**{"DATASETS.ROOT_DIR": broken(toy, tmp_path, change)})
    with pytest.raises(UserError, match=message):
        run_main(cfg, CTLModel, "run")
    assert not (tmp_path / "out" / "run").exists()  # nothing was started


def test_corrupt_training_image_is_named(tiny_cfg, toy, tmp_path):
    def change(folder):
        for path in (folder / "bounding_box_train").iterdir():
            path.write_bytes(b"no image")

    cfg = tiny_cfg(**{"DATASETS.ROOT_DIR": broken(toy, tmp_path, change), "DATALOADER.NUM_WORKERS": 1})
    with pytest.raises(UserError, match=r"bounding_box_train/\d+_c"):
        run_main(cfg, CTLModel, "run")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"SOLVER.IMS_PER_BATCH": 50}, "SOLVER.IMS_PER_BATCH"),
        ({"DATASETS.NAMES": "market1500"}, "market1501"),
        ({"MODEL.NAME": "resnet19"}, "resnet18"),
        ({"MODEL.BACKBONE_EMB_SIZE": 2048}, "MODEL.BACKBONE_EMB_SIZE 512"),
        ({"MODEL.PRETRAINED": True, "MODEL.PRETRAIN_PATH": "no.pth"}, "no.pth.*MODEL.PRETRAINED False"),
        ({"SOLVER.MONITOR_METRIC_NAME": "rank1"}, "MONITOR_METRIC_NAME is 'rank1'.*Top-1"),
        ({"SOLVER.MONITOR_METRIC_NAME": "strict_mAP"}, "USE_CENTROIDS is False"),
        ({"MODEL.RESUME_TRAINING": True, "MODEL.PRETRAIN_PATH": "no.ckpt"}, "no.ckpt"),
        ({"TEST.ONLY_TEST": True, "MODEL.PRETRAIN_PATH": "no.ckpt"}, "no.ckpt"),
    ],
)
def test_configuration_that_does_not_fit(tiny_cfg, options, message):
    with pytest.raises(UserError, match=message):
        run_main(tiny_cfg(**options), CTLModel, "run")


def test_output_folder_that_cannot_be_written(tiny_cfg, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="OUTPUT_DIR: cannot write"):
        run_main(tiny_cfg(OUTPUT_DIR=str(tmp_path / "file" / "out")), CTLModel, "run")


def test_checkpoint_of_other_identities_and_imagenet_weights_are_told_apart(tiny_cfg, tmp_path, other_toy):
    run_main(tiny_cfg(**RESNET18, **{"SOLVER.MAX_EPOCHS": 1}), CTLModel, "run")
    (checkpoint,) = (tmp_path / "out/run/version_0/auto_checkpoints").iterdir()
    resume = {**RESNET18, "MODEL.RESUME_TRAINING": True, "MODEL.PRETRAIN_PATH": str(checkpoint)}
    with pytest.raises(UserError, match=r"has finished 1 epoch\(s\) and SOLVER.MAX_EPOCHS is 1"):
        run_main(tiny_cfg(**resume, **{"SOLVER.MAX_EPOCHS": 1}), CTLModel, "run")
    with pytest.raises(UserError, match="was trained on 12 identities, but the training set here has 8"):
        run_main(tiny_cfg(**resume, **{"DATASETS.ROOT_DIR": str(other_toy)}), CTLModel, "run")
    weights = torch.load(checkpoint, weights_only=True)["state_dict"]
    prefix = "backbone.base."
    imagenet = tmp_path / "resnet18.pth"
    torch.save({k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}, imagenet)
    with pytest.raises(UserError, match="torchvision resnet18 weights"):
        run_main(tiny_cfg(**resume | {"MODEL.PRETRAIN_PATH": str(imagenet)}), CTLModel, "run")
    message = (
        "a CTL checkpoint of resnet18, which does not fit MODEL.NAME resnet34 .*: continue with what it was trained "
    )
    with pytest.raises(UserError, match=f"{message}with. MODEL.NAME: 'resnet18' in the checkpoint, 'resnet34' here.$"):
        run_main(tiny_cfg(**resume | {"MODEL.NAME": "resnet34"}), CTLModel, "run")
    content = torch.load(checkpoint, weights_only=True)
    torch.save({k: v for k, v in content.items() if k != "optimizer_states"}, tmp_path / "weights.ckpt")
    with pytest.raises(UserError, match="weights.ckpt holds no optimiser and schedule states"):
        run_main(tiny_cfg(**resume | {"MODEL.PRETRAIN_PATH": str(tmp_path / "weights.ckpt")}), CTLModel, "run")
    # ... and as what they are they start a training
    start = {**RESNET18, "MODEL.PRETRAINED": True, "MODEL.PRETRAIN_PATH": str(imagenet), "SOLVER.MAX_EPOCHS": 1}
    run_main(tiny_cfg(**start), CTLModel, "started")


@pytest.mark.parametrize("script", ["train_ctl_model.py", "train_base_model.py"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["SOLVER.BASE_LRR", "1"], "SOLVER.BASE_LR"),
        (["SOLVER.MAX_EPOCHS"], "SOLVER.MAX_EPOCHS"),
        (["SOLVER.MAX_EPOCHS", "many"], "SOLVER.MAX_EPOCHS"),
        (["--config_file", "nothing.yml"], "nothing.yml"),
    ],
)
def test_scripts_answer_wrong_options_with_status_2(run_script, script, arguments, message):
    done = run_script(script, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_script_answers_a_missing_data_set_with_status_2(run_script, tmp_path):
    config = ROOT / "configs" / "256_resnet50.yml"
    done = run_script("train_ctl_model.py", "--config_file", config, "DATASETS.ROOT_DIR", tmp_path / "nowhere")
    assert done.returncode == 2
    assert str(tmp_path / "nowhere") in done.stderr
    assert "Traceback" not in done.stderr
