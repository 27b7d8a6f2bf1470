"""Which library computes an Embedder's network: torch, ONNX Runtime or OpenVINO.

The engine "auto" goes by what the fastest was in benchmarks/bench_embedding.py on CPUs:

- OpenVINO, if it is installed; in bfloat16 only where the CPU has the instructions;
- else, ONNX Runtime for networks that torch does not run folded (other than ResNets), and for files of
  inference/export.py;
- torch if none of them is installed or can do it, and on every device but the CPU.
"""

import copy
import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from yacs.config import CfgNode

from checkpoints.digest import digest_of
from inference.embedding.exporting import (
    METADATA,
    EmbeddingNetwork,
    compare,
    find_disagreement,
    onnx_content,
    trial_images,
)
from inference.embedding.folding import FoldedNetwork, inference_network
from inference.embedding.runtimes import RUNTIMES, Runtime, computes_bfloat16
from modelling.bases import EmbeddingPath, ModelBase
from modelling.origin import embedding_settings
from utils.compat import ONNX_NEEDS_ONNXSCRIPT
from utils.errors import CheckpointError, MissingPathError, UnknownNameError, UserError
from utils.optional import is_installed, require

logger = logging.getLogger(__name__)

Network = Callable[[Tensor], Tensor]  # normalised images [B, 3, H, W] -> embeddings [B, D]

ENGINES = ("torch", "onnxruntime", "openvino", "auto")
MIN_COSINE_BFLOAT16 = 0.99  # of an engine against torch in float32; more would refuse what torch itself rounds


@dataclass(frozen=True)
class Computation:
    """How an Embedder computes.

    Attributes:
        engine: one of ENGINES.
        device, dtype: where, and in which type convolutions are computed.
        size, mean, std: of the images.
        batch_size: usual number of images at once.
    """

    engine: str
    device: torch.device
    dtype: torch.dtype
    size: Sequence[int]
    mean: Sequence[float]
    std: Sequence[float]
    batch_size: int


class ExportedModel:
    """A file of ``inference/export.py --format onnx``, in place of a model.

    Args:
        path: the file.

    Raises:
        UserError: the file is missing, or was not written by inference/export.py for any number of images.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        onnx = require("onnx", "export", "an exported network")
        if not Path(path).is_file():
            raise MissingPathError(f"No such file: {os.fspath(path)!r}; expected one of inference/export.py.")
        self.path, self.content = os.fspath(path), Path(path).read_bytes()
        try:
            model = onnx.load_model_from_string(self.content)
            self.facts: dict[str, Any] = json.loads({p.key: p.value for p in model.metadata_props}[METADATA])
            self.is_int8 = "int8" in self.facts
            self.weights: str = self.facts["int8"]["digest"] if self.is_int8 else self.facts["weights"]
        except Exception as error:  # protobuf's own exceptions differ between versions
            raise CheckpointError(
                f"{self.path} cannot be read ({type(error).__name__}); expected a file of this version's "
                "inference/export.py --format onnx."
            ) from error
        if self.facts["batch"] != "any":
            raise UserError(f"{self.path} takes one image at a time; export it with --dynamic-batch.")

    @cached_property
    def hparams(self) -> CfgNode:
        """What the file records of the configuration."""
        facts = self.facts
        images = {"SIZE_TEST": facts["image_size"], "PIXEL_MEAN": facts["pixel_mean"], "PIXEL_STD": facts["pixel_std"]}
        images |= {"EXIF_ORIENTATION": facts["exif_orientation"], "DRAFT_DECODING": facts["draft_decoding"]}
        images |= {"RESIZE": facts["resize_mode"]}
        network = {"NAME": facts["network"], "POOLING": facts["pooling"], "NECK_FEAT": facts["neck_feat"]}
        return CfgNode({"INPUT": images, "MODEL": network, "TEST": {"FLIP": facts["flip"]}})

    @property
    def settings(self) -> dict[str, Any]:
        """What embeddings depend on, as ``Embedder.identity`` says it; the file itself averages with mirror images."""
        settings = {**embedding_settings(self.hparams), "flip": self.facts["flip"]}
        settings |= {"normalized": True} if self.facts["normalized"] else {}
        return settings | ({"dtype": "int8"} if self.is_int8 else {})


Model = ModelBase | ExportedModel


def is_exported(path: str | os.PathLike[str]) -> bool:
    """Whether a file is an exported network by its name."""
    return Path(path).suffix == ".onnx"


def describe(model: Model) -> tuple[int, dict[str, Any], str]:
    """Length of an embedding, what it depends on besides weights and images, and the digest of the weights."""
    if isinstance(model, ExportedModel):
        return model.facts["embedding_size"], model.settings, model.weights
    weights = digest_of({"backbone": model.backbone, "bn": model.bn})
    return model.bn.num_features, embedding_settings(model.hparams), weights


def network_of(model: Model, how: Computation) -> tuple[Network, str]:
    """The network that computes embeddings, and the engine that it is of.

    Raises:
        UserError: the engine is unknown, cannot compute like that, or its package is missing; or, except with "auto",
            the network cannot be exported, or the engine's embeddings differ from torch's by more than rounding.
    """
    if how.engine not in ENGINES:
        raise UnknownNameError(f"the engine is {how.engine!r}; valid names: {', '.join(ENGINES)}.")
    if isinstance(model, ExportedModel):
        return _network_of_file(model, how)
    if how.engine in RUNTIMES:
        _require_able(how.engine, how)
        return _export(model, how.engine, how), how.engine
    network = inference_network(model, how.dtype, how.device)
    if how.engine == "torch":
        return network, "torch"
    preferred = ("openvino",) if isinstance(network, FoldedNetwork) else ("openvino", "onnxruntime")
    engine = next((name for name in preferred if _is_ready(name, how)), "torch")
    reason = "the fastest that is installed for this network"
    if engine != "torch":
        try:
            network = _export(model, engine, how)  # type: ignore[assignment]
        except UserError as error:
            engine, reason = "torch", f"since {error}"
    logger.info("Engine: %s, %s.", engine, reason.rstrip("."))
    return network, engine


def _network_of_file(model: ExportedModel, how: Computation) -> tuple[Runtime, str]:
    if tuple(how.size) != tuple(model.facts["image_size"]):
        raise UserError(f"size is {list(how.size)}, but {model.path} takes images of {model.facts['image_size']}.")
    if how.engine == "torch":
        raise UserError(f"torch does not run {model.path}; choose the engine auto, onnxruntime or openvino.")
    if model.is_int8 and how.dtype != torch.float32:
        raise UserError(f"{model.path} is int8; the precision {_name(how.dtype)} does not go with it: use 32-true.")
    engine = how.engine
    if engine == "auto":
        engine = next((name for name in ("openvino", "onnxruntime") if _is_ready(name, how)), "onnxruntime")
        logger.info("Engine: %s.", engine)
    _require_able(engine, how)
    runtime = RUNTIMES[engine](model.content, how.size, how.batch_size, how.dtype)
    runtime(torch.zeros(1, 3, *how.size))  # errors come now, not in the first batch
    return runtime, engine


def _is_ready(engine: str, how: Computation) -> bool:
    """Whether an engine can be had without an error."""
    packages = [engine, *(["onnxscript"] if ONNX_NEEDS_ONNXSCRIPT else [])]
    return all(map(is_installed, packages)) and not _obstacle(engine, how)


def _require_able(engine: str, how: Computation) -> None:
    require(engine, {"onnxruntime": "export"}.get(engine, engine), f"the engine {engine}")
    if obstacle := _obstacle(engine, how):
        raise UserError(f"the engine {engine} {obstacle}, or choose the engine torch.")


def _obstacle(engine: str, how: Computation) -> str:
    """Why an engine cannot compute like that, and a way out; "" if it can."""
    if how.device.type != "cpu":
        return f"computes on the CPU, but the device is {how.device}: choose the device cpu (TRAINER.ACCELERATOR cpu)"
    if how.dtype == torch.float32 or (how.dtype == torch.bfloat16 and computes_bfloat16(engine)):
        return ""
    return f"does not compute in {_name(how.dtype)} on this CPU: choose the precision 32-true"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _export(model: ModelBase, engine: str, how: Computation) -> Runtime:
    """The network in another engine, which has been compared with torch on a few images."""
    name = model.hparams.MODEL.NAME
    network = EmbeddingNetwork(copy.deepcopy(EmbeddingPath(model)).cpu().float())
    try:
        content = onnx_content(network, how.size)
        runtime = RUNTIMES[engine](content, how.size, how.batch_size, how.dtype)
        batches = trial_images(how.size, how.mean, how.std)[:-1].split([1, 6])
        with torch.inference_mode():
            cosine, error = compare(network, runtime.run, batches)
            if how.dtype == torch.float32:
                wrong = find_disagreement(network, cosine, error, batches)
            else:
                wrong = f"cosine {cosine:.4f}" if cosine < MIN_COSINE_BFLOAT16 else ""
    except (UserError, OSError):
        raise
    except Exception as error:  # exporters and runtimes raise exceptions of their own
        first = (str(error).strip().splitlines() or [""])[0]
        raise UserError(
            f"the network {name} cannot be exported for the engine {engine} ({type(error).__name__}: {first}); choose "
            "the engine torch."
        ) from error
    if wrong:
        raise UserError(f"{name} in the engine {engine} disagrees with torch ({wrong}); choose the engine torch.")
    return runtime
