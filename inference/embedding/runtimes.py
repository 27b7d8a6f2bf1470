"""Networks that ONNX Runtime or OpenVINO computes on the CPU, from the content of an ONNX file."""

import os
import threading
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from utils.errors import UserError
from utils.optional import require

Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]  # [B, 3, H, W] -> [B, D]

# What a process got from its parent by fork: without its threads, so that closing it would wait for ever.
_ABANDONED: list[Any] = []


class Runtime:
    """Normalised images to embeddings, by a library other than torch.

    It computes with as many threads as torch does when the first batch comes. It can be pickled, copied and used in
    forked processes: each process opens the network anew.

    Args:
        content: an ONNX file with one input, of any number of images of one size, and one output.
        size: height and width of these images.
        batch_size: the usual number of images, for which a runtime may prepare.
        dtype: type of the convolutions and feature maps, if the file does not say it: float32 or bfloat16.
    """

    engine: ClassVar[str]

    def __init__(
        self, content: bytes, size: Sequence[int], batch_size: int = 1, dtype: torch.dtype = torch.float32
    ) -> None:
        self.content, self.size, self.batch_size, self.dtype = content, tuple(size), batch_size, dtype
        self._opened: tuple[int, Run] | None = None

    def run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """[B, 3, H, W] -> [B, D]."""
        if self._opened is None or self._opened[0] != os.getpid():
            _ABANDONED.append(self._opened)
            self._opened = os.getpid(), self._open()
        return self._opened[1](images)

    def __call__(self, x: Tensor) -> Tensor:
        """Normalised images [B, 3, H, W] floating, on the CPU -> embeddings [B, D] float32."""
        if x.shape[1:] != (3, *self.size):
            raise UserError(
                f"images have the shape {list(x.shape[1:])}, but the engine {self.engine} was prepared for "
                f"{[3, *self.size]}; give the Embedder their size, or choose engine='torch'."
            )
        return torch.from_numpy(self.run(np.ascontiguousarray(x.float().numpy())))

    def _open(self) -> Run:
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}


class OnnxRuntime(Runtime):
    """The CPU provider of ONNX Runtime; float32, and whatever an int8 file holds."""

    engine = "onnxruntime"

    def _open(self) -> Run:
        onnxruntime = require("onnxruntime", "export", "the engine onnxruntime")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors; it warns of how a file was exported
        session = onnxruntime.InferenceSession(self.content, options, providers=["CPUExecutionProvider"])
        (name,) = (node.name for node in session.get_inputs())
        return lambda images: session.run(None, {name: images})[0]


class OpenVino(Runtime):
    """OpenVINO on the CPU.

    A network whose number of images is known is faster: it is compiled for one image and for ``batch_size``, and once
    for every other number. Which of them computes depends on the number of images alone, so equal batches have equal
    embeddings.
    """

    engine = "openvino"

    def _open(self) -> Run:
        openvino = require("openvino", "openvino", "the engine openvino")
        core, lock = openvino.Core(), threading.Lock()
        settings = {
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "INFERENCE_PRECISION_HINT": "bf16" if self.dtype == torch.bfloat16 else "f32",  # else the CPU decides
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
        }

        @cache
        def request(count: int) -> Any:
            model = core.read_model(model=self.content)
            if count:
                model.reshape([count, 3, *self.size])
            return core.compile_model(model, "CPU", settings).create_infer_request()

        def run(images: NDArray[np.float32]) -> NDArray[np.float32]:
            with lock:  # a request computes one batch at a time
                fixed = len(images) in (1, self.batch_size)
                return request(len(images) if fixed else 0).infer({0: images}, share_inputs=True)[0]

        return run


RUNTIMES: dict[str, type[Runtime]] = {cls.engine: cls for cls in (OnnxRuntime, OpenVino)}


def computes_bfloat16(engine: str) -> bool:
    """Whether an engine computes in bfloat16 on this CPU."""
    if engine != "openvino":
        return False
    openvino = require("openvino", "openvino", "the engine openvino")
    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
