"""Decide where a run begins: once, before any data is read, in the form of a :class:`StartPoint`."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any

from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor
from yacs.config import CfgNode

from checkpoints.lightning_1_1 import upgrade_legacy
from checkpoints.reading import count_identities, load_ctl_checkpoint
from checkpoints.run_files import find_newest, has_more_epochs, version_of
from checkpoints.weights import describe, what_differs
from config.origins import was_set
from config.paths import is_auto
from config.recorded import (
    COMPARED,
    NETWORK,
    RANKING,
    SCALING_IN_TESTS,
    adopt,
    check_recorded,
    differences,
    differing,
)
from modelling.backbones import REGISTRY as BACKBONES
from utils.errors import MissingPathError, NotACtlCheckpointError, UserError

log = logging.getLogger(__name__)

# By which validations the best checkpoint is picked; its score so far is that of these.
SELECTION = ("SOLVER.MONITOR_METRIC_NAME", "SOLVER.MONITOR_METRIC_MODE", "SOLVER.EVAL_PERIOD")


class Start(Enum):
    """How a run begins."""

    FRESH = "random weights"
    FROM_WEIGHTS = "ImageNet weights, or the backbone of a checkpoint"
    CONTINUE = "a checkpoint with epochs left to train"
    FINISHED = "a checkpoint that has finished all epochs: only the tests are left"
    TEST = "a checkpoint to test"


@dataclass(frozen=True)
class StartPoint:
    """What a run starts from.

    Attributes:
        kind: how the run begins.
        seed: seed of the data's random draws; without REPRODUCIBLE a continued run keeps the seed it had.
        path: file with the weights or the checkpoint; "" for a fresh start.
        checkpoint: contents of the checkpoint to continue from; None for the other kinds.
        version: the folder version_N that a continued run writes to; None for a new one.
        keep: a checkpoint that the user named, which is never deleted; "" for none.
        recorded: hyper-parameters of the checkpoint to test or to continue from; empty for the other kinds.
    """

    kind: Start
    seed: int
    path: str = ""
    checkpoint: dict[str, Any] | None = field(default=None, repr=False)
    version: str | None = None
    keep: str = ""
    recorded: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def trains(self) -> bool:
        """Whether to call ``fit``, which also restores a finished run although no epoch is left to train."""
        return self.kind is not Start.TEST

    @property
    def tests_as_configured(self) -> bool:
        """Whether to test with USE_CENTROIDS as set, because no validation will have done so."""
        return self.kind in (Start.TEST, Start.FINISHED)

    @property
    def ckpt_path(self) -> str | None:
        """The checkpoint that ``Trainer.fit`` restores before it trains; None for none."""
        return self.path if self.kind in (Start.CONTINUE, Start.FINISHED) else None

    def settle(self, cfg: CfgNode) -> CfgNode:
        """A copy of the configuration with MODEL.PRETRAIN_PATH and MODEL.RESUME_TRAINING set to what the run does.

        Image size, scaling and network come from the checkpoint where nobody set them; but no code outside this project
        is imported because a file names it.
        """
        network = self.recorded.get("MODEL", {}).get("NAME", "")
        cfg = adopt(cfg, self.recorded, may_name_network=not BACKBONES.is_code_elsewhere(network))
        if self.kind is not Start.FRESH:
            cfg.MODEL.PRETRAIN_PATH = self.path
        elif is_auto(cfg.MODEL.PRETRAIN_PATH):
            cfg.MODEL.PRETRAIN_PATH = ""
        cfg.MODEL.RESUME_TRAINING = self.ckpt_path is not None
        return cfg

    def describe_differences(self, cfg: CfgNode, optimised_by: str = "") -> list[str]:
        """One line for each setting that the checkpoint to test or to continue from has otherwise than the run.

        A test ranks as it is told to: only that it ranks by default as the checkpoint does not is worth a line.

        Args:
            cfg: configuration, after :meth:`settle`.
            optimised_by: as for :func:`config.recorded.differences`.
        """
        by_default = (key for key in RANKING if not was_set(cfg, key))
        keys = COMPARED if self.trains else (*NETWORK, *SCALING_IN_TESTS, *by_default)
        if not (cfg.SOLVER.EMA_DECAY and self.recorded.get("SOLVER", {}).get("EMA_DECAY")):
            keys = tuple(
                key for key in keys if key != "SOLVER.EMA_DECAY"
            )  # modelling.averaging says what becomes of it
        return differences(cfg, self.recorded, keys, optimised_by=optimised_by) + self._describe_lost_score(cfg)

    def _describe_lost_score(self, cfg: CfgNode) -> list[str]:
        """A line if a run continues without the best score so far, which belongs to other settings."""
        if self.checkpoint is None or self.kind is not Start.CONTINUE:
            return []
        changed = [line.partition(":")[0] for line in differences(cfg, self.recorded, SELECTION)]
        if not changed and "loops" in self.checkpoint:
            return []
        reason = f"another {', '.join(changed)}" if changed else "the original wrote this checkpoint"
        return [
            f"The best score so far is not continued ({reason}): the best checkpoint is that of the epochs to come."
        ]

    def check_data(self, num_classes: int) -> None:
        """Raise a UserError if the run to continue was trained on a different number of identities."""
        if self.checkpoint is None:
            return
        found = count_identities(self.checkpoint)
        if found != num_classes:
            raise UserError(
                f"{self.path} was trained on {found} identities, but the training set here has {num_classes}: resume "
                "on the same data set (DATASETS.NAMES, DATASETS.COMBINEALL, DATASETS.ROOT_DIR), or test with "
                "TEST.ONLY_TEST True."
            )

    def check_network(self, weights: Mapping[str, Tensor], cfg: CfgNode) -> None:
        """Raise a UserError unless the checkpoint to continue from has exactly the weights of MODEL.NAME.

        Args:
            weights: those of the model that is to be trained, by name.
            cfg: its configuration.
        """
        if self.checkpoint is None:
            return
        stored = self.checkpoint["state_dict"]
        different, same = stored.keys() ^ weights.keys(), stored.keys() & weights.keys()
        reshaped = {key for key in same if stored[key].shape != weights[key].shape}
        if not different | reshaped:
            return
        if all(key.startswith("extra_losses.") for key in different | reshaped):
            losses = self.checkpoint["hyper_parameters"].get("LOSSES", {})
            with_arguments = f" and LOSSES.EXTRA_ARGS {losses.get('EXTRA_ARGS', [])}" if reshaped else ""
            raise UserError(
                f"{self.path} was trained with LOSSES.EXTRA {losses.get('EXTRA', [])}{with_arguments}: continue with "
                "the same."
            )
        recorded = self.checkpoint["hyper_parameters"]
        keys = " ".join(
            f"{key}: {there!r} in the checkpoint, {here!r} here."
            for key, there, here in differing(cfg, recorded, (*NETWORK, "INPUT.SIZE_TRAIN"))
        )
        raise UserError(
            f"{self.path} holds {describe(self.checkpoint, recorded.get('MODEL', {}).get('NAME'))}, which does not fit "
            f"MODEL.NAME {cfg.MODEL.NAME} ({what_differs(stored, weights)}): continue with what it was trained with. "
            f"{keys}".rstrip()
        )


def find_start(cfg: CfgNode, runs: Path, run: int, seed: int) -> StartPoint:
    """Find out from the configuration and the files on disk what a run starts from.

    Args:
        cfg: configuration.
        runs: folder of all runs of a script, such as ``OUTPUT_DIR/train_ctl_model``.
        run: number of this run, from 0 to REPRODUCIBLE_NUM_RUNS - 1.
        seed: seed of the data's random draws; a continued run may replace it, see :class:`StartPoint`.

    Raises:
        UserError: the file to test or to continue from is missing, no CTL checkpoint, or has no epochs left to train.
    """
    model = cfg.MODEL
    if cfg.TEST.ONLY_TEST:
        path = model.PRETRAIN_PATH
        if model.RESUME_TRAINING and is_auto(path):
            path = str(_newest_of_this_run(cfg, runs, run, seed) or path)
        path = _named_checkpoint(path, "TEST.ONLY_TEST")
        return StartPoint(Start.TEST, seed, path, keep=path, recorded=_recorded_in(path))
    if not model.RESUME_TRAINING:
        return _fresh(cfg, model.PRETRAIN_PATH, seed)
    if not is_auto(model.PRETRAIN_PATH):
        path = _named_checkpoint(model.PRETRAIN_PATH, "MODEL.RESUME_TRAINING")
        return _continue_named(cfg, path, runs, seed)
    newest = _newest_of_this_run(cfg, runs, run, seed)
    if newest is None:
        return _start_without_checkpoint(cfg, runs, seed)
    rank_zero_info("MODEL.PRETRAIN_PATH auto: continuing from %s", newest)
    start = _continue(cfg, str(newest), seed)
    if start.kind is Start.FINISHED:
        rank_zero_info("%s has finished all %d epochs: only the tests are left", newest, cfg.SOLVER.MAX_EPOCHS)
    return replace(start, version=version_of(newest, runs))


def start_weights(path: str) -> str:
    """FILE of "auto:FILE", from which a new run starts; "" for plain "auto"."""
    return path.partition(":")[2]


def count_epochs(checkpoint: dict[str, Any]) -> int:
    """The number of finished epochs in a checkpoint, ours or the original's."""
    return upgrade_legacy(checkpoint)["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]


def _fresh(cfg: CfgNode, weights: str, seed: int) -> StartPoint:
    return StartPoint(Start.FROM_WEIGHTS, seed, weights) if cfg.MODEL.PRETRAINED else StartPoint(Start.FRESH, seed)


def _named_checkpoint(path: str, switch: str) -> str:
    if not Path(path).is_file():
        raise MissingPathError(
            f"MODEL.PRETRAIN_PATH is {path!r}, which is not a file; {switch} True needs the path of a CTL checkpoint."
        )
    return path


def _recorded_in(path: str) -> dict[str, Any]:
    """The hyper-parameters of a checkpoint; none in a file of weights alone, which can be tested as well."""
    try:
        recorded: dict[str, Any] = load_ctl_checkpoint(path)["hyper_parameters"]
    except NotACtlCheckpointError:
        return {}
    check_recorded(recorded, path)
    return recorded


def _continue(cfg: CfgNode, path: str, seed: int) -> StartPoint:
    checkpoint = load_ctl_checkpoint(path)
    check_recorded(checkpoint["hyper_parameters"], path)
    if not checkpoint.get("optimizer_states") or "lr_schedulers" not in checkpoint:
        raise UserError(
            f"{path} holds no optimiser and schedule states, so training cannot continue from it: resume from a file "
            "in auto_checkpoints or checkpoints, or test it with TEST.ONLY_TEST True."
        )
    if not cfg.REPRODUCIBLE:  # keep drawing the data as the run did before
        seed = checkpoint["hyper_parameters"].get("data_seed", seed)
    kind = Start.FINISHED if count_epochs(checkpoint) >= cfg.SOLVER.MAX_EPOCHS else Start.CONTINUE
    return StartPoint(kind, seed, path, checkpoint, recorded=checkpoint["hyper_parameters"])


def _continue_named(cfg: CfgNode, path: str, runs: Path, seed: int) -> StartPoint:
    start = _continue(cfg, path, seed)
    assert start.checkpoint is not None
    done = count_epochs(start.checkpoint)
    if start.kind is Start.FINISHED:
        raise UserError(
            f"{path} has finished {done} epoch(s) and SOLVER.MAX_EPOCHS is {cfg.SOLVER.MAX_EPOCHS}: nothing is left to "
            "train. Raise SOLVER.MAX_EPOCHS, or test the checkpoint with TEST.ONLY_TEST True."
        )
    # Several runs may continue from one file. If one of them goes back to an earlier epoch, its files must not mix with
    # those of later epochs, which "auto" would take for its newest state.
    version = version_of(path, runs)
    if version and (cfg.REPRODUCIBLE_NUM_RUNS > 1 or has_more_epochs(runs / version, done)):
        version = None
    return replace(start, version=version, keep=path)


def _newest_of_this_run(cfg: CfgNode, runs: Path, run: int, seed: int) -> Path | None:
    def belongs(hparams: dict[str, Any]) -> bool:
        return hparams.get("data_seed") == seed if cfg.REPRODUCIBLE else hparams.get("run_number", 0) == run

    return find_newest(runs, belongs)


def _start_without_checkpoint(cfg: CfgNode, runs: Path, seed: int) -> StartPoint:
    weights = start_weights(cfg.MODEL.PRETRAIN_PATH)
    downloads = cfg.MODEL.PRETRAINED and not weights and BACKBONES.is_in_family(cfg.MODEL.NAME)
    if cfg.MODEL.PRETRAINED and not weights and not downloads:
        raise MissingPathError(
            f"MODEL.PRETRAIN_PATH is 'auto', but {runs} holds no checkpoint of this run, and MODEL.PRETRAINED True "
            "needs ImageNet weights to start from: give MODEL.PRETRAIN_PATH auto:FILE, or set MODEL.PRETRAINED False."
        )
    start = _fresh(cfg, weights, seed)
    origin = start.path or "random weights" + f", not from {weights}: MODEL.PRETRAINED is False" * bool(weights)
    origin = f"the weights published for {cfg.MODEL.NAME}" if downloads else origin
    rank_zero_info("MODEL.PRETRAIN_PATH auto: no checkpoint of this run in %s; training from %s", runs, origin)
    return start
