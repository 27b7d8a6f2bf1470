"""Models of the user's own: schedules, evaluations, hooks, constructors, losses and what their checkpoints hold."""

import sys
import warnings
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pytorch_lightning import Callback
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader

from checkpoints.plain import to_plain
from losses.center_loss import CenterLoss
from losses.extra import REGISTRY as LOSSES
from modelling.bases import ModelBase
from modelling.epochs import EpochKeeper
from modelling.hyperparameters import construct
from modelling.lightning_1_1 import GONE_HOOKS, UNCALLED, warn_of_uncalled
from tests.modelling.test_computation import batch, fit, make_model
from tests.small import small_config
from train_base_model import BaseModel
from train_ctl_model import CTLModel
from utils.errors import UserError


def model_with(opts=None, **members):
    """A small model of a subclass with these members."""
    return make_model(type("Mine", (CTLModel,), members), **opts or {})


# ------------------------------------------------------------------------------------------------------------ schedules


class Rates(Callback):
    """The rate of the network in every step, and the one after the last."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_end(self, trainer, pl_module):
        self.on_train_batch_start(trainer, pl_module, None, None)


def rates_of(build, form=lambda schedule: schedule, **members):
    """The rates of two epochs of two steps, under a schedule that starts at 1."""

    def configure_optimizers(self):
        optimizer = SGD(self.center_loss.parameters(), lr=1.0)
        self.lr_scheduler = build(optimizer)
        return [optimizer], [form(self.lr_scheduler)]

    rates = Rates()
    fit(model_with(configure_optimizers=configure_optimizers, **members), batch(), rates, copies=2)
    return rates.seen


def halved(optimizer):
    return StepLR(optimizer, 1, 0.5)


def stepped_in_the_step(self, batch, batch_idx):
    outputs = CTLModel.training_step(self, batch, batch_idx)
    self.lr_scheduler.step()
    return outputs


@pytest.mark.parametrize(
    "members",
    [
        {},
        {"on_train_epoch_end": lambda self: None},
        {"on_train_epoch_end": lambda self: self.lr_scheduler.step()},
        {"on_train_epoch_end": lambda self, outputs: self.lr_scheduler.step()},
        {"training_epoch_end": lambda self, outputs: self.lr_scheduler.step()},
        {
            "training_epoch_end": lambda self, outputs: self.lr_scheduler.step(),
            "on_train_epoch_end": lambda self: None,
        },
    ],
    ids=["nowhere", "not in the hook", "in the hook", "with outputs", "in the old hook", "beside another hook"],
)
def test_an_epoch_schedule_is_stepped_once_wherever_the_model_steps_it(members):
    assert rates_of(halved, **members) == [1, 1, 0.5, 0.5, 0.25]


def test_a_schedule_of_the_iterations_is_left_to_the_step_that_steps_it():
    rates = rates_of(lambda optimizer: LambdaLR(optimizer, lambda n: 0.5**n), training_step=stepped_in_the_step)
    assert rates == [1, 0.5, 0.25, 0.125, 0.0625]


@pytest.mark.parametrize(
    ("asked", "members", "expected"),
    [
        ({"interval": "step"}, {}, [1, 0.5, 0.25, 0.125, 0.0625]),
        ({"interval": "step"}, {"training_step": stepped_in_the_step}, [1, 0.5, 0.25, 0.125, 0.0625]),
        ({"interval": "step", "frequency": 2}, {}, [1, 1, 0.5, 0.5, 0.25]),
        ({"frequency": 2}, {}, [1, 1, 1, 1, 0.5]),
    ],
)
def test_a_schedule_is_stepped_as_it_asks(asked, members, expected):
    assert rates_of(halved, lambda schedule: {"scheduler": schedule} | asked, **members) == expected


@pytest.mark.parametrize(
    ("logged", "last", "form"),
    [
        ("mine", 0.5, lambda o, s: ([o], [{"scheduler": s, "monitor": "mine", "reduce_on_plateau": True}])),
        ("yours", 1, lambda o, s: ([o], [{"scheduler": s, "monitor": "mine", "strict": False}])),
        ("mine", 0.5, lambda o, s: {"optimizer": o, "lr_scheduler": s, "monitor": "mine"}),
        ("mine", 0.5, lambda o, s: [{"optimizer": o, "lr_scheduler": {"scheduler": s, "monitor": "mine"}}]),
    ],
)
def test_a_plateau_is_seen_in_the_metric_it_monitors_once_there_is_one(logged, last, form, recwarn):
    def configure_optimizers(self):
        optimizer = SGD(self.center_loss.parameters(), lr=1.0)
        return form(optimizer, ReduceLROnPlateau(optimizer, factor=0.5, patience=0))

    def training_step(self, batch, batch_idx):
        self.log(logged, 3.0)  # does not sink
        return CTLModel.training_step(self, batch, batch_idx)

    rates, members = Rates(), {"configure_optimizers": configure_optimizers, "training_step": training_step}
    fit(model_with(**members), batch(), rates, copies=2)
    assert rates.seen == [1, 1, 1, 1, last]
    assert not [warning for warning in recwarn if "keys will be ignored" in str(warning.message)]


def test_a_plateau_that_waits_for_a_metric_in_vain_is_told(monkeypatch):
    """Once a validation has logged its metrics; before that it waits without a word."""
    monkeypatch.setattr("modelling.bases.monitor_of", lambda _: "map")
    model = model_with()
    schedule = ReduceLROnPlateau(SGD(model.parameters(), lr=1.0))
    trainer = {"callback_metrics": {"mAP": 1.0, "lr": 0.1}, "current_epoch": 0, "lr_scheduler_configs": []}
    model._trainer = SimpleNamespace(**trainer)
    model._marks = {"epoch": [(SimpleNamespace(scheduler=schedule, frequency=1), schedule.last_epoch)]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.step_schedules()
    model._results = {"instance": None}
    model._marks = {"epoch": [(SimpleNamespace(scheduler=schedule, frequency=1), schedule.last_epoch)]}
    with pytest.warns(UserWarning, match=r"monitors 'map', which nothing has logged .* Logged are lr, mAP\.$"):
        model.step_schedules()


def test_a_plateau_without_a_metric_is_told():
    def configure_optimizers(self):
        optimizer = SGD(self.center_loss.parameters(), lr=1.0)
        return [optimizer], [ReduceLROnPlateau(optimizer)]

    with pytest.raises(UserError, match=r'needs the metric that it watches: .*"monitor": "mAP"'):
        fit(model_with(configure_optimizers=configure_optimizers), batch())


def test_one_optimiser_trains_all_in_the_inherited_step():
    model = model_with(configure_optimizers=lambda self: SGD(self.parameters(), lr=0.1))
    before = {name: value.clone() for name, value in model.named_parameters() if value.requires_grad}
    fit(model, batch())
    assert {name for name, value in before.items() if torch.equal(value, model.get_parameter(name))} == set()


def test_a_trained_model_is_written_without_its_schedules(tmp_path):
    model = make_model()
    fit(model, batch())
    torch.save(model, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    fit(loaded, batch())  # and goes on
    assert loaded.lr_scheduler.last_epoch == model.lr_scheduler.last_epoch == 2


# ----------------------------------------------------------------------------------------------------------- evaluation

PIDS, CAMIDS = [0, 1, 0, 1, 0, 1], [0, 0, 1, 1, 1, 1]  # two queries, two images of each in the gallery


def gallery(batch_size=2):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(6, 3, 16, 12, generator=generator)
    return DataLoader(list(zip(images, PIDS, CAMIDS, range(6), strict=True)), batch_size=batch_size)


def one_hot_step(self, batch, batch_idx):
    _, pids, camids, positions = batch
    return {"emb": nn.functional.one_hot(pids, 5).float(), "labels": pids, "camid": camids, "idx": positions}


def test_validation_takes_the_network_even_if_forward_is_something_else():
    model, images = model_with(forward=lambda self, x: 1 / 0), batch()[0]
    rest = [torch.zeros(12)] * 3
    with torch.no_grad():
        neck = model.eval().bn(model.backbone(images)[1])
    assert torch.equal(model.train().validation_step((images, *rest))["emb"], neck)
    twice = model_with(embed=lambda self, x: 2 * CTLModel.embed(self, x))
    twice.load_state_dict(model.state_dict())
    assert torch.equal(twice.validation_step((images, *rest))["emb"], 2 * neck)
    assert torch.equal(twice.eval()(images), 2 * neck)


def test_embeddings_of_another_width_than_the_neck_are_evaluated():
    trainer = fit(model_with(validation_step=one_hot_step), batch(), val=gallery())
    assert trainer.callback_metrics["mAP"] == 1


def test_the_first_batches_alone_are_not_evaluated():
    evaluated = []
    model = model_with(_evaluate=lambda self, stage, loader: evaluated.append(self.current_epoch))
    fit(model, batch(), val=gallery(), num_sanity_val_steps=1)
    assert evaluated == [0, 1]


def test_what_they_left_is_not_in_the_first_evaluation():
    sizes = []

    def look(self):
        sizes.append(sum(len(part[0]) for part in self.evaluation_outputs))
        CTLModel.on_validation_epoch_end(self)

    trainer = fit(model_with(on_validation_epoch_end=look), batch(), val=gallery(), num_sanity_val_steps=1)
    assert sizes == [2, 6, 6]  # of the first batch, and of the whole set twice
    assert "mAP" in trainer.callback_metrics


def test_a_part_of_the_images_gives_a_warning_and_no_metrics():
    with pytest.warns(UserWarning, match="validation: no metrics, since only 4 of 6 images were embedded"):
        trainer = fit(model_with(), batch(), val=gallery(), limit_val_batches=2)
    assert "mAP" not in trainer.callback_metrics
    assert "mAP" in fit(model_with(), batch(), val=gallery()).callback_metrics


# ---------------------------------------------------------------------------------------------------------------- hooks


def test_callbacks_of_a_subclass_keep_the_one_of_the_base():
    class Noted(Callback):
        pass

    trainer = fit(model_with(configure_callbacks=lambda self: [Noted()]), batch())
    assert {type(callback) for callback in trainer.callbacks} >= {Noted, EpochKeeper}
    assert "epoch_train_loss" in trainer.callback_metrics


def test_hooks_with_the_arguments_of_lightning_1_1_are_called():
    seen = defaultdict(list)

    def on_validation_batch_end(self, outputs, batch, batch_idx, dataloader_idx):
        seen["validation"].append((len(outputs["emb"]), batch[3].tolist(), batch_idx, dataloader_idx))

    def transfer_batch_to_device(self, batch, device):
        seen["devices"].append(device.type)
        return batch

    hooks = (on_validation_batch_end, transfer_batch_to_device)
    hooks = {hook.__name__: hook for hook in hooks}
    hooks["on_train_epoch_end"] = lambda self, outs: seen["losses"].append([out["loss"].dim() for out in outs])
    hooks["on_train_batch_end"] = lambda self, outputs, batch, batch_idx, dataloader_idx: seen["parts"].append(
        (len(batch), batch_idx, dataloader_idx)
    )
    trainer = fit(model_with(**hooks), batch(), copies=2, val=gallery(3), max_epochs=1)
    assert seen == {
        "validation": [(3, [0, 1, 2], 0, 0), (3, [3, 4, 5], 1, 0)],
        "devices": ["cpu"] * 4,
        "losses": [[0, 0]],
        "parts": [(4, 0, 0), (4, 1, 0)],
    }
    assert "mAP" in trainer.callback_metrics


@pytest.mark.parametrize("name", GONE_HOOKS)
def test_a_hook_that_is_gone_is_refused(name):
    with pytest.raises(UserError, match=rf"Mine\.{name} is never called by Lightning 2\. Instead, override "):
        fit(model_with(**{name: lambda self, *args: None}), batch())


@pytest.mark.parametrize("name", UNCALLED)
def test_a_method_that_is_not_called_is_told(name):
    with pytest.warns(UserWarning, match=rf"Mine\.{name} is not called by the base class: override "):
        fit(model_with(**{name: lambda self, *args: None}), batch(), max_epochs=1)


def test_a_step_of_ones_own_may_call_what_the_inherited_one_does_not():
    own = {"training_step": stepped_in_the_step}
    names = [name for name, instead in UNCALLED.items() if "training_step" in instead]
    assert names == ["create_masks_train", "_calculate_centroids"]
    for base in (CTLModel, type("Between", (CTLModel,), own)):
        mine = type("Mine", (base,), {name: lambda self, *args: None for name in names} | own)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warn_of_uncalled(mine.__new__(mine), ModelBase)


# ---------------------------------------------------------------------------------------------------------- their steps


def test_a_step_may_log_what_the_base_logs_too():
    def training_step(self, batch, batch_idx):
        outputs = CTLModel.training_step(self, batch, batch_idx)
        self.log("loss", 7.0, prog_bar=True)
        return outputs

    trainer = fit(model_with(training_step=training_step), batch())
    assert trainer.callback_metrics["epoch_train_loss"] != 7


@pytest.mark.parametrize("number", [float, np.float32, np.float64, np.array, lambda x: torch.tensor([x])])
def test_losses_may_be_numbers(number):
    def training_step(self, batch, batch_idx):
        self.losses_dict["query_xent"].append(number(batch_idx + 4.0))
        return {"loss": number(batch_idx + 1.0), "other": {"mine": number(batch_idx + 2.0)}}

    metrics = fit(model_with(training_step=training_step), batch(), copies=2).callback_metrics
    assert (metrics["epoch_train_loss"], metrics["mine"], metrics["query_xent"]) == (1.5, 2.5, 4.5)


def test_a_dictionary_of_losses_stays_the_models_own():
    def init(self, *args, **kwargs):
        CTLModel.__init__(self, *args, **kwargs)
        self.losses_dict = defaultdict(list)

    def training_step(self, batch, batch_idx):
        self.losses_dict["mine"].append(torch.tensor(self.current_epoch + batch_idx + 0.5))

    model = model_with(__init__=init, training_step=training_step)
    given = model.losses_dict
    trainer = fit(model, batch(), copies=2)
    assert model.losses_dict is given and isinstance(given, defaultdict)
    assert trainer.callback_metrics["mine"] == 2
    assert [value.item() for value in given["mine"]] == [1.5, 2.5]  # of the last epoch alone


@pytest.mark.parametrize(
    "name",
    ["query_xent", "centroid_triplet", "loss", "lr", "mAP", "epoch_dist_ap", "l2_mean_centroid", "mINP", "strict_mAP"],
)
def test_an_extra_loss_cannot_take_the_name_of_what_is_logged(name, monkeypatch):
    monkeypatch.setitem(LOSSES.registered, name, lambda *sizes: lambda features, labels: features.sum())
    with pytest.raises(UserError, match=f"a loss would be logged as {name}, which is the name of something else"):
        make_model(**{"LOSSES.EXTRA": [name]})


@pytest.mark.parametrize("cls", [CTLModel, BaseModel])
def test_an_extra_loss_is_part_of_the_total_of_both_models(cls, monkeypatch):
    monkeypatch.setitem(LOSSES.registered, "mine", lambda *sizes: lambda features, labels: 0 * features.sum() + 7)
    totals = {}
    for extra in ([], ["mine"]):
        model = make_model(cls, **{"LOSSES.EXTRA": extra})
        totals[len(extra)] = fit(model, batch(), max_epochs=1).callback_metrics["epoch_train_loss"].item()
    assert totals[1] == pytest.approx(totals[0] + 7, rel=1e-5)


def test_a_checkpoint_without_it_may_be_trained_on_with_an_extra_loss(monkeypatch):
    monkeypatch.setitem(LOSSES.registered, "mine", lambda *sizes: CenterLoss(*sizes))
    model = make_model(backbone=False)
    checkpoint = {"state_dict": model.state_dict(), "hyper_parameters": to_plain(model.hparams)}
    cfg = small_config(**{"LOSSES.EXTRA": ["mine"]})
    loaded = CTLModel._load_model_state(checkpoint, cfg=cfg)
    assert set(loaded.state_dict()) - set(checkpoint["state_dict"]) == {"extra_losses.mine.centers"}
    again = CTLModel._load_model_state({**checkpoint, "state_dict": loaded.state_dict()}, cfg=cfg)
    assert torch.equal(again.extra_losses.mine.centers, loaded.extra_losses.mine.centers)


def test_centers_of_an_extra_loss_are_trained_by_the_networks_optimiser(monkeypatch):
    monkeypatch.setitem(LOSSES.registered, "mine", lambda *sizes: CenterLoss(*sizes))
    model = make_model(**{"LOSSES.EXTRA": ["mine"]})
    network, centers = (optimizer.param_groups[0]["params"] for optimizer in model.configure_optimizers()[0])
    assert any(parameter is model.extra_losses.mine.centers for parameter in network)
    assert len(centers) == 1 and centers[0] is model.center_loss.centers


# --------------------------------------------------------------------------------------- constructors and checkpoints


class ByAnotherName(CTLModel):
    def __init__(self, hparams, **kw):
        super().__init__(hparams, **kw)


class Few(CTLModel):
    def __init__(self, cfg, num_query=None, num_classes=None):
        super().__init__(cfg, num_query=num_query, num_classes=num_classes)


class Saving(CTLModel):
    def __init__(self, cfg, parts=6, **kwargs):
        super().__init__(cfg, **kwargs)
        self.save_hyperparameters()
        self.heads = nn.ModuleList(nn.Linear(2, 2) for _ in range(parts))


class OtherClassifier(CTLModel):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        del self.fc_query, self.bn
        self.classifier = nn.Linear(512, 2 * self.hparams.num_classes)


FACTS = {"num_query": 2, "num_classes": 5, "has_cameras": False, "data_seed": 3}


def saved(model, tmp_path, **hyper_parameters):
    checkpoint = {"state_dict": model.state_dict()}
    model.on_save_checkpoint(checkpoint)
    checkpoint["hyper_parameters"] |= hyper_parameters
    torch.save(checkpoint, tmp_path / "saved.pth")
    return tmp_path / "saved.pth"


@pytest.mark.parametrize("cls", [CTLModel, ByAnotherName, Few, Saving, OtherClassifier])
def test_constructors_get_what_they_take_and_the_rest_is_kept(cls, tmp_path):
    given = {"parts": 4} if cls is Saving else {}
    model = construct(cls, small_config(**{"SOLVER.MARGIN": 0.7}), FACTS | given)
    for _ in range(3):  # made, loaded, and loaded from what was loaded
        assert {name: model.hparams[name] for name in FACTS} == FACTS
        assert (model.hparams.SOLVER.MARGIN, model.hparams.get("parts")) == (0.7, given.get("parts"))
        assert model.xent.num_classes == 5 and "load_imagenet" not in model.hparams
        model.hparams.MODEL.PRETRAINED, model.hparams.MODEL.PRETRAIN_PATH = True, "/nowhere.pth"  # must not be read
        expected, model = model.state_dict(), cls.load_from_checkpoint(saved(model, tmp_path))
        assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert cls.load_from_checkpoint(saved(model, tmp_path), cfg=small_config(), num_query=9).hparams.num_query == 9


@pytest.mark.parametrize("cls", [CTLModel, Few, Saving, ModelBase])
def test_a_checkpoint_does_not_choose_arguments_of_the_constructor(cls, tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text("run = loss = lambda *args: lambda *args: 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    evil = {"MODEL": {"NAME": "evil:run"}, "LOSSES": {"EXTRA": ["evil:loss"], "EXTRA_WEIGHTS": []}}
    model = construct(cls, small_config(), FACTS)
    model.hparams.MODEL.PRETRAINED, model.hparams.MODEL.PRETRAIN_PATH = True, "/nowhere.pth"
    asked = {"cfg": evil, "load_imagenet": True, "test_dataloader": [1], "LOSSES": evil["LOSSES"]}
    loaded = cls.load_from_checkpoint(saved(model, tmp_path, **asked))
    assert "evil" not in sys.modules
    assert loaded.hparams.MODEL.NAME == "resnet18" and list(loaded.hparams.LOSSES.EXTRA) == []
    assert "test_dataloader" not in vars(loaded) and not {"cfg", "test_dataloader"} & loaded.hparams.keys()
    with pytest.raises(UserError, match="its network is MODEL.NAME evil:run, which is code outside"):
        cls.load_from_checkpoint(saved(model, tmp_path, MODEL=evil["MODEL"]))
    assert "evil" not in sys.modules
