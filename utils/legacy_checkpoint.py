"""What Lightning's own migration does not do for checkpoints of Lightning 1.1, in which the original was written."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR

logger = logging.getLogger(__name__)

# The oldest version whose checkpoints have the layout that is built here; Lightning migrates from there by itself.
_TARGET_VERSION = "2.0.0"
# Parameters that the original handed to Adam though they have no gradient: the classifier left in IBN-a networks.
_UNUSED_PREFIX = "backbone.base.fc."


def upgrade_legacy(checkpoint: dict[str, Any], state_keys: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Make a checkpoint of Lightning 1.1 one that ``Trainer.fit(ckpt_path=...)`` of Lightning 2 continues from.

    Lightning's migration of such a checkpoint restarts at epoch 0, finds no callback state, and leaves the learning
    rate one epoch behind, because Lightning 1.1 wrote its checkpoints before the epoch's scheduler step. Here the
    progress of the loops is filled in (``epoch`` is the number of finished epochs), the schedulers are stepped up to
    it, the unused classifier of IBN-a networks leaves the optimiser state, and callback states get today's keys.

    Args:
        checkpoint: as utils.checkpoint.load_checkpoint returns it.
        state_keys: class name of a callback ("ModelCheckpoint") -> its ``state_key`` in the Trainer to be resumed; a
            callback state without one is dropped.

    Returns:
        A new dictionary, sharing its tensors with the old one; any other checkpoint is returned as it came.
    """
    if "loops" in checkpoint or "pytorch-lightning_version" not in checkpoint:
        return checkpoint
    epoch, step = int(checkpoint["epoch"]), int(checkpoint["global_step"])
    upgraded = {
        **checkpoint,
        "loops": {"fit_loop": _fit_loop_state(epoch, step)},
        "callbacks": _renamed(checkpoint.get("callbacks") or {}, state_keys or {}),
        "legacy_pytorch-lightning_version": checkpoint["pytorch-lightning_version"],
        "pytorch-lightning_version": _TARGET_VERSION,
    }
    if "optimizer_states" in checkpoint:
        optimizers = [_without_unused(state) for state in checkpoint["optimizer_states"]]
        schedulers = list(checkpoint.get("lr_schedulers", []))
        for i, (optimizer, scheduler) in enumerate(zip(optimizers, schedulers, strict=False)):
            optimizers[i], schedulers[i] = _caught_up(optimizer, scheduler, epoch)
        upgraded |= {"optimizer_states": optimizers, "lr_schedulers": schedulers}
    return upgraded


def _fit_loop_state(epochs: int, steps: int) -> dict[str, Any]:
    """Progress of a fit that stopped between two epochs."""
    batches = {"ready": steps, "started": steps, "processed": steps, "completed": steps}
    finished = {"ready": epochs, "started": epochs, "processed": epochs, "completed": epochs}
    return {
        "state_dict": {},
        "epoch_progress": {"total": finished, "current": dict(finished)},
        "epoch_loop.state_dict": {"_batches_that_stepped": steps},
        "epoch_loop.batch_progress": {"total": batches, "current": dict.fromkeys(batches, 0), "is_last_batch": False},
        "epoch_loop.manual_optimization.optim_step_progress": {
            "total": {"ready": steps, "completed": steps},
            "current": {"ready": 0, "completed": 0},
        },
    }


def _renamed(states: Mapping[str, Any], state_keys: Mapping[str, str]) -> dict[str, Any]:
    """Callback states by state key instead of "module.Class", with the fields that ModelCheckpoint has gained since."""
    renamed = {}
    for key, state in states.items():
        name = key.rsplit(".", 1)[-1]
        if name not in state_keys:
            logger.info("The checkpoint's state of the callback %s is not used: this run has no such callback.", key)
            continue
        if state.get("best_model_path") and state.get("best_model_score") is not None:
            path, score = state["best_model_path"], state["best_model_score"]
            state = {"best_k_models": {path: score}, "kth_best_model_path": path, "kth_value": score, **state}
        renamed[state_keys[name]] = state
    return renamed


def _without_unused(optimizer: dict[str, Any]) -> dict[str, Any]:
    """The state of an optimiser without the parameters under _UNUSED_PREFIX, the others renumbered."""
    groups: list[dict[str, Any]] = []
    kept: list[int] = []
    for group in optimizer["param_groups"]:
        names = group.get("names", [""] * len(group["params"]))
        pairs = [
            (name, i) for name, i in zip(names, group["params"], strict=True) if not name.startswith(_UNUSED_PREFIX)
        ]
        numbers = list(range(len(kept), len(kept) + len(pairs)))
        kept += [i for _, i in pairs]
        changed = {"names": [name for name, _ in pairs]} if "names" in group else {}
        groups.append({**group, **changed, "params": numbers})
    state = {new: optimizer["state"][old] for new, old in enumerate(kept) if old in optimizer["state"]}
    return {**optimizer, "state": state, "param_groups": groups}


def _caught_up(
    optimizer: dict[str, Any], scheduler: dict[str, Any], epoch: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both states after the scheduler steps that are missing up to ``epoch``, done by torch's own schedulers."""
    missing = epoch - scheduler.get("last_epoch", epoch)
    groups = optimizer["param_groups"]
    if missing <= 0:
        return optimizer, scheduler
    stand_in = SGD([{"params": torch.nn.Parameter(torch.zeros(()))} for _ in groups], lr=1.0)
    runner = _scheduler_like(scheduler, stand_in)
    runner.load_state_dict(scheduler)
    for group, saved in zip(stand_in.param_groups, groups, strict=True):
        group.update(lr=saved["lr"], initial_lr=saved.get("initial_lr", saved["lr"]))
    for _ in range(missing):
        stand_in.step()
        runner.step()
    groups = [{**saved, "lr": group["lr"]} for saved, group in zip(groups, stand_in.param_groups, strict=True)]
    state = runner.state_dict()
    moved = {key: state[key] for key in ("last_epoch", "_step_count", "_last_lr")}
    return {**optimizer, "param_groups": groups}, {**scheduler, **moved}


def _scheduler_like(state: Mapping[str, Any], optimizer: Optimizer) -> LRScheduler:
    if "milestones" in state:
        return MultiStepLR(optimizer, milestones=sorted(state["milestones"]))
    return CosineAnnealingLR(optimizer, T_max=state["T_max"], eta_min=state["eta_min"])
