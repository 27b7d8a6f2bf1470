"""The one place that chooses devices and precision, and counts the CPU cores and worker processes to use.

It imports torch only when a device is needed.
"""

import logging
import os
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from utils.errors import UserError

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

DEFAULT_WORKERS = 6  # the default of DATALOADER.NUM_WORKERS, which nobody need have asked for

# Precision, as Lightning names it -> type in which inference computes convolutions. Pooling and BN neck stay in
# float32, so "mixed" and "true" mean the same.
INFERENCE_DTYPES = {
    **dict.fromkeys(("32-true", "32"), "float32"),
    **dict.fromkeys(("64-true", "64"), "float64"),
    **dict.fromkeys(("bf16-mixed", "bf16-true", "bf16"), "bfloat16"),
    **dict.fromkeys(("16-mixed", "16-true", "16"), "float16"),
}


def count_cpus() -> int:
    """The number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def count_workers(wanted: int, processes: int | None = None) -> int:
    """The number of worker processes of one loader: no more than there are cores for this process.

    A number that the user chose and that is lowered is logged, once.

    Args:
        wanted: DATALOADER.NUM_WORKERS; -1 takes as many as there are cores.
        processes: processes of this run on this machine, which share its cores; None takes what torchrun says.

    Returns:
        0 or more; 0 loads in this process.
    """
    if processes is None:
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    cores = count_cpus() // max(1, processes)
    if wanted > cores:
        _tell_lowered(wanted, cores)
    return cores if wanted == -1 else min(wanted, cores)


@cache
def _tell_lowered(wanted: int, cores: int) -> None:
    from utils.distributed import is_first_process

    if is_first_process():
        level = logging.DEBUG if wanted == DEFAULT_WORKERS else logging.WARNING
        text = "DATALOADER.NUM_WORKERS is %d; this process has %d CPU cores, so each loader starts %d workers."
        logger.log(level, text, wanted, cores, cores)


def find_device(device: "str | torch.device") -> "torch.device":
    """Find a device by name; "auto" is CUDA if available, else MPS if available, else the CPU.

    Raises:
        UserError: the name is unknown, or this machine lacks the device, or the device cannot compute.
    """
    import torch

    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if str(device) == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise UserError(f"the device is {device!r}; expected auto, cpu, cuda, cuda:N or mps.") from None
    count = torch.cuda.device_count() if cuda else 0
    if (chosen.type == "cuda" and (chosen.index or 0) >= count) or (chosen.type == "mps" and not mps):
        raise UserError(
            f"the device is {str(device)!r}, which this machine does not have ({count} CUDA devices); try auto or cpu."
        )
    try:
        torch.zeros(1, device=chosen).item()  # the device "meta" returns no values
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"the device {str(device)!r} cannot be used: {reason}") from error
    return chosen


def choose_devices(accelerator: str, gpu_ids: Sequence[int], backend: str = "ddp") -> tuple[str, list[int] | int]:
    """Choose Lightning's ``accelerator`` and ``devices``: the CUDA devices in GPU_IDS, or the CPU if there are none.

    Args:
        accelerator: TRAINER.ACCELERATOR: auto, cpu, gpu or mps.
        gpu_ids: GPU_IDS, the numbers of CUDA devices.
        backend: SOLVER.DIST_BACKEND; "ddp_cpu" starts one CPU process for each entry of GPU_IDS.

    Raises:
        UserError: this machine lacks the accelerator or one of the devices.
    """
    ids = list(gpu_ids)
    if backend == "ddp_cpu":
        return "cpu", max(1, len(ids))
    import torch

    cuda_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if accelerator == "gpu" and not (cuda_devices and ids):
        raise UserError(
            f"TRAINER.ACCELERATOR is 'gpu', but this machine has {cuda_devices} CUDA devices and GPU_IDS is {ids}; "
            "set TRAINER.ACCELERATOR auto or cpu, or list devices in GPU_IDS."
        )
    if accelerator == "mps":
        if not torch.backends.mps.is_available():
            raise UserError("TRAINER.ACCELERATOR is 'mps', but this machine has no MPS device; set auto or cpu.")
        return "mps", 1
    if accelerator == "cpu" or not (cuda_devices and ids):
        return "cpu", 1
    missing = [i for i in ids if not 0 <= i < cuda_devices]
    if missing:
        raise UserError(f"GPU_IDS names {missing}, but this machine has CUDA devices 0 to {cuda_devices - 1}.")
    return "gpu", ids


def inference_dtype(precision: str, device: "torch.device") -> "torch.dtype":
    """The type in which inference computes convolutions, for a precision as Lightning names it.

    Raises:
        UserError: the precision is unknown, or the device does not support it.
    """
    import torch

    if precision not in INFERENCE_DTYPES:
        raise UserError(f"the precision is {precision!r}; valid: {', '.join(INFERENCE_DTYPES)}.")
    name = INFERENCE_DTYPES[precision]
    if (name, device.type) in (("float16", "cpu"), ("float64", "mps")):
        raise UserError(f"the precision {precision} does not work on the device {device.type}; use 32-true.")
    types = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    return {str(dtype).removeprefix("torch."): dtype for dtype in types}[name]
