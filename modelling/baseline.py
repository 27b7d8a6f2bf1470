"""The backbone with its pooling."""

import os
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from modelling.backbones import BACKBONES, NetworkOptions, find_width, get_backbone
from modelling.backbones.imagenet import load_imagenet_weights, load_weights_file, starts_from_weights
from modelling.pooling import POOLINGS, TOKEN, Reduction, pool
from utils.errors import UserError

__all__ = ["Baseline", "load_imagenet_weights", "weights_init_classifier", "weights_init_kaiming"]


class Baseline(nn.Module):
    """A network, the pooling of what it returns, and a reduction if there is one.

    ``in_planes`` is the width before the reduction (D), ``embedding_size`` that after it (E), and ``model_name`` is
    MODEL.NAME.

    Args:
        cfg: the configuration (yacs node or any nested mapping with attribute access), of which MODEL.NAME,
            LAST_STRIDE, STEM_RELU, POOLING, EMBED_DIM, PRETRAINED, PRETRAIN_PATH, PRETRAIN_MIN_SHARE, RESUME_TRAINING
            and TEST.ONLY_TEST are read; for networks of other packages, MODEL.DROP_PATH, PATCH_STRIDE and the sizes in
            INPUT too.
        load_weights: False leaves the network as initialised, whatever the configuration says; for callers that are
            about to load a whole checkpoint.

    Raises:
        UnknownNameError: there is no network MODEL.NAME.
        UserError: a network that is not of this project gives something else than a map, tokens or vectors, or has
            another width than MODEL.BACKBONE_EMB_SIZE; MODEL.POOLING does not fit what the network gives.
        MissingPathError, CheckpointError: as for :func:`load_imagenet_weights`.
    """

    def __init__(self, cfg: Any, load_weights: bool = True) -> None:
        super().__init__()
        model = cfg.MODEL
        network = get_backbone(model.NAME)
        self.model_name: str = model.NAME
        self.base = network.build(_network_options(cfg))
        self.pooling: str = model.POOLING
        self.gap = POOLINGS[self.pooling]()
        if model.NAME in BACKBONES and self.pooling != TOKEN:
            self.in_planes: int = network.embedding_size
        else:
            self.in_planes = find_width(self, model.NAME, cfg.INPUT.SIZE_TEST, model.BACKBONE_EMB_SIZE)
        self.embedding_size: int = model.EMBED_DIM or self.in_planes
        self.reduction: nn.Module = nn.Identity()
        if model.EMBED_DIM:
            self.reduction = Reduction(self.in_planes, model.EMBED_DIM)
        self.channels_last = False
        if load_weights and starts_from_weights(cfg):
            load_imagenet_weights(self.base, model.PRETRAIN_PATH, model.NAME, model.PRETRAIN_MIN_SHARE)

    def choose_computation(self, *, channels_last: bool, grad_checkpoint: bool) -> None:
        """Choose how the network computes; this changes its results by rounding only.

        Args:
            channels_last: keep images and feature maps with the channel as the innermost axis.
            grad_checkpoint: recompute each block in the backward pass instead of storing its activations.

        Raises:
            UserError: grad_checkpoint with a network of the user's own that does not offer it.
        """
        self.channels_last = channels_last
        self.base.to(memory_format=self.memory_format)
        if hasattr(self.base, "grad_checkpoint"):
            self.base.grad_checkpoint = grad_checkpoint
        elif grad_checkpoint:
            raise UserError(
                f"MODEL.GRAD_CHECKPOINT is True, but {type(self.base).__name__} has no attribute grad_checkpoint to "
                "switch it on with: set MODEL.GRAD_CHECKPOINT False."
            )

    @property
    def memory_format(self) -> torch.memory_format:
        """How images and feature maps are stored; torch.save cannot write this type, so it is not an attribute."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def load_param(self, path: str | os.PathLike[str]) -> None:
        """Load a file of weights into the backbone; see :func:`modelling.backbones.imagenet.load_weights_file`."""
        load_weights_file(self.base, path, self.model_name)

    def pool(self, output: Tensor) -> Tensor:
        """What the network returned -> vectors [B, D]; see :func:`modelling.pooling.pool`."""
        pooled = pool(output, self.pooling, self.gap, getattr(self.base, "num_prefix_tokens", 0))
        after = getattr(self.base, "after_pooling", None)  # a part of the network that works on vectors
        return pooled if after is None else after(pooled)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images [B, 3, H, W] floating -> what the network returns, a map [B, D, H', W'] or tokens; and [B, E]."""
        output = self.base(x.contiguous(memory_format=self.memory_format))
        # Autocast computes the map in half precision; what follows needs the digits that tell close images apart.
        pooled = self.pool(output.to(x.dtype)).to(x.dtype)  # a layer of the network's after the pooling may be in half
        return output, self.reduction(pooled)


def _network_options(cfg: Any) -> NetworkOptions:
    """What a configuration says of its network; one of this project is asked for by less."""
    model = cfg.MODEL
    if model.NAME in BACKBONES:
        return NetworkOptions(last_stride=model.LAST_STRIDE, stem_relu=model.STEM_RELU)
    return NetworkOptions(
        last_stride=model.LAST_STRIDE,
        image_size=tuple(cfg.INPUT.SIZE_TRAIN),
        test_size=tuple(cfg.INPUT.SIZE_TEST),
        drop_path=model.DROP_PATH,
        patch_stride=model.PATCH_STRIDE,
    )


def weights_init_kaiming(module: nn.Module) -> None:
    """Draw the weights of one layer anew: ``model.apply(weights_init_kaiming)`` does it for all.

    Linear layers and convolutions get weights by He et al. (ICCV 2015), from a normal distribution with variance
    2 / out_features and 2 / fan_in, and norm layers weight 1; every bias becomes 0. Other modules are left alone.
    """
    if isinstance(module, nn.Linear):
        nn.init.kaiming_normal_(module.weight, mode="fan_out")
    elif isinstance(module, _ConvNd):
        nn.init.kaiming_normal_(module.weight, mode="fan_in")
    elif isinstance(module, _BatchNorm) and module.affine:
        nn.init.ones_(module.weight)
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def weights_init_classifier(module: nn.Module) -> None:
    """Draw the weights of a linear layer from a normal distribution with standard deviation 0.001; its bias becomes 0.

    Other modules are left alone, so that ``model.apply(weights_init_classifier)`` changes the classifiers alone.
    """
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.001)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
