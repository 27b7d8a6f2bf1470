"""Reads the files that torch.save writes, in its three formats, onto the CPU, and runs nothing from them.

The formats are a zip archive (since torch 1.6), a row of pickles followed by raw memory (0.1.10 to 1.5), and a tar
archive (up to 0.1.9, the time of the first ImageNet ResNets).
"""

import io
import re
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from utils.safe_pickle import CONTAINER_MAKERS, Built, Machine, Maker, UnreadableError, make_dict

_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C  # the first pickle of the format between 0.1.10 and 1.5
_FORMAT_VERSION = 1001  # the second

_STORAGE_DTYPES: Mapping[str, torch.dtype | None] = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": None,  # plain bytes; the tensor itself says what they hold
}
_STORAGES = {f"{m}.{name}": d for m in ("torch", "torch.cuda", "torch.storage") for name, d in _STORAGE_DTYPES.items()}
_TENSOR_CLASSES = [path.replace("Storage", "Tensor") for path in _STORAGES]
_DTYPES = {str(d): d for d in vars(torch).values() if isinstance(d, torch.dtype)}

# Callback classes key the callback states in checkpoints of Lightning before 1.5.
_CALLBACKS = ("pytorch_lightning.callbacks.", "lightning.pytorch.callbacks.", "callbacks.")

_DAMAGE = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, struct.error, EOFError),
    *(ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError),
)
_CUT_OFF = "is cut off or damaged: data that it announces is missing"


@dataclass
class _Storage(Built):
    """Memory that tensors share: [bytes] uint8, and the dtype of its elements where the file gave it."""

    memory: Tensor
    dtype: torch.dtype | None


class _OldTensor(Built):
    """A tensor as the first versions pickled it: made empty, then given (storage, offset, size, stride)."""

    def set_state(self, state: Any) -> None:
        self.value = _tensor(*state)


class _Parameter(Built):
    """A parameter or variable; of its state only the data counts, which the first versions put there."""

    def __init__(self, data: Any = None, *_: Any) -> None:
        self._set_data(data)

    def set_state(self, state: Any) -> None:
        if len(state) == 5:
            self._set_data(state[0])

    def _set_data(self, data: Any) -> None:
        self.value = data.value if isinstance(data, Built) else data
        if not isinstance(self.value, Tensor | None):
            raise UnreadableError("holds a parameter without data")


class _NumpyDtype(Built):
    """The type of a numpy number: "f8", with its byte order in the state."""

    def __init__(self, text: Any, *_: Any) -> None:
        if not re.fullmatch(r"[biufc]\d{1,2}", text):
            raise UnreadableError(f"holds a numpy number of type {text!r}")
        self.dtype = np.dtype(text)

    def set_state(self, state: Any) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


def read_torch_file(path: Path) -> Any:
    """Everything that a file of torch.save holds, as plain containers, numbers, strings and CPU tensors.

    Args:
        path: an existing file.

    Raises:
        UnreadableError: the file is damaged, is something else, or asks for a class that is not allowed.
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(512)
            stream.seek(0)
            if head.startswith(b"PK\x03\x04"):
                return _read_zip(stream)
            if head[257:262] == b"ustar" or tarfile.is_tarfile(stream):
                return _read_tar(stream)
            stream.seek(0)
            if head.startswith(b"\x80"):
                return _read_pickles(stream)
        raise UnreadableError(_what_it_is(head))
    except UnreadableError:
        raise
    except _DAMAGE as error:
        raise UnreadableError(f"is cut off or damaged ({error})") from error
    except OSError as error:
        raise UnreadableError(f"cannot be read ({error.strerror or error})") from error


def _what_it_is(head: bytes) -> str:
    """A phrase for a file that torch.save did not write, from its first 512 bytes."""
    signs = {
        rb"\Z": "is empty",
        rb"\s*(<!--.*?-->\s*)*<(!doctype|html|head|body|\?xml)": "is a web page, not a checkpoint: the download failed",
        rb"version https://git-lfs": "is a git-lfs pointer, not the file itself: run `git lfs pull`",
        rb"\xfd7zXZ|\x1f\x8b|BZh|\x28\xb5\x2f\xfd": "is a compressed file: unpack it first",
        rb".{6}\0\0\{": "is a safetensors file, not a file that torch.save wrote",
        rb"\x89HDF": "is an HDF5 file, not a file that torch.save wrote",
    }
    for sign, phrase in signs.items():
        if re.match(sign, head, re.IGNORECASE | re.DOTALL):
            return phrase
    return f"is not a file that torch.save wrote (it starts with {head[:16]!r})"


def _read_zip(stream: BinaryIO) -> Any:
    with zipfile.ZipFile(stream) as archive:
        for record in archive.infolist():
            if record.CRC == 0:
                record.CRC = None  # type: ignore[assignment]  # torch can be told not to compute checksums
        names = archive.namelist()
        roots = [name.removesuffix("/data.pkl") for name in names if re.fullmatch(r"[^/]+/data\.pkl", name)]
        if len(roots) != 1:
            raise UnreadableError("is a zip archive, but not one that torch.save wrote")
        (root,) = roots
        if f"{root}/constants.pkl" in names:
            raise UnreadableError("is a TorchScript module, not a file that torch.save wrote")
        if f"{root}/byteorder" in names and archive.read(f"{root}/byteorder").decode() != sys.byteorder:
            raise UnreadableError("was saved on a machine with the other byte order")
        memories: dict[str, Tensor] = {}

        def load(reference: Any) -> _Storage:
            dtype, key, nbytes, _ = _parse_reference(reference)
            if key not in memories:
                info = archive.getinfo(f"{root}/data/{key}")
                memories[key] = _allocate(info.file_size, stream)
                with archive.open(info) as data:
                    _fill(memories[key], data)
            if nbytes > len(memories[key]):
                raise UnreadableError(_CUT_OFF)
            return _Storage(memories[key][:nbytes], dtype)

        return _machine(load).run(io.BytesIO(archive.read(f"{root}/data.pkl")))


def _read_pickles(stream: BinaryIO) -> Any:
    if _machine().run(stream) != _MAGIC_NUMBER:
        raise UnreadableError("is a pickle, but not one that torch.save wrote")
    if _machine().run(stream) != _FORMAT_VERSION:
        raise UnreadableError("is a torch file of an unknown version")
    if _machine().run(stream).get("little_endian") is not (sys.byteorder == "little"):
        raise UnreadableError("was saved on a machine with the other byte order")
    memories: dict[str, Tensor] = {}

    def load(reference: Any) -> _Storage:
        dtype, key, nbytes, view = _parse_reference(reference)
        if key not in memories:
            memories[key] = _allocate(nbytes, stream)  # filled below: the data follows the pickles
        memory = memories[key]
        if view is not None:
            _, offset, count = view
            memory = memory[offset * _itemsize(dtype) : (offset + count) * _itemsize(dtype)]
        return _Storage(memory, dtype)

    result = _machine(load).run(stream)
    for key in _machine().run(stream):
        stream.seek(8, io.SEEK_CUR)  # the number of elements, which the reference has told already
        _fill(memories[key], stream)
    return result


def _read_tar(stream: BinaryIO) -> Any:
    stream.seek(0)
    with tarfile.open(fileobj=stream, mode="r:") as archive:
        if not {"storages", "tensors", "pickle"} <= set(archive.getnames()):
            raise UnreadableError("is a tar archive, but not one that torch.save wrote")
        members = {name: _member(archive, name) for name in ("storages", "tensors", "pickle")}
        objects: dict[int, Any] = {}
        data = members["storages"]
        for _ in range(_machine().run(data)):
            key, _, kind = _machine().run(data)
            dtype = _STORAGES[kind]
            (count,) = struct.unpack("<q", data.read(8))
            memory = _allocate(count * _itemsize(dtype), stream)
            _fill(memory, data)
            objects[key] = _Storage(memory, dtype)
        for key, root, offset, count in _machine().run(data):
            storage, size = objects[root], _itemsize(objects[root].dtype)
            objects[key] = _Storage(storage.memory[offset * size : (offset + count) * size], storage.dtype)
        data = members["tensors"]
        for _ in range(_machine().run(data)):
            key, storage_key, _ = _machine().run(data)
            (dims,) = struct.unpack("<ixxxx", data.read(8))
            *shape, offset = struct.unpack(f"<{2 * dims + 1}q", data.read(8 * (2 * dims + 1)))
            objects[key] = _tensor(objects[storage_key], offset, shape[:dims], shape[dims:])
        return _machine(lambda reference: objects[int(reference)]).run(members["pickle"])


def _member(archive: tarfile.TarFile, name: str) -> BinaryIO:
    member = archive.extractfile(name)
    if member is None:
        raise UnreadableError(_CUT_OFF)
    return member  # type: ignore[return-value]


def _parse_reference(reference: Any) -> tuple[torch.dtype | None, str, int, Any]:
    """('storage', class, key, location, elements[, view]) -> dtype, key, bytes, view. The location is not needed."""
    kind, storage_class, key, _, count, *view = reference
    if kind != "storage" or storage_class.path not in _STORAGES or not isinstance(key, str):
        raise UnreadableError("refers to memory in an unknown way")
    dtype = _STORAGES[storage_class.path]
    return dtype, key, count * _itemsize(dtype), view[0] if view else None


def _itemsize(dtype: torch.dtype | None) -> int:
    return 1 if dtype is None else torch.empty(0, dtype=dtype).element_size()


def _allocate(nbytes: int, stream: BinaryIO) -> Tensor:
    here = stream.tell()
    size = stream.seek(0, io.SEEK_END)
    stream.seek(here)
    if not 0 <= nbytes <= size:
        raise UnreadableError(_CUT_OFF)
    return torch.empty(nbytes, dtype=torch.uint8)


def _fill(memory: Tensor, stream: IO[bytes]) -> None:
    buffer = memoryview(memory.numpy())  # type: ignore[arg-type]
    done = 0
    while done < len(buffer):
        count = stream.readinto(buffer[done:])  # type: ignore[attr-defined]
        if not count:
            raise UnreadableError(_CUT_OFF)
        done += count


def _tensor(storage: Any, offset: int, size: Any, stride: Any, dtype: torch.dtype | None = None) -> Tensor:
    """A strided view of memory, with its bounds checked."""
    dtype = storage.dtype or dtype
    elements = storage.memory.view(dtype)
    size, stride = tuple(size), tuple(stride)
    if len(size) != len(stride) or min((offset, *size, *stride)) < 0:
        raise UnreadableError("holds a tensor of impossible shape")
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    if 0 not in size and last >= len(elements):
        raise UnreadableError(_CUT_OFF)
    return elements[offset:].as_strided(size, stride)


def _rebuild_tensor(storage: Any, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
    return _tensor(storage, offset, size, stride)


def _rebuild_tensor_v3(
    storage: Any, offset: int, size: Any, stride: Any, _: Any, __: Any, dtype: Any, *___: Any
) -> Tensor:
    return _tensor(storage, offset, size, stride, _DTYPES[dtype.path])


def _numpy_scalar(dtype: Any, data: Any) -> Any:
    return np.frombuffer(data, dtype=dtype.dtype)[0].item()


def _encode(text: str, encoding: str) -> bytes:
    if encoding not in {"latin1", "latin-1"}:
        raise UnreadableError(f"encodes bytes as {encoding!r}")
    return text.encode("latin-1")


_MAKERS: dict[str, Maker] = {
    **CONTAINER_MAKERS,
    "yacs.config.CfgNode": make_dict,
    "pytorch_lightning.utilities.parsing.AttributeDict": make_dict,
    "lightning_fabric.utilities.data.AttributeDict": make_dict,
    "lightning.pytorch.utilities.parsing.AttributeDict": make_dict,
    "lightning.fabric.utilities.data.AttributeDict": make_dict,
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
    "torch._utils._rebuild_parameter": _Parameter,
    "torch.nn.parameter.Parameter": _Parameter,
    "torch.autograd.variable.Variable": _Parameter,
    **dict.fromkeys(_TENSOR_CLASSES, _OldTensor),
    "torch.Size": tuple,
    "torch.device": lambda kind, index=None: str(kind) if index is None else f"{kind}:{index}",
    "numpy.dtype": _NumpyDtype,
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy._core.multiarray.scalar": _numpy_scalar,
    "_codecs.encode": _encode,
}


def _mentioned(path: str) -> bool:
    return path in _STORAGES or path in _DTYPES or path.startswith(_CALLBACKS)


def _machine(load_persistent: Callable[[Any], Any] | None = None) -> Machine:
    return Machine(_MAKERS, _mentioned, load_persistent)
