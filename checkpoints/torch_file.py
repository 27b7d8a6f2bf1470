"""Read files of torch.save onto the CPU with torch's own reader, and of safetensors, without running code from them.

A pickle can call whatever it names, and can set attributes of the result. torch.load leaves the look-up of names to its
unpickler. The unpickler here resolves only the names that checkpoints and weights need, refuses all others, and never
returns a shared object whose attributes the pickle could set.
"""

import os
import pickle
import re
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import numpy as np
import torch
from torch.serialization import StorageType
from torch.serialization import load as torch_load  # other code often replaces torch.load to force weights_only

from utils.compat import tensor_builders
from utils.errors import UserError
from utils.optional import require

_SAFETENSORS = rb".{6}\0\0\{"  # the length of a header in JSON, and its beginning
_TORCH_MODULES = {"torch", "torch.cuda", "torch.storage"}
_LIGHTNING = ("pytorch_lightning", "lightning.pytorch")
# In checkpoints from before Lightning 1.5, callback states are stored under the classes of the callbacks.
_CALLBACKS = (*(f"{lightning}.callbacks." for lightning in _LIGHTNING), "callbacks.")


class UnreadableError(ValueError):
    """A file that is damaged, foreign or refused, or an object that is not plain.

    The message is a phrase to follow the name of the file: "is empty", "holds a ...".
    """


class _Function:
    """Calls a function, and keeps the pickle from setting its attributes."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)

    def __setstate__(self, state: Any) -> None:
        raise UnreadableError("holds a pickle that changes a function, which is refused")


# A __setstate__ protects a class from the pickle: called on the class itself, it lacks an argument and raises.
class _Dict(dict[Any, Any]):
    """Stands for any dictionary class, without its attributes."""

    def __setstate__(self, state: Any) -> None:
        pass


class _NumpyType:
    """Stands for numpy's dtype, which would accept flags from the file that make it follow pointers."""

    def __init__(self, text: str, *_: Any) -> None:
        self.dtype = np.dtype(text)

    def __setstate__(self, state: Any) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


def _numpy_number(kind: _NumpyType, data: bytes) -> Any:
    return np.frombuffer(data, kind.dtype)[0].item()


ALLOWED: dict[str, Any] = {
    "collections.OrderedDict": _Dict,
    "collections.Counter": _Dict,
    "yacs.config.CfgNode": _Dict,
    "argparse.Namespace": _Dict,  # the options of a training, which self-supervised code bases store beside the weights
    **{f"{lightning}.utilities.parsing.AttributeDict": _Dict for lightning in _LIGHTNING},
    **{f"{fabric}.utilities.data.AttributeDict": _Dict for fabric in ("lightning_fabric", "lightning.fabric")},
    "builtins.set": _Function(set),
    "builtins.frozenset": _Function(frozenset),
    "_codecs.encode": _Function(str.encode),
    "numpy.dtype": _NumpyType,
    "numpy.core.multiarray.scalar": _Function(_numpy_number),
    "numpy._core.multiarray.scalar": _Function(_numpy_number),
    "torch.Size": _Function(tuple),
    "torch.device": _Function(torch.device),
    "torch.nn.parameter.Parameter": torch.nn.Parameter,
    "torch.autograd.variable.Variable": torch.nn.Parameter,
    **{str(dtype): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)},
    **{f"torch._utils.{name}": _Function(function) for name, function in tensor_builders().items()},
}


class _Unpickler(pickle._Unpickler):  # the one in C would allocate whatever size a damaged file claims
    def find_class(self, module: str, name: str) -> Any:
        path = f"{'builtins' if module == '__builtin__' else module}.{name}"  # Python 2
        if path in ALLOWED:
            return ALLOWED[path]
        if module in _TORCH_MODULES and name.endswith("Storage"):
            # An untyped storage is plain bytes; the tensor itself says what type they have.
            dtype = torch.uint8 if name == "UntypedStorage" else StorageType(name).dtype
            return SimpleNamespace(dtype=dtype, _dtype=dtype)
        if path.startswith(_CALLBACKS) or (module in _TORCH_MODULES and name.endswith("Tensor")):
            return path  # mentioned but not called
        text = f"asks for {path}, which is not among the classes that a checkpoint may hold; no code from it was run"
        if name[:1].isupper() and module.partition(".")[0] not in sys.stdlib_module_names:
            text += (
                ". If it is a whole model, written by torch.save(model), and you trust it: load it where the code of "
                "that model is, and save its weights alone: torch.save(model.state_dict(), OTHER_FILE)"
            )
        raise UnreadableError(text)


_PICKLE = SimpleNamespace(
    __name__=__name__, Unpickler=_Unpickler, load=lambda stream, **options: _Unpickler(stream, **options).load()
)


def read_torch_file(path: Path) -> Any:
    """Read a file of torch.save: containers, numbers, strings and CPU tensors, not all of plain classes.

    Args:
        path: an existing file; one of safetensors is a dictionary of tensors.

    Raises:
        UserError: it is a safetensors file, and the package that reads these is not installed.
        UnreadableError: the file is damaged, is another kind of file, or asks for a class that is not allowed.
    """
    forced = os.environ.pop("TORCH_FORCE_WEIGHTS_ONLY_LOAD", None)  # while set, torch refuses our unpickler
    try:
        with path.open("rb") as stream:
            if re.match(_SAFETENSORS, stream.read(9), re.DOTALL):
                purpose = f"{path} is a safetensors file: reading it"
                return require("safetensors.torch", "safetensors", purpose).load_file(path, device="cpu")
            stream.seek(0)
            _refuse_others(stream)
            stream.seek(0)
            return torch_load(stream, map_location="cpu", pickle_module=_PICKLE, weights_only=False, mmap=False)
    except (UnreadableError, UserError):
        raise
    except OSError as error:
        raise UnreadableError(f"cannot be read ({error.strerror or error})") from error
    except Exception as error:  # a damaged pickle can raise anything
        reason = str(error).partition("\n")[0] or type(error).__name__
        if "Invalid magic number" in reason:
            raise UnreadableError("is a pickle, but not one that torch.save wrote") from error
        raise UnreadableError(f"is cut off or damaged ({reason})") from error
    finally:
        if forced is not None:
            os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = forced


def _refuse_others(stream: BinaryIO) -> None:
    """Refuse files that torch.save did not write, and those with which torch.load would do more than unpickle."""
    head = stream.read(512)
    stream.seek(0)
    if head.startswith(b"PK\x03\x04"):
        with zipfile.ZipFile(stream) as archive:
            if not any(name.endswith("/data.pkl") for name in archive.namelist()):
                raise UnreadableError("is a zip archive, but not one that torch.save wrote")
        stream.seek(0)
        # torch.load would run it. Ask torch's reader: a crafted archive can show different contents to Python's.
        if "constants.pkl" in torch._C.PyTorchFileReader(stream).get_all_records():
            raise UnreadableError(
                "is a TorchScript module, not a file that torch.save wrote. If you trust it, save its weights alone: "
                "torch.save(torch.jit.load(FILE).state_dict(), OTHER_FILE)"
            )
        return
    try:
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            members = {member.name: member for member in tar}
    except tarfile.TarError:
        if not head.startswith(b"\x80"):
            raise UnreadableError(_what_it_is(head)) from None
        return
    # torch.load unpacks the members, and a link would lead it to a file outside the archive.
    if not all(name in members and members[name].isreg() for name in ("storages", "tensors", "pickle")):
        raise UnreadableError("is a tar archive, but not one that torch.save wrote")


def _what_it_is(head: bytes) -> str:
    """Describe a file that torch.save did not write, judging by its first 512 bytes."""
    signs = {
        rb"\Z": "is empty",
        rb"\s*(<!--.*?-->\s*)*<(!doctype|html|head|body|\?xml)": "is a web page, not a checkpoint: the download failed",
        rb"version https://git-lfs": "is a git-lfs pointer, not the file itself: run `git lfs pull`",
        rb"\xfd7zXZ|\x1f\x8b|BZh|\x28\xb5\x2f\xfd": "is a compressed file: unpack it first",
        rb"\x89HDF": "is an HDF5 file, not a file that torch.save wrote",
    }
    for sign, phrase in signs.items():
        if re.match(sign, head, re.IGNORECASE | re.DOTALL):
            return phrase
    return f"is not a file that torch.save wrote (it starts with {head[:16]!r})"
