"""What a program says of all its runs and test sets once they are done: on the console, in files, in the trackers."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_info
from yacs.config import CfgNode

from callbacks import SafeMLFlowLogger, SafeTensorBoardLogger
from checkpoints.plain import to_plain
from config.paths import is_auto
from config.validate import split_names
from evaluation.places import EvaluationPlace
from evaluation.runs import (
    RunsSummary,
    cross_domain_lines,
    summarize_runs,
    write_matrix,
    write_summary,
)

log = logging.getLogger(__name__)


def conclude(cfg: CfgNode, name: str, runs: Sequence[int], loggers: Sequence[Logger]) -> None:
    """Summarise several runs, and draw up the cross-domain matrix of several test sets; for the first process.

    Nothing is said or written of a single run, or of one file that is tested several times, without DATASETS.TESTS.

    Args:
        cfg: configuration of the runs, with OUTPUT_DIR and LOG_DIR set.
        name: the folder of the runs in LOG_DIR.
        runs: numbers of the runs that were evaluated.
        loggers: of these runs.
    """
    # The same file, tested again, has no spread.
    several = cfg.REPRODUCIBLE_NUM_RUNS > 1 and not (cfg.TEST.ONLY_TEST and not is_auto(cfg.MODEL.PRETRAIN_PATH))
    names = split_names(cfg.DATASETS.TESTS)
    if not several and not names:
        return
    top = Path(cfg.OUTPUT_DIR) / "evaluation"
    places = [EvaluationPlace(None, test_set, number == 0) for number, test_set in enumerate(names or [""])]
    found = {}
    for place in places:
        summary = summarize_runs(top, runs if several else [None], place)
        if summary is not None:
            found[place] = summary
    if several and found:
        _write_summaries(found, top, runs)
        scalars = _named({place: summary.scalars() for place, summary in found.items()})
        of_runs = [
            _named({place: own.of_run(number) for place, own in found.items() if number < len(own.runs)})
            for number in range(max(len(own.runs) for own in found.values()))
        ]
        record(cfg, name, [scalars, *of_runs], loggers, top / "summary.json")
    if names and found:
        first = next(iter(found.values()))
        rows = {first.trained_on: {place.test_set: summary for place, summary in found.items()}}
        for table in cross_domain_lines(rows):
            rank_zero_info("%s", table)
        rank_zero_info("matrix: %s", write_matrix(rows, top))


def _named(metrics: Mapping[EvaluationPlace, Mapping[str, float]]) -> dict[str, float]:
    return {f"summary/{place.prefix}{name}": value for place, own in metrics.items() for name, value in own.items()}


def _write_summaries(found: Mapping[EvaluationPlace, RunsSummary], top: Path, runs: Sequence[int]) -> None:
    for place, summary in found.items():
        label = place.label(f"{len(summary.runs)} runs")
        for line in summary.lines(label):
            rank_zero_info("%s", line)
        lacking = [str(run) for run in runs if run not in summary.runs]
        if lacking:
            rank_zero_info("%s: without run %s, which left no metrics.json", label, ", ".join(lacking))
        *_, written = (write_summary(summary, folder) for folder in place.folders(top))
        rank_zero_info("summary: %s", written)


def record(cfg: CfgNode, name: str, scalars: Sequence[dict[str, float]], loggers: Sequence[Logger], kept: Path) -> None:
    """Pass a summary to TensorBoard, in the folder LOG_DIR/name/summary, and to MLflow, as the parent of the runs.

    The parent comes last: a sequence that is interrupted leaves its runs as they are, and one that goes on has a parent
    of exactly those that the summary is of. What cannot be recorded costs one line.

    Args:
        cfg: configuration of the runs.
        name: the folder of the runs in LOG_DIR.
        scalars: name -> value; first of all runs together, then of each, whose place is the step.
        loggers: of the runs.
        kept: the file that holds the summary in any case, for that line.
    """
    board = SafeTensorBoardLogger(cfg.LOG_DIR, name=name, version="summary", default_hp_metric=False)
    steps = [max(0, place - 1) for place in range(len(scalars))]
    for step, values in zip(steps, scalars, strict=True):
        board.log_metrics(values, step=step)
    board.finalize("success")
    children = [logger for logger in loggers if isinstance(logger, SafeMLFlowLogger)]
    if not children:
        return
    parent = SafeMLFlowLogger(children[0].experiment_name, children[0].tracking_uri, f"{name}: {len(scalars) - 1} runs")
    parent.outlook = f"The summary is in {kept} alone."
    parent.log_hyperparams(to_plain(cfg))
    parent.adopt([child.version for child in children if child.version])
    for step, values in zip(steps, scalars, strict=True):
        parent.log_metrics(values, step=step)
    parent.finalize("success")
