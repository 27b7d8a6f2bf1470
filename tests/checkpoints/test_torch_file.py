"""What files of torch.save may ask for, in all three formats; abuse with canaries; and files of other kinds."""

import os
import pickle
import re
import struct
import tarfile
import zipfile
from argparse import Namespace
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from checkpoints import torch_file
from checkpoints.reading import load_checkpoint
from checkpoints.torch_file import UnreadableError, read_torch_file
from tests.checkpoints.pickle_files import call, global_op, rewrite_zip, value_op, write_row, write_tar, write_zip
from utils.compat import tensor_builders
from utils.errors import CheckpointError


@pytest.fixture(params=[True, False], ids=["zip", "row"])
def zipped(request: pytest.FixtureRequest) -> bool:
    return request.param


def save(path: Path, obj: Any, zipped: bool = True) -> Path:
    torch.save(obj, path, _use_new_zipfile_serialization=zipped)
    return path


def test_tensors_are_plain_and_share_memory(tmp_path: Path, zipped: bool) -> None:
    whole = torch.arange(24.0)
    saved = {
        "whole": whole,
        "part": whole[3:9],
        "transposed": whole.view(4, 6).t()[1:, ::2],
        "empty": torch.empty(3, 0, 2),
        "half": torch.ones(2, dtype=torch.bfloat16),
        "integers": torch.tensor(7),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    result = load_checkpoint(save(tmp_path / "t.pth", saved, zipped))
    for key, expected in saved.items():
        assert type(result[key]) is torch.Tensor and not result[key].requires_grad
        torch.testing.assert_close(result[key], expected.detach(), rtol=0, atol=0)
    result["whole"][4] = -1.0
    assert result["part"][1] == -1.0


def test_containers_and_small_values(tmp_path: Path, zipped: bool) -> None:
    module_state = torch.nn.BatchNorm1d(2).state_dict()  # an OrderedDict with attributes
    saved = {
        "ordered": OrderedDict(b=1, a=(2, [3.5, None])),
        "counter": Counter([3, 3, 4]),
        "set": {1},
        "bytes": b"\x00\xff",
        "big": 1 << 80,
        "numpy": [np.float64(0.25), np.int64(-3), np.bool_(True), np.float32(1.5)],
        "size": torch.Size([2, 3]),
        "device": torch.device("cuda", 0),
        "dtype": torch.float16,
        "state": list(module_state),
    }
    result = load_checkpoint(save(tmp_path / "t.pth", {**saved, "module": module_state}, zipped))
    assert list(result.pop("module")) == list(module_state)
    assert result == {**saved, "set": [1], "device": "cuda:0", "dtype": "torch.float16"}
    assert [type(result[key]) for key in ("ordered", "counter", "size")] == [dict, dict, tuple]
    assert list(result["ordered"]) == ["b", "a"]
    assert [type(value) for value in result["numpy"]] == [float, int, bool, float]


def test_what_was_saved_on_cuda_is_read_onto_the_cpu(tmp_path: Path) -> None:
    path = save(tmp_path / "t.pth", {"t": torch.arange(4)})
    rewrite_zip(path, value_op("cpu")[:8], value_op("cuda:0")[:11])
    with zipfile.ZipFile(path) as archive:
        assert b"cuda:0" in archive.read("archive/data.pkl")
    result = load_checkpoint(path)["t"]
    assert result.device.type == "cpu" and result.tolist() == [0, 1, 2, 3]


def test_the_format_before_0_1_10(tmp_path: Path) -> None:
    tensors = {"conv1.weight": torch.arange(24.0).view(2, 3, 4), "bn1.bias": torch.tensor(1.5)}
    result = load_checkpoint(write_tar(tmp_path / "old.pth", tensors))
    assert list(result) == list(tensors)
    for key, expected in tensors.items():
        assert torch.equal(result[key], expected)


STORAGE = b"(X\x07\0\0\0storage" + global_op("torch.FloatStorage") + b"X\x01\0\0\0" + b"0X\x03\0\0\0cpuK\x06tQ"
SHAPE = b"K\0K\x02K\x03\x86K\x03K\x01\x86"
TENSOR = global_op("torch._utils._rebuild_tensor") + b"(" + STORAGE + SHAPE + b"tR"
PARAMETER = global_op("torch.nn.parameter.Parameter")
DATA = {"data/0": torch.arange(6.0).numpy().tobytes()}
OLD_FORMS = {
    "_rebuild_tensor": TENSOR,
    "parameter by call": PARAMETER + TENSOR + b"\x85R" + value_op((True, False, {})) + b"b",
    "parameter by function": global_op("torch._utils._rebuild_parameter") + b"(" + TENSOR + b"\x88}tR",
    "parameter by state": PARAMETER + b")\x81(" + TENSOR + value_op(None) * 2 + b"\x88\x89tb",
    "variable by state": global_op("torch.autograd.variable.Variable")
    + b")\x81("
    + TENSOR
    + value_op(None) * 2
    + b"\x88\x89tb",
}
if "_rebuild_tensor_v3" in tensor_builders():
    untyped = STORAGE.replace(b"FloatStorage", b"UntypedStorage").replace(b"K\x06", b"K\x18")
    parts = untyped + SHAPE + b"\x89}" + global_op("torch.float32")
    OLD_FORMS["untyped"] = global_op("torch._utils._rebuild_tensor_v3") + b"(" + parts + b"tR"


@pytest.mark.parametrize("form", OLD_FORMS.values(), ids=OLD_FORMS)
def test_every_form_in_which_torch_has_written_tensors(tmp_path: Path, form: bytes) -> None:
    data_pkl = b"\x80\x02}" + value_op("t") + form + b"s."
    result = load_checkpoint(write_zip(tmp_path / "t.pth", data_pkl, DATA))["t"]
    assert type(result) is torch.Tensor and not result.requires_grad
    assert torch.equal(result, torch.arange(6.0).view(2, 3))


@pytest.mark.parametrize("forced", [True, False])
def test_what_others_force_upon_torch_load_changes_nothing(
    tmp_path: Path, forced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD" if forced else "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
    monkeypatch.setenv(name, "1")
    honest_load = torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: honest_load(*args, **{**kwargs, "weights_only": forced}))
    assert load_checkpoint(save(tmp_path / "t.pth", {"a": Counter("aab")}))["a"] == {"a": 2, "b": 1}
    assert os.environ[name] == "1"
    with pytest.raises(UnreadableError, match="asks for os.system"):
        read_torch_file(write_zip(tmp_path / "t.pth", call("os.system", f"touch {tmp_path / 'canary'}")))
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("path", ["os.system", "builtins.eval", "sys.modules", "collections.OrderedDict.fromkeys"])
@pytest.mark.parametrize("form", ["global", "stack_global", "call", "new", "inst"])
def test_a_name_outside_the_list_is_refused_by_name(tmp_path: Path, path: str, form: str) -> None:
    module, name = path.rsplit(".", 1)
    data = {
        "global": b"\x80\x02" + global_op(path) + b".",
        "stack_global": b"\x80\x04" + value_op(module) + value_op(name) + b"\x93.",
        "call": call(path, "x"),
        "new": b"\x80\x02" + global_op(path) + b")\x81.",
        "inst": b"(i" + module.encode() + b"\n" + name.encode() + b"\n.",
    }[form]
    with pytest.raises(UnreadableError, match=rf"asks for {re.escape(path)}, which is not among the classes"):
        read_torch_file(write_zip(tmp_path / "t.pth", data))


def called(path: str, *arguments: Any) -> bytes:
    return call(path, *arguments)[2:-1]


def attributes_of_what_files_may_name() -> dict[str, Any]:
    """Everything that a change by a file could show in."""
    kinds = {
        *(torch.Tensor, torch.nn.Parameter, torch.UntypedStorage, torch.FloatStorage, torch.Size, torch.dtype),
        *(np.dtype, OrderedDict, set, str, *(type(value) for value in torch_file.ALLOWED.values())),
        *(value for value in torch_file.ALLOWED.values() if isinstance(value, type)),
    }
    functions = [value.function for value in torch_file.ALLOWED.values() if hasattr(value, "function")]
    parts = ("__code__", "__defaults__", "__kwdefaults__", "__dict__", "__name__", "__doc__")
    return {
        **{repr(kind): dict(vars(kind)) for kind in kinds},
        **{repr(f): [dict(v) if isinstance(v := getattr(f, p, None), dict) else v for p in parts] for f in functions},
        "list": dict(torch_file.ALLOWED),
    }


CHANGE = {"__defaults__": (), "__code__": None, "__setstate__": "x", "__call__": "x", "__len__": "x", "x": 1}
NAMED = [
    *("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter", "torch.nn.parameter.Parameter"),
    *("torch.Size", "torch.device", "torch.float32", "torch.storage.UntypedStorage", "torch.FloatTensor"),
    *("collections.OrderedDict", "yacs.config.CfgNode", "builtins.set", "_codecs.encode", "numpy.dtype"),
    *("numpy.core.multiarray.scalar", "pytorch_lightning.callbacks.ModelCheckpoint"),
]
CHANGES = {
    f"{kind} of {name}": global_op(name) + value_op(state) + b"b"
    for name in NAMED
    for kind, state in {"state": CHANGE, "slots": (None, CHANGE), "three": (1, 2, 3)}.items()
}
ABUSE = {
    **CHANGES,
    "state of a list": b"]" + value_op({"append": 1}) + b"b",
    "state of a storage": STORAGE + value_op({"dtype": 1}) + b"b",
    "call of a storage class": called("torch.FloatStorage", 1 << 40),
    "call of untyped memory": called("torch.storage.UntypedStorage", 1 << 40),
    "call of a tensor class": called("torch.FloatTensor", 1 << 40),
    "call of a callback": called("pytorch_lightning.callbacks.ModelCheckpoint", "/tmp"),
    "call of a result": called("collections.OrderedDict") + b")R",
    "call without arguments": called("torch._utils._rebuild_tensor_v2"),
    "new function": global_op("torch._utils._rebuild_tensor_v2") + b")\x81",
    "new with keywords": global_op("torch._utils._rebuild_tensor_v2") + b")}X\x01\0\0\0aK\x01s\x92",
    "INST of a function": b"((itorch._utils\n_rebuild_tensor_v2\n",
    "OBJ of a function": b"(" + global_op("torch._utils._rebuild_tensor_v2") + b"o",
    "a function as a value": global_op("torch._utils._rebuild_tensor_v2"),
    "storage as a value": STORAGE,
    "parameter of text": called("torch.nn.parameter.Parameter", "x"),
    "type as a value": called("numpy.dtype", "f8", False, True),
    "pointers as numbers": called("numpy.core.multiarray.scalar", called("numpy.dtype", "O8", False, True), "x" * 8),
    "pointers by state": called(
        "numpy.core.multiarray.scalar",
        called("numpy.dtype", "f8") + value_op((3, "O", None, None, None, 8, 8, 63)) + b"b",
        called("_codecs.encode", "x" * 8, "latin1"),
    ),
    "offset beyond": global_op("torch._utils._rebuild_tensor") + b"(" + STORAGE + b"K\x01" + SHAPE[2:] + b"tR",
    "negative offset": global_op("torch._utils._rebuild_tensor")
    + b"("
    + STORAGE
    + b"J\xff\xff\xff\xff"
    + SHAPE
    + b"tR",
    "another record": TENSOR.replace(b"\0\0\x000X", b"\0\0\x001X"),
    "another kind of memory": TENSOR.replace(b"storage", b"modules"),
    "extension registry": b"\x82\x01",
    "itself": b"]q\x00h\x00a",
    "deep nesting": b"]" * 5000 + b"a" * 4999,
    "missing mark": b"u",
    "an index far away": b"K\x01r\xff\xff\xff\x7fj\x00\x00\x00\x01",
}


@pytest.mark.parametrize("form", ABUSE.values(), ids=ABUSE)
def test_abuse_is_refused_and_changes_nothing(tmp_path: Path, form: bytes) -> None:
    before = attributes_of_what_files_may_name()
    data_pkl = b"\x80\x02}" + value_op("t") + form + b"s."
    try:
        with pytest.raises(CheckpointError):
            load_checkpoint(write_zip(tmp_path / "t.pth", data_pkl, DATA))
    finally:
        assert attributes_of_what_files_may_name() == before


def test_dictionaries_lose_their_attributes_and_callbacks_are_text(tmp_path: Path) -> None:
    node = called("yacs.config.CfgNode") + value_op({"__class__": 1, "update": 2}) + b"b"
    data_pkl = b"\x80\x02}" + value_op("t") + node + b"s" + global_op("callbacks.Saver") + b"K\x01s."
    result = load_checkpoint(write_zip(tmp_path / "t.pth", data_pkl))
    assert result == {"t": {}, "callbacks.Saver": 1} and callable(result["t"].update)


def test_announced_sizes_do_not_allocate_memory(tmp_path: Path) -> None:
    form = TENSOR.replace(b"K\x06", value_op(1 << 44))
    with pytest.raises(UnreadableError, match="cut off"):
        read_torch_file(write_row(tmp_path / "t.pth", b"\x80\x02" + form + b"."))


@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.999])
def test_a_cut_off_file(tmp_path: Path, zipped: bool, share: float) -> None:
    path = save(tmp_path / "t.pth", {"a": torch.randn(1000), "b": torch.randn(3)}, zipped)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(UnreadableError, match="cut off or damaged"):
        read_torch_file(path)


OTHER_FILES = {
    "is empty": b"",
    "web page": b"\n<!DOCTYPE html>\n<html><body>404</body></html>",
    "web page, with a comment": b"<!-- made -->\n<HTML>",
    "git-lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
    "compressed": b"\xfd7zXZ\x00",
    "is cut off or damaged": struct.pack("<Q", 24) + b'{"a":{"dtype":"F32"}}   ',
    "a pickle, but not one that torch.save wrote": pickle.dumps({"a": 1}, 2),
    "starts with b'weights": b"weights: 1",
    "starts with b'.x00, a broken tar": b"\0" * 257 + b"ustar" + b"\0" * 250,
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
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "a.zip", "storages")
    with pytest.raises(UnreadableError, match="tar archive, but not"):
        read_torch_file(tmp_path / "a.tar")


def test_a_whole_model_is_refused_with_the_way_out(tmp_path: Path, zipped: bool) -> None:
    for content in (torch.nn.Sequential(torch.nn.Linear(1, 1)), {"model": torch.nn.Linear(1, 1)}):
        path = save(tmp_path / "model.pth", content, zipped)
        with pytest.raises(CheckpointError, match="a whole model, written by torch.save.model.") as caught:
            load_checkpoint(path)
        assert f"{path} asks for torch.nn.modules." in str(caught.value)
        assert "save its weights alone: torch.save(model.state_dict(), OTHER_FILE)" in str(caught.value)


@pytest.mark.parametrize("path", ["os.system", "subprocess.Popen", "builtins.eval", "my_code.helper"])
def test_what_cannot_be_a_model_is_not_recommended(tmp_path: Path, path: str) -> None:
    with pytest.raises(UnreadableError, match=f"asks for {path}.*no code from it was run$"):
        read_torch_file(write_zip(tmp_path / "t.pth", call(path, "x").replace(b"posix", b"os")))


def test_options_of_a_training_beside_weights(tmp_path: Path, zipped: bool) -> None:
    path = save(tmp_path / "t.pth", {"teacher": {"a": torch.ones(1)}, "args": Namespace(lr=0.1)}, zipped)
    assert load_checkpoint(path) == {"teacher": {"a": torch.ones(1)}, "args": {}}


@pytest.mark.parametrize("hidden", [False, True])
def test_torchscript_is_refused_before_torch_runs_it(
    tmp_path: Path, hidden: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_zip(tmp_path / "s.pt", b"\x80\x02}.", {"constants.pkl": b"\x80\x02)."})
    if hidden:  # a second table of contents, which only readers that trust the table's place do not see
        data = path.read_bytes()
        size, start = struct.unpack("<II", data[-10:-2])
        end = start + size
        path.write_bytes(data[:end] + data[start:end].replace(b"constants.pkl", b"constants.xxx") + data[end:])
        assert "archive/constants.pkl" not in zipfile.ZipFile(path).namelist()
    ran: list[Any] = []
    monkeypatch.setattr(torch.jit, "load", lambda *args, **kwargs: ran.append(args))
    with pytest.raises(UnreadableError, match=r"is a TorchScript module.*torch\.jit\.load\(FILE\)\.state_dict\(\)"):
        read_torch_file(path)
    assert not ran
    with pytest.warns(UserWarning, match="TorchScript"):
        torch.load(path, weights_only=False)
    assert ran  # without the check


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE])
def test_links_in_tar_archives_lead_nowhere(tmp_path: Path, kind: bytes) -> None:
    victim, path = tmp_path / "victim", tmp_path / "t.tar"
    victim.write_bytes(b"mine")
    victim.chmod(0o600)
    with tarfile.open(path, "w") as tar:
        for name in ("storages", "tensors", "pickle"):
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.mode = kind, f"{'../' * 20}{victim}", 0o777
            tar.addfile(member)
    with pytest.raises(UnreadableError, match="tar archive, but not"):
        read_torch_file(path)
    assert victim.stat().st_mode & 0o777 == 0o600 and victim.stat().st_nlink == 1


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
            load_checkpoint(path)
        except CheckpointError:
            refused += 1
    assert refused > 20
