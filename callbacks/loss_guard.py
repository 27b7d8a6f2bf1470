"""Stops training when the loss or the weights are no longer finite."""

from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from utils.errors import UserError

# Steps between two checks of the losses on an accelerator: each check waits for the device.
STEPS_BETWEEN_CHECKS = 100


class LossGuard(Callback):
    """Raises a UserError when a loss is NaN or infinite, naming its parts and the identities of the batch.

    On the CPU, losses are checked after every step. Elsewhere they are checked every STEPS_BETWEEN_CHECKS steps, before
    a validation and at the end of an epoch, so that steps need not wait for the device; the message still names the
    first bad step. At the end of an epoch, before its checkpoint is written, the weights are checked too: the last step
    may have spoiled them.
    """

    def __init__(self) -> None:
        self._losses: list[Tensor] = []  # of the steps since the last check
        self._pids: list[Tensor] = []
        self._is_real: list[Tensor] = []
        self._step = 0  # first step of the epoch that has not been checked

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drop what an aborted epoch left behind."""
        self._losses, self._pids, self._is_real, self._step = [], [], [], 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record the step, and check if it is time."""
        loss = outputs if isinstance(outputs, Tensor) else (outputs or {}).get("loss")
        if not isinstance(loss, Tensor):  # a step of the user's own, which need not return one
            return
        self._losses.append(loss.detach().float().mean())
        self._pids.append(batch[1])
        self._is_real.append(batch[3])
        if pl_module.device.type == "cpu" or len(self._losses) == STEPS_BETWEEN_CHECKS:
            self._check(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check before embeddings are computed from weights that may be spoiled."""
        self._check(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the last losses and the weights; checkpoints are written after this."""
        self._check(trainer, pl_module)
        state = {name: value for name, value in pl_module.state_dict().items() if value.is_floating_point()}
        finite = torch.stack([value.isfinite().all() for value in state.values()]).tolist()
        if not all(finite):
            name = list(state)[finite.index(False)]
            raise UserError(
                f"The weights became NaN or infinite in the last step of epoch {trainer.current_epoch} (the first is "
                f"{name}): lower SOLVER.BASE_LR, or lengthen SOLVER.WARMUP_EPOCHS."
            )

    def _check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        losses, pids, is_real, start = self._losses, self._pids, self._is_real, self._step
        self._losses, self._pids, self._is_real, self._step = [], [], [], start + len(losses)
        finite = torch.stack(losses).isfinite().tolist() if losses else []
        if all(finite):
            return
        bad = finite.index(False)
        by_loss: dict[str, list[Any]] = pl_module.losses_dict  # type: ignore[assignment]  # of ModelBase
        whole = {name: values for name, values in by_loss.items() if len(values) > start + bad}
        parts = ", ".join(f"{name} {float(values[start + bad]):.6g}" for name, values in whole.items())
        own = getattr(trainer.datamodule, "train_pids", None)  # type: ignore[attr-defined]  # the data set's own pids
        labels = sorted(set(pids[bad].tolist()))
        identities = ", ".join(str(own[label] if own else label) for label in labels)
        if not is_real[bad].any():
            raise UserError(
                f"No image of the batch at step {start + bad} of epoch {trainer.current_epoch} could be read "
                f"(identities {identities}): see the warnings above, and check that DATASETS.ROOT_DIR still exists."
            )
        raise UserError(
            f"The loss is {losses[bad].item()} at step {start + bad} of epoch {trainer.current_epoch}"
            f"{': ' if parts else ''}{parts}; identities of the batch: {identities}. Lower SOLVER.BASE_LR, lengthen "
            "SOLVER.WARMUP_EPOCHS, or look at the images of these identities."
        )
