"""The exponential moving average of a model's weights, see SOLVER.EMA_DECAY."""

from collections.abc import Mapping
from typing import Any

import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor, nn

# Where a checkpoint holds the weights that the training goes on with, while its "state_dict" holds the average: the
# name that Lightning's own WeightAveraging gives them.
PLAIN = "current_model_state"


class WeightAverage:
    """``average = decay * average + (1 - decay) * weights``, from the weights at its start on.

    As in timm's ModelEmaV3, the running statistics of batch norm are averaged like weights, and integers are copied.
    Weights of 16 bits are averaged in 32, which hold what a step adds.

    Args:
        model: whose parameters and buffers, those of its state dict, are averaged; the average lies on its device.
        decay: 0 to below 1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._average = {name: _wide(value).clone() for name, value in model.state_dict().items()}
        self._plain: dict[str, Tensor] | None = None  # the model's own, while the average is in it

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights after a step; waits for no device."""
        state = model.state_dict()
        floating = [name for name, value in state.items() if value.is_floating_point()]
        averages = [self._average[name] for name in floating]
        torch._foreach_lerp_(averages, [_wide(state[name]) for name in floating], 1.0 - self.decay)
        for name in state.keys() - set(floating):
            self._average[name].copy_(state[name])

    def put_in(self, model: nn.Module) -> None:
        """Give the model the average; its own weights are kept. Does nothing if the average is in it."""
        if self._plain is None:
            self._plain = {name: value.clone() for name, value in model.state_dict().items()}
            _copy(self._average, model.state_dict())

    def take_out(self, model: nn.Module) -> None:
        """Give the model its own weights back."""
        if self._plain is not None:
            _copy(self._plain, model.state_dict())
            self._plain = None

    def move_to(self, device: torch.device) -> None:
        """Move the average to the device that the model has moved to."""
        self._average = {name: value.to(device) for name, value in self._average.items()}

    def store(self, checkpoint: dict[str, Any]) -> None:
        """Make the average the "state_dict" of a checkpoint, which holds the model's; put the other under PLAIN."""
        if PLAIN in checkpoint:
            return
        if self._plain is None:
            checkpoint[PLAIN] = checkpoint["state_dict"]
            checkpoint["state_dict"] = {**checkpoint["state_dict"], **self._average}
        else:
            checkpoint[PLAIN] = self._plain

    @classmethod
    def restored(cls, model: nn.Module, decay: float, checkpoint: Mapping[str, Any]) -> "WeightAverage":
        """The average that :meth:`store` put into a checkpoint of the model, as exact as it was."""
        average = cls(model, decay)
        _copy(checkpoint["state_dict"], average._average)
        return average


def _wide(value: Tensor) -> Tensor:
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


@torch.no_grad()
def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    for name, value in target.items():
        value.copy_(source[name])


class AverageKeeper(Callback):
    """Keeps the average of one :class:`~modelling.bases.ModelBase`, as its ``average``, if SOLVER.EMA_DECAY is set."""

    def __init__(self) -> None:
        self._steps = 0  # of all optimisers, at the last update

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Begin a training anew: what it averages starts from the weights that the model holds, or a checkpoint's."""
        if stage == "fit":
            pl_module.average = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Store the average of the weights, also for a model whose own hook does not call ``super()``."""
        if pl_module.average is not None:
            pl_module.average.store(checkpoint)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Continue with the weights that were trained, not with their average, which Lightning has just loaded."""
        if trainer.state.fn != "fit":
            return
        decay, has_average = pl_module.hparams.SOLVER.EMA_DECAY, PLAIN in checkpoint
        if decay and has_average:
            pl_module.average = WeightAverage.restored(pl_module, decay, checkpoint)
        elif decay:
            rank_zero_info(
                "SOLVER.EMA_DECAY %s: the checkpoint to continue from holds no average of the weights; one starts from "
                "its weights.",
                decay,
            )
        elif has_average:
            rank_zero_info(
                "SOLVER.EMA_DECAY 0: the average of the weights in the checkpoint to continue from is left behind; the "
                "weights themselves are trained, validated and saved."
            )
        if has_average:
            pl_module.load_state_dict(checkpoint[PLAIN])

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Start the average, or move that of a checkpoint to the device of the model."""
        decay = pl_module.hparams.SOLVER.EMA_DECAY
        if pl_module.average is not None:
            pl_module.average.move_to(pl_module.device)
        elif decay:
            pl_module.average = WeightAverage(pl_module, decay)

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Note how many steps the optimisers have taken."""
        self._steps = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Take in the weights, unless the batch only added to the gradients of the next step."""
        if pl_module.average is not None and trainer.global_step != self._steps:
            pl_module.average.update(pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Leave the average in the model, for the tests after a training and whatever else is done with it."""
        if pl_module.average is not None:
            pl_module.average.move_to(pl_module.device)
            pl_module.average.put_in(pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Validate the average of the weights, if there is one."""
        if pl_module.average is not None:
            pl_module.average.put_in(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Go on training with the weights themselves; after a training, the average stays."""
        if pl_module.average is not None and trainer.state.fn == "fit":
            pl_module.average.take_out(pl_module)
