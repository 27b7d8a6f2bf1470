"""What stands on PATH for the programs that the pages name: each runs for real but small, or is answered for a reason.

``python stand_in.py NAME ARGUMENTS...`` is one call of the program NAME; the exit status goes to the file COMMANDS_LOG.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests import warm

# A page's training, made so small that it takes seconds: these win over what the page says ...
SMALL = {
    "MODEL.COMPILE": "False",
    "INPUT.SIZE_TRAIN": "[32,16]",
    "INPUT.SIZE_TEST": "[32,16]",
    "INPUT.PADDING": "2",
    "SOLVER.MAX_EPOCHS": "1",
    "SOLVER.EVAL_PERIOD": "1",
    "SOLVER.IMS_PER_BATCH": "3",
    "DATALOADER.NUM_WORKERS": "0",
    "REPRODUCIBLE_NUM_RUNS": "1",
    "TRAINER.PROGRESS_BAR": "False",
}
# ... and these stand in only for what it leaves open.
UNLESS_GIVEN = {"MODEL.NAME": "resnet18", "MODEL.PRETRAINED": "False", "LOGGING.MLFLOW": "False"}
EPOCHS_OF_A_RESUMED_RUN = "2"  # one more than SMALL, so that there is something left to train
SMALL_SET = ("--ids", "16", "--cameras", "3", "--images-per-id", "4", "--size", "32", "16")

# Answered with success and not started, each for its reason.
ANSWERED = {
    "pip": "installs from the network",
    "ruff": "takes long, and `make lint` runs it",
    "mypy": "takes long, and `make lint` runs it",
}
TRAINING = re.compile(r"(?:.*/)?train_(?:ctl|base)_model\.py")


def main(name: str, arguments: Sequence[str]) -> int:
    """One call of a program; returns its exit status."""
    status = dispatch(name, list(arguments))
    with Path(os.environ["COMMANDS_LOG"]).open("a", encoding="utf-8") as log:
        log.write(f"{status} {shlex.join([name, *arguments])}\n")
    return status


def dispatch(name: str, arguments: list[str]) -> int:
    """Run the program, or answer for it."""
    if name == "make":  # the targets exist, and their commands can be listed
        make = shutil.which("make", path=os.defpath)
        return subprocess.call([make, "--dry-run", *arguments], stdout=subprocess.DEVNULL) if make else 0
    if name == "git":
        if arguments[:1] != ["clone"]:
            return 1
        Path(Path(arguments[-1]).stem).symlink_to(Path.cwd())  # the folder that a clone would make is this one
        return 0
    if name == "pytest":
        paths = [argument for argument in arguments if argument.startswith("tests")]
        return int(not all(Path(path.partition("::")[0]).exists() for path in paths))
    if name in ANSWERED:
        return 0
    if name == "torchrun":
        return python(["-m", "torch.distributed.run", *arguments])
    return python(arguments)


def python(arguments: list[str]) -> int:
    """Python with these arguments, made small."""
    program = program_of(arguments)
    if program == "venv":
        activate = Path(arguments[-1], "bin", "activate")
        activate.parent.mkdir(parents=True)
        activate.touch()
        return 0
    if program in ("pip", "pytest"):
        return dispatch(program, arguments[2:])
    if program.startswith("benchmarks.") or program == "scripts.demo":
        # Minutes long: tests/benchmarks and `make demo` run them. Here they have to be there and to know the options.
        files = (Path(program.replace(".", "/") + ".py"), Path("benchmarks/common.py"))
        text = "".join(file.read_text(encoding="utf-8") for file in files if file.exists())
        options = [argument.partition("=")[0] for argument in arguments if argument.startswith("--")]
        return int(not (files[0].exists() and all(f'"{option}"' in text for option in options)))
    if any(TRAINING.fullmatch(argument) for argument in arguments) and "--help" not in arguments:
        arguments = small_training(arguments)
    elif program == "scripts.make_toy_dataset":
        arguments = [*arguments, *SMALL_SET]
    arguments = [existing_checkpoint(argument) for argument in arguments]
    if not warm.takes(arguments):
        return subprocess.call([sys.executable, *arguments])
    return warm.call(os.environ["WARM_PYTHON"], arguments, cwd=str(Path.cwd()), env=os.environ)


def program_of(arguments: list[str]) -> str:
    """``-m a.b`` and ``a/b.py`` are both a.b."""
    if arguments[:1] == ["-m"]:
        return arguments[1]
    return arguments[0].removesuffix(".py").replace("/", ".") if arguments else ""


def small_training(arguments: list[str]) -> list[str]:
    """The command line of a training with the small settings behind it, where they win."""
    pairs = SMALL | {key: value for key, value in UNLESS_GIVEN.items() if key not in arguments}
    if pairs.get("MODEL.NAME") == "resnet18":
        pairs["MODEL.BACKBONE_EMB_SIZE"] = "512"
    if "MODEL.RESUME_TRAINING" in arguments:
        pairs["SOLVER.MAX_EPOCHS"] = EPOCHS_OF_A_RESUMED_RUN
    return [*arguments, *(part for pair in pairs.items() for part in pair)]


def existing_checkpoint(argument: str) -> str:
    """A checkpoint named for its epoch, which a short training does not reach: the newest one in the same folder."""
    path = Path(argument)
    if path.exists() or not re.fullmatch(r"epoch=\d+\.ckpt|checkpoint_\d+\.pth", path.name):
        return argument
    others = sorted(path.parent.glob(f"*{path.suffix}"), key=lambda file: file.stat().st_mtime)
    return str(others[-1]) if others else argument


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
