"""The one owner of checkpoint reads, and of what checkpoints are made of.

Reading runs nothing from the file (see utils/torch_file.py) and gives plain dicts, lists, tuples, numbers, strings and
CPU tensors, whether the file was written by this project, by the original (Lightning 1.1.4), or holds bare weights.
"""

import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch
from torch import Tensor

from utils.errors import MissingPathError, UserError
from utils.torch_file import UnreadableError, read_torch_file

StrPath = str | os.PathLike[str]

BACKBONE_PREFIX = "backbone.base."
_MODEL_KEYS = ("backbone.", "bn.weight", "center_loss.centers", "fc_query.weight")
_HEADS = {"fc", "classifier", "bottleneck"}  # what ImageNet weights hold beyond the backbone
# Blocks per layer -> network, for blocks of two convolutions and of three.
_BASIC: dict[tuple[int, ...], str] = {(2, 2, 2, 2): "resnet18", (3, 4, 6, 3): "resnet34"}
_BOTTLENECK: dict[tuple[int, ...], str] = {
    (3, 4, 6, 3): "resnet50",
    (3, 4, 23, 3): "resnet101",
    (3, 8, 36, 3): "resnet152",
}


class CheckpointError(UserError):
    """A file that is not the checkpoint it should be; the message says what it is and what was expected."""


def load_checkpoint(path: StrPath) -> dict[str, Any]:
    """Read a file of torch.save onto the CPU as plain data, whatever device it was saved on.

    Args:
        path: a checkpoint of this project or of the original, or a file of weights.

    Returns:
        The dictionary in the file. Former classes of dictionaries (yacs nodes, OrderedDict, Counter) are dicts; a class
        that keys a table of callback states is the string "module.Class"; parameters are tensors without gradient.

    Raises:
        MissingPathError: there is no such file.
        CheckpointError: it is a folder, cut off, of another kind, no dictionary, or asks for a class that is not on the
            list of classes that a checkpoint may hold.
    """
    if not str(path) or not Path(path).exists():
        raise MissingPathError(f"No such checkpoint: {str(path)!r}. Expected the path of a file that torch.save wrote.")
    if Path(path).is_dir():
        raise CheckpointError(f"{path} is a folder. Expected a checkpoint file, such as a *.ckpt inside it.")
    try:
        content = _plain(read_torch_file(Path(path)))
    except UnreadableError as error:
        raise CheckpointError(f"{path} {error}. Expected a checkpoint or weights written by torch.save.") from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}. Expected a dictionary: a checkpoint or weights."
        )
    return content


def load_ctl_checkpoint(path: StrPath) -> dict[str, Any]:
    """Read a checkpoint of a trained model: ``state_dict`` with all members of the model, and ``hyper_parameters``.

    Args:
        path: a checkpoint of this project or of the original.

    Raises:
        MissingPathError, CheckpointError: as load_checkpoint; and CheckpointError for any other content, such as
            ImageNet weights, which the message recognises.
    """
    checkpoint = load_checkpoint(path)
    weights = checkpoint.get("state_dict")
    keys = list(weights) if isinstance(weights, dict) else []
    absent = [key for key in _MODEL_KEYS if not any(str(k).startswith(key) for k in keys)]
    if "hyper_parameters" in checkpoint and keys and not absent:
        return checkpoint
    lacks = "hyper_parameters" if keys and not absent else f"state_dict with {', '.join(absent)}"
    raise CheckpointError(
        f"{path} holds {describe(checkpoint)}; expected a checkpoint of a model trained by this project or the "
        f"original (it lacks {lacks}). Give such a checkpoint in MODEL.PRETRAIN_PATH; to start training "
        "from ImageNet weights, leave TEST.ONLY_TEST and MODEL.RESUME_TRAINING False and set MODEL.PRETRAINED True."
    )


def load_backbone_weights(path: StrPath) -> tuple[dict[str, Tensor], str]:
    """Read the weights of a backbone: a torchvision ResNet, an IBN-a network, or the backbone of a CTL checkpoint.

    Args:
        path: as for load_checkpoint. A ``state_dict`` wrapper and the prefixes ``module.`` and ``backbone.base.`` are
            taken off; entries of fc, classifier and bottleneck are left out.

    Returns:
        Name -> tensor, and what the file holds in words ("torchvision resnet50 weights").

    Raises:
        MissingPathError, CheckpointError: as load_checkpoint.
    """
    content = load_checkpoint(path)
    return _backbone_of(content), describe(content)


def describe(content: Mapping[str, Any]) -> str:
    """What a loaded file holds, in words: "a CTL checkpoint of resnet18", "torchvision resnet50 weights", ..."""
    state = _state_dict_of(content)
    network = identify_network(_backbone_of(content))
    if any(key.startswith("backbone.") for key in state) and "fc_query.weight" in state:
        return f"a CTL checkpoint of {network or 'an unknown network'}"
    if network is not None:
        return f"{'IBN-a' if 'ibn' in network else 'torchvision'} {network} weights"
    if "pytorch-lightning_version" in content:
        return "a Lightning checkpoint of another model"
    if state:
        return f"weights of an unknown network (the first is {next(iter(state))})"
    return f"a dictionary without weights (keys: {', '.join(map(str, list(content)[:5])) or 'none'})"


def identify_network(keys: Iterable[str]) -> str | None:
    """The MODEL.NAME whose backbone has these entries ("layer1.0.conv1.weight", ...), or None."""
    names = set(keys)
    blocks = [re.match(r"layer([1-4])\.(\d+)\.conv1\.weight$", name) for name in names]
    found = [(int(match[1]), int(match[2])) for match in blocks if match]
    depths = tuple(1 + max((block for layer, block in found if layer == i), default=-1) for i in (1, 2, 3, 4))
    network = (_BOTTLENECK if "layer1.0.conv3.weight" in names else _BASIC).get(depths)
    return f"{network}_ibn_a" if network and "layer1.0.bn1.IN.weight" in names else network


def _state_dict_of(content: Mapping[str, Any]) -> dict[str, Tensor]:
    inner = content.get("state_dict")
    entries = inner if isinstance(inner, dict) else content
    tensors = {str(key): value for key, value in entries.items() if isinstance(value, Tensor)}
    if tensors and all(key.startswith("module.") for key in tensors):
        return {key.removeprefix("module."): value for key, value in tensors.items()}
    return tensors


def _backbone_of(content: Mapping[str, Any]) -> dict[str, Tensor]:
    state = _state_dict_of(content)
    inside = {k.removeprefix(BACKBONE_PREFIX): v for k, v in state.items() if k.startswith(BACKBONE_PREFIX)}
    return {key: value for key, value in (inside or state).items() if key.split(".")[0] not in _HEADS}


def to_plain(obj: Any) -> Any:
    """Copy a checkpoint as dicts, lists, tuples, numbers, strings, bytes and tensors only, so that it loads anywhere.

    Configuration nodes and other classes of dictionaries become dicts, sets lists, numpy numbers Python numbers, paths
    and devices strings, numpy arrays and parameters tensors, enumerations their values; a class becomes "module.Class".

    Raises:
        CheckpointError: for an object of any other class, naming it and its position.
    """
    try:
        return _plain(obj)
    except UnreadableError as error:
        raise CheckpointError(f"The checkpoint to be saved {error}.") from error


def _plain(obj: Any) -> Any:
    copies: dict[int, Any] = {}  # what is shared stays shared

    def copy(value: Any, where: str) -> Any:
        if not isinstance(value, dict | list | tuple | set | frozenset):
            return _plain_leaf(value, where)
        if id(value) not in copies:
            if isinstance(value, dict):
                result: Any = {copy(key, where): copy(item, f"{where}[{key!r}]") for key, item in value.items()}
            else:
                kind = list if isinstance(value, list | set) else tuple
                result = kind(copy(item, f"{where}[{i}]") for i, item in enumerate(value))
            copies[id(value)] = result
        return copies[id(value)]

    try:
        return copy(obj, "")
    except RecursionError:
        raise UnreadableError("holds containers that are nested too deeply or contain themselves") from None


def _plain_leaf(value: Any, where: str) -> Any:
    if type(value) in {str, int, float, bool, bytes, type(None)}:
        return value
    match value:
        case Tensor():
            return value.detach()
        case np.generic():
            return value.item()
        case np.ndarray():
            return torch.from_numpy(value.copy())
        case Enum():
            return _plain_leaf(value.value, where)
        case type():
            return f"{value.__module__}.{value.__qualname__}"
        case os.PathLike() | torch.device() | torch.dtype():
            return str(value)
    for kind in (str, int, float):  # subclasses of them
        if isinstance(value, kind):
            return kind(value)
    raise UnreadableError(f"holds a {type(value).__module__}.{type(value).__qualname__} at {where or 'its top'}")


def atomic_save(obj: Any, path: StrPath) -> None:
    """torch.save that leaves either the whole new file or the old one, never a part.

    Args:
        obj: what to save; pass checkpoints through :func:`to_plain` first.
        path: the file; its folder is made if need be.

    Raises:
        OSError: the folder cannot be written, or the disk is full. No temporary file is left.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            guarded = _FailingOnce(stream)
            torch.save(obj, cast(BinaryIO, guarded))
            if guarded.error is not None:
                raise guarded.error
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(target)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


class _FailingOnce:
    """A stream that keeps its first error and takes no more bytes.

    torch's zip writer answers an error of the stream by one of its own about positions, some versions by ending the
    process; this lets it finish, so that the disk's own words are reported.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        if self.error is None:
            try:
                return self.stream.write(data)
            except OSError as error:
                self.error = error
        return memoryview(data).nbytes

    def flush(self) -> None:
        if self.error is None:
            try:
                self.stream.flush()
            except OSError as error:
                self.error = error
