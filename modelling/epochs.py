"""What a model does around its steps: schedules, records of the epoch, outputs of validations.

A callback, so that a subclass may use every hook of Lightning for its own purposes, without calling ``super()``.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_info
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from datasets.draws import derive_seed
from modelling.backbones.package_network import PackageNetwork
from modelling.freezing import Frozen
from modelling.lightning_1_1 import HiddenHook
from solver.gradients import clip_gradients
from solver.optimizers import has_fused, is_center_optimizer
from solver.schedules import EpochSchedule, set_epoch
from utils.distributed import broadcast_from_first, running_processes
from utils.errors import UserError

# What a configuration says of a group of parameters; the rest of an optimiser's state is how the training went.
SETTINGS = ("lr", "initial_lr", "weight_decay", "betas", "eps", "momentum", "decoupled_weight_decay")


class EpochKeeper(Callback):
    """Keeps the epochs of one :class:`~modelling.bases.ModelBase`, which brings it along."""

    def __init__(self) -> None:
        self._settings: list[list[dict[str, Any]]] = []  # of each optimiser: of each group, as they were built
        self._steps = 0  # of all optimisers, before the epoch
        self._saved: list[dict[str, Any]] = []  # states of the optimisers, in a checkpoint that is about to be restored
        self._frozen: Frozen | None = None

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Find out what is frozen, and say it."""
        if stage == "fit":
            self._frozen = Frozen(pl_module)
            if said := self._frozen.describe():
                rank_zero_info("%s", said)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Note what the optimisers are to be restored from, before there are any."""
        self._saved = checkpoint.get("optimizer_states", [])

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Compile the backbone if MODEL.COMPILE is True; note the settings of the optimisers before they are restored.

        A checkpoint's optimisers bring back the rates and the weight decay of its own configuration.
        """
        pl_module.compile_backbone()
        saved, self._saved = self._saved, []
        check_states(saved, trainer.optimizers)
        self._settings = [
            [{name: group[name] for name in SETTINGS if name in group} for group in optimizer.param_groups]
            for optimizer in trainer.optimizers
        ]

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Give the optimisers of a continued run the settings of this configuration; moments and steps stay.

        The rates of a subclass's own schedules are part of how the training went, and are left alone.
        """
        schedules = {id(config.scheduler.optimizer): config.scheduler for config in trainer.lr_scheduler_configs}
        for optimizer, groups in zip(trainer.optimizers, self._settings, strict=True):
            schedule = schedules.get(id(optimizer))
            if isinstance(schedule, EpochSchedule):  # the rate itself is set when the epoch starts
                schedule.base_lrs = [settings["initial_lr"] for settings in groups]
            elif schedule is not None or not is_center_optimizer(optimizer):
                continue
            for group, settings in zip(optimizer.param_groups, groups, strict=True):
                group |= settings
        self._drop_fused(trainer, pl_module)

    @staticmethod
    def _drop_fused(trainer: Trainer, pl_module: Any) -> None:
        """Drop ``fused`` from optimiser states that come from another machine, if this one has no such kernel."""
        for optimizer in trainer.optimizers:
            kind: Any = type(optimizer)
            for group in optimizer.param_groups:
                if group.get("fused") and not has_fused(kind, pl_module.device):
                    group["fused"] = None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Set the schedule to this epoch, even after resuming from a checkpoint saved before the schedule's step."""
        for config in trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, EpochSchedule):
                set_epoch(config.scheduler, trainer.current_epoch)
        self._freeze(trainer, pl_module)
        pl_module.start_records()
        pl_module.accumulated, self._steps = 0, trainer.global_step
        pl_module.mark_schedules("epoch")
        pl_module.mark_schedules("step")

    def _freeze(self, trainer: Trainer, model: Any) -> None:
        """Freeze or release what this epoch asks for; several processes then exchange the gradients of the others."""
        assert self._frozen is not None
        strategy = trainer.strategy
        if self._frozen.set_epoch(model, trainer.current_epoch) and isinstance(strategy.model, DistributedDataParallel):
            strategy.model = model  # a wrapper exchanges gradients for what needed some when it was made
            strategy.configure_ddp()  # type: ignore[attr-defined]

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Keep what is frozen in eval mode; a validation may have switched it back, depending on Lightning.

        Seed what a network of another package draws, for drop path, from the step alone, so that a resumed run draws
        the same; networks of one's own draw as they did, from wherever the generators stand.
        """
        assert self._frozen is not None
        self._frozen.hold()
        if isinstance(network := getattr(pl_module.backbone, "base", None), PackageNetwork) and network.draws:
            seed = pl_module.hparams.get("data_seed", 0)
            step = (trainer.current_epoch, batch_idx, trainer.global_rank)
            torch.manual_seed(derive_seed("network", seed, *step))

    def on_fit_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Leave the model as it was given."""
        if self._frozen is not None:
            self._frozen.release()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Record what the step returned, and step the schedules that ask for it once the optimisers have stepped."""
        pl_module.record_step(outputs)
        self._show(pl_module)
        if batch_idx == 0:
            self._check_step(trainer, pl_module)
        if not pl_module.accumulated:
            pl_module.step_schedules("step", math.ceil((batch_idx + 1) / pl_module.hparams.SOLVER.ACCUMULATE))

    def _check_step(self, trainer: Trainer, pl_module: Any) -> None:
        """Refuse a training step of a program's own that leaves out what the configuration asks for."""
        extra, solver = pl_module.extra_losses, pl_module.hparams.SOLVER
        step = f"{type(pl_module).__name__}.training_step"
        if extra.weights and not extra.was_used:
            raise UserError(
                f"LOSSES.EXTRA names {', '.join(extra.weights)}, but {step} does not use them: add "
                "self.extra_losses(features, labels) to its losses, or empty LOSSES.EXTRA."
            )
        if solver.ACCUMULATE > 1 and not pl_module.accumulated and not trainer.is_last_batch:
            raise UserError(
                f"SOLVER.ACCUMULATE is {solver.ACCUMULATE}, but {step} does not accumulate gradients: let it return "
                "self.optimize(losses, statistics), or set SOLVER.ACCUMULATE 1."
            )

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Optimizer) -> None:
        """Clip the gradients of the network, whose optimiser is the first one."""
        limit = pl_module.hparams.SOLVER.CLIP_GRAD_NORM
        if limit and optimizer is trainer.optimizers[0]:
            clip_gradients(optimizer, limit, getattr(trainer.precision_plugin, "scaler", None))

    def _show(self, model: Any) -> None:
        """Pass the losses of every n-th step to the progress bar and the callbacks."""
        steps = len(model.train_outputs)
        if (steps - 1) % model.hparams.LOGGING.EVERY_N_STEPS == 0:
            loss = model.train_outputs[-1].get("loss")
            if isinstance(loss, torch.Tensor):
                model.log("loss", loss.float().mean(), prog_bar=True, logger=False)
            latest = {name: values[-1] for name, values in model.losses_dict.items() if len(values) == steps}
            model.log_dict(
                {name: torch.as_tensor(value).float().mean() for name, value in latest.items()}, logger=False
            )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Log the epoch, then step the schedules, which Lightning does not do under manual optimisation.

        A model with a hook of its own steps them after that, see :mod:`modelling.lightning_1_1`.
        """
        solver = pl_module.hparams.SOLVER
        if trainer.global_step == self._steps and (solver.CLIP_GRAD_NORM or solver.EMA_DECAY):
            raise UserError(
                f"SOLVER.CLIP_GRAD_NORM is {solver.CLIP_GRAD_NORM} and SOLVER.EMA_DECAY {solver.EMA_DECAY}, but "
                f"{type(pl_module).__name__}.training_step takes no step with the optimisers that self.optimizers() "
                "gives: let it return self.optimize(losses, statistics), or set both to 0."
            )
        HiddenHook.call(pl_module, "training_epoch_end", pl_module.train_outputs)
        if type(pl_module).on_train_epoch_end is LightningModule.on_train_epoch_end:
            pl_module.step_schedules()

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Discard what an interrupted validation left; give every process the network that will be saved."""
        pl_module.evaluation_outputs.clear()
        if running_processes() is None:
            return
        # In training each process keeps running statistics of its own batches; those of the first process are saved.
        broadcast_from_first(pl_module.buffers())
        if isinstance(trainer.strategy.model, DistributedDataParallel):
            # Otherwise the wrapper's forward pass waits for all processes, whose numbers of batches may differ.
            trainer.strategy.model.require_forward_param_sync = False

    def on_test_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        """As on_validation_epoch_start."""
        self.on_validation_epoch_start(trainer, pl_module)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep the embeddings of a batch on the CPU."""
        if isinstance(outputs, dict) and "emb" in outputs:
            labels = (torch.as_tensor(outputs[name]).cpu() for name in ("labels", "camid"))
            pl_module.evaluation_outputs.append((outputs["emb"].detach().float().cpu(), *labels))

    def on_test_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """As on_validation_batch_end."""
        self.on_validation_batch_end(*args, **kwargs)


def check_states(saved: Sequence[Mapping[str, Any]], optimizers: Sequence[Optimizer]) -> None:
    """Raise a UserError if the optimisers cannot continue from the states in a checkpoint.

    Args:
        saved: their state dicts in the checkpoint; none if the run does not continue.
        optimizers: those of this configuration.
    """
    for state, optimizer in zip(saved, optimizers, strict=False):  # a subclass may have another number of them
        there, here = (_describe(groups) for groups in (state["param_groups"], optimizer.param_groups))
        if there != here:
            raise UserError(
                f"The optimiser cannot continue: the checkpoint has {there}, this configuration makes {here}. Continue "
                "with the checkpoint's SOLVER.OPTIMIZER_NAME (Adam and AdamW can follow each other), BIAS_LR_FACTOR, "
                "BIAS_DECAY_FACTOR, HEAD_LR_FACTOR, LAYER_DECAY and NO_DECAY; or start a training from its weights, "
                "with MODEL.RESUME_TRAINING False."
            )


def _describe(groups: Sequence[Mapping[str, Any]]) -> str:
    adam = "Adam or AdamW"  # whose states are alike
    kinds = {adam if "betas" in group else "SGD" if "momentum" in group else "another optimiser" for group in groups}
    sizes = ", ".join(str(len(group["params"])) for group in groups)
    return f"{' and '.join(kinds)} with {len(groups)} group(s) of {sizes} parameters"
