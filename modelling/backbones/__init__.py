"""The networks that MODEL.NAME can select."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torchvision.models.resnet import BasicBlock, Bottleneck

from modelling.backbones.resnet import ResNet
from modelling.backbones.resnet_ibn_a import resnet50_ibn_a, resnet101_ibn_a, resnet152_ibn_a
from utils.errors import UnknownNameError, UserError


@dataclass(frozen=True)
class Backbone:
    """How to build a network from its last stride, and how many channels its feature map has."""

    build: Callable[[int], ResNet]
    embedding_size: int


def _resnet(block: type[BasicBlock] | type[Bottleneck], *layers: int) -> Backbone:
    return Backbone(partial(ResNet, block=block, layers=layers), 512 * block.expansion)


BACKBONES: dict[str, Backbone] = {
    "resnet18": _resnet(BasicBlock, 2, 2, 2, 2),
    "resnet34": _resnet(BasicBlock, 3, 4, 6, 3),
    "resnet50": _resnet(Bottleneck, 3, 4, 6, 3),
    "resnet101": _resnet(Bottleneck, 3, 4, 23, 3),
    "resnet152": _resnet(Bottleneck, 3, 8, 36, 3),
    "resnet50_ibn_a": Backbone(resnet50_ibn_a, 2048),
    "resnet101_ibn_a": Backbone(resnet101_ibn_a, 2048),
    "resnet152_ibn_a": Backbone(resnet152_ibn_a, 2048),
}


def get_backbone(name: str) -> Backbone:
    """The network with this name.

    Raises:
        UnknownNameError: there is none (also a KeyError and a ValueError); the message lists the valid names.
    """
    if name not in BACKBONES:
        raise UnknownNameError(f"MODEL.NAME is {name!r}; valid names: {', '.join(BACKBONES)}.")
    return BACKBONES[name]


def check_embedding_size(name: str, embedding_size: int) -> None:
    """Raise unless MODEL.BACKBONE_EMB_SIZE is the embedding size of the network MODEL.NAME.

    Every run checks this. Baseline itself does not: a model may be built around a backbone that is put in later.

    Raises:
        UnknownNameError: as for get_backbone.
        UserError: the sizes differ; the message gives the right one.
    """
    right = get_backbone(name).embedding_size
    if embedding_size != right:
        raise UserError(
            f"MODEL.BACKBONE_EMB_SIZE is {embedding_size}, but {name} gives embeddings of size {right}: "
            f"set MODEL.BACKBONE_EMB_SIZE {right}."
        )
