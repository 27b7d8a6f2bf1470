"""Parts of a model that are not trained, for good or in the first epochs."""

from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from checkpoints.weights import shorten
from solver.groups import backbone_prefix
from utils.errors import UserError


class Frozen:
    """What MODEL.FREEZE_AT and SOLVER.FREEZE_EPOCHS leave as it is.

    Frozen parameters get no gradient, so that no optimiser moves or decays them. They stay in its groups: what is
    frozen may change when a training continues. Modules of which all parameters are frozen stay in eval mode.

    Args:
        model: a model with hyper-parameters.

    Raises:
        UserError: a pattern matches no parameter, or every parameter is frozen.
    """

    def __init__(self, model: Any) -> None:
        names = [name for name, _ in model.named_parameters()]
        self.epochs: int = model.hparams.SOLVER.FREEZE_EPOCHS
        self.max_epochs: int = model.hparams.SOLVER.MAX_EPOCHS
        patterns = list(model.hparams.MODEL.FREEZE_AT)
        if self.epochs and not patterns:
            patterns = [f"{backbone_prefix(names)}*"]
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                nearest = ", ".join(get_close_matches(pattern, names, n=3, cutoff=0))
                raise UserError(
                    f"MODEL.FREEZE_AT: no parameter of the model matches {pattern!r}; the nearest names are {nearest}. "
                    "A * stands for any text."
                )
        self.names = {name: None for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)}
        if len(self.names) == len(names):
            raise UserError(f"MODEL.FREEZE_AT is {patterns}, which freezes every parameter: nothing is left to train.")
        self._is_on = False
        self._stopped: list[nn.Parameter] = []
        self._in_eval: list[nn.Module] = []

    def describe(self) -> str:
        """What is frozen, and how long; "" for nothing."""
        how_long = f"in the first {self.epochs} epoch(s)" if self.epochs else "for good"
        if self.epochs >= self.max_epochs:
            how_long += f", which are all (SOLVER.MAX_EPOCHS {self.max_epochs})"
        return f"frozen {how_long}: {shorten(list(self.names))} of the model's parameters" if self.names else ""

    def set_epoch(self, model: nn.Module, epoch: int) -> bool:
        """Freeze or release what this epoch asks for, counted from 0; returns whether that is a change."""
        wanted = bool(self.names) and (not self.epochs or epoch < self.epochs)
        if wanted == self._is_on:
            return False
        if wanted:
            self._freeze(model)
        else:
            self.release()
        self._is_on = wanted
        return True

    def _freeze(self, model: nn.Module) -> None:
        """What needs no gradient, or is in eval mode, anyway, is not released later."""
        chosen = [parameter for name, parameter in model.named_parameters() if name in self.names]
        self._stopped = [parameter for parameter in chosen if parameter.requires_grad]
        for parameter in self._stopped:
            parameter.requires_grad_(False)
        ours = {id(parameter) for parameter in chosen}
        whole: dict[nn.Module, None] = {}
        for module in model.modules():
            parameters = list(module.parameters())
            still = not any(parameter.requires_grad for parameter in parameters)
            if still and any(id(parameter) in ours for parameter in parameters):
                whole |= dict.fromkeys(module.modules())
        self._in_eval = [module for module in whole if module.training]
        self.hold()

    def hold(self) -> None:
        """Keep frozen modules in eval mode, whoever has switched the model to training."""
        for module in self._in_eval:
            module.training = False

    def release(self) -> None:
        """Train what was frozen from now on."""
        for parameter in self._stopped:
            parameter.requires_grad_(True)
        for module in self._in_eval:
            module.training = True
        self._stopped, self._in_eval = [], []
