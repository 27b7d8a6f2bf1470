"""Carry out the runs of a configuration: find the start, read the data, build the model, train and test."""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from pytorch_lightning import Trainer, seed_everything
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_info
from pytorch_lightning.utilities.seed import isolate_rng
from yacs.config import CfgNode

from callbacks import StopOnSigterm, describe_resume
from callbacks.stopping import GRACE_SECONDS
from checkpoints.plain import to_plain
from config.cli import clean_exit
from config.origins import naming_the_default_folder
from config.paths import expand_paths
from config.switches import Facts, find_unused
from config.validate import check_config, check_keys, split_names
from datasets import init_dataset
from datasets.bases import ReidDataModule
from datasets.checking.checks import check_labels
from datasets.loading import explain_worker_death
from engine.loggers import build_loggers, log_places
from engine.noise import quiet_libraries
from engine.start import Start, StartPoint, find_start, is_auto
from engine.summary import conclude
from engine.tested_sets import EvaluatedSet, heed, read_test_set, read_test_sets, training_place
from engine.trainer import build_trainer
from modelling.backbones import check_embedding_size
from modelling.bases import ModelBase, is_own_model
from modelling.from_weights import model_of_weights
from modelling.hyperparameters import construct
from utils.devices import choose_devices
from utils.distributed import end_with_first_process, is_first_process
from utils.errors import NotACtlCheckpointError, UserError
from utils.files import output_folder, require_writable

log = logging.getLogger(__name__)

RunMetrics = dict[str, dict[str, float]]


def run_script(method: type[ModelBase], cfg: CfgNode, logger_save_dir: str) -> None:
    """Run ``python train_*.py`` after its command line is read; an error that the user can fix exits with status 2."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    end_with_first_process(GRACE_SECONDS)
    with clean_exit():
        run_main(cfg, method, logger_save_dir)


def run_main(cfg: CfgNode, method: type[ModelBase], logger_save_dir: str) -> list[RunMetrics]:
    """Carry out REPRODUCIBLE_NUM_RUNS runs, each with a seed of its own if REPRODUCIBLE is True, else unseeded.

    Args:
        cfg: configuration; not modified.
        method: class of the model.
        logger_save_dir: name of the folder in LOG_DIR, usually the script's stem.

    Returns:
        What :func:`run_single` returns, for each run.

    Raises:
        UserError: something that the configuration names is missing, malformed or does not fit.
    """
    quiet_libraries()
    check_keys(cfg)
    check_config(cfg)
    cfg = cfg.clone()
    cfg.defrost()
    expand_paths(cfg)
    _warn(find_unused(cfg, _facts(cfg, method)))
    cfg.LOG_DIR = cfg.OUTPUT_DIR = str(output_folder(cfg.OUTPUT_DIR, cfg.DATASETS.NAMES))
    if is_first_process():
        require_writable(cfg.LOG_DIR, "OUTPUT_DIR")
    if cfg.TEST.ONLY_TEST and cfg.REPRODUCIBLE_NUM_RUNS > 1 and not is_auto(cfg.MODEL.PRETRAIN_PATH):
        rank_zero_info(
            "TEST.ONLY_TEST: REPRODUCIBLE_NUM_RUNS %d tests the same file %d times, which says nothing of the spread: "
            "there is no summary. 1 tests it once.",
            *[cfg.REPRODUCIBLE_NUM_RUNS] * 2,
        )
    results: list[RunMetrics] = []
    loggers: list[Logger] = []
    for run in range(cfg.REPRODUCIBLE_NUM_RUNS):
        # Without REPRODUCIBLE each run draws its data differently.
        seed = cfg.REPRODUCIBLE_SEED + run if cfg.REPRODUCIBLE else int.from_bytes(os.urandom(4), "little")
        if cfg.REPRODUCIBLE:
            seed_everything(seed, workers=True)
        results.append(run_single(cfg, method, logger_save_dir, seed=seed, run=run, loggers=loggers))
    # A program's own steps may have evaluated nothing.
    evaluated = [run for run, found in enumerate(results) if any("mAP" in metrics for metrics in found.values())]
    if evaluated and is_first_process():
        conclude(cfg, logger_save_dir, evaluated, loggers)
    return results


def run_single(
    cfg: CfgNode,
    method: type[ModelBase],
    logger_save_dir: str,
    seed: int = 0,
    run: int = 0,
    loggers: list[Logger] | None = None,
) -> RunMetrics:
    """Train, then test with USE_CENTROIDS flipped; with TEST.ONLY_TEST, test with USE_CENTROIDS as set and flipped.

    Args:
        cfg: configuration with LOG_DIR set.
        method: class of the model.
        logger_save_dir: name of the folder in LOG_DIR.
        seed: shifts the random draws of identities and images; 0 draws as the original did.
        run: number of this run, from 0 to REPRODUCIBLE_NUM_RUNS - 1, by which it finds its own checkpoint again.
        loggers: a list to which those of this run are added; None for nobody who wants them.

    Returns:
        The final metrics of each kind of evaluation, under "instances" and "centroids"; with TEST.BEFORE_TRAINING also
        those of the network as it starts, under "before training". With DATASETS.TESTS these are of its first data set,
        and those of each stand under its name too, such as "veri776/instances".
    """
    start = find_start(cfg, Path(cfg.LOG_DIR) / logger_save_dir, run, seed)
    cfg = start.settle(cfg)
    check_embedding_size(cfg.MODEL.NAME, cfg.MODEL.BACKBONE_EMB_SIZE)
    data = _read_data(cfg, start)
    number = run if cfg.REPRODUCIBLE_NUM_RUNS > 1 else None
    tested = read_test_sets(cfg, start, data, number, cfg.MODEL.KEEP_CAMID_CENTROIDS)
    cfg = _settle_cameras(cfg, data.has_cameras)
    ours = ModelBase.configure_optimizers
    has_own = getattr(method, "configure_optimizers", ours) is not ours  # a function that makes models has none
    _warn(start.describe_differences(cfg, f"{method.__name__}.configure_optimizers" if has_own else ""))
    model = _build_model(cfg, method, start, data, run)
    model.evaluate_at(training_place(cfg, start, number))
    trainer = build_trainer(
        cfg, build_loggers(cfg, logger_save_dir, start.version), start.keep, find_unused=not is_own_model(method)
    )
    if loggers is not None:
        loggers += trainer.loggers
    for logger in trainer.loggers:
        logger.log_hyperparams(to_plain(cfg))
    results: RunMetrics = {}
    with _explained_faults(trainer):
        if cfg.TEST.BEFORE_TRAINING:
            _validate_before(results, model, trainer, data, start)
        if start.trains:
            trainer.fit(model, datamodule=data, ckpt_path=start.ckpt_path)
        _test(results, model, trainer, tested, start.tests_as_configured)
    log_places(trainer)
    return results


def _test(
    results: RunMetrics, model: ModelBase, trainer: Trainer, tested: Sequence[EvaluatedSet], as_configured: bool
) -> None:
    """Test on each set with USE_CENTROIDS as set, unless the last validation was that, and flipped."""
    configured = model.hparams.MODEL.USE_CENTROIDS
    for test_set in tested:
        place = test_set.place
        if place.test_set:  # otherwise it is what the validations were of
            test_set.prepare(model)
        for use_centroids in (configured, not configured):
            model.hparams.MODEL.USE_CENTROIDS = use_centroids
            if as_configured or place.test_set or use_centroids != configured:
                trainer.test(model, datamodule=test_set.data, verbose=False)
            kind = _keep_metrics(results, model, trainer, prefix=place.prefix)
            if place.is_first and place.prefix:
                results[kind] = results[place.prefix + kind]


def run_untrained(cfg: CfgNode, method: type[ModelBase]) -> RunMetrics:
    """The metrics of a network with random weights; writes nothing."""
    if cfg.REPRODUCIBLE:
        seed_everything(cfg.REPRODUCIBLE_SEED)
    cfg = cfg.clone()
    expand_paths(cfg)
    cfg.OUTPUT_DIR = ""
    data = init_dataset(cfg.DATASETS.NAMES, cfg=cfg, num_workers=cfg.DATALOADER.NUM_WORKERS)
    data.setup("test")
    cfg = _settle_cameras(cfg, data.has_cameras)
    model = method(cfg, num_query=data.num_query, num_classes=data.num_classes, load_imagenet=False)
    trainer = build_trainer(cfg, [])
    results: RunMetrics = {}
    trainer.test(model, datamodule=data, verbose=False)
    _keep_metrics(results, model, trainer)
    return results


def _read_data(cfg: CfgNode, start: StartPoint) -> ReidDataModule:
    """The data set, after those checks of ``python -m datasets.validate`` that need not read an image."""
    if cfg.DATASETS.TESTS and not start.trains:
        return read_test_set(cfg, split_names(cfg.DATASETS.TESTS)[0], start.seed)
    data = init_dataset(cfg.DATASETS.NAMES, cfg=cfg, num_workers=cfg.DATALOADER.NUM_WORKERS, seed=start.seed)
    with naming_the_default_folder(cfg):
        data.setup("fit" if start.trains else "test")
    trained = () if data.is_combined else data.train_pids  # that they are evaluated as well has been said
    heed(check_labels(trained, data.query_list, data.gallery_list, data.one_numbering))
    start.check_data(data.num_classes)
    return data


def _facts(cfg: CfgNode, method: type[ModelBase]) -> Facts:
    accelerator, devices = choose_devices(cfg.TRAINER.ACCELERATOR, cfg.GPU_IDS, cfg.SOLVER.DIST_BACKEND)
    processes = (devices if isinstance(devices, int) else len(devices)) * cfg.TRAINER.NUM_NODES
    return Facts(accelerator, processes, tuple(method.losses_names) if is_own_model(method) else ())


def _warn(lines: list[str]) -> None:
    """Log lines in the first process, whichever program has made the others."""
    for line in lines if is_first_process() else ():
        log.warning(line)


def _settle_cameras(cfg: CfgNode, has_cameras: bool) -> CfgNode:
    """The configuration, with MODEL.KEEP_CAMID_CENTROIDS switched off for data without cameras."""
    if has_cameras or not cfg.MODEL.KEEP_CAMID_CENTROIDS:
        return cfg
    rank_zero_info("MODEL.KEEP_CAMID_CENTROIDS True is taken as False: the data has no cameras.")
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.KEEP_CAMID_CENTROIDS = False
    return cfg


def _build_model(cfg: CfgNode, method: type[ModelBase], start: StartPoint, data: ReidDataModule, run: int) -> ModelBase:
    facts: dict[str, Any] = {"num_query": data.num_query, "has_cameras": data.has_cameras}
    if start.kind is Start.TEST:
        try:
            model = method.load_from_checkpoint(start.path, cfg=cfg)
        except NotACtlCheckpointError as refusal:
            model = model_of_weights(method, start.path, cfg, refusal, num_classes=max(1, data.num_classes))
        # Those in the checkpoint belong to the data set that it was trained on.
        model.hparams.num_query, model.hparams.has_cameras = data.num_query, data.has_cameras
        return model
    facts |= {"num_classes": data.num_classes, "data_seed": start.seed, "run_number": run}
    model = construct(method, cfg, facts)
    _check_monitor(cfg, model)
    start.check_network(model.state_dict(), cfg)
    return model


def _check_monitor(cfg: CfgNode, model: ModelBase) -> None:
    name, names = cfg.SOLVER.MONITOR_METRIC_NAME, model.metric_names()
    if name not in names:
        text = f"SOLVER.MONITOR_METRIC_NAME is {name!r}, which this run does not log (MODEL.USE_CENTROIDS is "
        text += f"{cfg.MODEL.USE_CENTROIDS}); it logs {', '.join(sorted(names))}"
        if is_own_model(type(model)):
            raise UserError(f"{text}.")
        log.warning("%s, and what %s logs itself.", text, type(model).__name__)
    if cfg.SOLVER.EVAL_PERIOD > cfg.SOLVER.MAX_EPOCHS:
        log.warning(
            "SOLVER.EVAL_PERIOD %d is above SOLVER.MAX_EPOCHS %d: there will be no validation and no best checkpoint.",
            cfg.SOLVER.EVAL_PERIOD,
            cfg.SOLVER.MAX_EPOCHS,
        )


@contextmanager
def _explained_faults(trainer: Trainer) -> Iterator[None]:
    """Add to an error where the run can be continued from; exit with status 0 on SIGTERM."""
    describe = partial(describe_resume, trainer)
    (stop,) = (callback for callback in trainer.callbacks if isinstance(callback, StopOnSigterm))  # type: ignore[attr-defined]
    with stop.watch(describe):
        try:
            yield
        except UserError as error:
            if trainer.state.fn != "fit":
                raise
            raise type(error)(f"{error} {describe()}".rstrip()) from error
        except RuntimeError as error:
            death = explain_worker_death(error)
            if death is None:
                raise
            raise UserError(f"{death} {describe()}".rstrip()) from error


def _validate_before(
    results: RunMetrics, model: ModelBase, trainer: Trainer, data: ReidDataModule, start: StartPoint
) -> None:
    """One validation of the network as it starts, which leaves the training that follows as it would be without it."""
    if start.kind not in (Start.FRESH, Start.FROM_WEIGHTS):
        rank_zero_info("TEST.BEFORE_TRAINING True has no effect: this run continues a training, or only tests.")
        return
    model.before_training = True
    with isolate_rng(include_cuda=False):  # a validation draws nothing there
        trainer.validate(model, datamodule=data, verbose=False)
    model.before_training = False
    _keep_metrics(results, model, trainer, "before training")


def _keep_metrics(results: RunMetrics, model: ModelBase, trainer: Trainer, kind: str = "", prefix: str = "") -> str:
    """Keep the metrics of the last evaluation under a prefix and its kind, which is returned."""
    kind = kind or ("centroids" if model.hparams.MODEL.USE_CENTROIDS else "instances")
    results[prefix + kind] = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return kind
