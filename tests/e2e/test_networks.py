"""Networks through a whole run: training, resuming, testing, embedding and exporting."""

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from engine.run import run_main
from modelling.bases import ModelBase
from tests.e2e.test_training import assert_same_state, newest
from tests.thin import RESNET18
from train_ctl_model import CTLModel
from utils.compat import export_onnx

NETWORKS = [
    pytest.param({"MODEL.NAME": "osnet_ain_x0_25"}, id="osnet"),
    pytest.param({**RESNET18, "MODEL.STEM_RELU": True}, id="a ReLU in the stem"),
]


@pytest.mark.by_hand  # tests/e2e/test_recipes.py trains them, too
@pytest.mark.parametrize("options", NETWORKS)
def test_a_network_is_trained_resumed_tested_and_written_as_onnx(options, tiny_cfg, tmp_path):
    whole, part, rest, test = (str(tmp_path / name) for name in ("whole", "part", "rest", "test"))
    run_main(tiny_cfg(**options, OUTPUT_DIR=whole), CTLModel, "run")
    run_main(tiny_cfg(**options, OUTPUT_DIR=part, **{"SOLVER.MAX_EPOCHS": 1}), CTLModel, "run")
    resumed = {"MODEL.RESUME_TRAINING": True, "MODEL.PRETRAIN_PATH": str(newest(tmp_path / "part"))}
    resumed |= {"MODEL.GRAD_CHECKPOINT": True}  # the same arithmetic
    # Nothing of the network is named: its settings are those of the checkpoint.
    named = RESNET18 if "MODEL.STEM_RELU" in options else options
    (metrics,) = run_main(tiny_cfg(**named, **resumed, OUTPUT_DIR=rest), CTLModel, "run")
    path = newest(tmp_path / "rest")
    assert_same_state(newest(tmp_path / "whole"), path)
    model = CTLModel.load_from_checkpoint(path).eval()
    assert getattr(model.backbone.base, "stem_relu", None) == options.get("MODEL.STEM_RELU")
    only_test = {"TEST.ONLY_TEST": True, "MODEL.PRETRAIN_PATH": str(path), "OUTPUT_DIR": test}
    (tested,) = run_main(tiny_cfg(**named, **only_test), CTLModel, "run")
    assert tested["instances"].items() <= metrics["instances"].items()
    images = torch.randn(3, 3, 32, 16)
    export_onnx(Embedding(model).eval(), images, tmp_path / "network.onnx", "images", "embeddings", dynamic_batch=True)
    session = onnxruntime.InferenceSession(tmp_path / "network.onnx", providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = model.embed(images[:2]).numpy()
    assert expected.shape == (2, 512) and expected.std() > 0
    np.testing.assert_allclose(
        session.run(None, {"images": images[:2].numpy()})[0], expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max()
    )


class Embedding(nn.Module):
    """The way from images to embeddings alone."""

    def __init__(self, model: ModelBase) -> None:
        super().__init__()
        self.backbone, self.bn = model.backbone, model.bn
        self.backbone.choose_computation(channels_last=False, grad_checkpoint=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.bn(self.backbone(images)[1])
