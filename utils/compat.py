"""The one place that depends on the versions of other packages.

Each function behaves alike with every version that requirements.txt allows, or says what differs.
"""

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from utils.errors import UserError

TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])
# Since torch 2.9, the default ONNX exporter builds on torch.export and needs onnxscript.
ONNX_NEEDS_ONNXSCRIPT = TORCH >= (2, 9)
# In torch 2.1, torch.export fixes the number of images in a batch.
PROGRAMS_TAKE_ANY_BATCH = "dynamic_shapes" in inspect.signature(torch.export.export).parameters


def tensor_builders() -> dict[str, Callable[..., Any]]:
    """The functions of ``torch._utils`` that pickled tensors refer to; torch 2.1 lacks ``_rebuild_tensor_v3``."""
    names = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_parameter")
    return {name: getattr(torch._utils, name) for name in names if hasattr(torch._utils, name)}


def is_autocast_on(device_type: str) -> bool:
    """Whether operations on this kind of device run under autocast; until torch 2.3, CPU and CUDA are asked apart."""
    if device_type == "meta":  # where nothing is computed; torch knows no autocast for it
        return False
    if TORCH >= (2, 4):
        return torch.is_autocast_enabled(device_type)
    return torch.is_autocast_cpu_enabled() if device_type == "cpu" else torch.is_autocast_enabled()


def pack_convolution(weight: Tensor, geometry: Sequence[Any], shape: Sequence[int]) -> Tensor:
    """Reorder the weight of a convolution into the layout that oneDNN reads.

    Args:
        weight: [C', C / groups, h, w] on the CPU.
        geometry: padding, stride, dilation, number of groups.
        shape: the shape of the images, which decides the layout.

    Returns:
        The reordered weight; older versions of torch ignore ``shape`` or return the weight unchanged.
    """
    try:
        return torch.ops.mkldnn._reorder_convolution_weight.default(weight, *geometry, list(shape))
    except (RuntimeError, TypeError):
        return weight


def export_onnx(
    network: nn.Module, example: Tensor, path: Path, input_name: str, output_name: str, dynamic_batch: bool
) -> None:
    """Write a network as ONNX, using the default exporter of this version of torch."""
    names: dict[str, Any] = {"input_names": [input_name], "output_names": [output_name]}
    if ONNX_NEEDS_ONNXSCRIPT:
        names |= {"opset_version": 18, "dynamo": True, "external_data": False, "verbose": False}
        if dynamic_batch:
            names["dynamic_shapes"] = ({0: torch.export.Dim("batch")},)
    else:
        names |= {"opset_version": 17}
        if dynamic_batch:
            names["dynamic_axes"] = {input_name: {0: "batch"}, output_name: {0: "batch"}}
        if "dynamo" in inspect.signature(torch.onnx.export).parameters:
            names["dynamo"] = False
    torch.onnx.export(network, (example,), str(path), **names)


def export_program(network: nn.Module, example: Tensor, dynamic_batch: bool) -> Any:
    """Apply torch.export to a network; raises a UserError for a dynamic batch with torch 2.1, which lacks that."""
    options: dict[str, Any] = {}
    if dynamic_batch:
        if not PROGRAMS_TAKE_ANY_BATCH:
            raise UserError(
                f"--dynamic-batch with torch_export needs torch 2.2 or later, but this is torch {torch.__version__}."
            )
        options["dynamic_shapes"] = ({0: torch.export.Dim("batch")},)
    return torch.export.export(network, (example,), **options)


def program_module(program: Any) -> Callable[..., Any]:
    """The callable that runs an exported program; with torch 2.1, the program itself."""
    return program.module() if hasattr(program, "module") else program
