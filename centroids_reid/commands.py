"""The console commands: ``ctl-train`` runs the program train_ctl_model as ``python -m`` would, and so on."""

from collections.abc import Callable
from functools import partial
from runpy import run_module

# command -> module in this package; setup.py makes a script of each, which asks for the attribute below.
PROGRAMS = {
    "ctl-train": ".train_ctl_model",
    "ctl-train-base": ".train_base_model",
    "ctl-embed": ".inference.create_embeddings",
    "ctl-edit-gallery": ".inference.edit_gallery",
    "ctl-search": ".inference.get_similar",
    "ctl-evaluate": ".evaluation",
    "ctl-export": ".inference.export",
    "ctl-validate": ".datasets.validate",
    "ctl-split": ".datasets.split",
    "ctl-toy": ".scripts.make_toy_dataset",
}


def attribute(command: str) -> str:
    """The name by which :func:`__getattr__` knows a command: ``ctl_train``."""
    return command.replace("-", "_")


def __getattr__(name: str) -> Callable[[], None]:
    for command, module in PROGRAMS.items():
        if name == attribute(command):
            return partial(_run, f"{__package__}{module}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _run(module: str) -> None:
    """Run a module as the main one, whose own exit status is that of the command."""
    run_module(module, run_name="__main__", alter_sys=True)
