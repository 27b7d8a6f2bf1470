"""Losses of the package pytorch-metric-learning, which is imported only where one of them is built."""

import copy
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor, nn

from utils.errors import UnknownNameError, UserError
from utils.optional import require

# Names for LOSSES.EXTRA and the classes that they stand for; every other class goes by pml:Class.
NAMED = {
    "arcface": "ArcFaceLoss",
    "circle": "CircleLoss",
    "contrastive": "ContrastiveLoss",
    "cosface": "CosFaceLoss",
    "multi_similarity": "MultiSimilarityLoss",
    "ntxent": "NTXentLoss",
    "proxy_anchor": "ProxyAnchorLoss",
    "proxy_nca": "ProxyNCALoss",
    "subcenter_arcface": "SubCenterArcFaceLoss",
    "supcon": "SupConLoss",
}
PREFIX = "pml:"
# Arguments that are objects; a configuration names the class, in this module of the package.
_OBJECTS = {
    "distance": "distances",
    "reducer": "reducers",
    "embedding_regularizer": "regularizers",
    "weight_regularizer": "regularizers",
}


class MetricLoss(nn.Module):
    """A loss of the package, computed in float32 whatever the autocast state: it would cast its weights to float16.

    Args:
        loss: a module of embeddings [R, D] and labels [R].

    Example:
        >>> class Length(nn.Module):
        ...     def forward(self, embeddings, labels):
        ...         return embeddings.norm(dim=1).mean()
        >>> MetricLoss(Length())(torch.tensor([[3.0, 4.0]], dtype=torch.float16), torch.tensor([0]))
        tensor(5.)
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Scalar float32 of features [R, D] floating and labels [R] int64."""
        with torch.autocast(features.device.type, enabled=False):
            return self.loss(features.float(), labels)


def build_metric_loss(name: str, num_classes: int, embedding_size: int, /, **arguments: Any) -> MetricLoss:
    """Build a loss of the package; one that needs the number of identities or the size of the embedding gets them.

    Args:
        name: one of NAMED, or pml:Class.
        num_classes: training identities.
        embedding_size: D.
        arguments: of its class. A distance, reducer or regularizer is named, such as ``distance="LpDistance"``.

    Raises:
        UnknownNameError: the package has no such class.
        UserError: the package is not installed; or the class has no such argument.

    Example:
        >>> build_metric_loss("circle", 751, 2048, m=0.25, gamma=128)  # doctest: +SKIP
        >>> NAMED["circle"]
        'CircleLoss'
    """
    where = f"LOSSES.EXTRA {name}"
    classes = require("pytorch_metric_learning.losses", "losses", where)
    cls = _find_class(classes, NAMED.get(name, name.removeprefix(PREFIX)), where, "Loss")
    parameters, own = _parameters(cls), signature(cls).parameters
    sizes = {"num_classes": num_classes, "embedding_size": embedding_size, "descriptors_dim": embedding_size}
    required = {each for each, parameter in parameters.items() if parameter.default is parameter.empty}
    filled_in = {each: size for each, size in sizes.items() if each in required}
    # What a base requires and its subclass does not name is passed on by the subclass itself.
    valid = sorted(each for each in parameters if each not in filled_in and (each in own or each not in required))
    for wrong in arguments.keys() - valid:
        raise UserError(f"LOSSES.EXTRA_ARGS: {name} has no argument {wrong!r}; valid ones: {', '.join(valid)}.")
    for given in arguments.keys() & _OBJECTS.keys():
        module = require(f"pytorch_metric_learning.{_OBJECTS[given]}", "losses", where)
        arguments[given] = _find_class(module, str(arguments[given]), f"LOSSES.EXTRA_ARGS: {given} of {name}")()
    loss = cls(**filled_in, **arguments)
    _try(loss, num_classes, embedding_size)
    return MetricLoss(loss)


def _find_class(module: Any, name: str, where: str, ending: str = "") -> Any:
    valid = sorted(each for each, value in vars(module).items() if isinstance(value, type) and each.endswith(ending))
    if name not in valid:
        raise UnknownNameError(
            f"{where}: pytorch-metric-learning has no {module.__name__.rpartition('.')[2]}.{name}; valid names: "
            f"{', '.join(valid)}."
        )
    return getattr(module, name)


def _parameters(cls: type) -> dict[str, Parameter]:
    """The named parameters of a class, also those that its constructor passes on to its bases."""
    found: dict[str, Parameter] = {}
    for constructor in (vars(each)["__init__"] for each in cls.__mro__ if "__init__" in vars(each)):
        _, *parameters = signature(constructor).parameters.values()
        found = {p.name: p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)} | found
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return found


def _try(loss: nn.Module, num_classes: int, embedding_size: int) -> None:
    """Compute a copy of a loss once, so that a wrong value or a loss of another kind is told before the training."""
    labels = torch.arange(4) // 2 % num_classes
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        copy.deepcopy(loss)(torch.eye(4, embedding_size), labels)
