"""The one owner of where and in what precision the project computes, and of how many cores it may use.

Imports torch only when a device is asked for.
"""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from utils.errors import UserError

if TYPE_CHECKING:
    import torch

# Precisions as Lightning names them -> what inference computes convolutions in. Pooling and BN neck stay in float32, so
# that "mixed" and "true" are the same there.
INFERENCE_DTYPES = {
    **dict.fromkeys(("32-true", "32"), "float32"),
    **dict.fromkeys(("64-true", "64"), "float64"),
    **dict.fromkeys(("bf16-mixed", "bf16-true", "bf16"), "bfloat16"),
    **dict.fromkeys(("16-mixed", "16-true", "16"), "float16"),
}


def count_cpus() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def find_device(device: "str | torch.device") -> "torch.device":
    """The device of a name; "auto" is CUDA or MPS where there is one, else the CPU.

    Raises:
        UserError: an unknown name, or a device that this machine does not have or that cannot compute.
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
        raise UserError(f"the device is {str(device)!r}, which this machine does not have ({count} CUDA devices).")
    try:
        torch.zeros(1, device=chosen).item()  # the device "meta" gives no values back
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"the device {str(device)!r} cannot be used: {reason}") from error
    return chosen


def choose_devices(accelerator: str, gpu_ids: Sequence[int], backend: str = "ddp") -> tuple[str, list[int] | int]:
    """Lightning's ``accelerator`` and ``devices``: the CUDA devices of GPU_IDS, or the CPU where there are none.

    Args:
        accelerator: TRAINER.ACCELERATOR: auto, cpu, gpu or mps.
        gpu_ids: GPU_IDS.
        backend: SOLVER.DIST_BACKEND; "ddp_cpu" starts one CPU process for each entry of GPU_IDS.

    Raises:
        UserError: an accelerator or device that this machine does not have.
    """
    import torch

    ids = list(gpu_ids)
    if backend == "ddp_cpu":
        return "cpu", max(1, len(ids))
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
    """What convolutions are computed in for a precision as Lightning names it.

    Raises:
        UserError: an unknown precision, or one that the device does not have.
    """
    import torch

    if precision not in INFERENCE_DTYPES:
        raise UserError(f"the precision is {precision!r}; inference knows {', '.join(INFERENCE_DTYPES)}.")
    name = INFERENCE_DTYPES[precision]
    if (name, device.type) in (("float16", "cpu"), ("float64", "mps")):
        raise UserError(f"the precision {precision} does not work on the device {device.type}; 32-true does.")
    types = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    return {str(dtype).removeprefix("torch."): dtype for dtype in types}[name]
