"""Files of torch.save in all three formats against torch's own reader, and files that lie."""

import io
import pickle
import struct
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.utils.pickle_files import call, global_op, rewrite_zip, value_op, write_row, write_tar, write_zip
from utils.safe_pickle import UnreadableError
from utils.torch_file import read_torch_file

DTYPES = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]
DTYPES += ["complex64", "complex128"] + [name for name in ("uint16", "uint32", "uint64") if hasattr(torch, name)]


@pytest.fixture(params=[True, False], ids=["zip", "row"])
def zipped(request: pytest.FixtureRequest) -> bool:
    return request.param


def save(path: Path, obj: Any, zipped: bool = True) -> Path:
    torch.save(obj, path, _use_new_zipfile_serialization=zipped)
    return path


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype(tmp_path: Path, zipped: bool, name: str) -> None:
    expected = torch.tensor([[0, 1, 2], [3, 4, 5]]).to(getattr(torch, name))
    result = read_torch_file(save(tmp_path / "t.pth", {"t": expected}, zipped))["t"]
    assert result.dtype == expected.dtype and result.shape == expected.shape
    assert result.tolist() == expected.tolist()


def test_every_kind_of_view_and_sharing(tmp_path: Path, zipped: bool) -> None:
    whole = torch.arange(24.0)
    saved = {
        "whole": whole,
        "part": whole[3:9],
        "transposed": whole.view(4, 6).t()[1:, ::2],
        "expanded": whole[:1].expand(3, 5),
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0),
        "empty rows": torch.empty(3, 0, 2),
        "end": whole[24:],
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    result = read_torch_file(save(tmp_path / "t.pth", saved, zipped))
    for key, expected in saved.items():
        torch.testing.assert_close(result[key], expected.detach(), rtol=0, atol=0)
        assert not result[key].requires_grad
    assert result["transposed"].stride() == saved["transposed"].stride()
    result["whole"][4] = -1.0
    assert result["part"][1] == -1.0


def test_containers_and_small_values(tmp_path: Path, zipped: bool) -> None:
    saved = {
        "ordered": OrderedDict(b=1, a=(2, [3.5, None])),
        "counter": Counter([3, 3, 4]),
        "set": {1, 2},
        "bytes": b"\x00\xff",
        "big": 1 << 80,
        "numpy": [np.float64(0.25), np.int64(-3), np.bool_(True), np.float32(1.5)],
        "size": torch.Size([2, 3]),
        "device": torch.device("cuda", 0),
        "dtype": torch.float16,
    }
    result = read_torch_file(save(tmp_path / "t.pth", saved, zipped))
    assert result == {**saved, "device": "cuda:0", "dtype": "torch.float16"}
    assert [type(result[key]) for key in ("ordered", "counter", "set", "size")] == [dict, dict, set, tuple]
    assert list(result["ordered"]) == ["b", "a"]
    assert [type(value) for value in result["numpy"]] == [float, int, bool, float]


def test_what_was_saved_on_cuda_is_read_onto_the_cpu(tmp_path: Path) -> None:
    path = save(tmp_path / "t.pth", {"t": torch.arange(4)})
    rewrite_zip(path, value_op("cpu")[:8], value_op("cuda:0")[:11])
    with zipfile.ZipFile(path) as archive:
        assert b"cuda:0" in archive.read("archive/data.pkl")
    result = read_torch_file(path)["t"]
    assert result.device.type == "cpu" and result.tolist() == [0, 1, 2, 3]


def test_the_format_before_0_1_10(tmp_path: Path) -> None:
    tensors = {"conv1.weight": torch.arange(24.0).view(2, 3, 4), "bn1.bias": torch.tensor(1.5)}
    result = read_torch_file(write_tar(tmp_path / "old.pth", tensors))
    assert list(result) == list(tensors)
    for key, expected in tensors.items():
        assert torch.equal(result[key], expected)


def test_storages_that_are_parts_of_others(tmp_path: Path) -> None:
    part = STORAGE.replace(b"K\x06", b"K\x0a" + value_op(("9", 2, 4)))  # 4 elements from the third on
    path = write_row(tmp_path / "t.pth", b"\x80\x02" + tensor_call(1, (3,), (1,), part) + b".", {"0": ROW})
    assert torch.equal(read_torch_file(path), torch.tensor([3.0, 4.0, 5.0]))
    assert torch.equal(torch.load(path, weights_only=True), torch.tensor([3.0, 4.0, 5.0]))
    beyond = tensor_call(1, (4,), (1,), part)
    with pytest.raises(UnreadableError, match="cut off"):
        read_torch_file(write_row(tmp_path / "t.pth", b"\x80\x02" + beyond + b".", {"0": ROW}))


def test_files_without_checksums(tmp_path: Path) -> None:
    path = save(tmp_path / "t.pth", {"a": torch.ones(5)})
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        for record in archive.infolist():
            data = data.replace(struct.pack("<I", record.CRC), bytes(4))
    path.write_bytes(data)
    assert torch.equal(read_torch_file(path)["a"], torch.ones(5))


ROW = torch.arange(10.0).numpy().tobytes()
STORAGE = b"(X\x07\0\0\0storage" + global_op("torch.FloatStorage") + b"X\x01\0\0\0" + b"0X\x03\0\0\0cpuK\x06tQ"
TENSOR = global_op("torch._utils._rebuild_tensor") + b"(" + STORAGE + b"K\0K\x02K\x03\x86K\x03K\x01\x86tR"
DATA = {"data/0": torch.arange(6.0).numpy().tobytes()}
OLD_FORMS = {
    "_rebuild_tensor": TENSOR,
    "parameter by call": global_op("torch.nn.parameter.Parameter")
    + TENSOR
    + b"\x85R"
    + value_op((True, False, {}))
    + b"b",
    "parameter by function": global_op("torch._utils._rebuild_parameter") + b"(" + TENSOR + b"\x88}tR",
    "variable by state": global_op("torch.autograd.variable.Variable")
    + b")\x81("
    + TENSOR
    + value_op(None) * 2
    + b"\x88\x89tb",
    "tensor by state": global_op("torch.FloatTensor") + b")\x81(" + STORAGE + b"K\0K\x02K\x03\x86K\x03K\x01\x86tb",
    "tensor v3": global_op("torch._utils._rebuild_tensor_v3")
    + b"("
    + STORAGE.replace(b"FloatStorage", b"UntypedStorage").replace(b"K\x06", b"K\x18")
    + b"K\0K\x02K\x03\x86K\x03K\x01\x86\x89}"
    + global_op("torch.float32")
    + b"tR",
}


@pytest.mark.parametrize("form", OLD_FORMS.values(), ids=OLD_FORMS)
def test_every_form_in_which_torch_has_written_tensors(tmp_path: Path, form: bytes) -> None:
    result = read_torch_file(write_zip(tmp_path / "t.pth", b"\x80\x02" + form + b".", DATA))
    assert torch.equal(result, torch.arange(6.0).view(2, 3))


def tensor_call(offset: int, size: Any, stride: Any, storage: bytes = STORAGE) -> bytes:
    parts = storage + value_op(offset) + value_op(size) + value_op(stride)
    return global_op("torch._utils._rebuild_tensor") + b"(" + parts + b"tR"


DISHONEST = {
    "one row too many": tensor_call(0, (3, 3), (3, 1)),
    "offset": tensor_call(1, (2, 3), (3, 1)),
    "negative offset": tensor_call(-1, (2, 3), (3, 1)),
    "negative stride": tensor_call(5, (6,), (-1,)),
    "stride": tensor_call(0, (2,), (1 << 62,)),
    "size": tensor_call(0, (1 << 62, 1 << 62), (0, 1)),
    "ranks": tensor_call(0, (2, 3), (3,)),
    "text": tensor_call(0, ("2", 3), (3, 1)),
    "more than the record holds": tensor_call(0, (2, 3), (3, 1), STORAGE.replace(b"K\x06", b"K\x07")),
    "no such record": tensor_call(0, (2, 3), (3, 1), STORAGE.replace(b"\0\0\x000X", b"\0\0\x001X")),
    "another folder": tensor_call(0, (2, 3), (3, 1), STORAGE.replace(b"\x01\0\0\x000X", b"\x07\0\0\x00../etc/X")),
    "storage of objects": tensor_call(0, (2, 3), (3, 1), STORAGE.replace(b"FloatStorage", b"float32")),
    "no storage": tensor_call(0, (2, 3), (3, 1), value_op({})),
    "storage without a tensor": STORAGE,
    "tensor without state": global_op("torch.FloatTensor") + b")\x81",
    "parameter without data": global_op("torch.nn.parameter.Parameter") + b")\x81",
    "numpy type without a number": global_op("numpy.dtype") + value_op(("f8", False, True)) + b"R",
    "state of a storage": STORAGE + value_op({"memory": 1}) + b"b",
    "parameter of text": global_op("torch.nn.parameter.Parameter") + value_op("x") + b"\x85R",
    "numpy object": global_op("numpy.dtype") + value_op(("O8", False, True)) + b"R",
    "numpy structure": global_op("numpy.dtype") + value_op(("f8,f8", False, True)) + b"R",
    "codec": global_op("_codecs.encode") + value_op(("x", "rot13")) + b"R",
    "state of a function": global_op("torch._utils._rebuild_tensor") + value_op({"__defaults__": ()}) + b"b",
    "slots of a function": global_op("torch._utils._rebuild_tensor") + value_op((None, {"__code__": 1})) + b"b",
    "call of a storage": global_op("torch.FloatStorage") + value_op((1 << 40,)) + b"R",
    "call of a callback": global_op("pytorch_lightning.callbacks.ModelCheckpoint") + value_op(("/tmp",)) + b"R",
}


@pytest.mark.parametrize("form", DISHONEST.values(), ids=DISHONEST)
def test_lies_about_tensors_are_refused(tmp_path: Path, form: bytes) -> None:
    with pytest.raises(UnreadableError):
        read_torch_file(write_zip(tmp_path / "t.pth", b"\x80\x02" + form + b".", DATA))


def test_announced_sizes_do_not_allocate_memory(tmp_path: Path) -> None:
    form = tensor_call(0, (1 << 40,), (1,), STORAGE.replace(b"K\x06", value_op(1 << 40)))
    with pytest.raises(UnreadableError, match="cut off"):
        read_torch_file(write_row(tmp_path / "t.pth", b"\x80\x02" + form + b"."))


@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.999])
def test_a_cut_off_file(tmp_path: Path, zipped: bool, share: float) -> None:
    path = save(tmp_path / "t.pth", {"a": torch.randn(1000), "b": torch.randn(3)}, zipped)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(UnreadableError, match=r"cut off|damaged"):
        read_torch_file(path)


def test_a_flipped_bit_in_the_weights_is_noticed(tmp_path: Path) -> None:
    path = save(tmp_path / "t.pth", {"a": torch.ones(1000)})
    data = bytearray(path.read_bytes())
    data[data.find(struct.pack("<f", 1.0) * 10) + 20] ^= 1
    path.write_bytes(data)
    with pytest.raises(UnreadableError, match="damaged"):
        read_torch_file(path)


OTHER_FILES = {
    "is empty": b"",
    "web page": b"\n<!DOCTYPE html>\n<html><body>404</body></html>",
    "web page, with a comment": b"<!-- made -->\n<HTML>",
    "git-lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
    "compressed": b"\xfd7zXZ\x00",
    "safetensors": struct.pack("<Q", 24) + b'{"a":{"dtype":"F32"}}   ',
    "a pickle, but not one that torch.save wrote": pickle.dumps({"a": 1}, 2),
    "starts with b'weights": b"weights: 1",
}


@pytest.mark.parametrize("phrase", OTHER_FILES)
def test_other_files_are_named(tmp_path: Path, phrase: str) -> None:
    path = tmp_path / "epoch=1.ckpt"
    path.write_bytes(OTHER_FILES[phrase])
    with pytest.raises(UnreadableError, match=phrase.split(",")[0]):
        read_torch_file(path)


def test_other_archives_are_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("readme.txt", "x")
    with pytest.raises(UnreadableError, match="zip archive, but not"):
        read_torch_file(tmp_path / "a.zip")
    with pytest.raises(UnreadableError, match="TorchScript"):
        read_torch_file(write_zip(tmp_path / "s.pt", b"\x80\x02}.", {"constants.pkl": b"\x80\x02)."}))
    with pytest.raises(UnreadableError, match="other byte order"):
        read_torch_file(write_zip(tmp_path / "b.pt", b"\x80\x02}.", {"byteorder": b"big"}))


def test_damaged_files_give_the_error_and_nothing_else(tmp_path: Path, zipped: bool) -> None:
    path = save(tmp_path / "t.pth", {"a": torch.ones(3), "b": [1, (2.0, "x")]}, zipped)
    honest = path.read_bytes()
    generator = np.random.default_rng(0)
    refused = 0
    for _ in range(200):
        damaged = bytearray(honest)
        for position in generator.integers(len(damaged), size=5):
            damaged[position] = generator.integers(256)
        path.write_bytes(damaged)
        try:
            read_torch_file(path)
        except UnreadableError:
            refused += 1
    assert refused > 20


def test_an_endless_tar_header_is_no_torch_file(tmp_path: Path) -> None:
    buffer = io.BytesIO(b"\0" * 257 + b"ustar" + b"\0" * 250)
    (tmp_path / "t.tar").write_bytes(buffer.getvalue())
    with pytest.raises(UnreadableError):
        read_torch_file(tmp_path / "t.tar")


def test_names_called_with_too_few_arguments_are_damage(tmp_path: Path) -> None:
    with pytest.raises(UnreadableError, match="damaged"):
        read_torch_file(write_zip(tmp_path / "t.pth", call("torch._utils._rebuild_tensor_v2")))
