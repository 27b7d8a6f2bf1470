"""ResNet-IBN-a backbones: instance and batch normalisation side by side in the first three layers."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import Bottleneck

from modelling.backbones.resnet import ResNet


class IBN(nn.Module):
    """Instance normalisation of the first half of the channels, batch normalisation of the second half.

    The instance half is computed in float32 or wider and returned in the dtype of the input, whatever the autocast
    state: its variances over small maps do not survive half precision.

    Args:
        channels: channels of the input; the instance half is ``channels // 2``.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.split = channels // 2
        self.IN = nn.InstanceNorm2d(self.split, affine=True)
        self.BN = nn.BatchNorm2d(channels - self.split)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] floating -> the same shape and dtype."""
        first, second = x[:, : self.split], x[:, self.split :]
        # Not torch.promote_types, which torch 2.1 cannot export.
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        instance = F.instance_norm(
            first.to(wide), weight=self.IN.weight.to(wide), bias=self.IN.bias.to(wide), eps=self.IN.eps
        )
        return torch.cat([instance.to(x.dtype), self.BN(second)], dim=1)


class ResNetIBNa(ResNet):
    """IBN-Net, variant a (Pan et al., ECCV 2018): in layer1 to layer3 the first norm of every bottleneck is an IBN.

    Unlike in :class:`ResNet` there is a ReLU between bn1 and the max pooling. ``fc`` is never used and needs no
    gradient; it exists because published weights and checkpoints contain it. Initialised like ResNet.

    Args:
        last_stride: stride of layer4.
        layers: blocks in layer1 to layer4.
        num_classes: rows of ``fc``.
    """

    def __init__(self, last_stride: int, layers: Sequence[int], num_classes: int = 1000) -> None:
        super().__init__(last_stride, Bottleneck, layers)
        self.relu = nn.ReLU(inplace=True)
        for layer in (self.layer1, self.layer2, self.layer3):
            for block in layer:
                assert isinstance(block, Bottleneck)
                block.bn1 = IBN(block.conv1.out_channels)
        self.fc = nn.Linear(512 * Bottleneck.expansion, num_classes).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, 3, H, W] floating -> feature map [B, 2048, H/16, W/16] (/32 with last stride 2)."""
        return self._stages(self.maxpool(self.relu(self.bn1(self.conv1(x)))))
