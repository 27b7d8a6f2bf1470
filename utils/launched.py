"""Which of the processes of a run this is, as far as those who start it tell; needs no torch."""

import os


def is_launched_first() -> bool:
    """Whether the environment calls this the run's first process, or names no others."""
    if os.environ.get("RANK"):  # torchrun
        return int(os.environ["RANK"]) == 0
    # Lightning sets LOCAL_RANK and NODE_RANK for the processes it starts; SLURM numbers those of the whole job.
    return all(int(os.environ.get(name) or 0) == 0 for name in ("LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))


def find_launcher() -> tuple[str, int] | None:
    """The program that started the processes of this run, and their number; None if Lightning starts them."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return "torchrun", int(os.environ["WORLD_SIZE"])
    if "SLURM_NTASKS" in os.environ and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        return "SLURM", int(os.environ["SLURM_NTASKS"])
    return None
