"""Upgrade of checkpoints from Lightning 1.1, which the original used, beyond Lightning's own migration."""

from typing import Any

# The oldest version whose checkpoints have the layout built here; Lightning migrates it from there.
_TARGET_VERSION = "2.0.0"
# Parameters that the original gave to Adam although they get no gradient: the classifier left in IBN-a networks.
_UNUSED_PREFIX = "backbone.base.fc."


def upgrade_legacy(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Upgrade a checkpoint of the original so that ``Trainer.fit(ckpt_path=...)`` of Lightning 2 continues from it.

    Lightning's own migration would restart at epoch 0. This one fills in the progress of the loops (``epoch`` is the
    number of finished epochs), removes the unused classifier of IBN-a networks from the optimiser state, and turns the
    schedule into the LambdaLR of solver.build at that epoch; the original saved its schedule one step behind. Callback
    states are dropped, because they refer to files in the folder of the earlier run.

    Args:
        checkpoint: what checkpoints.reading.load_checkpoint returns.

    Returns:
        A new dictionary that shares its tensors with the old one. Other checkpoints are returned unchanged.
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
    """The state of a LambdaLR at an epoch; the rate itself is set when the next epoch starts."""
    base_lrs = scheduler["base_lrs"]
    lambdas = {"lr_lambdas": [None] * len(base_lrs), "_last_lr": scheduler["_last_lr"]}
    return {"base_lrs": base_lrs, "last_epoch": epoch, "_step_count": epoch + 1, **lambdas}


def _fit_loop_state(epochs: int, steps: int) -> dict[str, Any]:
    """The progress of a fit that stopped between two epochs."""
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
    """The state of an optimiser without the parameters under _UNUSED_PREFIX, with the others renumbered."""
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
