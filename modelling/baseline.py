"""The backbone with its pooling, and the loading of ImageNet weights into it."""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from checkpoints.reading import load_backbone_weights
from modelling.backbones import check_feature_map, get_backbone
from utils.errors import CheckpointError, MissingPathError, UserError

logger = logging.getLogger(__name__)


class Baseline(nn.Module):
    """A ResNet followed by global average pooling.

    Args:
        cfg: the configuration (yacs node or any nested mapping with attribute access), of which MODEL.NAME,
            LAST_STRIDE, PRETRAINED, PRETRAIN_PATH, RESUME_TRAINING and TEST.ONLY_TEST are read.
        load_weights: False leaves the network as initialised, whatever the configuration says; for callers that are
            about to load a whole checkpoint.

    Raises:
        UnknownNameError: there is no network MODEL.NAME.
        UserError: a network of the user's own gives no feature map, or one of another size.
        MissingPathError, CheckpointError: as for :func:`load_imagenet_weights`.
    """

    def __init__(self, cfg: Any, load_weights: bool = True) -> None:
        super().__init__()
        model = cfg.MODEL
        network = get_backbone(model.NAME)
        self.base = network.build(model.LAST_STRIDE)
        if network.embedding_size is None:
            check_feature_map(self.base, model.NAME, cfg.INPUT.SIZE_TEST, model.BACKBONE_EMB_SIZE)
        self.gap = nn.AdaptiveAvgPool2d(1)
        self.memory_format = torch.contiguous_format
        if load_weights and model.PRETRAINED and not model.RESUME_TRAINING and not cfg.TEST.ONLY_TEST:
            load_imagenet_weights(self.base, model.PRETRAIN_PATH, model.NAME)

    def choose_computation(self, *, channels_last: bool, grad_checkpoint: bool) -> None:
        """Choose how the network computes; this changes its results by rounding only.

        Args:
            channels_last: keep images and feature maps with the channel as the innermost axis.
            grad_checkpoint: recompute each block in the backward pass instead of storing its activations.

        Raises:
            UserError: grad_checkpoint with a network of the user's own that does not offer it.
        """
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.base.to(memory_format=self.memory_format)
        if hasattr(self.base, "grad_checkpoint"):
            self.base.grad_checkpoint = grad_checkpoint
        elif grad_checkpoint:
            raise UserError(
                f"MODEL.GRAD_CHECKPOINT is True, but {type(self.base).__name__} has no attribute grad_checkpoint to "
                "switch it on with: set MODEL.GRAD_CHECKPOINT False."
            )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images [B, 3, H, W] floating -> feature map [B, D, H', W'] and its mean over positions [B, D]."""
        feature_map = self.base(x.contiguous(memory_format=self.memory_format))
        # Autocast computes the map in half precision; its mean needs the digits that tell close images apart.
        return feature_map, self.gap(feature_map.to(x.dtype)).flatten(1)


def load_imagenet_weights(base: nn.Module, path: str, name: str) -> None:
    """Load the weights that training starts from.

    Args:
        base: the backbone, changed in place.
        path: MODEL.PRETRAIN_PATH: a torchvision ResNet, an IBN-a network, or a CTL checkpoint of the same network. All
            layers must be present and fit; fc, classifier and bottleneck are skipped.
        name: MODEL.NAME, for messages.

    Raises:
        MissingPathError: there is no such file.
        CheckpointError: it cannot be read, or holds the weights of another network; the message says what it holds.
    """
    if not path or not Path(path).is_file():
        raise MissingPathError(
            f"MODEL.PRETRAIN_PATH is {path!r}, which is not a file. Expected ImageNet weights of {name}: fetch them "
            "and set MODEL.PRETRAIN_PATH to the file, or set MODEL.PRETRAINED False to start from random weights."
        )
    try:
        weights, description = load_backbone_weights(path)
    except CheckpointError as error:
        raise CheckpointError(
            f"MODEL.PRETRAIN_PATH: {error} Give ImageNet weights of {name}, or set MODEL.PRETRAINED False to start "
            "from random weights."
        ) from error
    misfit = _misfit(base, weights)
    if misfit:
        raise CheckpointError(
            f"MODEL.PRETRAIN_PATH {path} holds {description}, which MODEL.NAME {name} cannot start from ({misfit}). "
            f"Give the ImageNet weights of {name}, set MODEL.NAME to the network in the file, or set MODEL.PRETRAINED "
            "False. To resume from a CTL checkpoint, set MODEL.RESUME_TRAINING True; to test it, TEST.ONLY_TEST True."
        )
    base.load_state_dict(weights, strict=False)
    logger.info("Loaded %s from %s: %d entries into %s.", description, path, len(weights), name)


def _misfit(base: nn.Module, weights: dict[str, Tensor]) -> str:
    """Why these weights do not fit the backbone; "" if they do."""
    own = {key: value for key, value in base.state_dict().items() if not key.startswith("fc.")}
    # Files written by torch before 0.4.1 do not have num_batches_tracked.
    missing = [key for key in own if key not in weights and not key.endswith("num_batches_tracked")]
    unknown = [key for key in weights if key not in own]
    shapes = [key for key in own if key in weights and own[key].shape != weights[key].shape]
    if not set(own) & set(weights):
        return "none of its entries belongs to the network"
    if missing:
        return f"{len(missing)} of {len(own)} entries are missing, the first is {missing[0]}"
    if shapes:
        key = shapes[0]
        return f"{key} is {list(weights[key].shape)} there and {list(own[key].shape)} in the network"
    return f"{len(unknown)} entries have no place in the network, the first is {unknown[0]}" if unknown else ""
