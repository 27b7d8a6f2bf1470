"""The network of a trained model as inference runs it: the same function with fewer passes over memory.

Batch norm is folded into the convolutions before it, the BN neck into a scale and a shift. On a CPU the ReLUs and
residual sums go into the convolutions as well, if torch's oneDNN supports it. What is not known to be foldable runs as
it is.
"""

import copy
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.resnet import BasicBlock, Bottleneck

from modelling.backbones.resnet import ResNet
from modelling.backbones.resnet_ibn_a import IBN
from modelling.baseline import Baseline
from modelling.bases import EmbeddingPath, ModelBase
from utils.compat import pack_convolution

MAX_ERROR = 1e-3  # of a folded network, as a share of the largest number of an embedding


def inference_network(model: ModelBase, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """A network from normalised images [B, 3, H, W] to embeddings [B, D] float32 (float64 if ``dtype`` is that).

    A ResNet of this project is folded, if a try on one image shows that this changes nothing; others run as they are.

    Args:
        model: not modified; the result shares nothing with it.
        dtype: type of the convolutions and feature maps.
        device: where to compute.
    """
    path = EmbeddingPath(model)
    if path.is_overridden or not isinstance(getattr(model.backbone, "base", None), ResNet):
        return PlainNetwork(path, dtype, device).eval()
    neck = model.bn if model.hparams.MODEL.NECK_FEAT == "after" else None
    if not _agrees(path, FoldedNetwork(model.backbone, neck, torch.float32, torch.device("cpu"))):
        return PlainNetwork(path, dtype, device).eval()
    return FoldedNetwork(model.backbone, neck, dtype, device).eval()


def _agrees(path: EmbeddingPath, folded: nn.Module) -> bool:
    """Whether both give one embedding of a small image of noise, up to the rounding of many layers."""
    copied = copy.deepcopy(path).cpu().float().eval()
    image = torch.randn(1, 3, 64, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, found = copied(image), folded.eval()(image)
    error = (expected - found).abs().amax() / expected.abs().amax().clamp(min=1e-12)
    return bool(error <= MAX_ERROR)


class PlainNetwork(nn.Module):
    """Images to embeddings as the model computes them; in half precision under autocast.

    Args:
        path: copied.
        dtype: as for :func:`inference_network`.
        device: where to compute.
    """

    def __init__(self, path: EmbeddingPath, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.dtype = dtype
        self.wide = torch.promote_types(dtype, torch.float32)
        self.path = copy.deepcopy(path).requires_grad_(False).to(device, self.wide)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images [B, 3, H, W] floating -> embeddings [B, D]."""
        half = None if self.dtype == self.wide else self.dtype  # torch 2.1 refuses a wide type, also where disabled
        with torch.autocast(x.device.type, half, enabled=half is not None):
            return self.path(x.to(self.wide)).to(self.wide)


class FoldedNetwork(nn.Module):
    """Images to embeddings, equal to ``bn(backbone(images))`` in eval mode up to rounding.

    Pooling and what follows are computed in float32 (in float64 if ``dtype`` is that), whatever the convolutions use.

    Args:
        backbone: not modified; the copy in here shares nothing with it.
        bn: the BN neck; None for the embeddings that would go into it.
        dtype: type of the convolutions and feature maps.
        device: where to compute.
    """

    def __init__(self, backbone: Baseline, bn: nn.BatchNorm1d | None, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.scale: Tensor
        self.shift: Tensor
        self.dtype = dtype
        self.wide = torch.promote_types(dtype, torch.float32)
        self.backbone = copy.deepcopy(backbone).eval().requires_grad_(False).to(device, self.wide)
        base = fold_batch_norm(self.backbone.base).to(memory_format=torch.channels_last)
        for module in base.modules():
            if isinstance(module, nn.Conv2d):
                module.to(dtype)
        if device.type == "cpu" and fuses(dtype):
            base = fuse_activations(base)
        self.backbone.base = base
        width = backbone.embedding_size
        scale, shift = (torch.ones(width), torch.zeros(width)) if bn is None else _affine(bn)
        self.register_buffer("scale", scale.to(device, self.wide))
        self.register_buffer("shift", shift.to(device, self.wide))

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images [B, 3, H, W] floating -> embeddings [B, D] float32 (or float64)."""
        output = self.backbone.base(x.to(dtype=self.dtype, memory_format=torch.channels_last))
        if self.backbone.pooling == "avg":
            pooled = output.mean((2, 3), dtype=self.wide)
        else:
            pooled = self.backbone.pool(output.to(self.wide))
        return torch.addcmul(self.shift, self.backbone.reduction(pooled), self.scale)


def fold_batch_norm(base: nn.Module) -> nn.Module:
    """Fold every batch norm of a backbone that follows a convolution into that convolution, in place.

    Args:
        base: a ResNet of this project in eval mode, IBN nets included. Modules of other classes are left alone.
    """
    for module in list(base.modules()):
        if isinstance(module, ResNet | BasicBlock | Bottleneck):
            for number in (1, 2, 3):
                _fold_pair(module, f"conv{number}", f"bn{number}")
        if isinstance(module, BasicBlock | Bottleneck) and module.downsample is not None:
            _fold_pair(module.downsample, "0", "1")
    return base


def _fold_pair(owner: nn.Module, conv_name: str, norm_name: str) -> None:
    conv, norm = getattr(owner, conv_name, None), getattr(owner, norm_name, None)
    if isinstance(norm, IBN):
        setattr(owner, norm_name, FoldedIBN(norm))
    elif isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
        setattr(owner, conv_name, fuse_conv_bn_eval(conv, norm))
        setattr(owner, norm_name, nn.Identity())


def _affine(norm: Any) -> tuple[Tensor, Tensor]:
    """Scale and shift [C] of a batch norm in eval mode, computed in float64."""
    scale = norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()
    return scale, norm.bias.detach().double() - norm.running_mean.double() * scale


class FoldedIBN(nn.Module):
    """IBN in eval mode as one scale and shift of every channel; those of the instance half come from the image.

    Statistics, scale and shift are float32 or wider, as in :class:`modelling.backbones.resnet_ibn_a.IBN`.

    Args:
        ibn: the module to replace.
    """

    def __init__(self, ibn: IBN) -> None:
        super().__init__()
        self.weight: Tensor
        self.bias: Tensor
        self.scale: Tensor
        self.shift: Tensor
        self.split, self.eps = ibn.split, ibn.IN.eps
        scale, shift = _affine(ibn.BN)
        instance = {"weight": ibn.IN.weight.detach(), "bias": ibn.IN.bias.detach()}
        for name, value in (instance | {"scale": scale, "shift": shift}).items():
            self.register_buffer(name, value.float())

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] floating -> the same shape and dtype."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        variance, mean = torch.var_mean(wide[:, : self.split], (2, 3), correction=0)  # [B, split]
        scale = self.weight * (variance + self.eps).rsqrt()
        shift = self.bias - mean * scale
        scale = torch.cat([scale, self.scale.expand(len(x), -1)], 1)[:, :, None, None]
        shift = torch.cat([shift, self.shift.expand(len(x), -1)], 1)[:, :, None, None]
        return torch.addcmul(shift, wide, scale).to(x.dtype)


# ------------------------------------------------------------------------------- ReLU and sum inside the convolution


class FusedConv(nn.Module):
    """A convolution that adds a tensor to its result and applies ReLU before it writes that to memory.

    Args:
        conv: a convolution on the CPU.
        relu: whether ReLU follows.
    """

    def __init__(self, conv: nn.Conv2d, relu: bool) -> None:
        super().__init__()
        self.conv = conv
        self.relu = relu
        self._geometry = (list(cast(tuple[int, int], conv.padding)), list(conv.stride), list(conv.dilation))
        self._packed: Tensor | None = None
        self._packed_for: torch.Size | None = None

    def forward(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        """[B, C, H, W] -> [B, C', H', W']; ``add`` has the result's shape, and its memory is used for the result."""
        weight = self._packed if self._packed is not None else self._pack(self._packed_for or x.shape)
        shared = (x, weight, self.conv.bias, *self._geometry, self.conv.groups)
        activation = "relu" if self.relu else "none"
        if add is None:
            return torch.ops.mkldnn._convolution_pointwise.default(*shared, activation, [], "")
        unary = "relu" if self.relu else None
        return torch.ops.mkldnn._convolution_pointwise_.binary(add, *shared, "add", 1.0, unary, [], "")

    def _pack(self, shape: torch.Size) -> Tensor:
        """The weight in the layout that oneDNN reads, which depends on the shape of the first batch."""
        self._packed_for = shape
        self._packed = pack_convolution(self.conv.weight, (*self._geometry, self.conv.groups), shape)
        return self._packed

    def __getstate__(self) -> dict[str, Any]:
        # Tensors in that layout can be neither pickled nor copied. The copy packs for the same shape, whatever its own
        # first batch is: results would otherwise differ in the last bits.
        return self.__dict__ | {"_packed": None}


class FusedBlock(nn.Module):
    """A residual block whose batch norms are folded, with its ReLUs and its sum inside the convolutions.

    Args:
        block: a folded block of a ResNet.
    """

    def __init__(self, block: BasicBlock | Bottleneck) -> None:
        super().__init__()
        convs = [block.conv1, block.conv2, *([block.conv3] if isinstance(block, Bottleneck) else [])]
        if isinstance(block.bn1, FoldedIBN):
            first: nn.Module = nn.Sequential(FusedConv(convs[0], relu=False), block.bn1, nn.ReLU(inplace=True))
        else:
            first = FusedConv(convs[0], relu=True)
        self.before = nn.Sequential(first, *(FusedConv(conv, relu=True) for conv in convs[1:-1]))
        self.last = FusedConv(convs[-1], relu=True)
        self.shortcut = None if block.downsample is None else FusedConv(block.downsample[0], relu=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H', W']; may write into ``x``."""
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return self.last(self.before(x), add=shortcut)


def fuse_activations(base: nn.Module) -> nn.Module:
    """Move the ReLUs and residual sums of a folded backbone on the CPU into its convolutions, in place.

    The result computes no gradients. Check with :func:`fuses` first that this torch can do it.
    """
    for parent in list(base.modules()):
        for name, child in list(parent.named_children()):
            # A block with an unknown kind of norm stays as it is.
            if isinstance(child, BasicBlock | Bottleneck) and isinstance(child.bn1, nn.Identity | FoldedIBN):
                setattr(parent, name, FusedBlock(child))
    return base


@lru_cache
def fuses(dtype: torch.dtype) -> bool:
    """Whether this torch has, on this CPU, convolutions that include sum and ReLU and give the right result.

    The operators are those that torch's own compiler uses; they are not part of its documented interface.
    """
    x = torch.linspace(-2, 1, 2 * 8 * 9).reshape(2, 8, 3, 3)
    conv = nn.Conv2d(8, 8, 3, padding=1).requires_grad_(False)
    nn.init.constant_(conv.weight, 0.01)
    expected = torch.relu(conv(x) + x)
    x = x.to(dtype=dtype, memory_format=torch.channels_last)
    conv = conv.to(dtype).to(memory_format=torch.channels_last)
    try:
        with torch.inference_mode():
            found = FusedConv(conv, relu=True)(x, add=x.clone()).float()
            single = FusedConv(conv, relu=True)(x).float()
    except (AttributeError, RuntimeError, TypeError, NotImplementedError):
        return False
    close = torch.allclose(found, expected, atol=0.05)
    return close and torch.allclose(single, torch.relu(conv(x)).float(), atol=0.05)
