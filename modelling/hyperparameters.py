"""Hyper-parameters of a model: from a configuration and arguments, and from a checkpoint, which is not trusted."""

from collections.abc import Callable
from inspect import signature
from typing import Any, TypeVar

from yacs.config import CfgNode

from checkpoints.plain import to_plain
from config.defaults import _C as DEFAULTS
from modelling.backbones import REGISTRY as BACKBONES
from utils.errors import UserError

# What is not read from a checkpoint's hyper-parameters: arguments of the constructor that mean something else there.
NOT_STORED = ("cfg", "test_dataloader", "load_imagenet", "LOSSES")
Model = TypeVar("Model")


def merge_hparams(base: CfgNode, overlay: dict[str, Any]) -> CfgNode:
    """``base`` with the values of ``overlay`` on top, section by section; neither is modified."""
    merged = base.clone()
    merged.defrost()
    for key, value in overlay.items():
        if isinstance(value, dict) and isinstance(merged.get(key), CfgNode):
            merged[key] = merge_hparams(merged[key], value)
        else:
            merged[key] = CfgNode(to_plain(value)) if isinstance(value, dict) else value
    return merged


def with_trained_size(cfg: Any, stored: dict[str, Any]) -> Any:
    """A configuration for a checkpoint's weights; of a network of another package, with its INPUT.SIZE_TRAIN.

    Outside of a training, that size means the position embeddings of such a network and nothing else.

    Args:
        cfg: a node, a plain dictionary of some of its keys, or None; not modified.
        stored: hyper-parameters of the checkpoint.
    """
    size = stored.get("INPUT", {}).get("SIZE_TRAIN")
    if not isinstance(cfg, CfgNode) or not size or not BACKBONES.is_in_family(stored.get("MODEL", {}).get("NAME", "")):
        return cfg
    return merge_hparams(cfg, {"INPUT": {"SIZE_TRAIN": size}})


def refuse_code_elsewhere(stored: dict[str, Any], given: dict[str, Any]) -> None:
    """Leave it to the caller which modules outside this project are imported: a file alone must not decide that.

    Args:
        stored: hyper-parameters of a checkpoint.
        given: the configuration of the caller.

    Raises:
        UserError: the network is of the form package.module:name, and ``given`` does not name it.
    """
    name = stored.get("MODEL", {}).get("NAME", "")
    if BACKBONES.is_code_elsewhere(name) and given.get("MODEL", {}).get("NAME") != name:
        raise UserError(
            f"its network is MODEL.NAME {name}, which is code outside of this project. No code is imported because a "
            f"file asks for it: if you trust that module, set MODEL.NAME {name} yourself (in a program, cfg= or, for "
            "an Embedder, network=; for inference.export, --network)."
        )


def construct(cls: Callable[..., Model], cfg: Any, parameters: dict[str, Any]) -> Model:
    """Make a model of a class whose constructor may take less than that of ModelBase.

    Args:
        cls: its first argument is the configuration; further ones are passed by name, as far as it takes them.
        cfg: configuration; None if the parameters are all that is known.
        parameters: as for ModelBase; those that the constructor does not take are added to the hyper-parameters.
    """
    accepted = signature(cls).parameters
    first, *_ = accepted.values()
    if cfg is None and first.default is first.empty and first.kind is first.POSITIONAL_OR_KEYWORD:
        cfg = merge_hparams(DEFAULTS, {name: value for name, value in parameters.items() if name != "load_imagenet"})
    if any(p.kind is p.VAR_KEYWORD for p in accepted.values()):
        return cls(*([] if cfg is None else [cfg]), **parameters)
    taken = {name: value for name, value in parameters.items() if name in accepted}
    rest = {name: value for name, value in parameters.items() if name not in (*accepted, "load_imagenet")}
    given = merge_hparams(DEFAULTS, to_plain({} if cfg is None else cfg) | rest)
    given.MODEL.PRETRAINED = given.MODEL.PRETRAINED and parameters.get("load_imagenet", True)
    return cls(given, **taken)
