"""The average of the weights: what it is, what is validated, what checkpoints hold, and how a training continues."""

import copy
import io

import pytest
import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader

from callbacks import ModelCheckpointPeriodic, SafeCheckpointIO
from checkpoints.reading import load_checkpoint
from inference import Embedder
from modelling.averaging import PLAIN, WeightAverage
from modelling.backbones.imagenet import load_imagenet_weights
from tests.modelling.test_computation import NoWaiting, make_model
from tests.modelling.test_optimization import TOGETHER, batches, fit, plain_loop
from tests.support import assert_close
from train_ctl_model import CTLModel

AVERAGED = {"SOLVER.EMA_DECAY": 0.75, "SOLVER.BASE_LR": 0.01}


class Weights(nn.Module):
    """One weight, one running statistic and one counter."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, dtype=dtype))
        self.register_buffer("running_mean", torch.zeros(1, dtype=dtype))
        self.register_buffer("count", torch.tensor(0))

    def set(self, value):
        with torch.no_grad():
            for tensor in self.state_dict().values():
                tensor.fill_(value)


def equal_states(one, two):
    return one.keys() == two.keys() and all(torch.equal(value, two[name]) for name, value in one.items())


def state_of(model):
    return copy.deepcopy(model.state_dict())


def test_weights_and_statistics_are_averaged_and_counters_copied():
    model = Weights()
    average = WeightAverage(model, 0.75)
    with NoWaiting():
        for value in (4, 8):
            model.set(value)
            average.update(model)
    average.put_in(model)
    assert model.weight.tolist() == [0.75 * 1 + 0.25 * 8] * 2
    assert model.running_mean.tolist() == [2.75]
    assert model.count.item() == 8
    average.put_in(model)  # is in it
    average.take_out(model)
    assert model.weight.tolist() == [8.0] * 2 and model.count.item() == 8
    average.take_out(model)  # is out of it
    assert model.weight.tolist() == [8.0] * 2
    average.move_to(torch.device("meta"))
    average.store(checkpoint := {"state_dict": model.state_dict()})
    assert {value.device.type for value in checkpoint["state_dict"].values()} == {"meta"}


def test_weights_of_16_bits_are_averaged_in_32():
    model = Weights(torch.bfloat16)
    model.set(1)
    average = WeightAverage(model, 0.999)
    model.set(2)
    for _ in range(3):
        average.update(model)
    checkpoint = {"state_dict": model.state_dict()}
    average.store(checkpoint)
    assert_close(checkpoint["state_dict"]["weight"], [2 - 0.999**3] * 2)
    assert checkpoint[PLAIN]["weight"].dtype == torch.bfloat16
    other = WeightAverage.restored(model, 0.999, checkpoint)
    other.store(again := {"state_dict": model.state_dict()})
    assert equal_states(again["state_dict"], checkpoint["state_dict"])
    average.put_in(model)
    assert model.weight.dtype == torch.bfloat16


class Seen(Callback):
    """The weights in training batches and in validations."""

    def __init__(self):
        self.trained, self.validated = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.trained.append(state_of(pl_module))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.last = state_of(pl_module)

    def on_validation_batch_start(self, *args, **kwargs):
        self.validated.append(state_of(args[1]))

    def on_test_batch_start(self, *args, **kwargs):
        self.tested = state_of(args[1])


def validation():
    rows = [(torch.randn(3, 16, 12, generator=torch.Generator().manual_seed(i)), i % 3, i % 2, i) for i in range(9)]
    return DataLoader(rows, batch_size=9)


def test_the_average_is_validated_and_tested_and_the_weights_are_trained():
    model = make_model(**AVERAGED)
    weights, average = plain_loop(copy.deepcopy(model), batches(3), epochs=1)
    seen = Seen()
    trainer = fit(model, batches(3), seen, val=validation())
    for name, value in seen.validated[0].items():
        assert_close(value, average[name].detach(), "weights")
        assert_close(seen.trained[3][name], weights[name].detach(), "weights")
    assert not equal_states(seen.validated[1], seen.last)
    assert equal_states(seen.validated[1], state_of(model))  # the average stays after the training
    trainer.test(model, validation(), verbose=False)
    trainer.validate(model, validation(), verbose=False)
    assert equal_states(seen.tested, seen.validated[1])
    assert equal_states(seen.validated[2], seen.validated[1]) and equal_states(state_of(model), seen.validated[1])


def test_a_second_training_starts_from_what_the_model_holds():
    model, seen = make_model(**AVERAGED), Seen()
    fit(model, batches(2))
    other = make_model(**AVERAGED).state_dict()
    model.load_state_dict(other)
    fit(model, batches(1), seen, max_epochs=1, val=validation())
    assert equal_states(seen.trained[0], other)
    for name, value in seen.validated[0].items():
        kept = 0.75 * other[name] + 0.25 * seen.last[name] if value.is_floating_point() else seen.last[name]
        assert_close(value, kept)


def test_a_model_is_copied_and_saved_without_what_belongs_to_its_training():
    model = make_model(**AVERAGED)
    fit(model, batches(1))
    torch.save(model, file := io.BytesIO())
    file.seek(0)
    assert torch.load(file, weights_only=False).average is None
    assert copy.deepcopy(model).average is None


# ---------------------------------------------------------------------------------------------------------- checkpoints


def trained(folder, epochs=3, ckpt_path=None, accumulate_on=5, **options):
    """A training that keeps a checkpoint of each epoch; the folder."""
    model = make_model(**{"SOLVER.BASE_LR": 0.01, "SOLVER.WARMUP_EPOCHS": 2} | options)
    saving = [ModelCheckpointPeriodic(folder, number=9), SafeCheckpointIO()]
    options = {"max_epochs": epochs, "enable_checkpointing": True, "plugins": saving[1:]}
    fit(model, batches(accumulate_on), saving[0], val=validation(), ckpt_path=ckpt_path, **options)
    return folder


def content(folder, epoch):
    return load_checkpoint(folder / f"checkpoint_{epoch}.pth")


def assert_same_training(one, two):
    """Both sets of weights, the states of optimisers and schedules, and the progress, bit for bit."""
    assert one.keys() == two.keys()
    for name in {"state_dict", PLAIN} & one.keys():
        assert equal_states(one[name], two[name])
    for ours, theirs in zip(one["optimizer_states"], two["optimizer_states"], strict=True):
        assert ours["param_groups"] == theirs["param_groups"]
        for number, state in ours["state"].items():
            tensors = {name: value for name, value in state.items() if value is not None}
            assert all(torch.equal(value, theirs["state"][number][name]) for name, value in tensors.items())
    for name in ("lr_schedulers", "epoch", "global_step"):
        assert one[name] == two[name]


def test_a_training_with_all_of_them_continues_bit_for_bit(tmp_path):
    whole = trained(tmp_path / "whole", **TOGETHER)
    first = whole / "checkpoint_0.pth"
    continued = trained(tmp_path / "continued", ckpt_path=first, **TOGETHER)
    assert not equal_states(content(whole, 0)["state_dict"], content(whole, 0)[PLAIN])
    for epoch in (1, 2):
        assert_same_training(content(whole, epoch), content(continued, epoch))
    assert content(whole, 2)["global_step"] == 3 * 2 * 2  # epochs, groups, optimisers


def test_the_weights_that_are_trained_do_not_depend_on_the_average(tmp_path):
    without, averaged = trained(tmp_path / "a", epochs=2), trained(tmp_path / "b", epochs=2, **AVERAGED)
    one, two = content(without, 1), content(averaged, 1)
    assert PLAIN not in one and equal_states(one["state_dict"], two[PLAIN])


@pytest.mark.parametrize(
    ("before", "after", "line"),
    [
        (
            {},
            AVERAGED,
            "SOLVER.EMA_DECAY 0.75: the checkpoint to continue from holds no average of the weights; one starts from "
            "its weights.",
        ),
        (
            AVERAGED,
            {},
            "SOLVER.EMA_DECAY 0: the average of the weights in the checkpoint to continue from is left behind; the "
            "weights themselves are trained, validated and saved.",
        ),
        (AVERAGED, AVERAGED, None),
    ],
)
def test_what_becomes_of_the_average_of_a_checkpoint_is_said_once(tmp_path, caplog, before, after, line):
    trained(tmp_path / "first", epochs=1, **before)
    with caplog.at_level("INFO"):
        trained(tmp_path / "then", epochs=2, ckpt_path=tmp_path / "first/checkpoint_0.pth", **after)
    said = [record.getMessage() for record in caplog.records if "EMA_DECAY" in record.getMessage()]
    assert said == [line] * bool(line)
    plain = trained(tmp_path / "plain", epochs=2)  # the weights go on as if there were no average
    one = content(tmp_path / "then", 1)
    assert equal_states(one.get(PLAIN, one["state_dict"]), content(plain, 1)["state_dict"])
    if before == {}:  # the average is that of the second epoch
        expected = content(tmp_path / "first", 0)["state_dict"]["fc_query.weight"]
        assert not torch.equal(one["state_dict"]["fc_query.weight"], expected)


def test_a_training_that_is_finished_leaves_the_average_in_the_model(tmp_path):
    checkpoint = trained(tmp_path / "first", epochs=1, **AVERAGED) / "checkpoint_0.pth"
    model = make_model(**AVERAGED)
    fit(model, batches(5), max_epochs=1, ckpt_path=checkpoint, plugins=[SafeCheckpointIO()])
    assert equal_states(state_of(model), load_checkpoint(checkpoint)["state_dict"])


class OwnHook(CTLModel):
    """Whose hook does not call ``super()``."""

    def on_save_checkpoint(self, checkpoint):
        checkpoint["mine"] = 1


@pytest.mark.parametrize("weights_only", [False, True])
def test_every_kind_of_checkpoint_holds_the_average(tmp_path, weights_only):
    model, whole = make_model(**AVERAGED), tmp_path / "after.ckpt"
    saving = ModelCheckpoint(tmp_path, "{epoch}", save_weights_only=weights_only)
    trainer = fit(model, batches(3), saving, enable_checkpointing=True, plugins=[SafeCheckpointIO()])
    trainer.save_checkpoint(whole, weights_only=weights_only)
    one, two = load_checkpoint(tmp_path / "epoch=1.ckpt"), load_checkpoint(whole)
    assert equal_states(one["state_dict"], state_of(model))
    assert equal_states(one["state_dict"], two["state_dict"]) and equal_states(one[PLAIN], two[PLAIN])


def test_a_hook_of_ones_own_loses_neither(tmp_path):
    model = make_model(OwnHook, **AVERAGED)
    trainer = fit(model, batches(3), plugins=[SafeCheckpointIO()])
    trainer.save_checkpoint(tmp_path / "own.ckpt")
    found = load_checkpoint(tmp_path / "own.ckpt")
    assert found["mine"] == 1 and equal_states(found["state_dict"], state_of(model)) and PLAIN in found


def test_whatever_reads_a_checkpoint_gets_the_average(tmp_path):
    """Of a ResNet: load_from_checkpoint, the Embedder, and a training that starts from its backbone."""
    model = make_model(backbone=False, **AVERAGED)
    fit(model, batches(2), max_epochs=1, plugins=[SafeCheckpointIO()]).save_checkpoint(tmp_path / "run.ckpt")
    content = load_checkpoint(tmp_path / "run.ckpt")
    assert not equal_states(content["state_dict"], content[PLAIN])
    loaded = CTLModel.load_from_checkpoint(tmp_path / "run.ckpt")
    assert equal_states(loaded.state_dict(), content["state_dict"])
    images = torch.randn(4, 3, 32, 16)
    with torch.inference_mode():
        expected = loaded.eval()(images)
        loaded.load_state_dict(content[PLAIN])
        assert (loaded(images) - expected).abs().max() > 1e-2
    embedder = Embedder.from_checkpoint(tmp_path / "run.ckpt", device="cpu")
    torch.testing.assert_close(torch.from_numpy(embedder.embed(images)), expected, rtol=1e-4, atol=1e-4)
    backbone = make_model(backbone=False).backbone.base
    load_imagenet_weights(backbone, tmp_path / "run.ckpt", "resnet18", 1.0)
    assert torch.equal(backbone.conv1.weight, content["state_dict"]["backbone.base.conv1.weight"])


def test_a_trainer_tests_the_average_of_a_file(tmp_path):
    checkpoint, seen = trained(tmp_path / "first", epochs=1, **AVERAGED) / "checkpoint_0.pth", Seen()
    quiet = {"logger": False, "enable_progress_bar": False, "accelerator": "cpu", "enable_checkpointing": False}
    trainer = Trainer(callbacks=[seen], plugins=[SafeCheckpointIO()], **quiet)
    trainer.test(make_model(**AVERAGED), validation(), ckpt_path=checkpoint, verbose=False)
    assert equal_states(seen.tested, load_checkpoint(checkpoint)["state_dict"])
