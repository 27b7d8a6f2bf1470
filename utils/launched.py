"""Which of the processes of a run this is, as far as those who start it tell; needs no torch."""

import os


def is_launched_first() -> bool:
    """Whether the environment calls this the run's first process, or names no others."""
    if os.environ.get("RANK"):  # torchrun
        return int(os.environ["RANK"]) == 0
    # Lightning sets LOCAL_RANK and NODE_RANK for the processes it starts; SLURM numbers those of the whole job.
    return all(int(os.environ.get(name) or 0) == 0 for name in ("LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))
