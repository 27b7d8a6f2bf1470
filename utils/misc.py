"""A door: the names of the original's utils/misc.py.

Runs live in :mod:`engine.run`, the Trainer in :mod:`engine.trainer`, loggers in :mod:`engine.loggers`.
"""

from engine.loggers import build_loggers
from engine.run import run_main, run_script, run_single, run_untrained
from engine.trainer import build_trainer

__all__ = ["build_loggers", "build_trainer", "run_main", "run_script", "run_single", "run_untrained"]
