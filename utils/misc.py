"""A door: the names of the original's utils/misc.py.

Runs live in :mod:`engine.run`, the Trainer in :mod:`engine.trainer`, loggers in :mod:`engine.loggers`, the networks in
:mod:`modelling.backbones`.
"""

from typing import Any

from torch import nn

from engine.loggers import build_loggers
from engine.run import run_main, run_script, run_single, run_untrained
from engine.trainer import build_trainer
from modelling.backbones import NetworkOptions
from modelling.backbones import get_backbone as find_backbone
from modelling.backbones.imagenet import warn_nothing_is_downloaded

__all__ = ["build_loggers", "build_trainer", "get_backbone", "run_main", "run_script", "run_single", "run_untrained"]


def get_backbone(name: str, last_stride: int = 1, pretrained: bool = False, **kw: Any) -> nn.Module:
    """Build the network with this name, with random weights.

    Args:
        name: one of the values of MODEL.NAME.
        last_stride: stride of layer4.
        pretrained: has no effect but a warning, since nothing is downloaded; load a file with ``.load_param(path)``.
        kw: what the network takes besides, such as ``num_classes`` of those with IBN-a.

    Raises:
        UnknownNameError: there is none (also a KeyError and a ValueError); the message lists the valid names.
    """
    build: Any = find_backbone(name).build
    network = build(NetworkOptions(last_stride=last_stride), **kw)
    if pretrained:
        warn_nothing_is_downloaded(name)
    return network
