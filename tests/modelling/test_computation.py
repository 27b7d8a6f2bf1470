"""How a step computes: without waiting for an accelerator, in any memory format, precision and optimiser kernel."""

import copy
import shutil

import pytest
import torch
from pytorch_lightning import Callback, Trainer
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from engine.trainer import build_profiler
from modelling.backbones import NetworkOptions, get_backbone
from solver.optimizers import has_fused
from tests.small import small_config
from tests.support import counting_saved_numbers
from train_base_model import BaseModel
from train_ctl_model import CTLModel
from utils.errors import UserError

SYNCHRONISING = {
    *("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "_unique2", "unique_dim", "bincount"),
    *("unique_consecutive", "nonzero_numpy", "argwhere"),
}


class NoWaiting(TorchDispatchMode):
    """Raises at every operation whose result an accelerator would have to hand to the CPU.

    Args:
        counters: gives the step counts of optimisers, which lie on the CPU wherever the parameters are; older Adams
            read them.
    """

    def __init__(self, counters=lambda: ()):
        super().__init__()
        self.counters = counters

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        indices = args[1] if name.startswith(("index", "_index")) and len(args) > 1 else ()
        boolean = any(isinstance(i, torch.Tensor) and i.dtype == torch.bool for i in indices) if indices else False
        counts = name == "_local_scalar_dense" and any(args[0] is counter for counter in self.counters())
        if (name in SYNCHRONISING and not counts) or boolean:
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


class Guarded(Callback):
    """Guards each training step, from the batch on the device to the last optimiser step."""

    steps = 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        def counters():
            states = [state for optimizer in trainer.optimizers for state in optimizer.state.values()]
            return [state["step"] for state in states if "step" in state]

        self.guard = NoWaiting(counters)
        self.guard.__enter__()

    def on_exception(self, trainer, pl_module, exception):
        self.guard.__exit__(None, None, None)  # or else all that follows is guarded

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.guard.__exit__(None, None, None)
        self.steps += 1


class Pixels(nn.Module):
    """A small backbone: two convolutions."""

    def __init__(self, width=16):
        super().__init__()
        self.base = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, width, 3, 2))

    def forward(self, x):
        feature_map = self.base(x)
        return feature_map, feature_map.mean((2, 3)).to(x.dtype)


def make_model(kind=CTLModel, backbone=True, **opts):
    cfg = small_config(**{"MODEL.BACKBONE_EMB_SIZE": 16 if backbone else 512} | opts)
    torch.manual_seed(0)
    model = kind(cfg, num_classes=6, num_query=2)
    if backbone:
        model.backbone = Pixels()
    return model


def batch(blanks=0, irregular=False):
    generator = torch.Generator().manual_seed(3)
    labels = torch.tensor([4, 2, 5]).repeat_interleave(4)
    if irregular:
        labels = labels[torch.randperm(12, generator=generator)][:11]
    is_real = torch.ones(len(labels), dtype=torch.bool)
    is_real[len(labels) - blanks :] = False
    return torch.randn(len(labels), 3, 16, 12, generator=generator), labels, torch.zeros_like(labels), is_real


def fit(model, one, *callbacks, copies=1, val=None, **options):
    plain = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    plain |= {"enable_model_summary": False, "num_sanity_val_steps": 0, "accelerator": "cpu", "devices": 1}
    trainer = Trainer(callbacks=list(callbacks), **plain | {"max_epochs": 2} | options)
    trainer.fit(model, DataLoader([one] * copies, batch_size=None), val)
    return trainer


@pytest.mark.parametrize("kind", [CTLModel, BaseModel])
@pytest.mark.parametrize(
    "one", [batch(), batch(blanks=1), batch(blanks=2, irregular=True)], ids=["full", "blanks", "irregular"]
)
def test_a_step_waits_for_nothing(kind, one):
    guarded = Guarded()
    fit(make_model(kind), one, guarded)
    assert guarded.steps == 2


@pytest.mark.parametrize("waiting", [lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: x.nonzero()])
def test_the_guard_notices(waiting):
    with pytest.raises(AssertionError, match="waits for the device"), NoWaiting():
        waiting(torch.randn(4))


@pytest.mark.parametrize(
    "one", [batch(), batch(blanks=2), batch(blanks=1, irregular=True)], ids=["full", "blanks", "irregular"]
)
def test_losses_are_the_same_with_and_without_the_layout_from_the_loader(one):
    class Kept(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.losses = {name: values[-1] for name, values in pl_module.losses_dict.items()}

    results = []
    for kind in (CTLModel, type("Plain", (CTLModel,), {"on_before_batch_transfer": lambda self, batch, index: batch})):
        kept = Kept()
        fit(make_model(kind), one, kept)
        results.append(kept.losses)
    assert results[0] == results[1]


@pytest.mark.parametrize("name", ["resnet18", "resnet50_ibn_a"])
def test_recomputed_blocks_give_the_same_gradients_and_running_statistics(name):
    torch.manual_seed(1)
    plain = get_backbone(name).build(NetworkOptions(1)).train()
    recomputed = copy.deepcopy(plain)
    recomputed.grad_checkpoint = True
    images = torch.randn(4, 3, 32, 16)
    kept = []
    for network in (plain, recomputed):
        with counting_saved_numbers() as saved:
            feature_map = network(images)
        feature_map.square().mean().backward()
        kept.append(sum(saved))
    for one, other in zip(plain.parameters(), recomputed.parameters(), strict=True):
        assert one.grad is other.grad is None or torch.equal(one.grad, other.grad)
    for (key, one), other in zip(plain.state_dict().items(), recomputed.state_dict().values(), strict=True):
        assert torch.equal(one, other), key
    assert kept[1] < kept[0] / 2
    with torch.no_grad():
        assert torch.equal(plain.eval()(images), recomputed.eval()(images))


@pytest.mark.parametrize("every", [1, 2])
def test_losses_reach_the_progress_bar_every_n_steps_and_the_epoch_once(every):
    class Bar(Callback):
        seen, last = (), None

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.last = outputs["loss"]

        def look(self, trainer, *_):
            if self.last is not None:
                self.seen = (*self.seen, float(trainer.progress_bar_metrics["loss"]) == float(self.last))
            self.last = None

        on_train_batch_start = on_train_epoch_end = look

    bar, model = Bar(), make_model(**{"LOGGING.EVERY_N_STEPS": every})
    trainer = fit(model, batch(), bar, copies=4)
    assert bar.seen == tuple(step % every == 0 for step in range(4)) * 2
    assert {"query_xent", "centroid_triplet", "epoch_train_loss"} <= trainer.callback_metrics.keys()


def test_memory_format_is_chosen_and_does_not_change_what_is_computed():
    images = torch.randn(4, 3, 64, 32)
    last, contiguous = (
        make_model(backbone=False, **{"MODEL.CHANNELS_LAST": wanted}).eval() for wanted in (True, False)
    )
    contiguous.load_state_dict(last.state_dict())
    kernels = [model.backbone.base.layer1[0].conv1.weight for model in (last, contiguous)]
    assert [w.is_contiguous(memory_format=torch.channels_last) for w in kernels] == [True, False]
    maps = [model.backbone(images)[0] for model in (last, contiguous)]
    assert maps[0].is_contiguous(memory_format=torch.channels_last) and maps[1].is_contiguous()
    torch.testing.assert_close(maps[0], maps[1], rtol=1e-4, atol=1e-4)


def test_under_autocast_the_map_is_bfloat16_and_every_loss_float32():
    class Dtypes(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.losses = {values[-1].dtype for values in pl_module.losses_dict.values()}

    model, dtypes = make_model(backbone=False), Dtypes()
    maps = []
    model.backbone.register_forward_hook(lambda module, args, result: maps.extend(result))
    logits = []
    model.fc_query.register_forward_hook(lambda module, args, result: logits.append(result))
    images, *rest = batch()
    fit(model, (nn.functional.interpolate(images, (32, 32)), *rest), dtypes, precision="bf16-mixed")
    assert [tensor.dtype for tensor in maps[:2]] == [torch.bfloat16, torch.float32]
    assert logits[0].dtype == torch.float32
    assert dtypes.losses == {torch.float32}


def test_adam_is_one_kernel_where_there_is_one_and_states_move_between_machines(monkeypatch):
    assert not has_fused(torch.optim.Adam, torch.device("meta"))
    model = make_model()
    adam, _ = model.configure_optimizers()[0]
    fused = has_fused(torch.optim.Adam, torch.device("cpu"))
    assert bool(adam.param_groups[0].get("fused")) == fused

    class Restored(Callback):
        """Stands for a checkpoint of a machine that has the kernel."""

        def on_fit_start(self, trainer, pl_module):
            for optimizer in trainer.optimizers:
                optimizer.param_groups[0]["fused"] = True

    monkeypatch.setattr("solver.optimizers.has_fused", lambda optimizer, device: False)
    monkeypatch.setattr("modelling.epochs.has_fused", lambda optimizer, device: False)
    trainer = fit(make_model(), batch(), Restored())
    assert all(optimizer.param_groups[0]["fused"] is None for optimizer in trainer.optimizers)


@pytest.mark.parametrize(
    ("name", "pattern", "content"), [("simple", "fit-*.txt", "training_step"), ("pytorch", "*.json", "conv")]
)
def test_profiles_are_written(tmp_path, name, pattern, content):
    assert build_profiler("", tmp_path) is None
    fit(make_model(), batch(), copies=8, profiler=build_profiler(name, tmp_path))
    (file,) = tmp_path.glob(pattern)
    assert content in file.read_text()


@pytest.mark.by_hand
def test_compiled_backbone_trains_alike_and_keeps_its_names():
    if shutil.which("g++") is None:  # the other half of the contract holds then
        with pytest.raises(UserError, match="C\\+\\+ compiler"):
            fit(make_model(**{"MODEL.COMPILE": True}), batch())
        return
    weights = []
    for compiled in (False, True):
        model = make_model(**{"MODEL.COMPILE": compiled})
        model.backbone.base = nn.Sequential(nn.Conv2d(3, 16, 3, 2), nn.ReLU())
        fit(model, batch())
        assert (model.backbone.base._compiled_call_impl is not None) == compiled
        weights.append(model.state_dict())
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-4, atol=1e-4, msg=name)


def test_compiling_without_a_compiler_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", str(tmp_path / "no-compiler"))
    with pytest.raises(UserError, match="MODEL.COMPILE is True, but the C\\+\\+ compiler .*no-compiler"):
        fit(make_model(**{"MODEL.COMPILE": True}), batch())
