"""What a model takes from a file that is not its own checkpoint: another one's head, or a backbone to test as it is."""

import logging
import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import Tensor, nn

from checkpoints.reading import load_checkpoint
from checkpoints.weights import describe, state_dict_of
from modelling.backbones import check_embedding_size
from modelling.backbones.imagenet import NothingFitsError, load_weights
from modelling.hyperparameters import construct
from utils.distributed import is_first_process
from utils.errors import CheckpointError, NotACtlCheckpointError, UserError

logger = logging.getLogger(__name__)

NECK, CLASSIFIER = ("bn.", "backbone.gap.", "backbone.reduction."), ("fc_query.", "center_loss.")
Model = TypeVar("Model")


def load_head(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Take over the BN neck of a CTL checkpoint, and the classifier and centres if they are of as many identities.

    What there is between network and neck, a learned pooling and a reduction, comes with the neck.

    One line says what was taken.

    Args:
        model: a ModelBase, changed in place.
        path: the checkpoint, MODEL.PRETRAIN_PATH.

    Raises:
        UserError: the file has no BN neck that fits the model.
    """
    content = load_checkpoint(path)
    state = state_dict_of(content)
    if not _take(model, state, *NECK):
        raise UserError(
            f"MODEL.PRETRAIN_HEAD is True, but {path} holds {describe(content)}, without a BN neck that fits this "
            "model: give a CTL checkpoint of the same network, MODEL.POOLING and EMBED_DIM, or set MODEL.PRETRAIN_HEAD "
            "False."
        )
    there, here = (len(found.get("fc_query.weight", ())) for found in (state, model.state_dict()))
    if _take(model, state, *CLASSIFIER):
        what = f"BN neck, classifier and centres ({here} identities)"
    else:
        what = f"BN neck; not the classifier and the centres, which are for {there} identities (here: {here})"
    if is_first_process():
        logger.info("Taken over from %s too: %s.", path, what)


def model_of_weights(
    cls: Callable[..., Model], path: str | os.PathLike[str], cfg: Any, refusal: NotACtlCheckpointError, **facts: Any
) -> Model:
    """A model of a configuration around the weights of its backbone, to test or embed with; a warning says so.

    Args:
        cls: class of the model.
        path: a file that is no CTL checkpoint.
        cfg: its MODEL names the network.
        refusal: what reading the file as a CTL checkpoint raised.
        facts: ``num_classes`` and whatever else the model is to record.

    Returns:
        The model. Its BN neck is the file's if that holds one that fits, as the state dict of a CTL model does, and
        otherwise a new one, which leaves the pooled features as they are, up to rounding.

    Raises:
        NotACtlCheckpointError: ``refusal``, if nothing in the file fits the network.
        UserError: too little of it fits, see MODEL.PRETRAIN_MIN_SHARE; or MODEL.BACKBONE_EMB_SIZE is another network's.
    """
    check_embedding_size(cfg.MODEL.NAME, cfg.MODEL.BACKBONE_EMB_SIZE)
    content, settings = load_checkpoint(path), cfg.MODEL
    model: Any = construct(cls, cfg, {**facts, "load_imagenet": False})
    try:
        load_weights(model.backbone.base, content, path, f"MODEL.NAME {settings.NAME}", settings.PRETRAIN_MIN_SHARE)
    except NothingFitsError:
        raise refusal from None
    except CheckpointError as error:
        raise CheckpointError(
            f"{error} Expected a CTL checkpoint, or weights of MODEL.NAME: set MODEL.NAME and MODEL.BACKBONE_EMB_SIZE "
            "to the network in the file, or lower MODEL.PRETRAIN_MIN_SHARE to take what fits."
        ) from error
    if _take(model, state_dict_of(content), *NECK):
        what = "without its settings: those of the configuration are used (last stride, image size, scaling)"
    elif settings.EMBED_DIM:
        raise CheckpointError(
            f"MODEL.EMBED_DIM is {settings.EMBED_DIM}, but {path} holds {describe(content)}, without that layer, whose "
            "weights would be random: set MODEL.EMBED_DIM 0."
        )
    else:
        what = "not a trained CTL model: embeddings are the pooled features of the backbone"
        what += ", after its last layer" if hasattr(model.backbone.base, "after_pooling") else ""
    if is_first_process():
        logger.warning("%s holds %s, %s.", path, describe(content), what)
    return model


def _take(model: nn.Module, state: Mapping[str, Tensor], *prefixes: str) -> bool:
    """Load the tensors with some prefixes, if all of them are there and fit; whether they do."""
    own = {key: value for key, value in model.state_dict().items() if key.startswith(prefixes)}
    if not own or not all(key in state and state[key].shape == value.shape for key, value in own.items()):
        return False
    model.load_state_dict({key: state[key] for key in own}, strict=False)
    return True
