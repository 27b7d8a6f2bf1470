"""Several processes with the device: nccl alone, two on one device, statistics of norm layers over all."""

import os

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tests.launch import run_processes
from tests.modelling.test_computation import make_model
from tests.modelling.test_optimization import batches, fit
from tests.support import assert_close


def train(accelerator, backend):
    """The weights after an epoch of three steps; each process has batches of its own."""
    from pytorch_lightning.strategies import DDPStrategy

    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    # As on machines of one device each: on one machine, Lightning would give the second process a device of its own.
    os.environ |= {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "GROUP_RANK": str(rank)}
    options = {"devices": 1, "num_nodes": world, "strategy": DDPStrategy(process_group_backend=backend)}
    torch.manual_seed(0)
    model = make_model()
    options |= {"accelerator": accelerator, "max_epochs": 1, "use_distributed_sampler": False}
    fit(model, batches(3, first=10 * rank), **options)
    return {name: value.cpu() for name, value in model.state_dict().items()}


def test_one_process_under_ddp_trains_as_without_it(device, accelerator, tmp_path):
    """With nccl on CUDA, with gloo elsewhere."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    (found,) = run_processes(train, 1, tmp_path / "run", accelerator, backend)
    torch.manual_seed(0)
    model = make_model()
    fit(model, batches(3), accelerator=accelerator, max_epochs=1)
    for name, value in model.state_dict().items():
        assert_close(found[name], value.cpu(), "device weights")


def test_two_processes_on_one_device_hold_equal_weights(accelerator, tmp_path):
    one, two = run_processes(train, 2, tmp_path / "run", accelerator, "gloo")
    parameters = dict(make_model().named_parameters())
    for name in parameters:  # the running statistics are those of each process
        assert torch.equal(one[name], two[name]), name


def normalise_together(device):
    """What SyncBatchNorm gives for this process's half of a batch, and the gradient of its input."""
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo")
    norm = nn.SyncBatchNorm(4).to(device)
    torch.manual_seed(0)
    rows = torch.randn(6, 4, 3, 2)
    own = rows[3 * rank : 3 * rank + 3].to(device).requires_grad_()
    result = norm(own)
    result.square().sum().backward()
    return result.detach().cpu(), own.grad.cpu(), norm.running_var.cpu()


@pytest.mark.needs_cuda
def test_sync_batchnorm_is_the_norm_of_the_joint_batch(device, tmp_path):
    halves = run_processes(normalise_together, 2, tmp_path / "run", str(device))
    torch.manual_seed(0)
    rows = torch.randn(6, 4, 3, 2).requires_grad_()
    norm = nn.BatchNorm2d(4)
    result = norm(rows)
    result.square().sum().backward()
    assert_close(torch.cat([half[0] for half in halves]), result.detach(), "device")
    assert_close(torch.cat([half[1] for half in halves]), rows.grad, "device")
    for half in halves:
        assert_close(half[2], norm.running_var, "device")
