"""Training with networks of other packages, through the real programs."""

import pytest
import timm
import torch

from engine.run import run_main
from tests.e2e.test_training import assert_same_state, newest
from train_ctl_model import CTLModel

# name -> width of its embedding
NETWORKS = {"timm:test_vit": 64, "timm:test_convnext": 64, "timm:test_efficientnet": 256, "torchvision:resnet18": 512}


def named(name, **more):
    sizes = {key: [64, 32] for key in ("INPUT.SIZE_TRAIN", "INPUT.SIZE_TEST")}  # ConvNeXt halves them five times
    return {"MODEL.NAME": name, "MODEL.BACKBONE_EMB_SIZE": NETWORKS[name], **sizes, **more}


@pytest.mark.parametrize("name", ["timm:test_vit", "timm:test_convnext"])
def test_a_resumed_run_with_drop_path_equals_an_uninterrupted_one_bit_for_bit(tiny_cfg, tmp_path, name):
    common = named(name, **{"MODEL.DROP_PATH": 0.5})
    whole, part, rest = (str(tmp_path / name) for name in ("whole", "part", "rest"))
    run_main(tiny_cfg(**common, **{"SOLVER.MAX_EPOCHS": 3, "OUTPUT_DIR": whole}), CTLModel, "run")
    run_main(tiny_cfg(**common, **{"SOLVER.MAX_EPOCHS": 1, "OUTPUT_DIR": part}), CTLModel, "run")
    resumed = {"MODEL.RESUME_TRAINING": True, "MODEL.PRETRAIN_PATH": str(newest(tmp_path / "part")), "OUTPUT_DIR": rest}
    torch.manual_seed(77)
    run_main(tiny_cfg(**common, **resumed, **{"SOLVER.MAX_EPOCHS": 3}), CTLModel, "run")
    assert_same_state(newest(tmp_path / "whole"), newest(tmp_path / "rest"))


@pytest.mark.parametrize("name", NETWORKS)
def test_training_and_test_of_what_was_trained(tiny_cfg, name):
    (metrics,) = run_main(tiny_cfg(**named(name)), CTLModel, "run")
    assert metrics.keys() == {"instances", "centroids"} and 0 < metrics["instances"]["mAP"] <= 1


def test_the_script_starts_from_a_file_and_its_checkpoint_tells_the_network(run_script, tiny, tmp_path):
    """Overlapping patches, weights in DINO's naming for square images, tests at another size."""
    weights = tmp_path / "dino.pth"
    square = timm.create_model("test_vit", img_size=64, num_classes=0).state_dict()
    torch.save({"teacher": {f"module.backbone.{key}": value for key, value in square.items()}}, weights)
    sizes = {"INPUT.SIZE_TRAIN": [48, 32], "INPUT.SIZE_TEST": [64, 32], "MODEL.PATCH_STRIDE": 12}
    options = named("timm:test_vit", **sizes, **{"MODEL.PRETRAINED": True, "MODEL.PRETRAIN_PATH": str(weights)})
    done = run_script("train_ctl_model.py", *tiny(**options))
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("Loaded")]
    assert line.endswith(
        f"into MODEL.NAME timm:test_vit: {len(square)} of {len(square)} tensors loaded (those under "
        "teacher.module.backbone.), interpolated: 1 (pos_embed 4 x 4 to 3 x 2), left out: none, missing: none."
    )
    checkpoint = newest(tmp_path / "out")
    again = CTLModel.load_from_checkpoint(checkpoint).eval()
    assert again.backbone.base.network.patch_embed.stride == 12
    assert again.embed(torch.zeros(1, 3, 64, 32)).shape == (1, 64)


def test_what_cannot_be_meant_ends_with_one_line(run_script, tiny):
    options = named("timm:test_vit", **{"MODEL.PRETRAINED": True})
    done = run_script("train_ctl_model.py", *tiny(**options), env={"HF_HUB_OFFLINE": "1", "HF_HOME": "none"})
    assert done.returncode == 2
    *_, line = done.stderr.splitlines()
    assert "MODEL.PRETRAIN_PATH is empty, so the weights of timm:test_vit are those that its package downloads" in line
    assert "Traceback" not in done.stderr
    done = run_script("train_ctl_model.py", *tiny(**named("timm:test_vit") | {"MODEL.NAME": "timm:test_vitt"}))
    assert done.returncode == 2 and "these come closest: test_vit" in done.stderr.splitlines()[-1]
