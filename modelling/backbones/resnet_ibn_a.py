"""ResNet-IBN-a backbones: instance and batch normalisation side by side in the first three layers."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import Bottleneck

from modelling.backbones.imagenet import warn_nothing_is_downloaded
from modelling.backbones.resnet import Block, ResNet


class InstanceNorm(nn.InstanceNorm2d):
    """Instance normalisation with weight and bias, computed in float32 or wider whatever the autocast state.

    The result has the dtype of the input. Variances over small maps do not survive half precision.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] floating -> the same shape and dtype."""
        # Not torch.promote_types, which torch 2.1 cannot export.
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        return F.instance_norm(x.to(wide), weight=self.weight.to(wide), bias=self.bias.to(wide), eps=self.eps).to(
            x.dtype
        )


class IBN(nn.Module):
    """Instance normalisation of the first half of the channels, batch normalisation of the second half.

    Args:
        channels: channels of the input; the instance half is ``channels // 2``.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.split = channels // 2
        self.IN = InstanceNorm(self.split)
        self.BN = nn.BatchNorm2d(channels - self.split)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] floating -> the same shape and dtype."""
        first, second = x[:, : self.split], x[:, self.split :]
        return torch.cat([self.IN(first), self.BN(second)], dim=1)


class Bottleneck_IBN(Bottleneck):  # noqa: N801 - the name that programs import
    """torchvision's Bottleneck, whose first norm may be an IBN.

    Args:
        inplanes: channels of the input.
        planes: channels inside; the output has four times as many.
        ibn: whether the first norm is an IBN rather than a batch norm.
        stride: of the 3 x 3 convolution.
        downsample: maps the input to the shape of the output; None adds it as it is.
    """

    def __init__(
        self, inplanes: int, planes: int, ibn: bool = False, stride: int = 1, downsample: nn.Module | None = None
    ) -> None:
        super().__init__(inplanes, planes, stride, downsample)
        if ibn:
            self.bn1: nn.Module = IBN(planes)


class ResNetIBNa(ResNet):
    """IBN-Net, variant a (Pan et al., ECCV 2018): in layer1 to layer3 the first norm of every bottleneck is an IBN.

    There always is a ReLU between bn1 and the max pooling. ``fc`` is never used and needs no
    gradient; it exists because published weights and checkpoints contain it. Initialised like ResNet.

    Args:
        last_stride: stride of layer4.
        layers: blocks in layer1 to layer4.
        num_classes: rows of ``fc``.
        block: Bottleneck_IBN, or a class that is called like it; ``ibn`` is True in layer1 to layer3.
    """

    stem_relu = True

    def __init__(
        self, last_stride: int, layers: Sequence[int], num_classes: int = 1000, block: Block = Bottleneck_IBN
    ) -> None:
        super().__init__(last_stride, block, layers)
        self.fc = nn.Linear(512 * block.expansion, num_classes).requires_grad_(False)

    def _block(self, block: Block, channels: int) -> Callable[..., nn.Module]:
        return partial(block, ibn=channels < 512)


class ResNet_IBN(ResNetIBNa):  # noqa: N801 - the name that programs import
    """:class:`ResNetIBNa` with the arguments in the order of :class:`ResNet`."""

    def __init__(self, last_stride: int, block: Block, layers: Sequence[int], num_classes: int = 1000) -> None:
        super().__init__(last_stride, layers, num_classes, block)


def resnet50_ibn_a(last_stride: int, pretrained: bool = False, **kw: Any) -> ResNet_IBN:
    """ResNet-50-IBN-a.

    Args:
        last_stride: stride of layer4.
        pretrained: has no effect but a warning, since nothing is downloaded: the weights are random. A file of weights
            is loaded with ``.load_param(path)``.
        kw: ``num_classes``, as for :class:`ResNet_IBN`.
    """
    return _build("resnet50_ibn_a", (3, 4, 6, 3), last_stride, pretrained, kw)


def resnet101_ibn_a(last_stride: int, pretrained: bool = False, **kw: Any) -> ResNet_IBN:
    """ResNet-101-IBN-a; arguments as for :func:`resnet50_ibn_a`."""
    return _build("resnet101_ibn_a", (3, 4, 23, 3), last_stride, pretrained, kw)


def resnet152_ibn_a(last_stride: int, pretrained: bool = False, **kw: Any) -> ResNet_IBN:
    """ResNet-152-IBN-a; arguments as for :func:`resnet50_ibn_a`."""
    return _build("resnet152_ibn_a", (3, 8, 36, 3), last_stride, pretrained, kw)


def _build(name: str, layers: Sequence[int], last_stride: int, pretrained: bool, kw: dict[str, Any]) -> ResNet_IBN:
    if pretrained:
        warn_nothing_is_downloaded(name)
    return ResNet_IBN(last_stride, Bottleneck_IBN, layers, **kw)
