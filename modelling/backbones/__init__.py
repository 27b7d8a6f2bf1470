"""The networks that MODEL.NAME can select."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from modelling.backbones import timm_networks, torchvision_networks
from modelling.backbones.options import NetworkOptions
from modelling.backbones.resnet import ResNet
from modelling.backbones.resnet_ibn_a import resnet50_ibn_a, resnet101_ibn_a, resnet152_ibn_a
from utils.errors import UserError
from utils.registry import Registry

Build = Callable[..., nn.Module]


@dataclass(frozen=True)
class Backbone:
    """How to build a network, and how wide its features are before any reduction; 0: not known yet."""

    build: Callable[[NetworkOptions], Any]  # a module
    embedding_size: int


def _resnet(block: type[BasicBlock] | type[Bottleneck], *layers: int) -> Backbone:
    return _strided(partial(ResNet, block=block, layers=layers), 512 * block.expansion)


def _strided(build: Build, embedding_size: int) -> Backbone:
    """A network of this project, of which the last stride can be chosen; ``more`` is what a caller passes besides."""
    return Backbone(lambda options, **more: build(options.last_stride, **more), embedding_size)


BACKBONES: dict[str, Backbone] = {
    "resnet18": _resnet(BasicBlock, 2, 2, 2, 2),
    "resnet34": _resnet(BasicBlock, 3, 4, 6, 3),
    "resnet50": _resnet(Bottleneck, 3, 4, 6, 3),
    "resnet101": _resnet(Bottleneck, 3, 4, 23, 3),
    "resnet152": _resnet(Bottleneck, 3, 8, 36, 3),
    "resnet50_ibn_a": _strided(resnet50_ibn_a, 2048),
    "resnet101_ibn_a": _strided(resnet101_ibn_a, 2048),
    "resnet152_ibn_a": _strided(resnet152_ibn_a, 2048),
}


# Networks of other packages: prefix of MODEL.NAME -> what builds the one of a name. Their width is seen when they are.
FAMILIES: dict[str, Callable[[str], Backbone | Build]] = {
    "timm": lambda name: Backbone(timm_networks.find_network(name), 0),
    "torchvision": lambda name: Backbone(torchvision_networks.find_network(name), 0),
}

REGISTRY: Registry[Backbone | Build] = Registry("MODEL.NAME", "network", BACKBONES, families=FAMILIES)


def register_backbone(name: str, build: Build, embedding_size: int = 0) -> None:
    """Let ``MODEL.NAME`` find a network of your own under ``name``, in this process.

    A configuration can also name the function or class itself, without any call: ``MODEL.NAME my_package.nets:tiny``.

    Args:
        name: what MODEL.NAME will hold; registering a name again replaces the network.
        build: a function or class; ``build(last_stride)``, or ``build()`` if it needs no argument and has none of that
            name, gives a module from images [B, 3, H, W] to a feature map [B, D, h, w].
        embedding_size: D; 0 finds it out when the network is built.

    Raises:
        UserError: the name belongs to a network of this project, is empty, or holds "+" or ":"; build is no function.
    """
    if not callable(build):
        raise UserError(f"The network {name} is to be built by {build!r}; expected a function or class.")
    REGISTRY.register(name, _own_backbone(build, embedding_size))


def get_backbone(name: str) -> Backbone:
    """The network with this name: of the project, registered, timm:name, torchvision:name, or package.module:name.

    Raises:
        UnknownNameError: there is none (also a KeyError and a ValueError); the message lists the valid names.
        UserError: the module of package.module:name cannot be imported or has no such attribute; timm is not there.
    """
    found = REGISTRY.find(name)
    if not isinstance(found, Backbone) and not callable(found):
        raise UserError(f"MODEL.NAME is {name!r}, a {type(found).__name__}; expected a function or class.")
    return found if isinstance(found, Backbone) else _own_backbone(found, 0)


def _own_backbone(build: Build, embedding_size: int) -> Backbone:
    """A network of the user's own, which may have no use for a last stride."""
    parameters = signature(build).parameters
    needed = [p.name for p in parameters.values() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    takes = "last_stride" if "last_stride" in parameters else next(iter(needed), "")

    def checked(options: NetworkOptions) -> nn.Module:
        network = build(**{takes: options.last_stride} if takes else {})
        if not isinstance(network, nn.Module):
            raise UserError(f"{build!r} built a {type(network).__name__}; expected a torch.nn.Module.")
        return network

    return Backbone(checked, embedding_size)


def check_feature_map(network: nn.Module, name: str, image_size: Sequence[int], embedding_size: int) -> None:
    """Raise unless a network gives a map, tokens or a vector of MODEL.BACKBONE_EMB_SIZE channels.

    Args:
        network: the network; it computes one black image.
        name: MODEL.NAME, for messages.
        image_size: height and width of the image.
        embedding_size: MODEL.BACKBONE_EMB_SIZE.

    Raises:
        UserError: the output is none of these, or has another number of channels; the message gives its shape.
    """
    was_training = network.training
    with torch.no_grad():
        found = network.eval()(torch.zeros(1, 3, *image_size))
    network.train(was_training)
    shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
    if not isinstance(found, Tensor) or not 2 <= found.dim() <= 4:
        raise UserError(
            f"MODEL.NAME {name} turns an image [1, 3, {image_size[0]}, {image_size[1]}] into {shape}; expected a "
            "feature map [1, D, h, w], tokens [1, N, D] or a vector [1, D]: leave out its classifier."
        )
    with torch.no_grad():
        width = average(network, found).shape[1]
    if width != embedding_size:
        raise UserError(
            f"MODEL.BACKBONE_EMB_SIZE is {embedding_size}, but {name} gives embeddings of size {width}: "
            f"set MODEL.BACKBONE_EMB_SIZE {width}."
        )


def average(network: nn.Module, output: Tensor) -> Tensor:
    """What a network gives, a map, tokens or vectors -> its mean over positions, and what the network does to that."""
    if output.dim() == 4:
        output = output.mean((2, 3))
    elif output.dim() == 3:
        output = output[:, getattr(network, "num_prefix_tokens", 0) :].mean(1)
    after = getattr(network, "after_pooling", None)
    return output if after is None else after(output)


def check_embedding_size(name: str, embedding_size: int) -> None:
    """Raise unless MODEL.BACKBONE_EMB_SIZE is the embedding size of the network MODEL.NAME.

    Every run checks this. Baseline itself does not: a model may be built around a backbone that is put in later. The
    size of a network of the user's own is seen when it is built.

    Raises:
        UnknownNameError: as for get_backbone.
        UserError: the sizes differ; the message gives the right one.
    """
    right = get_backbone(name).embedding_size
    if right and embedding_size != right:
        raise UserError(
            f"MODEL.BACKBONE_EMB_SIZE is {embedding_size}, but {name} gives embeddings of size {right}: "
            f"set MODEL.BACKBONE_EMB_SIZE {right}."
        )
