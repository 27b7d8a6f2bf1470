"""The run: builds loggers, callbacks, Trainer and data module, then trains, resumes or tests."""

import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from mlflow.exceptions import MlflowException
from pytorch_lightning import Trainer, seed_everything
from pytorch_lightning.callbacks import ModelCheckpoint, TQDMProgressBar
from pytorch_lightning.loggers import Logger, TensorBoardLogger
from pytorch_lightning.profilers import Profiler, PyTorchProfiler, SimpleProfiler
from pytorch_lightning.utilities import rank_zero_info
from yacs.config import CfgNode

from callbacks import (
    EpochStatistics,
    LossGuard,
    ModelCheckpointBest,
    ModelCheckpointPeriodic,
    SafeCheckpointIO,
    SafeMLFlowLogger,
    SafeTensorBoardLogger,
    StopOnSigterm,
    describe_resume,
)
from callbacks.stopping import GRACE_SECONDS
from config.cli import clean_exit
from config.validate import GONE_BACKENDS
from datasets import ReidDataModule, init_dataset
from datasets.checks import check_labels
from datasets.loading import explain_worker_death
from modelling.backbones import check_embedding_size
from modelling.bases import ModelBase
from utils.checkpoint import load_ctl_checkpoint, to_plain
from utils.distributed import end_with_first_process, find_launcher, is_first_process
from utils.errors import MissingPathError, UserError
from utils.resume import (
    check_continues,
    check_same_network,
    count_epochs,
    find_newest,
    has_more_epochs,
    is_auto,
    start_weights,
    version_of,
)

log = logging.getLogger(__name__)

DEFAULT_MLFLOW_URI = "sqlite:///mlflow.db"


def run_script(method: type[ModelBase], cfg: CfgNode, logger_save_dir: str) -> None:
    """What ``python train_*.py`` does once its command line is read; mendable errors end it with status 2."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    quiet_libraries()
    end_with_first_process(GRACE_SECONDS)
    with clean_exit(UserError):
        run_main(cfg, method, logger_save_dir)


def quiet_libraries() -> None:
    """Leave out the messages with which other libraries accompany ordinary work."""
    for chatty in ("alembic", "mlflow"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


RunMetrics = dict[str, dict[str, float]]


def run_main(cfg: CfgNode, method: type[ModelBase], logger_save_dir: str) -> list[RunMetrics]:
    """All runs that a configuration asks for: one per seed with REPRODUCIBLE, else REPRODUCIBLE_NUM_RUNS unseeded.

    Args:
        cfg: configuration; left as it is.
        method: the model's class.
        logger_save_dir: name of the folder below LOG_DIR, as a rule the script's stem.

    Returns:
        For each run what :func:`run_single` returns.

    Raises:
        UserError: what the configuration names is missing, malformed or does not fit.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.LOG_DIR = cfg.OUTPUT_DIR = cfg.OUTPUT_DIR or str(Path("logs") / cfg.DATASETS.NAMES)
    if is_first_process():
        _check_writable(cfg.LOG_DIR)
    results = []
    for run in range(cfg.REPRODUCIBLE_NUM_RUNS):
        # Without REPRODUCIBLE the draws of the data differ from run to run.
        seed = cfg.REPRODUCIBLE_SEED + run if cfg.REPRODUCIBLE else int.from_bytes(os.urandom(4), "little")
        if cfg.REPRODUCIBLE:
            seed_everything(seed, workers=True)
        results.append(run_single(cfg, method, logger_save_dir, seed=seed, run=run))
    return results


def run_single(cfg: CfgNode, method: type[ModelBase], logger_save_dir: str, seed: int = 0, run: int = 0) -> RunMetrics:
    """One run: training and a test pass with USE_CENTROIDS flipped, or with TEST.ONLY_TEST two test passes.

    Args:
        cfg: configuration with LOG_DIR set.
        method: the model's class.
        logger_save_dir: name of the folder below LOG_DIR.
        seed: shifts the draws of identities and images; 0 draws as the original did.
        run: number of this run among REPRODUCIBLE_NUM_RUNS, by which it finds its own checkpoint again.

    Returns:
        The last metrics of each kind of evaluation, under "instances" and "centroids".
    """
    check_embedding_size(cfg.MODEL.NAME, cfg.MODEL.BACKBONE_EMB_SIZE)
    only_test = cfg.TEST.ONLY_TEST
    auto = cfg.MODEL.RESUME_TRAINING and is_auto(cfg.MODEL.PRETRAIN_PATH)
    if auto:
        cfg = _resolve_auto(cfg, logger_save_dir, run, seed)
    path = _checkpoint_path(cfg) if only_test or cfg.MODEL.RESUME_TRAINING else None
    resumed = load_ctl_checkpoint(path) if path and not only_test else None
    if resumed and not cfg.REPRODUCIBLE:  # go on with the draws of the run that is resumed
        seed = resumed["hyper_parameters"].get("data_seed", seed)
    data = init_dataset(cfg.DATASETS.NAMES, cfg=cfg, num_workers=cfg.DATALOADER.NUM_WORKERS, seed=seed)
    data.setup("test" if only_test else "fit")
    _check_data(data)
    cfg = _settle_cameras(cfg, data.has_cameras)
    if only_test:
        model = method.load_from_checkpoint(path, cfg=cfg)
        # The checkpoint's are those of the set it was trained on.
        model.hparams.num_query, model.hparams.has_cameras = data.num_query, data.has_cameras
    else:
        if resumed:
            check_continues(str(path), resumed, data.num_classes)
        facts: dict[str, Any] = {"num_query": data.num_query, "has_cameras": data.has_cameras}
        model = method(cfg, num_classes=data.num_classes, data_seed=seed, run_number=run, **facts)
        _check_monitor(cfg, model)
        if resumed:
            check_same_network(str(path), resumed, model.state_dict(), cfg.MODEL.NAME)
    finished = resumed is not None and _is_finished(str(path), resumed, cfg.SOLVER.MAX_EPOCHS, may_be=auto)
    version = _version_to_continue(cfg, Path(cfg.LOG_DIR) / logger_save_dir, resumed, auto) if resumed else None
    trainer = build_trainer(cfg, build_loggers(cfg, logger_save_dir, version), keep="" if auto or not path else path)
    for logger in trainer.loggers:
        logger.log_hyperparams(to_plain(cfg))
    results: RunMetrics = {}
    with _explained_faults(trainer):
        if not only_test:
            trainer.fit(model, datamodule=data, ckpt_path=path)
        if only_test or finished:
            trainer.test(model, datamodule=data, verbose=False)
        _keep_metrics(results, model, trainer)
        model.hparams.MODEL.USE_CENTROIDS = not model.hparams.MODEL.USE_CENTROIDS
        trainer.test(model, datamodule=data, verbose=False)
        _keep_metrics(results, model, trainer)
    _log_places(trainer)
    return results


@contextmanager
def _explained_faults(trainer: Trainer) -> Iterator[None]:
    """Errors of a run say where it can be continued from; SIGTERM ends it with status 0."""
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


def run_untrained(cfg: CfgNode, method: type[ModelBase]) -> RunMetrics:
    """The metrics that a network of random weights reaches; nothing is written."""
    if cfg.REPRODUCIBLE:
        seed_everything(cfg.REPRODUCIBLE_SEED)
    cfg = cfg.clone()
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


def build_loggers(cfg: CfgNode, name: str, version: str | None = None) -> list[Logger]:
    """TensorBoard under LOG_DIR/name/version, a new one if None, and MLflow unless LOGGING.MLFLOW is False."""
    loggers: list[Logger] = [SafeTensorBoardLogger(cfg.LOG_DIR, name=name, version=version, default_hp_metric=False)]
    loggers[0].version  # noqa: B018 - settles the folder, which spawned processes would each choose anew
    # Opening a database makes it: only one process may. Loggers of the others would write nothing.
    if cfg.LOGGING.MLFLOW and is_first_process():
        uri = cfg.LOGGING.MLFLOW_URI or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_MLFLOW_URI
        try:
            loggers.append(SafeMLFlowLogger(experiment_name="default", tracking_uri=uri))
        except MlflowException as error:
            raise UserError(
                f"LOGGING.MLFLOW_URI or MLFLOW_TRACKING_URI is {uri!r}, which MLflow refuses: name a server or a "
                f"database such as {DEFAULT_MLFLOW_URI}, or set LOGGING.MLFLOW False. MLflow says: {error}"
            ) from error
    return loggers


def build_trainer(cfg: CfgNode, loggers: list[Logger], keep: str = "") -> Trainer:
    """The Trainer of a configuration; a validation every EVAL_PERIOD epochs, our own sampler, safe checkpoints.

    Args:
        cfg: configuration.
        loggers: from :func:`build_loggers`.
        keep: a checkpoint that is not removed when newer ones are there.
    """
    accelerator, devices = choose_devices(cfg)
    check_launch(cfg, _count(devices))
    # The data modules here have no hook of this name that the model's could hide.
    warnings.filterwarnings("ignore", message="You have overridden `on_before_batch_transfer`")
    fast = cfg.TRAINER.FAST_MATH and accelerator == "gpu"
    if fast:
        torch.set_float32_matmul_precision("high")
    # Operations without a deterministic form on some device are named in a warning instead of ending the run.
    deterministic: Literal["warn", False] = "warn" if cfg.REPRODUCIBLE else False
    return Trainer(
        accelerator=accelerator,
        devices=devices,
        num_nodes=cfg.TRAINER.NUM_NODES,
        strategy=choose_strategy(cfg.SOLVER.DIST_BACKEND, _count(devices) * cfg.TRAINER.NUM_NODES),
        precision=choose_precision(cfg, accelerator),
        max_epochs=cfg.SOLVER.MAX_EPOCHS,
        check_val_every_n_epoch=cfg.SOLVER.EVAL_PERIOD,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        reload_dataloaders_every_n_epochs=1,  # the length of an epoch depends on its draws
        logger=loggers,
        log_every_n_steps=cfg.LOGGING.EVERY_N_STEPS,
        benchmark=True if fast and not cfg.REPRODUCIBLE else None,
        profiler=build_profiler(cfg),
        callbacks=[
            LossGuard(),
            ModelCheckpointBest(
                cfg.SOLVER.MONITOR_METRIC_NAME, cfg.SOLVER.MONITOR_METRIC_MODE, every_n_epochs=cfg.SOLVER.EVAL_PERIOD
            ),
            ModelCheckpointPeriodic(keep=keep),
            EpochStatistics(),
            StopOnSigterm(),
            *([TQDMProgressBar(refresh_rate=cfg.LOGGING.EVERY_N_STEPS)] if cfg.TRAINER.PROGRESS_BAR else []),
        ],
        plugins=[SafeCheckpointIO()],
        deterministic=deterministic,
        enable_progress_bar=cfg.TRAINER.PROGRESS_BAR,
        enable_model_summary=False,
    )


def build_profiler(cfg: CfgNode) -> Profiler | None:
    """Lightning's profiler of TRAINER.PROFILER, which writes to LOG_DIR/profile at the end of a training and a test."""
    folder, name = Path(cfg.LOG_DIR) / "profile", cfg.TRAINER.PROFILER
    if not name:
        return None
    log.info("The profile (TRAINER.PROFILER %s) goes to %s.", name, folder)
    return {"simple": SimpleProfiler, "pytorch": PyTorchProfiler}[name](dirpath=folder, filename=name)


def choose_devices(cfg: CfgNode) -> tuple[str, list[int] | int]:
    """Lightning's ``accelerator`` and ``devices``: the CUDA devices of GPU_IDS, or the CPU where there are none.

    DIST_BACKEND "ddp_cpu" starts one CPU process for each entry of GPU_IDS.

    Raises:
        UserError: an accelerator or device that this machine does not have.
    """
    wanted, ids = cfg.TRAINER.ACCELERATOR, list(cfg.GPU_IDS)
    if cfg.SOLVER.DIST_BACKEND == "ddp_cpu":
        return "cpu", max(1, len(ids))
    cuda_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "gpu" and not (cuda_devices and ids):
        raise UserError(
            f"TRAINER.ACCELERATOR is 'gpu', but this machine has {cuda_devices} CUDA devices and GPU_IDS is {ids}; "
            "set TRAINER.ACCELERATOR auto or cpu, or list devices in GPU_IDS."
        )
    if wanted == "mps":
        if not torch.backends.mps.is_available():
            raise UserError("TRAINER.ACCELERATOR is 'mps', but this machine has no MPS device; set auto or cpu.")
        return "mps", 1
    if wanted == "cpu" or not (cuda_devices and ids):
        return "cpu", 1
    missing = [i for i in ids if not 0 <= i < cuda_devices]
    if missing:
        raise UserError(f"GPU_IDS names {missing}, but this machine has CUDA devices 0 to {cuda_devices - 1}.")
    return "gpu", ids


def choose_strategy(backend: str, num_processes: int) -> str:
    """Lightning's ``strategy`` for SOLVER.DIST_BACKEND.

    Raises:
        UserError: a backend that no longer exists.
    """
    if backend in GONE_BACKENDS:
        raise UserError(f"SOLVER.DIST_BACKEND is {backend!r}, which no longer exists in Lightning 2; use ddp.")
    if num_processes == 1:
        return "auto"
    return "ddp" if backend == "ddp_cpu" else backend


def check_launch(cfg: CfgNode, devices: int) -> None:
    """Compare the processes that torchrun or SLURM has started with those that the configuration asks for.

    Lightning would wait for the missing ones, or train as many times as there are processes.

    Args:
        cfg: configuration.
        devices: number of devices, and processes, on each machine.

    Raises:
        UserError: the numbers differ.
    """
    started, nodes = find_launcher(), cfg.TRAINER.NUM_NODES
    if started is None:
        return
    launcher, processes = started
    options = "--nnodes and --nproc-per-node" if launcher == "torchrun" else "--nodes and --ntasks-per-node"
    if processes != devices * nodes:
        raise UserError(
            f"{launcher} started {processes} process(es), but the configuration asks for {devices * nodes}: {devices} "
            f"for each of TRAINER.NUM_NODES {nodes} machine(s), one for each device of GPU_IDS {list(cfg.GPU_IDS)}; on "
            f"the CPU a single one, or with SOLVER.DIST_BACKEND ddp_cpu one for each entry. Make {options} agree."
        )
    if processes > 1 and cfg.SOLVER.DIST_BACKEND == "ddp_spawn":
        raise UserError(f"SOLVER.DIST_BACKEND is 'ddp_spawn', but {launcher} starts the processes; use ddp.")


def choose_precision(cfg: CfgNode, accelerator: str) -> Any:
    """Lightning's ``precision``: TRAINER.PRECISION, else by USE_MIXED_PRECISION, which works on CUDA only."""
    if cfg.TRAINER.PRECISION:
        return cfg.TRAINER.PRECISION
    if not cfg.USE_MIXED_PRECISION:
        return "32-true"
    if accelerator == "gpu":
        return "16-mixed"
    log.info("USE_MIXED_PRECISION True needs a CUDA device; computing in 32-true on %s.", accelerator)
    return "32-true"


def _settle_cameras(cfg: CfgNode, has_cameras: bool) -> CfgNode:
    """The configuration, which for data without cameras must not build centroids by camera."""
    if has_cameras or not cfg.MODEL.KEEP_CAMID_CENTROIDS:
        return cfg
    rank_zero_info("MODEL.KEEP_CAMID_CENTROIDS True is taken as False: the data has no cameras.")
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.KEEP_CAMID_CENTROIDS = False
    return cfg


def _count(devices: list[int] | int) -> int:
    return devices if isinstance(devices, int) else len(devices)


def _checkpoint_path(cfg: CfgNode) -> str:
    path = cfg.MODEL.PRETRAIN_PATH
    if not Path(path).is_file():
        switch = "TEST.ONLY_TEST" if cfg.TEST.ONLY_TEST else "MODEL.RESUME_TRAINING"
        raise MissingPathError(
            f"MODEL.PRETRAIN_PATH is {path!r}, which is not a file; {switch} True needs the path of a CTL checkpoint."
        )
    return path


def _resolve_auto(cfg: CfgNode, name: str, run: int, seed: int) -> CfgNode:
    """A copy of the configuration with the newest checkpoint of this run, or for a fresh training if there is none."""
    runs = Path(cfg.LOG_DIR) / name

    def belongs(hparams: dict[str, Any]) -> bool:
        return hparams.get("data_seed") == seed if cfg.REPRODUCIBLE else hparams.get("run_number", 0) == run

    newest = find_newest(runs, belongs)
    weights = start_weights(cfg.MODEL.PRETRAIN_PATH)
    cfg = cfg.clone()
    if newest:
        cfg.MODEL.PRETRAIN_PATH = str(newest)
        rank_zero_info("MODEL.PRETRAIN_PATH auto: continuing from %s", newest)
        return cfg
    if cfg.MODEL.PRETRAINED and not weights:
        raise MissingPathError(
            f"MODEL.PRETRAIN_PATH is 'auto', but {runs} holds no checkpoint of this run, and MODEL.PRETRAINED True "
            "needs ImageNet weights to start from: give MODEL.PRETRAIN_PATH auto:FILE, or set MODEL.PRETRAINED False."
        )
    cfg.MODEL.RESUME_TRAINING, cfg.MODEL.PRETRAIN_PATH = False, weights
    rank_zero_info("MODEL.PRETRAIN_PATH auto: no checkpoint of this run in %s; training from the start", runs)
    return cfg


def _version_to_continue(cfg: CfgNode, runs: Path, resumed: dict[str, Any], auto: bool) -> str | None:
    """The folder version_N below ``runs`` in which a resumed run goes on; None if it gets one of its own."""
    version = version_of(cfg.MODEL.PRETRAIN_PATH, runs)
    if auto or version is None:
        return version
    # Several runs may go on from one file. One that goes back to an earlier epoch would mix with the files of the
    # epochs after it, and "auto" take those for its newest state.
    goes_back = has_more_epochs(runs / version, count_epochs(resumed))
    return None if cfg.REPRODUCIBLE_NUM_RUNS > 1 or goes_back else version


def _check_data(data: ReidDataModule) -> None:
    """What python -m datasets.validate tells without reading a picture: at once, not at a validation after hours."""
    for finding in check_labels(data.train_pids, data.query_list, data.gallery_list, data.one_numbering):
        if finding.is_fatal:
            raise UserError(finding.text)
        log.warning(finding.text)


def _check_monitor(cfg: CfgNode, model: ModelBase) -> None:
    name, names = cfg.SOLVER.MONITOR_METRIC_NAME, model.metric_names()
    if name not in names:
        raise UserError(
            f"SOLVER.MONITOR_METRIC_NAME is {name!r}, which this run does not log (MODEL.USE_CENTROIDS is "
            f"{cfg.MODEL.USE_CENTROIDS}); it logs {', '.join(sorted(names))}."
        )
    if cfg.SOLVER.EVAL_PERIOD > cfg.SOLVER.MAX_EPOCHS:
        log.warning(
            "SOLVER.EVAL_PERIOD %d is above SOLVER.MAX_EPOCHS %d: there will be no validation and no best checkpoint.",
            cfg.SOLVER.EVAL_PERIOD,
            cfg.SOLVER.MAX_EPOCHS,
        )


def _is_finished(path: str, checkpoint: dict[str, Any], max_epochs: int, may_be: bool) -> bool:
    """Whether a checkpoint has all epochs; an error unless it may have (a job that was started again just tests)."""
    done = count_epochs(checkpoint)
    if done < max_epochs:
        return False
    if may_be:
        rank_zero_info("%s has finished all %d epochs: only the tests are left", path, done)
        return True
    raise UserError(
        f"{path} has finished {done} epochs and SOLVER.MAX_EPOCHS is {max_epochs}: nothing is left to train. Raise "
        "SOLVER.MAX_EPOCHS, or test the checkpoint with TEST.ONLY_TEST True."
    )


def _check_writable(folder: str) -> None:
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"OUTPUT_DIR: cannot write to {folder!r} ({error.strerror}); name a folder that you may write to."
        ) from error


def _keep_metrics(results: RunMetrics, model: ModelBase, trainer: Trainer) -> None:
    kind = "centroids" if model.hparams.MODEL.USE_CENTROIDS else "instances"
    results[kind] = {name: float(value) for name, value in trainer.callback_metrics.items()}


def _log_places(trainer: Trainer) -> None:
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.best_model_path:
            rank_zero_info("checkpoint: %s", callback.best_model_path)
    for logger in trainer.loggers:
        if isinstance(logger, SafeMLFlowLogger) and logger.undelivered:
            log.warning("%d records were not delivered to MLflow.", logger.undelivered)
        place = logger.log_dir if isinstance(logger, TensorBoardLogger) else getattr(logger, "_tracking_uri", "")
        rank_zero_info("%s: %s", type(logger).__name__.removeprefix("Safe"), place)
