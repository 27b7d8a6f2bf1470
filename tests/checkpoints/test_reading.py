"""Checkpoints: the recorded one of the original, refusals with a canary, every wrong file, and saving."""

import os
import pickle
import subprocess
import sys
from collections import Counter, OrderedDict
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning.utilities.parsing import AttributeDict
from yacs.config import CfgNode

from checkpoints.plain import to_plain
from checkpoints.reading import load_backbone_weights, load_checkpoint, load_ctl_checkpoint
from checkpoints.weights import backbone_of, describe
from checkpoints.writing import atomic_save
from tests.checkpoints.pickle_files import call, write_row, write_zip
from tests.support import ROOT
from utils.errors import CheckpointError, MissingPathError, UserError


def assert_plain(obj: Any) -> None:
    assert type(obj) in {dict, list, tuple, str, int, float, bool, bytes, type(None), torch.Tensor}
    for part in [*obj, *obj.values()] if isinstance(obj, dict) else obj if isinstance(obj, list | tuple) else []:
        assert_plain(part)


def test_the_recorded_checkpoint_is_read_as_plain_data(legacy_path: Path) -> None:
    checkpoint = load_ctl_checkpoint(legacy_path)
    assert_plain(checkpoint)
    assert (checkpoint["epoch"], checkpoint["global_step"]) == (4, 16)
    assert checkpoint["hyper_parameters"]["MODEL"]["NAME"] == "resnet18"
    assert checkpoint["hyper_parameters"]["SOLVER"]["LR_STEPS"] == (3, 4)
    assert checkpoint["hyper_parameters"]["num_classes"] == 10
    assert list(checkpoint["callbacks"]) == ["pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"]
    assert checkpoint["lr_schedulers"][0]["milestones"] == {3: 1, 4: 1}
    assert len(checkpoint["state_dict"]) == 127
    assert checkpoint["state_dict"]["center_loss.centers"].shape == (10, 512)
    assert checkpoint["optimizer_states"][0]["state"][0]["exp_avg"].shape == (64, 3, 7, 7)


def test_reading_needs_neither_lightning_nor_yacs_nor_torch_load(legacy_path: Path) -> None:
    program = (
        "import sys, torch\n"
        "sys.modules.update(yacs=None, pytorch_lightning=None, lightning_fabric=None)\n"
        "torch.load = None\n"
        "from checkpoints.reading import load_ctl_checkpoint; print(load_ctl_checkpoint(sys.argv[1])['epoch'])"
    )
    command = [sys.executable, "-c", program, str(legacy_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "4\n"


class Gadget:
    """Calls a function when unpickled by Python."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.function, self.arguments


# What each would do to the canary: make the file CANARY.
GADGETS: dict[str, tuple[str, Callable[[str], bytes]]] = {
    "os.system": (
        f"{os.system.__module__}.system",
        lambda canary: pickle.dumps({"state_dict": Gadget(os.system, f"touch {canary}")}, 2),
    ),
    "eval": ("builtins.eval", lambda canary: call("builtins.eval", f"open({canary!r}, 'w')")),
    "python 2 eval": ("builtins.eval", lambda canary: call("__builtin__.eval", f"open({canary!r}, 'w')")),
    "exec": ("builtins.exec", lambda canary: pickle.dumps(Gadget(exec, f"open({canary!r}, 'w')"), 4)),
    "open": ("_?io.open", lambda canary: pickle.dumps([Gadget(open, canary, "w")], 2)),
    "subprocess": ("subprocess.Popen", lambda canary: call("subprocess.Popen", ["touch", canary])),
    "pathlib": ("pathlib.Path.touch", lambda canary: call("pathlib.Path.touch", canary)),
    "bytes of another pickle": (
        "torch.storage._load_from_bytes",
        lambda canary: call("torch.storage._load_from_bytes", f"touch {canary}"),
    ),
    "pickle in a pickle": ("_pickle.loads", lambda canary: pickle.dumps(Gadget(pickle.loads, b"cos\nsystem\n."), 3)),
    "torch.load": ("torch.load", lambda canary: call("torch.load", canary)),
    "torch.save": ("torch.save", lambda canary: call("torch.save", {}, canary)),
    "numpy": ("numpy.save", lambda canary: call("numpy.save", canary, 1)),
    "attribute": ("builtins.getattr", lambda canary: call("builtins.getattr", {}, "update")),
    "import": ("importlib.import_module", lambda canary: call("importlib.import_module", "antigravity")),
    "rebuild with a function": (
        "torch._tensor._rebuild_from_type_v2",
        lambda canary: call("torch._tensor._rebuild_from_type_v2", b"cos\nsystem\n", b"cos\nsystem\n", (canary,), {}),
    ),
}
WRITERS: dict[str, Callable[[Path, bytes], Any]] = {
    "zip": write_zip,
    "row": write_row,
    "pickle": lambda path, data: path.write_bytes(data),
}


@pytest.mark.parametrize("gadget", GADGETS)
@pytest.mark.parametrize("form", WRITERS)
def test_a_file_that_would_run_code_is_refused_by_name(
    tmp_path: Path, gadget: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest_load = torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: honest_load(*args, **{**kwargs, "weights_only": False}))
    canary, path = tmp_path / "canary", tmp_path / "epoch=1.ckpt"
    named, make = GADGETS[gadget]
    WRITERS[form](path, make(str(canary)))
    with pytest.raises(CheckpointError, match=rf"epoch=1.ckpt asks for {named}, which is not among the classes"):
        load_checkpoint(path)
    assert not canary.exists()


def test_the_canary_would_have_been_made(tmp_path: Path) -> None:
    _, make = GADGETS["os.system"]
    pickle.loads(make(str(tmp_path / "canary")))
    assert (tmp_path / "canary").exists()


def ctl_state_dict() -> dict[str, torch.Tensor]:
    layers = [f"layer{i}.{j}.conv1.weight" for i in (1, 2, 3, 4) for j in (0, 1)]
    keys = [*(f"backbone.base.{k}" for k in ["conv1.weight", *layers]), "bn.weight", "center_loss.centers"]
    return {key: torch.zeros(2) for key in [*keys, "fc_query.weight"]}


def torchvision_state_dict() -> dict[str, torch.Tensor]:
    inside = {k.removeprefix("backbone.base."): v for k, v in ctl_state_dict().items() if k.startswith("backbone")}
    return {**inside, "fc.weight": torch.zeros(2)}


OTHER_CONTENTS: dict[str, tuple[str, Callable[[], Any]]] = {
    "ImageNet weights": ("torchvision resnet18 weights", torchvision_state_dict),
    "wrapped": ("torchvision resnet18 weights", lambda: {"state_dict": torchvision_state_dict(), "epoch": 3}),
    "weights alone": ("a CTL checkpoint of resnet18", ctl_state_dict),
    "no hyper parameters": ("lacks hyper_parameters", lambda: {"state_dict": ctl_state_dict()}),
    "another model": (
        "a Lightning checkpoint of another model",
        lambda: {"state_dict": {"net.w": torch.ones(1)}, "hyper_parameters": {}, "pytorch-lightning_version": "2.0"},
    ),
    "no centers": (
        "lacks state_dict with center_loss.centers",
        lambda: {
            "state_dict": {k: v for k, v in ctl_state_dict().items() if "center" not in k},
            "hyper_parameters": {},
        },
    ),
    "an unknown network": ("weights of an unknown network .the first is a", lambda: {"a": torch.ones(1)}),
    "no weights": ("a dictionary without weights .keys: a, b", lambda: {"a": 1, "b": 2}),
    "empty": ("keys: none", dict),
    "a list": ("holds a list", lambda: [torch.ones(1)]),
    "a tensor": ("holds a Tensor", lambda: torch.ones(1)),
}


@pytest.mark.parametrize("case", OTHER_CONTENTS)
def test_other_contents_given_as_a_checkpoint_are_recognised(tmp_path: Path, case: str) -> None:
    phrase, make = OTHER_CONTENTS[case]
    torch.save(make(), tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError, match=phrase) as caught:
        load_ctl_checkpoint(tmp_path / "other.ckpt")
    assert "other.ckpt" in str(caught.value) and isinstance(caught.value, UserError)
    if "weights" in phrase:
        assert "MODEL.PRETRAIN_PATH" in str(caught.value)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    for path in ("", tmp_path / "none.ckpt"):
        with pytest.raises(MissingPathError, match="No such checkpoint"):
            load_checkpoint(path)
    with pytest.raises(CheckpointError, match="is a folder"):
        load_checkpoint(tmp_path)


def test_a_cut_off_download_names_the_file(legacy_path: Path, tmp_path: Path) -> None:
    with legacy_path.open("rb") as stream:
        (tmp_path / "half.ckpt").write_bytes(stream.read(1 << 20))
    with pytest.raises(CheckpointError, match=r"half\.ckpt is cut off or damaged"):
        load_ctl_checkpoint(tmp_path / "half.ckpt")


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.base."])
@pytest.mark.parametrize("wrapped", [False, True])
def test_backbone_weights_lose_their_prefix_and_their_heads(tmp_path: Path, prefix: str, wrapped: bool) -> None:
    inside = {"conv1.weight": torch.ones(1), "fc.weight": torch.ones(2), "classifier.0.bias": torch.ones(3)}
    state = {prefix + key: value for key, value in {**inside, "bottleneck.weight": torch.ones(4)}.items()}
    if prefix == "backbone.base.":
        state["bn.weight"] = torch.ones(5)
    torch.save({"state_dict": state, "epoch": 1} if wrapped else state, tmp_path / "w.pth")
    weights, _ = load_backbone_weights(tmp_path / "w.pth")
    assert list(weights) == ["conv1.weight"]


def test_describes_the_recorded_checkpoint(legacy_path: Path) -> None:
    assert describe(load_checkpoint(legacy_path)) == "a CTL checkpoint of resnet18"


class Colour(StrEnum):
    RED = "red"


def test_to_plain_makes_every_class_plain() -> None:
    node = CfgNode({"A": CfgNode({"B": (1, 2)}), "C": ["x"]})
    shared = {"w": torch.nn.Parameter(torch.ones(2))}
    plain = to_plain(
        {
            "node": node,
            "attributes": AttributeDict(a=AttributeDict(b=1)),
            "numbers": [np.float64(0.5), np.int64(2), np.bool_(True), np.float32(0.25)],
            "array": np.arange(3),
            "ordered": OrderedDict(b=1, a=2),
            "counter": Counter("aab"),
            "set": {7},
            "path": Path("a") / "b",
            "device": torch.device("cpu"),
            "size": torch.Size([1, 2]),
            "enum": Colour.RED,
            "version": torch.__version__,
            "shared": [shared, shared],
            torch.nn.Linear: None,
        }
    )
    assert_plain(plain)
    assert plain["node"] == {"A": {"B": (1, 2)}, "C": ["x"]}
    assert plain["numbers"] == [0.5, 2, True, 0.25]
    assert plain["array"].tolist() == [0, 1, 2]
    assert (plain["set"], plain["path"], plain["device"], plain["size"]) == ([7], "a/b", "cpu", (1, 2))
    assert (plain["enum"], plain["counter"]) == ("red", {"a": 2, "b": 1})
    assert plain["shared"][0] is plain["shared"][1] and not plain["shared"][0]["w"].requires_grad
    assert "torch.nn.modules.linear.Linear" in plain


@pytest.mark.parametrize("value", [object(), lambda: 0, open], ids=["object", "function", "builtin"])
def test_to_plain_names_what_it_cannot_save_and_where(value: Any) -> None:
    with pytest.raises(CheckpointError, match=r"holds a .* at \['callbacks'\]\[1\]"):
        to_plain({"callbacks": [0, value]})


def test_saving_and_loading_again(tmp_path: Path) -> None:
    checkpoint = {"state_dict": OrderedDict(w=torch.randn(3)), "hyper_parameters": CfgNode({"A": CfgNode({"B": 1})})}
    path = tmp_path / "new" / "folder" / "epoch=0.ckpt"
    atomic_save(to_plain(checkpoint), path)
    loaded = load_checkpoint(path)
    assert loaded["hyper_parameters"] == {"A": {"B": 1}}
    assert torch.equal(loaded["state_dict"]["w"], checkpoint["state_dict"]["w"])
    assert torch.load(path, weights_only=True).keys() == loaded.keys()
    assert [entry.name for entry in path.parent.iterdir()] == ["epoch=0.ckpt"]


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    atomic_save({"epoch": 1}, path)
    with pytest.raises((AttributeError, pickle.PicklingError)):
        atomic_save({"epoch": 2, "tensor": torch.ones(3), "function": lambda: 0}, path)
    assert load_checkpoint(path) == {"epoch": 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        (["module.conv1.weight", "module.bn1.weight"], ["conv1.weight", "bn1.weight"]),
        (["module.conv1.weight", "bn1.weight"], ["module.conv1.weight", "bn1.weight"]),  # a part of that name
    ],
)
def test_the_prefix_of_a_wrapper_is_on_all_names(keys: list[str], found: list[str]) -> None:
    assert list(backbone_of({key: torch.ones(1) for key in keys})) == found
