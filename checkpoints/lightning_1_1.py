"""What Lightning's own migration does not do for checkpoints of Lightning 1.1, in which the original was written."""

from typing import Any

# The oldest version whose checkpoints have the layout that is built here; Lightning migrates from there by itself.
_TARGET_VERSION = "2.0.0"
# Parameters that the original handed to Adam though they have no gradient: the classifier left in IBN-a networks.
_UNUSED_PREFIX = "backbone.base.fc."


def upgrade_legacy(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Make a checkpoint of the original one that ``Trainer.fit(ckpt_path=...)`` of Lightning 2 continues from.

    Lightning's own migration of such a checkpoint restarts at epoch 0. Here the progress of the loops is filled in
    (``epoch`` is the number of finished epochs), the unused classifier of IBN-a networks leaves the optimiser state,
    and the schedule becomes the LambdaLR of solver.build, at that epoch; the original saved it one step behind.
    The states of callbacks are dropped: they tell of files in the folder of a run that is over.

    Args:
        checkpoint: as checkpoints.reading.load_checkpoint returns it.

    Returns:
        A new dictionary, sharing its tensors with the old one; any other checkpoint is returned as it came.
    """
    if "loops" in checkpoint or "pytorch-lightning_version" not in checkpoint:
        return checkpoint
    epoch, step = int(checkpoint["epoch"]), int(checkpoint["global_step"])
    return {
        **checkpoint,
        "loops": {"fit_loop": _fit_loop_state(epoch, step)},
        "callbacks": {},
        "optimizer_states": [_without_unused(state) for state in checkpoint["optimizer_states"]],
        "lr_schedulers": [_at_epoch(state, epoch) for state in checkpoint["lr_schedulers"]],
        "legacy_pytorch-lightning_version": checkpoint["pytorch-lightning_version"],
        "pytorch-lightning_version": _TARGET_VERSION,
    }


def _at_epoch(scheduler: dict[str, Any], epoch: int) -> dict[str, Any]:
    """State of a LambdaLR; the rate itself is set from the epoch when the next one starts."""
    base_lrs = scheduler["base_lrs"]
    lambdas = {"lr_lambdas": [None] * len(base_lrs), "_last_lr": scheduler["_last_lr"]}
    return {"base_lrs": base_lrs, "last_epoch": epoch, "_step_count": epoch + 1, **lambdas}


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
