"""Training on the device: the recorded numbers, every precision, and a step that waits for nothing."""

import pytest
import torch
from pytorch_lightning import Callback
from torch.profiler import ProfilerActivity, profile

from callbacks import LossGuard
from config.cli import clean_exit
from modelling.backbones import NetworkOptions, get_backbone
from solver.optimizers import make_optimizers
from tests.modelling.test_computation import Guarded, batch, make_model
from tests.modelling.test_optimization import Centers, batches, fit
from tests.modelling.test_trajectories import RECORDINGS, fit_recording
from tests.support import assert_close
from train_base_model import BaseModel
from train_ctl_model import CTLModel

FULL = [batch(), batch(blanks=1), batch(blanks=2, irregular=True)]


@pytest.mark.parametrize("name", RECORDINGS)
def test_recorded_trajectories(accelerator, name):
    """Losses to 1e-4, final weights to 1e-4 absolute: float32 sums of another order than those that were recorded."""
    data, rows, weights, _ = fit_recording(name, accelerator=accelerator)
    assert_close(rows, data["steps"], "device")
    for key, value in weights.items():
        assert_close(value, data[f"final/{key}"], "device weights")


class NoSynchronisation(Callback):
    """Lets CUDA raise where a training step waits for the device, from the batch on the device to the last step."""

    steps = 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        torch.cuda.set_sync_debug_mode("error" if batch_idx else "default")  # the first step allocates and measures

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        torch.cuda.set_sync_debug_mode("default")
        self.steps += 1

    def on_exception(self, trainer, pl_module, exception):
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    "precision",
    ["32-true", "bf16-mixed", pytest.param("16-mixed", marks=pytest.mark.needs_cuda)],  # on a CPU, scaled steps wait
)
@pytest.mark.parametrize("kind", [CTLModel, BaseModel])
@pytest.mark.parametrize("one", FULL, ids=["full", "blanks", "irregular"])
def test_a_step_waits_for_nothing(device, accelerator, kind, one, precision):
    """On the CPU, the guard over operations stands in for CUDA's own."""
    guard = NoSynchronisation() if device.type == "cuda" else Guarded()
    fit(make_model(kind), [one] * 3, guard, accelerator=accelerator, precision=precision, max_epochs=1)
    assert guard.steps == 3


@pytest.mark.needs_cuda
def test_the_guard_notices(device):
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchroniz"):
            torch.ones(1, device=device).item()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def plugin(accelerator, scale):
    from pytorch_lightning.plugins import MixedPrecision

    kind = "cuda" if accelerator == "gpu" else "cpu"
    return MixedPrecision("16-mixed", kind, scaler=torch.amp.GradScaler(kind, init_scale=scale, growth_interval=2))


def test_the_loss_scale_grows_once_an_interval_for_both_optimisers(accelerator):
    kept = Centers()
    fit(make_model(), batches(4), kept, max_epochs=1, accelerator=accelerator, plugins=[plugin(accelerator, 128.0)])
    assert kept.scales == [128.0, 256.0, 256.0, 512.0]


def test_a_scaled_loss_that_overflows_is_skipped_by_both_optimisers_and_is_no_fault(accelerator):
    kept = Centers()
    model = make_model()
    before = [model.center_loss.centers.detach().clone(), model.fc_query.weight.detach().clone()]
    options = {"accelerator": accelerator, "plugins": [plugin(accelerator, 2.0**127)]}
    fit(model, batches(4), kept, LossGuard(), max_epochs=1, **options)
    assert kept.scales[0] == 2.0**126
    assert torch.equal(kept.centers[0].cpu(), before[0]) and torch.equal(kept.weights[0].cpu(), before[1])
    assert all(values[-1].isfinite().all() for values in (kept.centers, kept.weights))


def test_fused_steps_equal_plain_ones(device):
    """On an accelerator the centres' SGD is one kernel too, so that a scaled step need not wait."""
    parameters = {"centers": torch.nn.Parameter(torch.randn(5, 4)), "weight": torch.nn.Parameter(torch.randn(3, 4))}
    moved = {name: torch.nn.Parameter(value.detach().to(device)) for name, value in parameters.items()}
    for named in (parameters, moved):
        optimizers = make_optimizers(named.items(), base_lr=0.1, weight_decay=0.01, center_lr=0.5)
        for step in range(3):
            for value in named.values():
                value.grad = torch.full_like(value, 0.5 - step)
            for optimizer in optimizers:
                optimizer.step()
    for name, value in parameters.items():
        assert_close(moved[name], value.detach(), "device")


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_resumed_equals_uninterrupted(accelerator, precision, tmp_path):
    """Two epochs in one go, and in two runs, deterministic: bit for bit."""
    options = {"accelerator": accelerator, "precision": precision, "deterministic": True}
    whole, first, second = make_model(), make_model(), make_model()
    fit(whole, batches(3), **options)
    fit(first, batches(3), max_epochs=1, **options).save_checkpoint(tmp_path / "one.ckpt")
    fit(second, batches(3), ckpt_path=tmp_path / "one.ckpt", **options)
    for (name, value), other in zip(whole.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(value, other), name


def test_a_checkpoint_goes_from_the_cpu_to_the_device_and_back(accelerator, tmp_path):
    fit(make_model(), batches(3), max_epochs=1).save_checkpoint(tmp_path / "start.ckpt")
    ended = []
    for middle in (accelerator, "cpu"):
        path = tmp_path / f"{middle}.ckpt"
        options = {"ckpt_path": tmp_path / "start.ckpt", "accelerator": middle}
        fit(make_model(), batches(3), max_epochs=2, **options).save_checkpoint(path)
        model = make_model()
        fit(model, batches(3), max_epochs=3, ckpt_path=path)
        ended.append(model.state_dict())
    for name, value in ended[0].items():
        assert_close(value, ended[1][name], "device weights")


@pytest.mark.parametrize(
    "options",
    [
        {"MODEL.CHANNELS_LAST": True},
        {"MODEL.GRAD_CHECKPOINT": True},
        pytest.param({"MODEL.COMPILE": True}, marks=pytest.mark.slow),
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_of_speed_change_nothing_else(accelerator, options):
    """The losses of three steps beside those of the plain network."""

    class Losses(Callback):
        def __init__(self):
            self.kept = []

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.kept.append(float(outputs["loss"]))

    images, *rest = batch()
    one = (torch.nn.functional.interpolate(images, (64, 32)), *rest)
    kept = []
    for chosen in ({"MODEL.CHANNELS_LAST": False}, options):
        losses = Losses()
        model = make_model(backbone=False, **chosen)
        fit(model, [one] * 3, losses, max_epochs=1, accelerator=accelerator)
        kept.append(losses.kept)
    torch.testing.assert_close(torch.tensor(kept[0]), torch.tensor(kept[1]), rtol=2e-3, atol=2e-3)


@pytest.mark.needs_cuda
def test_fast_math_is_close_to_float32(device):
    """TF32 keeps 10 bits: features within one per cent of the largest."""
    torch.manual_seed(0)
    network = get_backbone("resnet18").build(NetworkOptions(1)).eval().to(device)
    images = torch.randn(4, 3, 128, 64, device=device)
    with torch.no_grad():
        exact = network(images)
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
        fast = network(images)
    assert (fast - exact).abs().max() <= 0.01 * exact.abs().max()


@pytest.mark.needs_cuda
def test_out_of_memory_ends_in_one_line(device, capsys):
    with pytest.raises(SystemExit) as end, clean_exit():
        torch.empty(1 << 50, dtype=torch.uint8, device=device)
    assert end.value.code == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "SOLVER.IMS_PER_BATCH" in message


@pytest.mark.needs_cuda
def test_the_next_batch_is_copied_from_pinned_memory_before_the_step_has_ended():
    """By the profiler: the CPU asks for a copy while kernels of the step before it still run, and does not wait."""
    images, *rest = batch()
    one = (torch.nn.functional.interpolate(images, (256, 128)), *rest)
    model = make_model(backbone=False, **{"MODEL.NAME": "resnet18"})
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        fit(model, [one] * 6, max_epochs=1, accelerator="gpu", pin_memory=True)
    spans = [(e.time_range.start, e.time_range.end, e.name, str(e.device_type)) for e in seen.events()]
    kernels = [(start, end) for start, end, name, kind in spans if "CUDA" in kind and "Memcpy" not in name]
    pinned = [span for span in spans if "HtoD (Pinned" in span[2]]
    asked = [(start, end) for start, end, name, _ in spans if name == "cudaMemcpyAsync"]
    assert len(pinned) >= 5
    assert any(began < start and end < ended for start, end in asked for began, ended in kernels)
