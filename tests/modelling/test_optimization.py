"""The steps: of the class centres, of several batches together, with clipped gradients."""

import copy
import itertools

import pytest
import torch
from pytorch_lightning import Callback, Trainer
from torch import nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader

from callbacks import EpochStatistics, LossGuard
from config import cfg as shared_cfg
from solver.build import build_optimizer, build_scheduler
from tests.modelling.test_computation import Guarded, make_model
from tests.support import assert_close
from train_base_model import BaseModel
from train_ctl_model import CTLModel
from utils.compat import TORCH
from utils.errors import UserError

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


# ----------------------------------------------------------------------------------- several batches, clipped gradients

TOGETHER = {"SOLVER.ACCUMULATE": 4, "SOLVER.CLIP_GRAD_NORM": 0.5, "SOLVER.EMA_DECAY": 0.75}


def batches(count, first=0):
    """Batches of 3 identities with 4 images each; in the second one, an image is a blank one."""
    found = []
    for number in range(first, first + count):
        generator = torch.Generator().manual_seed(number)
        labels = torch.randperm(6, generator=generator)[:3].repeat_interleave(4)
        images = torch.randn(12, 3, 16, 12, generator=generator)
        found.append((images, labels, torch.zeros_like(labels), torch.arange(12) < 12 - (number == 1)))
    return found


def fit(model, data, *callbacks, val=None, ckpt_path=None, pin_memory=False, **options):
    plain = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "max_epochs": 2}
    plain |= {"enable_model_summary": False, "num_sanity_val_steps": 0, "accelerator": "cpu", "devices": 1}
    trainer = Trainer(callbacks=list(callbacks), **plain | options)
    trainer.fit(model, DataLoader(data, batch_size=None, pin_memory=pin_memory), val, ckpt_path=ckpt_path)
    return trainer


def plain_loop(model, loader, epochs):
    """What a Trainer does to a model, as a plain loop; returns the weights, and their average."""
    solver = model.hparams.SOLVER
    model.optimize = lambda losses, statistics: sum(losses.values())
    adam, sgd = build_optimizer(model.named_parameters(), model.hparams)
    schedule = build_scheduler(adam, model.hparams)
    average = copy.deepcopy(model.state_dict())
    model.train()
    for _ in range(epochs):
        for start in range(0, len(loader), solver.ACCUMULATE):
            group = loader[start : start + solver.ACCUMULATE]
            adam.zero_grad()
            sgd.zero_grad()
            for batch in group:
                (model.training_step(batch, 0) / len(group)).backward()
            if solver.CLIP_GRAD_NORM:
                clip_grad_norm_(adam.param_groups[0]["params"], solver.CLIP_GRAD_NORM)
            adam.step()
            model.center_loss.centers.grad /= solver.CENTER_LOSS_WEIGHT
            sgd.step()
            for name, value in model.state_dict().items():
                kept = solver.EMA_DECAY * average[name] + (1 - solver.EMA_DECAY) * value
                average[name] = kept if value.is_floating_point() else value.clone()
        schedule.step()
    return model.state_dict(), average


def assert_same_weights(found, expected):
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert_close(value, expected[name].detach(), "weights")


@pytest.mark.parametrize("kind", [BaseModel, CTLModel])
@pytest.mark.parametrize(
    "options",
    [TOGETHER, {"SOLVER.ACCUMULATE": 2}, {"SOLVER.CLIP_GRAD_NORM": 0.5}, {"SOLVER.EMA_DECAY": 0.75}],
    ids=["together", "accumulated", "clipped", "averaged"],
)
def test_steps_equal_a_plain_loop(kind, options):
    """Five batches an epoch: the last group is shorter, and its step is that of its own mean."""
    options = {"SOLVER.BASE_LR": 0.01, "SOLVER.CENTER_LOSS_WEIGHT": 0.25} | options
    model, loader = make_model(kind, **options), batches(5)
    expected, average = plain_loop(copy.deepcopy(model), loader, epochs=2)
    before = copy.deepcopy(model.state_dict())
    trainer = fit(model, loader)
    assert max((expected[name] - before[name]).abs().max() for name in ("bn.weight", "center_loss.centers")) > 0.01
    assert_same_weights(model.state_dict(), average if "SOLVER.EMA_DECAY" in options else expected)
    groups = -(-5 // options.get("SOLVER.ACCUMULATE", 1))
    assert trainer.global_step == 2 * 2 * groups  # epochs, optimisers


def test_a_group_of_two_equal_batches_is_a_step_of_one():
    """With the statistics of each batch for itself; Adam's first step hardly depends on the size of a gradient."""
    one, two = make_model(**{"SOLVER.BASE_LR": 0.01}), make_model(**{"SOLVER.BASE_LR": 0.01, "SOLVER.ACCUMULATE": 2})
    fit(one, batches(1), max_epochs=1)
    fit(two, batches(1) * 2, max_epochs=1)
    assert torch.equal(one.center_loss.centers, two.center_loss.centers)
    assert_close(two.fc_query.weight, one.fc_query.weight.detach())
    assert int(two.bn.num_batches_tracked) == 2


def test_steps_with_all_of_them_wait_for_nothing():
    guarded = Guarded()
    fit(make_model(**TOGETHER), batches(5), guarded)
    assert guarded.steps == 10


def test_epochs_count_the_images_of_every_batch():
    statistics = EpochStatistics()
    fit(make_model(**{"SOLVER.ACCUMULATE": 4}), batches(5), statistics)
    assert statistics._images == 5 * 12


def test_what_an_aborted_epoch_left_does_not_shorten_the_first_group():
    model = make_model(**{"SOLVER.ACCUMULATE": 4})
    model.accumulated = 1
    assert fit(model, batches(4), max_epochs=1).global_step == 2  # one of each optimiser


@pytest.mark.parametrize(("frequency", "expected"), [(1, [1.0, 1.0, 0.5, 0.5, 0.25]), (2, [1.0, 1.0, 1.0, 1.0, 0.5])])
def test_schedules_of_steps_count_steps_of_the_optimiser(frequency, expected):
    rates = []

    class Mine(CTLModel):
        def configure_optimizers(self):
            optimizer = SGD(self.parameters(), lr=1.0)
            return [optimizer], [{"scheduler": StepLR(optimizer, 1, 0.5), "interval": "step", "frequency": frequency}]

        def on_train_batch_start(self, batch, batch_idx):
            rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])

    fit(make_model(Mine, **{"SOLVER.ACCUMULATE": 2}), batches(5), max_epochs=1)
    assert rates == expected


class Norms(Callback):
    """Norms of the network's gradients as the optimisers get them, unscaled, and its weights after each batch."""

    def __init__(self):
        self.seen, self.weights = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        gradients = [p.grad for p in trainer.optimizers[0].param_groups[0]["params"] if p.grad is not None]
        self.seen.append(torch.linalg.vector_norm(torch.stack([g.norm() for g in gradients])).item())
        self.weights.append(pl_module.fc_query.weight.detach().clone())


# What clipping does with a scaler, whichever torch it is from, tests/solver/test_gradients.py has.
needs_scaler_of_cpu = pytest.mark.skipif(TORCH < (2, 3), reason="torch 2.3 is the first to scale losses on the CPU")


def scaled(scale):
    from pytorch_lightning.plugins import MixedPrecision  # Lightning 2.1 has it in another place

    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    return MixedPrecision("16-mixed", "cpu", scaler=scaler)


@needs_scaler_of_cpu
@pytest.mark.parametrize("accumulate", [1, 2])
def test_gradients_are_clipped_after_their_scale_is_taken_out(accumulate):
    """For an optimiser that takes it out itself, as fused Adam does, as well."""
    norms = Norms()
    model = make_model(**{"SOLVER.CLIP_GRAD_NORM": 0.25, "SOLVER.ACCUMULATE": accumulate})
    trainer = fit(model, batches(4), norms, plugins=[scaled(128.0)], max_epochs=1)
    assert trainer.precision_plugin.scaler.get_scale() == 128.0
    assert norms.seen[accumulate - 1 :: accumulate] == pytest.approx([0.25] * (4 // accumulate), rel=1e-3)


class Centers(Callback):
    """The centres, the network's classifier and the loss scale after each batch."""

    def __init__(self):
        self.centers, self.weights, self.scales = [], [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.centers.append(pl_module.center_loss.centers.detach().clone())
        self.weights.append(pl_module.fc_query.weight.detach().clone())
        self.scales.append(trainer.precision_plugin.scaler.get_scale())


@needs_scaler_of_cpu
def test_both_optimisers_step_at_one_loss_scale_which_grows_once_an_interval():
    growing = Centers()
    plugin = scaled(128.0)
    plugin.scaler.set_growth_interval(2)
    fit(make_model(), batches(4), growing, plugins=[plugin], max_epochs=1)
    assert growing.scales == [128.0, 256.0, 256.0, 512.0]
    steady = Centers()
    fit(make_model(), batches(4), steady, plugins=[scaled(128.0)], max_epochs=1)
    for one, other in zip(growing.centers, steady.centers, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@needs_scaler_of_cpu
@pytest.mark.parametrize("whose", ["network", "centres"])
def test_gradients_of_one_optimiser_that_are_not_finite_keep_both_from_stepping(whose):
    class Spoiled(CTLModel):
        is_of_this_project = True
        spoils = 1

        def manual_backward(self, loss, *args, **kwargs):
            super().manual_backward(loss, *args, **kwargs)
            if len(kept.scales) == self.spoils:
                (self.fc_query.weight if whose == "network" else self.center_loss.centers).grad[0, 0] = torch.inf

    kept = Centers()
    model = make_model(Spoiled)
    fit(model, batches(4), kept, LossGuard(), plugins=[scaled(128.0)], max_epochs=1)
    assert kept.scales == [128.0, 64.0, 64.0, 64.0]
    for values in (kept.centers, kept.weights):
        moved = [not torch.equal(a, b) for a, b in itertools.pairwise(values)]
        assert moved == [False, True, True]
        assert values[-1].isfinite().all()


@needs_scaler_of_cpu
def test_a_batch_that_overflows_spoils_its_own_group_only():
    loader = batches(6)
    loader[1] = (loader[1][0] * 1e30, *loader[1][1:])  # infinite in 16 bits, so are its gradients
    norms = Norms()
    model = make_model(**{"SOLVER.ACCUMULATE": 2})
    model.backbone.base[1] = nn.Identity()
    start = model.fc_query.weight.detach().clone()
    fit(model, loader, norms, plugins=[scaled(2.0)], max_epochs=1)
    assert all(torch.equal(start, weights) for weights in norms.weights[:3])
    steps = [not torch.equal(a, b) for a, b in itertools.pairwise(norms.weights)]
    assert steps == [False, False, True, False, True]
    assert norms.weights[-1].isfinite().all()


def test_the_first_loss_that_is_not_finite_is_named_within_a_group():
    loader = batches(4)
    loader[2] = (loader[2][0] * torch.nan, *loader[2][1:])
    with pytest.raises(UserError, match="The loss is nan at step 2 of epoch 0"):
        fit(make_model(**{"SOLVER.ACCUMULATE": 4}), loader, LossGuard())


class OwnStep(CTLModel):
    """Steps on its own, after each batch."""

    takes_steps = True

    def training_step(self, batch, batch_idx):
        optimizer, _ = self.optimizers(use_pl_optimizer=self.takes_steps)
        _, features = self.backbone(batch[0])
        loss = features.pow(2).mean()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return {"loss": loss.detach()}


def test_a_step_of_ones_own_is_clipped_and_averaged_but_does_not_accumulate():
    model, norms = make_model(OwnStep, **{"SOLVER.CLIP_GRAD_NORM": 1e-3, "SOLVER.EMA_DECAY": 0.5}), Norms()
    before = model.backbone.base[0].weight.detach().clone()
    fit(model, batches(3), norms, max_epochs=1)
    assert norms.seen == pytest.approx([1e-3] * 3, rel=1e-3)
    assert not torch.equal(model.backbone.base[0].weight, before)
    with pytest.raises(UserError, match="SOLVER.ACCUMULATE is 2, but OwnStep.training_step does not accumulate"):
        fit(make_model(OwnStep, **{"SOLVER.ACCUMULATE": 2}), batches(3))
    unseen = type("Unseen", (OwnStep,), {"takes_steps": False})
    with pytest.raises(UserError, match=r"CLIP_GRAD_NORM is 0.5 and SOLVER.EMA_DECAY 0.0, but Unseen.training_step"):
        fit(make_model(unseen, **{"SOLVER.CLIP_GRAD_NORM": 0.5}), batches(3))
