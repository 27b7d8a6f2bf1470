"""Build Lightning's Trainer from a configuration."""

import sys
from pathlib import Path
from typing import Any, Literal

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.loggers import Logger
from pytorch_lightning.profilers import Profiler, PyTorchProfiler, SimpleProfiler
from pytorch_lightning.utilities import rank_zero_info
from yacs.config import CfgNode

from callbacks import (
    EpochStatistics,
    LossGuard,
    ModelCheckpointBest,
    ModelCheckpointPeriodic,
    SafeCheckpointIO,
    StopOnSigterm,
)
from config.validate import GONE_BACKENDS
from engine.noise import quiet_libraries
from utils.devices import choose_devices
from utils.distributed import find_launcher
from utils.errors import UserError


def build_trainer(cfg: CfgNode, loggers: list[Logger], keep: str = "", find_unused: bool = False) -> Trainer:
    """The Trainer for a configuration: it validates every EVAL_PERIOD epochs, with our own sampler and checkpoints.

    Args:
        cfg: configuration.
        loggers: from :func:`engine.loggers.build_loggers`.
        keep: a checkpoint that is kept when newer ones replace the others; "" for none.
        find_unused: allow parameters that get no gradient in a step, which several processes then look for.
    """
    solver = cfg.SOLVER
    accelerator, devices = choose_devices(cfg.TRAINER.ACCELERATOR, cfg.GPU_IDS, solver.DIST_BACKEND)
    per_machine = devices if isinstance(devices, int) else len(devices)
    check_launch(cfg, per_machine)
    quiet_libraries()
    fast = cfg.TRAINER.FAST_MATH and accelerator == "gpu"
    if fast:
        torch.set_float32_matmul_precision("high")
    # An operation without a deterministic implementation causes a warning instead of ending the run.
    deterministic: Literal["warn", False] = "warn" if cfg.REPRODUCIBLE else False
    return Trainer(
        accelerator=accelerator,
        devices=devices,
        num_nodes=cfg.TRAINER.NUM_NODES,
        strategy=choose_strategy(solver.DIST_BACKEND, per_machine * cfg.TRAINER.NUM_NODES, find_unused),
        sync_batchnorm=choose_sync_batchnorm(cfg, accelerator, per_machine * cfg.TRAINER.NUM_NODES),
        precision=choose_precision(cfg.TRAINER.PRECISION, cfg.USE_MIXED_PRECISION, accelerator),
        max_epochs=solver.MAX_EPOCHS,
        check_val_every_n_epoch=solver.EVAL_PERIOD,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        reload_dataloaders_every_n_epochs=1,  # the length of an epoch depends on its random draws
        logger=loggers,
        log_every_n_steps=cfg.LOGGING.EVERY_N_STEPS,
        benchmark=True if fast and not cfg.REPRODUCIBLE else None,
        profiler=build_profiler(cfg.TRAINER.PROFILER, Path(cfg.LOG_DIR) / "profile"),
        callbacks=[
            LossGuard(),
            ModelCheckpointBest(solver.MONITOR_METRIC_NAME, solver.MONITOR_METRIC_MODE, solver.EVAL_PERIOD),
            ModelCheckpointPeriodic(keep=keep),
            EpochStatistics(report=not (cfg.TRAINER.PROGRESS_BAR and is_on_terminal())),
            StopOnSigterm(),
            *([TQDMProgressBar(refresh_rate=cfg.LOGGING.EVERY_N_STEPS)] if cfg.TRAINER.PROGRESS_BAR else []),
        ],
        plugins=[SafeCheckpointIO()],
        deterministic=deterministic,
        enable_progress_bar=cfg.TRAINER.PROGRESS_BAR,
        enable_model_summary=False,
    )


def is_on_terminal() -> bool:
    """Whether somebody can watch a progress bar, which is drawn on stdout, and read the lines beside it."""
    return sys.stdout.isatty() and sys.stderr.isatty()


def build_profiler(name: str, folder: Path) -> Profiler | None:
    """The profiler that TRAINER.PROFILER names, which writes to ``folder`` at the end of each fit and test."""
    if not name:
        return None
    rank_zero_info("The profile (TRAINER.PROFILER %s) will be written to %s.", name, folder)
    return {"simple": SimpleProfiler, "pytorch": PyTorchProfiler}[name](dirpath=folder, filename=name)


def choose_strategy(backend: str, num_processes: int, find_unused: bool = False) -> str:
    """Lightning's ``strategy`` for SOLVER.DIST_BACKEND; ``find_unused`` as for build_trainer.

    Raises:
        UserError: a backend that no longer exists.
    """
    if backend in GONE_BACKENDS:
        raise UserError(f"SOLVER.DIST_BACKEND is {backend!r}, which no longer exists in Lightning 2; use ddp.")
    if num_processes == 1:
        return "auto"
    return ("ddp" if backend == "ddp_cpu" else backend) + ("_find_unused_parameters_true" if find_unused else "")


def check_launch(cfg: CfgNode, devices: int) -> None:
    """Check that torchrun or SLURM started as many processes as the configuration needs.

    Otherwise Lightning would wait for the missing ones, or each process would train a model of its own.

    Args:
        cfg: configuration.
        devices: devices on each machine, with one process for each.

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
            f"for each of TRAINER.NUM_NODES {nodes} machine(s), one for each device of GPU_IDS {list(cfg.GPU_IDS)} (on "
            f"the CPU only one, or with SOLVER.DIST_BACKEND ddp_cpu one for each entry). Set {options} to match."
        )
    if processes > 1 and cfg.SOLVER.DIST_BACKEND == "ddp_spawn":
        raise UserError(f"SOLVER.DIST_BACKEND is 'ddp_spawn', but {launcher} starts the processes; use ddp.")


def choose_sync_batchnorm(cfg: CfgNode, accelerator: str, num_processes: int) -> bool:
    """Whether batch norm is computed over all processes: with TRAINER.SYNC_BATCHNORM, in a training by several.

    Raises:
        UserError: the processes do not compute on CUDA.
    """
    if not cfg.TRAINER.SYNC_BATCHNORM or num_processes == 1 or cfg.TEST.ONLY_TEST:
        return False
    if accelerator != "gpu":
        raise UserError(
            f"TRAINER.SYNC_BATCHNORM is True, but torch.nn.SyncBatchNorm computes on CUDA only, and this run trains "
            f"with {num_processes} processes on {accelerator}: set it False, or train on CUDA devices."
        )
    return True


def choose_precision(precision: str, mixed: bool, accelerator: str) -> Any:
    """Lightning's ``precision``: TRAINER.PRECISION, else by USE_MIXED_PRECISION, which works on CUDA only."""
    if precision:
        return precision
    if not mixed:
        return "32-true"
    if accelerator == "gpu":
        return "16-mixed"
    rank_zero_info("USE_MIXED_PRECISION True needs a CUDA device; computing in 32-true on %s.", accelerator)
    return "32-true"
