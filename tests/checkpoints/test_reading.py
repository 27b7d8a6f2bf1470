"""Reading checkpoints: the recorded one of the original, refusals with a canary, and every wrong file."""

import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoints.reading import load_checkpoint, load_ctl_checkpoint
from tests.checkpoints.pickle_files import call, write_row, write_zip
from tests.checkpoints.plain_data import assert_plain
from tests.launch import run_code
from utils.errors import CheckpointError, MissingPathError, NotACtlCheckpointError, UserError


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
    done = run_code(program, legacy_path)
    assert (done.stdout, done.returncode) == ("4\n", 0), done.stderr


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


def test_safetensors_are_read_as_weights_but_are_no_checkpoint(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "weights.safetensors"
    state = {**torchvision_state_dict(), "half": torch.ones(3, dtype=torch.bfloat16)}
    save_file(state, path)
    found = load_checkpoint(path)
    assert_plain(found)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], state[key]) and found[key].dtype == state[key].dtype for key in state)
    with pytest.raises(
        NotACtlCheckpointError, match="weights.safetensors holds torchvision resnet18 weights; expected"
    ):
        load_ctl_checkpoint(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    with pytest.raises(CheckpointError, match="weights.safetensors is cut off or damaged"):
        load_checkpoint(path)


def test_without_the_package_for_safetensors_the_message_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.delitem(sys.modules, "safetensors.torch", raising=False)
    with pytest.raises(
        UserError, match=r"^\S+w\.safetensors is a safetensors file: reading it needs .*reid\[safetensors\]'"
    ):
        load_checkpoint(tmp_path / "w.safetensors")
