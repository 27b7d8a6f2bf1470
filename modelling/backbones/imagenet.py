"""The weights that a network starts from: a file of ImageNet weights, or the backbone of a CTL checkpoint."""

import logging
import os
from pathlib import Path

from torch import Tensor, nn

from checkpoints.reading import load_backbone_weights
from utils.errors import CheckpointError, MissingPathError

logger = logging.getLogger(__name__)


def load_weights_file(base: nn.Module, path: str | os.PathLike[str], network: str) -> None:
    """Load a file of weights into a network.

    Args:
        base: the network, changed in place.
        path: a torchvision ResNet, an IBN-a network, or a CTL checkpoint of the same network. All layers must be
            present and fit; fc, classifier and bottleneck are skipped.
        network: its name, for messages.

    Raises:
        MissingPathError: there is no such file.
        CheckpointError: it cannot be read, or holds the weights of another network; the message says what it holds.
    """
    weights, description = load_backbone_weights(path)
    misfit = _misfit(base, weights)
    if misfit:
        raise CheckpointError(f"{os.fspath(path)} holds {description}, which {network} cannot start from ({misfit}).")
    base.load_state_dict(weights, strict=False)
    logger.info("Loaded %s from %s: %d entries into %s.", description, path, len(weights), network)


def load_imagenet_weights(base: nn.Module, path: str, name: str) -> None:
    """Load the weights that training starts from.

    Args:
        base: the backbone, changed in place.
        path: MODEL.PRETRAIN_PATH, a file as for :func:`load_weights_file`.
        name: MODEL.NAME, for messages.

    Raises:
        MissingPathError, CheckpointError: as for :func:`load_weights_file`; the message names the keys to change.
    """
    if not path or not Path(path).is_file():
        raise MissingPathError(
            f"MODEL.PRETRAIN_PATH is {path!r}, which is not a file. Expected ImageNet weights of {name}: fetch them "
            "and set MODEL.PRETRAIN_PATH to the file, or set MODEL.PRETRAINED False to start from random weights."
        )
    try:
        load_weights_file(base, path, f"MODEL.NAME {name}")
    except CheckpointError as error:
        raise CheckpointError(
            f"MODEL.PRETRAIN_PATH: {error} Give the ImageNet weights of {name}, set MODEL.NAME to the network in the "
            "file, or set MODEL.PRETRAINED False to start from random weights. To resume from a CTL checkpoint, set "
            "MODEL.RESUME_TRAINING True; to test it, TEST.ONLY_TEST True."
        ) from error


def warn_nothing_is_downloaded(network: str) -> None:
    """Say that ``pretrained=True`` gives random weights, and where a file of weights goes."""
    logger.warning(
        "pretrained=True: nothing is downloaded, so this %s has random weights. Fetch its ImageNet weights and load "
        "them with .load_param(path); for training, set MODEL.PRETRAIN_PATH to the file.",
        network,
    )


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
