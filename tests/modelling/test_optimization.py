"""The step of the class centres, which does not depend on the weight of their loss."""

import pytest
import torch
from pytorch_lightning import Trainer
from torch import nn
from torch.utils.data import DataLoader

from config import cfg as shared_cfg
from tests.support import assert_close
from train_base_model import BaseModel

WIDTH, IDENTITIES = 8, 3


def one_step(weight):
    """The centres before and after one step, and the images and labels of its batch."""
    cfg = shared_cfg.clone()
    cfg.merge_from_list(["MODEL.NAME", "resnet18", "MODEL.BACKBONE_EMB_SIZE", WIDTH, "MODEL.PRETRAINED", False])
    cfg.merge_from_list(["SOLVER.CENTER_LOSS_WEIGHT", weight, "SOLVER.CENTER_LR", 0.5, "SOLVER.WARMUP_EPOCHS", 0])
    torch.manual_seed(0)
    model = BaseModel(cfg, num_query=0, num_classes=IDENTITIES)
    model.backbone = Pair()
    before = model.center_loss.centers.detach().clone()
    images, labels = torch.randn(4, WIDTH), torch.tensor([0, 0, 2, 2])
    batch = (images, labels, torch.zeros(4), torch.ones(4, dtype=torch.bool))
    Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(model, DataLoader([batch], batch_size=None))
    return before, model.center_loss.centers.detach(), images, labels


class Pair(nn.Module):
    """A backbone whose embedding is the image, times a parameter that starts at one."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return None, x * self.scale


def test_without_a_weight_the_centres_stay_exactly_as_they_are():
    before, after, _, _ = one_step(0.0)
    assert torch.equal(before, after)


@pytest.mark.parametrize("weight", [0.0005, 0.25, 1.0, 4.0])
def test_the_step_of_the_centres_does_not_depend_on_the_weight(weight):
    before, after, images, labels = one_step(weight)
    expected = before.clone()
    for row, label in zip(images, labels.tolist(), strict=True):
        expected[label] -= 0.5 * 2 * (before[label] - row) / len(images)  # CENTER_LR times the mean's gradient
    assert_close(after, expected)
    assert torch.equal(before[1], after[1])  # no image of it in the batch
