"""The networks that MODEL.NAME can select."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from modelling.backbones import timm_networks, torchvision_networks
from modelling.backbones.options import NetworkOptions
from modelling.backbones.osnet import EMBEDDING_SIZE, OSNet
from modelling.backbones.resnet import ResNet
from modelling.backbones.resnet_ibn_a import resnet50_ibn_a, resnet101_ibn_a, resnet152_ibn_a
from utils.errors import UserError
from utils.registry import Registry

Build = Callable[..., nn.Module]


@dataclass(frozen=True)
class Backbone:
    """How to build a network, and how long the vectors are that it gives; 0: not known yet."""

    build: Callable[[NetworkOptions], Any]  # a module
    embedding_size: int


def _resnet(block: type[BasicBlock] | type[Bottleneck], *layers: int) -> Backbone:
    def build(options: NetworkOptions) -> ResNet:
        network = ResNet(options.last_stride, block, layers)
        network.stem_relu = options.stem_relu
        return network

    return Backbone(build, 512 * block.expansion)


def _ibn_a(build: Callable[..., ResNet]) -> Backbone:
    return Backbone(lambda options, **kw: build(options.last_stride, **kw), 2048)


def _osnet(width: float, variant: str = "") -> Backbone:
    return Backbone(lambda _: OSNet(width, variant), EMBEDDING_SIZE)


BACKBONES: dict[str, Backbone] = {
    "resnet18": _resnet(BasicBlock, 2, 2, 2, 2),
    "resnet34": _resnet(BasicBlock, 3, 4, 6, 3),
    "resnet50": _resnet(Bottleneck, 3, 4, 6, 3),
    "resnet101": _resnet(Bottleneck, 3, 4, 23, 3),
    "resnet152": _resnet(Bottleneck, 3, 8, 36, 3),
    "resnet50_ibn_a": _ibn_a(resnet50_ibn_a),
    "resnet101_ibn_a": _ibn_a(resnet101_ibn_a),
    "resnet152_ibn_a": _ibn_a(resnet152_ibn_a),
    "osnet_x1_0": _osnet(1.0),
    "osnet_x0_75": _osnet(0.75),
    "osnet_x0_5": _osnet(0.5),
    "osnet_x0_25": _osnet(0.25),
    "osnet_ibn_x1_0": _osnet(1.0, "ibn"),
    "osnet_ain_x1_0": _osnet(1.0, "ain"),
    "osnet_ain_x0_75": _osnet(0.75, "ain"),
    "osnet_ain_x0_5": _osnet(0.5, "ain"),
    "osnet_ain_x0_25": _osnet(0.25, "ain"),
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


def find_width(baseline: Any, name: str, image_size: Sequence[int], embedding_size: int) -> int:
    """The width of the vectors that a network's output is pooled to, from one black image.

    Args:
        baseline: a :class:`modelling.baseline.Baseline` with its network and pooling.
        name: MODEL.NAME, for messages.
        image_size: height and width of the image.
        embedding_size: MODEL.BACKBONE_EMB_SIZE; 0 takes any width.

    Raises:
        UserError: the output is no map, tokens or vectors, or has another width; the message gives its shape.
    """
    network = baseline.base
    was_training = network.training
    with torch.no_grad():
        output = network.eval()(torch.zeros(1, 3, *image_size))
        shape = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        if not isinstance(output, Tensor) or not 2 <= output.dim() <= 4:
            raise UserError(
                f"MODEL.NAME {name} turns an image [1, 3, {image_size[0]}, {image_size[1]}] into {shape}; expected a "
                "feature map [1, D, h, w], tokens [1, N, D] or a vector [1, D]: leave out its classifier."
            )
        if output.dim() == 2 and baseline.pooling != "avg":
            raise UserError(
                f"MODEL.POOLING is {baseline.pooling!r}, but MODEL.NAME {name} gives vectors, {shape}, in which "
                "nothing is left to pool: leave MODEL.POOLING avg."
            )
        width = baseline.pool(output).shape[1]
    network.train(was_training)
    _require_size(embedding_size, width, name)
    return width


def check_embedding_size(name: str, embedding_size: int) -> None:
    """Raise unless MODEL.BACKBONE_EMB_SIZE is the embedding size of the network MODEL.NAME.

    Every run checks this. Baseline itself does not: a model may be built around a backbone that is put in later. The
    size of a network of the user's own is seen when it is built.

    Raises:
        UnknownNameError: as for get_backbone.
        UserError: the sizes differ; the message gives the right one.
    """
    _require_size(embedding_size, get_backbone(name).embedding_size, name)


def _require_size(told: int, right: int, name: str) -> None:
    """Raise if MODEL.BACKBONE_EMB_SIZE is another than the network's width; 0 stands for "not known" in both."""
    if told and right and told != right:
        raise UserError(
            f"MODEL.BACKBONE_EMB_SIZE is {told}, but {name} gives embeddings of size {right}: "
            f"set MODEL.BACKBONE_EMB_SIZE {right}, or 0 for the network's own size."
        )
