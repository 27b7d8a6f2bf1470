"""The fashion sets from raw files to a trained model, with the commands of the README."""

import json
import sys

import pytest

from tests.launch import run_command
from tests.support import ROOT, unpack


@pytest.mark.parametrize(
    ("experiment", "raw", "conversions", "data_root"),
    [
        (
            "street2shop",
            "s2s",
            (
                ("street2shop2coco.py",),
                ("street2shop_coco2reid.py", "--train-json-path", "meta/all_street_train.json"),
            ),
            "images_reid_cropped_320_320",
        ),
        pytest.param(
            *("df1", "df", (("deep_fashion2reid.py",),), "320_320_cropped_images"), marks=pytest.mark.by_hand, id="df1"
        ),
    ],
)
def test_what_the_conversions_write_is_what_the_experiments_read(
    run_script, tiny, tmp_path, experiment, raw, conversions, data_root
):
    root = unpack("fashion_s0_raw", tmp_path) / raw
    for script, *arguments in conversions:
        done = run_script(f"scripts/{script}", *arguments, "--root-dir-path", root)
        assert done.returncode == 0, done.stderr
    options = tiny(**{"SOLVER.MAX_EPOCHS": 1, "DATASETS.ROOT_DIR": root / data_root})
    paths = {"DATA_ROOT": str(root / data_root), "OUTPUT_DIR": str(tmp_path / "out"), "PYTHON": sys.executable}
    script = ROOT / "train_scripts" / experiment / "train_ctl_model_s_r50.sh"
    done = run_command(script, *options, env={"JSON_TRAIN_PATH": None, **paths}, timeout=300)
    assert done.returncode == 0, done.stderr
    (checkpoint,) = (tmp_path / "out").glob("*/version_0/auto_checkpoints/checkpoint_0.pth")
    assert checkpoint.stat().st_size > 1e6
    metrics = json.loads((tmp_path / "out" / "evaluation" / "metrics.json").read_text())
    assert 0 < metrics["mAP"] <= 1
