"""Writes pickles and torch files by hand, so that tests can hold what no honest program would write."""

import io
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

MAGIC_NUMBER, FORMAT_VERSION = 0x1950A86A20F9469CFC6C, 1001


def global_op(path: str) -> bytes:
    """The opcode that pushes a class or function by name."""
    module, name = path.rsplit(".", 1)
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n"


def value_op(value: Any) -> bytes:
    """Opcodes that push a plain value."""
    return pickle.dumps(value, protocol=2)[2:-1]


def call(path: str, *arguments: Any) -> bytes:
    """A pickle that calls a function by name; an argument that is bytes is opcodes, any other is a plain value."""
    pushed = b"".join(a if isinstance(a, bytes) else value_op(a) for a in arguments)
    return b"\x80\x02" + global_op(path) + b"(" + pushed + b"tR."


def write_zip(path: Path, data_pkl: bytes, records: Mapping[str, bytes] | None = None) -> Path:
    """A file in the zip format, around any pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data_pkl)
        for name, data in (records or {}).items():
            archive.writestr(f"archive/{name}", data)
        archive.writestr("archive/version", b"3\n")
    return path


def write_row(path: Path, data_pkl: bytes, memories: Mapping[str, bytes] | None = None) -> Path:
    """A file in the format of torch 0.1.10 to 1.5, around any pickle; the memories hold float32."""
    system = {"protocol_version": FORMAT_VERSION, "little_endian": True, "type_sizes": {}}
    head = b"".join(pickle.dumps(part, protocol=2) for part in (MAGIC_NUMBER, FORMAT_VERSION, system))
    data = b"".join(struct.pack("<q", len(memory) // 4) + memory for memory in (memories or {}).values())
    path.write_bytes(head + data_pkl + pickle.dumps(list(memories or {}), protocol=2) + data)
    return path


def rewrite_zip(path: Path, old: bytes, new: bytes) -> None:
    """Replace bytes in the pickle of a file in the zip format."""
    with zipfile.ZipFile(path) as archive:
        records = {name.split("/", 1)[1]: archive.read(name) for name in archive.namelist()}
    data_pkl = records.pop("data.pkl")
    assert old in data_pkl
    records.pop("version")
    write_zip(path, data_pkl.replace(old, new), records)


def write_tar(path: Path, tensors: Mapping[str, torch.Tensor]) -> Path:
    """A file in the format of torch up to 0.1.9: float tensors by name."""
    storages, entries = io.BytesIO(), io.BytesIO()
    for stream in (storages, entries):
        pickle.dump(len(tensors), stream, protocol=2)
    for key, tensor in enumerate(tensors.values()):
        reference = (key, "cpu")
        head = b"\x80\x02(" + value_op(reference[0]) + value_op(reference[1]) + global_op("torch.FloatStorage") + b"t."
        storages.write(head + struct.pack("<q", tensor.numel()) + tensor.contiguous().numpy().tobytes())
        head = b"\x80\x02(" + value_op(100 + key) + value_op(key) + global_op("torch.FloatTensor") + b"t."
        shape = struct.pack(f"<{2 * tensor.dim()}q", *tensor.shape, *tensor.contiguous().stride())
        entries.write(head + struct.pack("<ii", tensor.dim(), 0) + shape + struct.pack("<q", 0))
    pickle.dump([], storages, protocol=2)
    items = b"".join(value_op(name) + value_op(str(100 + key)) + b"Q" for key, name in enumerate(tensors))
    parts = {"storages": storages.getvalue(), "tensors": entries.getvalue(), "pickle": b"\x80\x02}(" + items + b"u."}
    with tarfile.open(path, "w") as archive:
        for name, data in parts.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path
