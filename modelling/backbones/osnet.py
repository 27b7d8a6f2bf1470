"""OSNet: omni-scale feature learning for person re-identification, with torchreid's names of weights."""

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modelling.backbones.resnet import init_convolutions, through_stages
from modelling.backbones.resnet_ibn_a import InstanceNorm
from utils.compat import is_autocast_on

# Channels of the stem and of the three stages at width 1.
_CHANNELS = (64, 256, 384, 512)
# Where the two blocks of conv2, of conv3 and of conv4 have an instance norm: nowhere, after the sum with the shortcut,
# or inside the residual branch.
_NONE, _AFTER, _INSIDE = "none", "after the sum", "inside"
_INSTANCE_NORMS = {
    "": ((_NONE, _NONE), (_NONE, _NONE), (_NONE, _NONE)),
    "ibn": ((_AFTER, _AFTER), (_NONE, _NONE), (_NONE, _NONE)),
    "ain": ((_INSIDE, _INSIDE), (_NONE, _INSIDE), (_INSIDE, _NONE)),  # found by the search of the second paper
}

EMBEDDING_SIZE = 512


class ConvNorm(nn.Module):
    """Convolution, norm and ReLU, of which the last two are optional.

    Args:
        in_channels, out_channels: of the convolution.
        size: of its kernel; the padding keeps height and width, up to the stride.
        stride: of the convolution.
        norm: class of the norm; None for none.
        relu: whether a ReLU follows.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: int = 1,
        stride: int = 1,
        norm: Callable[[int], nn.Module] | None = nn.BatchNorm2d,
        relu: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, size, stride, size // 2, bias=False)
        if norm is not None:
            self.bn = norm(out_channels)
        self.has_norm, self.relu = norm is not None, relu

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] floating -> [B, out_channels, H / stride, W / stride]."""
        x = self.conv(x)
        x = self.bn(x) if self.has_norm else x
        return F.relu(x, inplace=True) if self.relu else x


class LightConv(nn.Module):
    """A 3 x 3 convolution in two cheap parts: across channels, then in each channel; with batch norm and ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] floating -> the same shape."""
        return F.relu(self.bn(self.conv2(self.conv1(x))), inplace=True)


class Gate(nn.Module):
    """Weigh the channels of each image by what they hold: the aggregation gate, shared by the streams of a block."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // reduction, 1)
        self.fc2 = nn.Conv2d(channels // reduction, channels, 1)
        for name in ("fc1.bias", "fc2.bias"):
            nn.init.zeros_(self.get_parameter(name))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] floating -> the same shape."""
        return x * torch.sigmoid(self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True)))))


class OSBlock(nn.Module):
    """Residual bottleneck of four streams, whose receptive fields are 3, 5, 7 and 9 wide; a gate merges them.

    Args:
        in_channels, out_channels: of the block; a quarter of the latter inside.
        instance_norm: "none"; or where an instance norm stands: "inside" the residual branch, or "after the sum".
        ain_names: whether its weights are named as those of OSNet-AIN.
    """

    def __init__(self, in_channels: int, out_channels: int, instance_norm: str, ain_names: bool) -> None:
        super().__init__()
        width = out_channels // 4
        self.conv1 = ConvNorm(in_channels, width)
        streams = [nn.Sequential(*(LightConv(width) for _ in range(depth))) for depth in (1, 2, 3, 4)]
        if ain_names:
            self.conv2 = nn.Sequential(*(nn.Sequential(OrderedDict(layers=stream)) for stream in streams))
        else:
            self.conv2a, self.conv2b, self.conv2c, self.conv2d = streams[0][0], *streams[1:]
        self.gate = Gate(width)
        inside = instance_norm == _INSIDE
        self.conv3 = ConvNorm(width, out_channels, norm=None if inside else nn.BatchNorm2d, relu=False)
        same = in_channels == out_channels
        self.downsample = None if same else ConvNorm(in_channels, out_channels, relu=False)
        if instance_norm != _NONE:
            self.IN = InstanceNorm(out_channels)
        self.ain_names, self.instance_norm = ain_names, instance_norm

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] floating -> [B, out_channels, H, W]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.conv1(x)
        streams = self.conv2 if self.ain_names else (self.conv2a, self.conv2b, self.conv2c, self.conv2d)
        one, two, three, four = (self.gate(stream(x)) for stream in streams)
        x = self.conv3(one + two + three + four)
        x = self.IN(x) + shortcut if self.instance_norm == _INSIDE else x + shortcut
        x = self.IN(x) if self.instance_norm == _AFTER else x
        return F.relu(x, inplace=True)


class OSNet(nn.Module):
    """OSNet (Zhou et al., ICCV 2019), the same with instance norms, or OSNet-AIN (Zhou et al., TPAMI 2021).

    Its embedding is not the pooled map: a linear layer with batch norm and ReLU, ``fc``, makes 512 numbers of that.
    Names of weights and outputs are torchreid's; there is no classifier.

    Args:
        width: scales the channels: 1, 0.75, 0.5 or 0.25.
        variant: "", "ibn" or "ain".
    """

    #: Keep only the input of each block for the backward pass, and recompute the rest there.
    grad_checkpoint = False

    def __init__(self, width: float = 1.0, variant: str = "") -> None:
        super().__init__()
        channels, *widths = (int(width * count) for count in _CHANNELS)
        self.conv1 = ConvNorm(3, channels, 7, stride=2, norm=InstanceNorm if variant else nn.BatchNorm2d)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.stages: list[str] = []  # names of the parts between stem and conv5, in order
        ain = variant == "ain"
        for number, (out_channels, norms) in enumerate(zip(widths, _INSTANCE_NORMS[variant], strict=True), start=2):
            first = OSBlock(channels, out_channels, norms[0], ain)
            blocks = [first, OSBlock(out_channels, out_channels, norms[1], ain)]
            halving = nn.Sequential(ConvNorm(out_channels, out_channels), nn.AvgPool2d(2))
            if number == 4:
                self._add("conv4", *blocks)
            elif ain:
                self._add(f"conv{number}", *blocks)
                self._add(f"pool{number}", *halving)
            else:
                self._add(f"conv{number}", *blocks, halving)
            channels = out_channels
        self.conv5 = ConvNorm(channels, channels)
        self.fc = nn.Sequential(nn.Linear(channels, EMBEDDING_SIZE), nn.BatchNorm1d(EMBEDDING_SIZE), nn.ReLU())
        init_convolutions(self)
        nn.init.normal_(self.get_parameter("fc.0.weight"), std=0.01)
        nn.init.zeros_(self.get_parameter("fc.0.bias"))

    def _add(self, name: str, *parts: nn.Module) -> None:
        self.stages.append(name)
        self.add_module(name, nn.Sequential(*parts))

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, 3, H, W] floating -> feature map [B, 512 * width, H/16, W/16]."""
        x = self.maxpool(self.conv1(x))
        x = through_stages((getattr(self, name) for name in self.stages), x, self.grad_checkpoint)
        return self.conv5(x)

    def after_pooling(self, pooled: Tensor) -> Tensor:
        """The mean of the map over positions, [B, 512 * width] floating -> embeddings [B, 512].

        Computed without autocast: an embedding needs the digits that tell close images apart.
        """
        if not is_autocast_on(pooled.device.type):  # exporters know nothing of autocast
            return self.fc(pooled)
        with torch.autocast(pooled.device.type, enabled=False):
            return self.fc(pooled)

    def layer_groups(self) -> dict[str, int]:
        """For each parameter how deep it lies: 0 in the stem, 1 to 6 in the blocks, then conv5 and fc."""
        depths = {"conv1": 0}
        for stage in self.stages:
            for name, part in getattr(self, stage).named_children():
                depths[f"{stage}.{name}"] = max(depths.values()) + isinstance(part, OSBlock)
        depths |= {"conv5": max(depths.values()) + 1, "fc": max(depths.values()) + 2}
        names = [name for name, _ in self.named_parameters()]
        return {name: depth for name in names for part, depth in depths.items() if name.startswith(f"{part}.")}
