"""The one place that reads checkpoints.

Reading runs no code from the file (see checkpoints/torch_file.py) and returns plain dicts, lists, tuples, numbers,
strings and CPU tensors, whether the file comes from this project, from the original (Lightning 1.1.4), or holds weights
alone.
"""

import os
from pathlib import Path
from typing import Any

from checkpoints.plain import plain_copy
from checkpoints.torch_file import UnreadableError, read_torch_file
from checkpoints.weights import describe
from utils.errors import CheckpointError, MissingPathError, NotACtlCheckpointError

StrPath = str | os.PathLike[str]

_MODEL_KEYS = ("backbone.", "bn.weight", "center_loss.centers", "fc_query.weight")


def load_checkpoint(path: StrPath) -> dict[str, Any]:
    """Read a file of torch.save or of safetensors, onto the CPU and as plain data, whatever device it was saved from.

    Args:
        path: a checkpoint of this project or of the original, or a file of weights of whatever origin.

    Returns:
        The dictionary in the file. Dictionary classes (yacs nodes, OrderedDict, Counter) become dicts, a class that is
        the key of a callback state becomes the string "module.Class", and parameters become tensors without gradient.

    Raises:
        MissingPathError: there is no such file.
        CheckpointError: it is a folder, is cut off, is another kind of file, does not hold a dictionary, or asks for a
            class that a checkpoint may not hold.
        UserError: it is a safetensors file, and the package that reads these is not installed.
    """
    if not str(path) or not Path(path).exists():
        raise MissingPathError(f"No such checkpoint: {str(path)!r}. Expected the path of a file that torch.save wrote.")
    if Path(path).is_dir():
        raise CheckpointError(f"{path} is a folder. Expected a checkpoint file, such as a *.ckpt inside it.")
    try:
        content = plain_copy(read_torch_file(Path(path)))
    except UnreadableError as error:
        raise CheckpointError(f"{path} {error}. Expected a checkpoint or weights written by torch.save.") from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}. Expected a dictionary: a checkpoint or weights."
        )
    return content


def load_ctl_checkpoint(path: StrPath) -> dict[str, Any]:
    """Read a checkpoint of a trained model: a ``state_dict`` with all parts of the model, and ``hyper_parameters``.

    Args:
        path: a checkpoint of this project or of the original.

    Raises:
        MissingPathError, CheckpointError: as for load_checkpoint.
        NotACtlCheckpointError: any other content. The message says what the file holds, for instance ImageNet weights.
    """
    checkpoint = load_checkpoint(path)
    weights = checkpoint.get("state_dict")
    keys = list(weights) if isinstance(weights, dict) else []
    told = checkpoint.get("hyper_parameters")
    # A subclass may have a classifier or a neck of its own, or none.
    needed = _MODEL_KEYS[:1] if isinstance(told, dict) and {"MODEL", "num_classes"} <= told.keys() else _MODEL_KEYS
    absent = [key for key in needed if not any(str(k).startswith(key) for k in keys)]
    if isinstance(told, dict) and keys and not absent:
        return checkpoint
    lacks = "hyper_parameters" if keys and not absent else f"state_dict with {', '.join(absent)}"
    raise NotACtlCheckpointError(
        f"{path} holds {describe(checkpoint)}; expected a checkpoint of a model trained by this project or the "
        f"original (it lacks {lacks}). Set MODEL.PRETRAIN_PATH to such a checkpoint; to start training "
        "from ImageNet weights, leave TEST.ONLY_TEST and MODEL.RESUME_TRAINING False and set MODEL.PRETRAINED True."
    )


def count_identities(checkpoint: dict[str, Any]) -> int:
    """The number of training identities of a model: rows of its classifier, or what it was told if it has another."""
    classifier = checkpoint["state_dict"].get("fc_query.weight")
    return int(checkpoint["hyper_parameters"]["num_classes"] if classifier is None else classifier.shape[0])
