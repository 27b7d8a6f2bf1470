"""Subclasses written for Lightning 1.1: what their class is adapted to. tests/programs trains them."""

from types import SimpleNamespace

import pytest
import torch

from modelling.lightning_1_1 import CallbackMetrics, HiddenHook
from tests.small import small_config
from train_base_model import BaseModel
from train_ctl_model import CTLModel
from utils.errors import UserError


def with_step(function, base=CTLModel):
    return type("Mine", (base,), {"training_step": function}).training_step


def test_a_step_is_called_without_the_index_it_had():
    step = with_step(lambda self, batch, batch_idx, optimizer_idx=7: (batch, batch_idx, optimizer_idx))
    assert step(None, "batch", 3) == ("batch", 3, 7)
    assert step(None, "batch", 3, 1) == ("batch", 3, 7)
    assert step(None, "batch", 3, optimizer_idx=1) == ("batch", 3, 7)
    assert step(None, batch="batch", batch_idx=3) == ("batch", 3, 7)


def test_an_index_without_a_default_is_filled_in():
    assert with_step(lambda self, batch, batch_idx, opt_idx: (batch_idx, opt_idx))(None, "batch", 3) == (3, None)


def test_further_arguments_of_a_step_arrive():
    step = with_step(lambda self, batch, batch_idx, *rest, optimizer_idx=None, factor=1: (rest, factor))
    assert step(None, "batch", 3, 5, factor=2) == ((5,), 2)


def test_a_step_with_a_batch_alone():
    assert with_step(lambda self, batch: batch)(None, "batch", 3) == "batch"


@pytest.mark.parametrize("base", [CTLModel, BaseModel])
def test_old_arguments_may_be_passed_on_to_the_base(base):
    class Mine(base):
        def training_step(self, batch, batch_idx, optimizer_idx=None):
            return super().training_step(batch, batch_idx, optimizer_idx)

    model = Mine(small_config(), num_classes=4)
    with pytest.raises(RuntimeError, match="not attached to a `Trainer`"):  # from within the base's step
        model.training_step((torch.randn(4, 3, 32, 16), torch.tensor([0, 0, 1, 1]), None, torch.ones(4).bool()), 0)


def test_the_epoch_end_is_hidden_from_a_trainer_until_it_is_called():
    class Mine(CTLModel):
        def training_epoch_end(self, outputs):
            return outputs.append("mine")

    model = Mine(small_config(), num_classes=4)
    assert callable(model.training_epoch_end)
    model._trainer = SimpleNamespace()
    assert getattr(model, "training_epoch_end", None) is None
    outputs = []
    HiddenHook.call(model, "training_epoch_end", outputs)
    assert outputs == ["mine"]
    assert getattr(model, "training_epoch_end", None) is None
    Mine.training_epoch_end(model, outputs)
    assert outputs == ["mine", "mine"]


def test_outputs_are_kept_whole_for_those_who_ask():
    asks = type("Asks", (CTLModel,), {"training_epoch_end": lambda self, outputs: None})
    asks_too = type("AsksToo", (CTLModel,), {"on_train_epoch_end": lambda self, outputs: None})
    does_not = type("DoesNot", (CTLModel,), {"on_train_epoch_end": lambda self: None})
    kept = []
    for cls in (asks, asks_too, does_not):
        model = cls(small_config(), num_classes=4)
        model.record_step({"loss": torch.tensor(1.0), "other": {}, "features": torch.ones(2, 3)})
        kept.append(list(model.train_outputs[0]))
    assert kept == [["loss", "other", "features"]] * 2 + [["loss", "other"]]


def test_metrics_for_callbacks_become_tensors():
    trainer = SimpleNamespace(callback_metrics={"a": torch.tensor(1.0)})
    metrics = CallbackMetrics(trainer)
    metrics.update({"b": 2.5})
    assert torch.equal(trainer.callback_metrics["b"], torch.tensor(2.5))
    assert (len(metrics), list(metrics), metrics["a"].item()) == (2, ["a", "b"], 1.0)
    del metrics["a"]
    assert list(trainer.callback_metrics) == ["b"]


def test_the_records_of_an_epoch_hold_no_graph():
    model = CTLModel(small_config(), num_classes=4)
    loss = torch.ones(1, requires_grad=True).sum()
    model.losses_dict["query_xent"].append(loss)
    model.record_step({"loss": loss.detach(), "other": {}})
    model.record_step(loss.detach())
    model.record_step(None)
    assert not model.losses_dict["query_xent"][0].requires_grad
    assert [list(output) for output in model.train_outputs] == [["loss", "other"], ["loss"], []]


def test_an_optimiser_given_to_the_backward_pass_is_ignored():
    model = CTLModel(small_config(), num_classes=4)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    passed = []
    model._trainer = SimpleNamespace(
        strategy=SimpleNamespace(backward=lambda *args, **kwargs: passed.append((args, kwargs)))
    )
    loss = torch.tensor(1.0)
    model.manual_backward(loss, optimizer)
    model.manual_backward(loss, optimizer=optimizer)
    model.manual_backward(loss, retain_graph=True)
    assert passed == [((loss, None), {}), ((loss, None), {}), ((loss, None), {"retain_graph": True})]


def test_steps_without_embeddings_are_told():
    model = CTLModel(small_config(), num_classes=4)
    with pytest.raises(UserError, match=r'CTLModel returned no embeddings: .*"emb" \[B, D\]'):
        model._collect(None, None)


def test_hyperparameters_of_a_subclass_are_added_and_the_others_stay():
    class Parts(CTLModel):
        def __init__(self, cfg, num_parts=6, **kwargs):
            super().__init__(cfg, **kwargs)
            self.save_hyperparameters()
            self.size = cfg.MODEL.BACKBONE_EMB_SIZE // num_parts

    cfg = small_config(**{"SOLVER.MARGIN": 0.7})
    model = Parts(cfg, num_parts=4, num_classes=4)
    assert (model.hparams.num_parts, model.hparams.SOLVER.MARGIN, model.size) == (4, 0.7, 128)
    assert "cfg" not in model.hparams
    checkpoint = {"state_dict": model.state_dict(), "hyper_parameters": {}}
    model.on_save_checkpoint(checkpoint)
    loaded = Parts._load_model_state(checkpoint)  # without cfg, which the constructor asks for
    assert (loaded.hparams.num_parts, loaded.hparams.SOLVER.MARGIN, loaded.size) == (4, 0.7, 128)
    assert Parts._load_model_state(checkpoint, cfg=small_config(**{"SOLVER.MARGIN": 0.1})).hparams.SOLVER.MARGIN == 0.7
