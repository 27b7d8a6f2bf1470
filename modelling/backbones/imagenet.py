"""The weights that a network starts from: ImageNet weights, the backbone of a CTL checkpoint, or those of others."""

import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from checkpoints.reading import load_checkpoint
from checkpoints.weights import describe, find_unusable, fit_weights
from modelling.backbones.package_network import PackageNetwork
from utils.distributed import is_first_process
from utils.errors import CheckpointError, MissingPathError, UserError

logger = logging.getLogger(__name__)


class NothingFitsError(CheckpointError):
    """A file of which no tensor fits the network."""


def starts_from_weights(cfg: Any) -> bool:
    """Whether a new model takes the weights in MODEL.PRETRAIN_PATH, rather than a checkpoint or random weights."""
    return cfg.MODEL.PRETRAINED and not cfg.MODEL.RESUME_TRAINING and not cfg.TEST.ONLY_TEST


def load_weights_file(base: nn.Module, path: str | os.PathLike[str], network: str, min_share: float = 1.0) -> None:
    """Load into a network what fits of a file of weights, by name and shape, and log what that is.

    Args:
        base: the network, changed in place.
        path: a torchvision ResNet, an IBN-a network, a CTL checkpoint, or what another code base wrote for such a
            network; see :func:`checkpoints.weights.fit_weights`. fc, classifier and bottleneck are left out.
        network: its name, for messages.
        min_share: share of tensors that must fit, 0 to 1, of all that the network or its counterpart in the file has.

    Raises:
        MissingPathError: there is no such file.
        CheckpointError: it cannot be read, or too little fits; the message says what it holds, and lists the rest.
        UserError: as for :func:`load_weights`.
    """
    load_weights(base, load_checkpoint(path), path, network, min_share)


def load_weights(
    base: nn.Module, content: Mapping[str, Any], path: str | os.PathLike[str], network: str, min_share: float = 1.0
) -> None:
    """Load into a network what fits of a file that has been read already.

    Args:
        base, network, min_share: as for :func:`load_weights_file`.
        content: what :func:`checkpoints.reading.load_checkpoint` returned.
        path: the file, for messages.

    Raises:
        NothingFitsError: no tensor of the file fits.
        CheckpointError: too little fits, as for :func:`load_weights_file`.
        UserError: it fits, but holds NaN, infinity or no floating-point numbers.
    """
    if isinstance(base, PackageNetwork):
        fit = base.fit_weights(content)
    else:
        # The classifier of a ResNet, which is never called; but some networks have an fc that follows the pooling.
        left = () if hasattr(base, "after_pooling") else ("fc.",)
        fit = fit_weights(content, {key: value for key, value in base.state_dict().items() if not key.startswith(left)})
    description = describe(content)
    text = f"{path} holds {description}, which {network} cannot start from"
    if not fit.weights:
        raise NothingFitsError(f"{text} (none of its entries belongs to the network).")
    if fit.share < min_share:
        share = math.floor(fit.share * 1000) / 1000  # rounded down, so that asking for this share helps
        raise CheckpointError(
            f"{text}: {fit.describe('fit')}. That is a share of {share:g} of the tensors that either has, and "
            f"{min_share:g} is needed."
        )
    if unusable := find_unusable(fit.weights, base):
        raise UserError(f"{path} holds {description}, but {unusable}.")
    base.load_state_dict(fit.weights, strict=False)
    if is_first_process():
        what = description.replace("weights of an unknown network", "weights")  # which fit, so that it is known
        logger.info("Loaded %s from %s into %s: %s.", what, path, network, fit.describe("loaded"))


def load_imagenet_weights(base: nn.Module, path: str, name: str, min_share: float = 1.0) -> None:
    """Load the weights that training starts from.

    Args:
        base: the backbone, changed in place.
        path: MODEL.PRETRAIN_PATH, a file as for :func:`load_weights_file`; "" takes the weights that timm or
            torchvision publishes for a network of theirs, and downloads them where they are not at hand.
        name: MODEL.NAME, for messages.
        min_share: MODEL.PRETRAIN_MIN_SHARE, as for :func:`load_weights_file`.

    Raises:
        MissingPathError, CheckpointError: as for :func:`load_weights_file`; the message names the keys to change.
        UserError: the download failed.
    """
    if not path and isinstance(base, PackageNetwork):
        what = base.download_weights()
        if is_first_process():
            logger.info("Loaded %s into MODEL.NAME %s.", what, name)
        return
    if not path or not Path(path).is_file():
        raise MissingPathError(
            f"MODEL.PRETRAIN_PATH is {path!r}, which is not a file. Expected ImageNet weights of {name}: fetch them "
            "and set MODEL.PRETRAIN_PATH to the file, or set MODEL.PRETRAINED False to start from random weights."
        )
    try:
        load_weights_file(base, path, f"MODEL.NAME {name}", min_share)
    except CheckpointError as error:
        raise CheckpointError(
            f"MODEL.PRETRAIN_PATH: {error} Give the ImageNet weights of {name}, set MODEL.NAME to the network in the "
            "file, or set MODEL.PRETRAINED False to start from random weights. To take what fits all the same, lower "
            "MODEL.PRETRAIN_MIN_SHARE. To resume from a CTL checkpoint, set MODEL.RESUME_TRAINING True; to test it, "
            "TEST.ONLY_TEST True."
        ) from error


def warn_nothing_is_downloaded(network: str) -> None:
    """Say that ``pretrained=True`` gives random weights, and where a file of weights goes."""
    logger.warning(
        "pretrained=True: nothing is downloaded, so this %s has random weights. Fetch its ImageNet weights and load "
        "them with .load_param(path); for training, set MODEL.PRETRAIN_PATH to the file.",
        network,
    )
