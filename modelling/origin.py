"""Which network the numbers of an evaluation are of."""

from collections.abc import Mapping
from typing import Any

from checkpoints.digest import digest_of


def epochs_in(checkpoint: Mapping[str, Any]) -> int | None:
    """How many epochs the weights of a checkpoint, ours or the original's, were trained for; None if it is unknown."""
    if "loops" in checkpoint:
        return int(checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["ready"])
    return int(checkpoint["epoch"]) if "epoch" in checkpoint else None


def network_origin(model: Any) -> dict[str, Any]:
    """The weights of a ModelBase with a Trainer, where they come from, and how images reach them.

    From ``weights`` on, names and values are those in the gallery.json of the same network.
    """
    hparams, trainer = model.hparams, model.trainer
    trained = trainer.fit_loop.epoch_progress.current.ready
    folders = [folder for logger in trainer.loggers if (folder := getattr(logger, "log_dir", None))]
    is_read = hparams.MODEL.PRETRAINED or hparams.TEST.ONLY_TEST
    start = model.loaded_from or (hparams.MODEL.PRETRAIN_PATH if is_read else "")
    return {
        "name": hparams.MODEL.NAME,
        "checkpoint": None if trained else start or None,
        "run": str(folders[0]) if trained and folders else None,
        "epochs": trained or model.loaded_epochs,
        "weights": digest_of({"backbone": model.backbone, "bn": model.bn}),
        "dimension": model.bn.num_features,
        "size": list(hparams.INPUT.SIZE_TEST),
        "mean": list(hparams.INPUT.PIXEL_MEAN),
        "std": list(hparams.INPUT.PIXEL_STD),
        "exif_orientation": bool(hparams.INPUT.EXIF_ORIENTATION),
        "draft_decoding": bool(hparams.INPUT.DRAFT_DECODING),
        "resize": hparams.INPUT.RESIZE,
        "flip": bool(hparams.TEST.FLIP),
        **embedding_settings(hparams),
    }


def embedding_settings(hparams: Any) -> dict[str, Any]:
    """What embeddings depend on besides weights and images."""
    return {"pooling": hparams.MODEL.POOLING, "neck_feat": hparams.MODEL.NECK_FEAT}


def describe_origin(network: Mapping[str, Any], versions: Mapping[str, Any]) -> str:
    """The origin of a tested network in one line."""
    epochs = "" if network["epochs"] is None else f"{network['epochs']} epoch(s), "
    height, width = network["size"]
    ways = " padded" * (network["resize"] == "pad") + " and mirrored" * network["flip"]
    return (
        f"{network['checkpoint']} ({network['name']}, {epochs}weights "
        f"{network['weights'][:12]}), images {height}x{width}{ways}, mean {network['mean']}, std {network['std']}, "
        f"torch {versions['torch']}, torchvision {versions['torchvision']}"
    )
