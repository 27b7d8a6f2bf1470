"""ResNet backbones: torchvision's topology without pooling and classifier."""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torchvision.models.resnet import BasicBlock, Bottleneck, conv1x1

from modelling.backbones.imagenet import load_weights_file

__all__ = ["BasicBlock", "Block", "Bottleneck", "ResNet"]

# BasicBlock, Bottleneck or a class like them: ``expansion``, and (in_channels, channels, stride=, downsample=)
Block = Any


class ResNet(nn.Module):
    """Deep residual network (He et al., CVPR 2016) that ends in its last feature map.

    Two things differ from torchvision's: unless ``stem_relu`` is set to True there is **no ReLU between bn1 and the max
    pooling**, as in the published person re-identification baselines whose numbers this project keeps; and the stride
    of layer4 is an argument. The weights are those of :meth:`random_init`. Modules that are assigned as ``avgpool`` or
    ``fc`` are not called.

    Args:
        last_stride: stride of layer4; 1 makes the feature map twice as high and wide as the usual 2.
        block: torchvision's BasicBlock or Bottleneck, or a class that is called like them, with the arguments
            ``stride`` and ``downsample``.
        layers: blocks in layer1 to layer4.
    """

    #: Whether a ReLU follows bn1, as in torchvision's; may be set.
    stem_relu = False

    #: Keep only the input of each block for the backward pass, and recompute the rest there.
    grad_checkpoint = False

    def __init__(self, last_stride: int = 2, block: Block = Bottleneck, layers: Sequence[int] = (3, 4, 6, 3)) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.layer1 = self._layer(block, 64, 64, layers[0], stride=1)
        self.layer2 = self._layer(block, 64 * block.expansion, 128, layers[1], stride=2)
        self.layer3 = self._layer(block, 128 * block.expansion, 256, layers[2], stride=2)
        self.layer4 = self._layer(block, 256 * block.expansion, 512, layers[3], stride=last_stride)
        self.random_init()

    def _layer(self, block: Block, in_channels: int, channels: int, count: int, stride: int) -> nn.Sequential:
        out_channels = channels * block.expansion
        downsample = None
        if stride != 1 or in_channels != out_channels:
            downsample = nn.Sequential(conv1x1(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels))
        build = self._block(block, channels)
        first = build(in_channels, channels, stride=stride, downsample=downsample)
        return nn.Sequential(first, *(build(out_channels, channels) for _ in range(count - 1)))

    def _block(self, block: Block, channels: int) -> Callable[..., nn.Module]:
        """What builds the blocks of the layer with these channels."""
        return block

    def random_init(self) -> None:
        """Start from random weights, see :func:`init_convolutions`."""
        init_convolutions(self)

    def layer_groups(self) -> dict[str, int]:
        """The depth of each parameter, by name: 0 for conv1 and bn1, then one more for each block."""
        depths: dict[int, int] = {}
        for depth, block in enumerate((*self.layer1, *self.layer2, *self.layer3, *self.layer4), 1):
            depths |= {id(parameter): depth for parameter in block.parameters()}
        return {name: depths.get(id(parameter), 0) for name, parameter in self.named_parameters()}

    def load_param(self, path: str | os.PathLike[str]) -> None:
        """Load a file of weights; see :func:`modelling.backbones.imagenet.load_weights_file` for files and errors."""
        load_weights_file(self, path, type(self).__name__)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, 3, H, W] floating -> feature map [B, 512 * expansion, H/16, W/16] (/32 with last stride 2)."""
        x = self.bn1(self.conv1(x))
        x = self.maxpool(F.relu(x, inplace=True) if self.stem_relu else x)
        return through_stages((self.layer1, self.layer2, self.layer3, self.layer4), x, self.grad_checkpoint)


def init_convolutions(network: nn.Module) -> None:
    """Give convolutions and norm layers random weights.

    Convolution weights are drawn from a normal distribution with standard deviation sqrt(2 / (k * k * out_channels));
    norm layers get weight 1, bias 0 and the running statistics of a new layer.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = math.prod(module.kernel_size) * module.out_channels
            nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))
        elif isinstance(module, nn.BatchNorm2d | nn.InstanceNorm2d):
            module.reset_parameters()


def through_stages(stages: Iterable[nn.Sequential], x: Tensor, grad_checkpoint: bool) -> Tensor:
    """Pass a feature map through the blocks of all stages, see :attr:`ResNet.grad_checkpoint`."""
    for stage in stages:
        if grad_checkpoint and torch.is_grad_enabled():
            for block in stage:
                x = _checkpointed(block, x)
        else:
            x = stage(x)
    return x


def _checkpointed(block: nn.Module, x: Tensor) -> Tensor:
    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _without_running_statistics(block)

    # A block draws no random numbers, so there is no random state to preserve.
    return checkpoint(block, x, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)


@contextmanager
def _without_running_statistics(block: nn.Module) -> Iterator[None]:
    """Keep the second forward pass over a batch from updating the running statistics again."""
    norms = [m for m in block.modules() if isinstance(m, nn.BatchNorm2d)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:  # not track_running_stats: autograd must save the same tensors in both passes
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
